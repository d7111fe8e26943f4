import keras
import numpy as np
import oracle
import pytest
from golden import golden_arrays, load_golden
from official_steps import (
    assert_same,
    drawn,
    numpy,
    official_adamw,
    official_sgd,
    trained,
)

from keras_mixer.checkpoints.convert import OFFICIAL, match_names
from keras_mixer.models.mixer import mlp_mixer, model_weights
from keras_mixer.training.optimizers import finetune_optimizer, pretrain_optimizer

EXTRAS = {"accumulation_steps": 2, "ema_momentum": 0.9, "layer_decay": 0.8}


def test_fine_tuning_makes_the_official_steps():
    golden = load_golden("sgd_training")
    config = golden["config"]
    final = golden_arrays(golden, "params")
    names = match_names(final, OFFICIAL)
    weights = oracle.draw_official(
        int(golden["weights_seed"]), {name: v.shape for name, v in final.items()}
    )
    image_shape = config.pop("image_shape")
    model = mlp_mixer(
        **config,
        input_shape=image_shape,
        classifier_activation=None,
        include_preprocessing=False,
    )
    for variable in model.weights:
        variable.assign(weights[names[variable.path]])
    steps, batch_size = golden["labels"].shape
    images = oracle.draw_images(
        int(golden["images_seed"]), steps * batch_size, image_shape
    ).reshape(steps, batch_size, *image_shape)
    model.compile(
        finetune_optimizer(
            total_steps=steps,
            base_learning_rate=float(golden["base_learning_rate"]),
            warmup_steps=int(golden["warmup_steps"]),
            momentum=float(golden["momentum"]),
            clip_norm=float(golden["clip_norm"]),
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    losses, rates = [], []
    for batch, labels in zip(images, golden["labels"], strict=True):
        rates.append(float(numpy(model.optimizer.learning_rate)))
        losses.append(model.train_on_batch(batch, labels))
    np.testing.assert_allclose(rates, golden["learning_rates"], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(losses, golden["losses"], atol=5e-6)
    for path, value in model_weights(model).items():
        np.testing.assert_allclose(value, final[names[path]], atol=2e-6, err_msg=path)


def cosine(step):
    return 0.5 * (1 + np.cos(np.pi * step))


@pytest.mark.parametrize(
    ("total_steps", "warmup_steps", "momentum", "clip_norm"),
    [(7, 0, 0.9, 1.0), (13, 5, 0.0, 0.3), (9, 8, 0.5, None), (21, 1, 0.99, 100.0)],
)
def test_fine_tuning_with_other_numbers(total_steps, warmup_steps, momentum, clip_norm):
    first, gradients = drawn(total_steps)
    found, _ = trained(
        finetune_optimizer(
            total_steps=total_steps,
            base_learning_rate=0.06,
            warmup_steps=warmup_steps,
            momentum=momentum,
            clip_norm=clip_norm,
        ),
        first,
        gradients,
    )
    step = np.arange(total_steps)
    rates = 0.06 * cosine(
        np.maximum(0, (step - warmup_steps) / (total_steps - warmup_steps))
    )
    if warmup_steps:
        rates = rates * np.minimum(1, step / warmup_steps)
    assert_same(found, official_sgd(first, gradients, rates, momentum, clip_norm)[-1])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_pre_training_makes_the_official_steps(schedule):
    """The decay is big_vision's: 1e-4 per step at a peak of 0.001, on kernels."""
    total_steps, warmup_steps = 27, 6
    first, gradients = drawn(total_steps)
    found, _ = trained(
        pretrain_optimizer(
            total_steps=total_steps, warmup_steps=warmup_steps, schedule=schedule
        ),
        first,
        gradients,
    )
    step = np.arange(total_steps)
    progress = np.maximum(0, (step - warmup_steps) / (total_steps - warmup_steps))
    decayed = 1e-5 + (1 - 1e-5) * (1 - progress)
    factors = decayed if schedule == "linear" else cosine(progress)
    rates = 0.001 * factors * np.minimum(1, step / warmup_steps)
    assert_same(found, official_adamw(first, gradients, rates, 1e-4 / 0.001, 1.0))


@pytest.mark.parametrize(
    ("make", "extras"),
    [
        (finetune_optimizer, EXTRAS),
        (pretrain_optimizer, {}),
        pytest.param(finetune_optimizer, {}, marks=pytest.mark.nightly),
        pytest.param(pretrain_optimizer, EXTRAS, marks=pytest.mark.nightly),
    ],
)
def test_training_goes_on_from_a_saved_model(tmp_path, tiny, tiny_images, make, extras):
    model = mlp_mixer(**tiny)
    model.compile(
        make(total_steps=10, warmup_steps=2, **extras),
        "sparse_categorical_crossentropy",
    )
    labels = np.arange(4)
    model.fit(tiny_images, labels, batch_size=2, epochs=3, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, again):
        each.fit(tiny_images, labels, epochs=2, batch_size=2, verbose=0, shuffle=False)
    for now, before in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(now, before, atol=1e-6)


def test_accumulated_batches_train_like_the_whole_batch(tiny, tiny_images):
    weights = []
    for accumulation_steps in (1, 2):
        keras.utils.set_random_seed(0)
        model = mlp_mixer(**tiny, classifier_activation=None)
        model.compile(
            finetune_optimizer(
                total_steps=6,
                warmup_steps=2,
                accumulation_steps=accumulation_steps,
                ema_momentum=0.5,
            ),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        model.fit(
            tiny_images,
            np.arange(4),
            batch_size=4 // accumulation_steps,
            epochs=5,
            shuffle=False,
            verbose=0,
        )
        weights.append(model.get_weights())
    for accumulated, whole in zip(*weights, strict=True):
        np.testing.assert_allclose(accumulated, whole, atol=2e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: finetune_optimizer(total_steps=500), "warmup_steps=500"),
        (
            lambda: pretrain_optimizer(total_steps=9, warmup_steps=1, schedule="step"),
            "schedule='step'",
        ),
        (
            lambda: finetune_optimizer(total_steps=9, warmup_steps=1, momentum=1.0),
            "momentum=1.0",
        ),
        (
            lambda: pretrain_optimizer(
                total_steps=9, warmup_steps=1, accumulation_steps=0
            ),
            "accumulation_steps=0",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
