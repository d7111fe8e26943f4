"""Fine-tune on a TPU VM with TensorFlow's own strategy, in plain `compile` and `fit`.

    pip install tensorflow-tpu==2.20.0 libtpu==0.0.21 'keras-mixer[data]'
    KERAS_BACKEND=tensorflow python examples/tpu_tensorflow.py

TensorFlow for TPU ends at 2.20, and the newest libtpu aborts under it. The rest is
Keras: build and compile inside `scope()`, full batches, bfloat16, several steps in one.
`--devices mirrored` runs the script on GPUs or a CPU.
"""

import argparse

import keras

import keras_mixer
from keras_mixer import data, distribution


def main():
    """Train on batches of tf.data, evaluate on all test images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", default="tpu", help="tpu:NAME, or mirrored")
    parser.add_argument("--data-dir", help="where TFDS has prepared it")
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()

    devices = distribution.start(options.devices)  # before anything else
    train = data.from_tfds("cifar10", "train", data_dir=options.data_dir)
    test = data.from_tfds("cifar10", "test", data_dir=options.data_dir)
    on_tpu = options.devices.startswith("tpu")
    with devices.scope():
        model = keras_mixer.MixerTi4(
            weights="cifar10",
            classifier_activation=None,
            dtype="mixed_bfloat16" if on_tpu else None,
        )
        model.compile(
            keras_mixer.training.finetune_optimizer(
                total_steps=options.steps, warmup_steps=options.steps // 10
            ),
            keras.losses.CategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            steps_per_execution=10 if on_tpu else 1,
        )
    batches = data.training_batches(train, image_size=32, batch_size=512)
    devices.fit(model, batches, steps_per_epoch=options.steps, shuffle=False)
    batches = data.evaluation_batches(test, image_size=32, batch_size=500)
    found = devices.evaluate(model, batches, return_dict=True)
    print(f"accuracy on the test images: {found['accuracy']:.2%}")


if __name__ == "__main__":
    main()
