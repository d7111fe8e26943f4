"""Train ours and the official Flax code from one start on the same CIFAR-10 batches.

    KERAS_BACKEND=jax python examples/benchmark/train_beside_flax.py --steps 50

needs the extras jax, data and benchmark, and that of the backend. Both take the
official fine-tuning step: softmax cross-entropy, SGD with momentum, gradients clipped
to norm 1, linear warm-up, cosine decay. Prints how far the two loss curves are apart,
and both accuracies on the test images.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from flax_mixer import MlpMixer

from keras_mixer import data, mlp_mixer, save_official, training
from keras_mixer.variants import parse_variant


def main():
    """Make the same steps twice and compare."""
    options = _options()
    train, test_source = (
        data.open_source("cifar10", split, data_dir=options.data_dir)
        for split in ("train", "test")
    )
    size = options.image_size
    batches = data.training_batches(
        train,
        image_size=size,
        batch_size=options.batch_size,
        crop="pad",
        seed=options.seed,
    )
    test = data.evaluation_batches(test_source, image_size=size, batch_size=250)

    keras.utils.set_random_seed(options.seed)
    sizes = parse_variant(options.variant).sizes
    model = mlp_mixer(
        **sizes,
        input_shape=(size, size, 3),
        num_classes=train.num_classes,
        classifier_activation=None,
    )
    model.compile(
        training.finetune_optimizer(
            total_steps=options.steps,
            base_learning_rate=options.learning_rate,
            warmup_steps=_warmup(options),
        ),
        keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    mixer = MlpMixer(**sizes, num_classes=train.num_classes)
    state, step, logits = _official(mixer, _official_weights(model), options)

    ours, theirs = [], []
    for images, labels in batches.take(options.steps).as_numpy_iterator():
        model.reset_metrics()
        ours.append(float(model.train_on_batch(images, labels)))
        state, loss = step(state, images, labels)
        theirs.append(float(loss))
    print(
        f"{options.variant}, batches of {options.batch_size}, official and ours on "
        f"{keras.config.backend()}: first loss {theirs[0]:.4f}, last {theirs[-1]:.4f}"
    )
    apart = np.abs(np.subtract(ours, theirs))
    for end in sorted({min(n, options.steps) for n in (10, 50, 100, options.steps)}):
        largest = apart[:end].max()
        print(f"losses of the first {end} steps differ by at most {largest:.2g}")
    right = np.zeros(2)
    for images, labels in test.as_numpy_iterator():
        scores = model.predict_on_batch(images), logits(state[0], images)
        right += (np.argmax(scores, -1) == labels.argmax(-1)).sum(axis=-1)
    accuracies = right / test_source.num_examples
    print(f"test images: ours {accuracies[0]:.2%}, official {accuracies[1]:.2%}")


def _official_weights(model):
    """Return the weights under their official names."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        save_official(model, path)
        with np.load(path) as file:
            return dict(file)


def _official(mixer, weights, options):
    """Return the first state, and the step and the scores of `vit_jax/train.py`."""

    def logits(params, images):
        return mixer.apply({"params": params}, images / 127.5 - 1)

    def rate(step):  # vit_jax/utils.py, create_learning_rate_schedule
        warmup, total = _warmup(options), options.steps
        progress = jnp.clip((step - warmup) / (total - warmup), 0, 1)
        decay = 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return options.learning_rate * decay * jnp.minimum(1, step / warmup)

    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.sgd(rate, momentum=0.9)
    )

    @jax.jit
    def step(state, images, labels):
        def loss(params):
            scores = logits(params, images)
            return optax.softmax_cross_entropy(scores, labels).mean()

        params, slots = state
        value, gradients = jax.value_and_grad(loss)(params)
        updates, slots = optimizer.update(gradients, slots)
        return (optax.apply_updates(params, updates), slots), value

    params = unflatten_dict(weights, sep="/")
    return (params, optimizer.init(params)), step, jax.jit(logits)


def _warmup(options):
    return max(options.steps // 5, 1)


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="Ti/4")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.03)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", help="where TFDS has prepared CIFAR-10")
    return parser.parse_args()


if __name__ == "__main__":
    main()
