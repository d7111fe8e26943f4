"""Train the convolutional network that teaches the embedded checkpoint.

    KERAS_BACKEND=tensorflow python weights/train_teacher_cifar10.py \
        --data-dir DIR --output runs/teacher.xml --dtype mixed_bfloat16

A small residual network, trained on the 48,000 images that its student is trained on,
and measured on the 2,000 of the development split after each epoch; it never sees the
test images. The output is an OpenVINO file, which computes in bfloat16 on processors
that have it. The published run ended at 88.1 % of the development split, after 24
minutes on two cores.
"""

import argparse

import keras
from keras import layers

from keras_mixer import data, training

# Epochs, peak learning rate and share of the warm-up: the rate rises and falls twice.
CYCLES = ((11, 0.1, 0.2), (7, 0.12, 0.07))
BATCH_SIZE = 128
WIDTHS = (64, 128, 256)


def convolutional_network():
    """Return the network: a stem, then one residual block per width and resolution."""
    inputs = keras.Input((32, 32, 3))  # pixels in [0, 255]
    x = layers.Rescaling(1 / 63, offset=-2.0)(inputs)
    x = layers.Conv2D(24, 2, activation="relu")(x)
    for width in WIDTHS:
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.MaxPooling2D(2)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = shortcut = layers.Activation("relu")(x)
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.Add()([layers.Activation("relu")(x), shortcut])
    x = layers.GlobalMaxPooling2D(dtype="float32")(x)
    return keras.Model(inputs, layers.Dense(10, dtype="float32")(x))


def train(model, source, development):
    """Train through all cycles."""
    steps_per_epoch = source.num_examples // BATCH_SIZE
    for seed, (epochs, learning_rate, warmup) in enumerate(CYCLES):
        total_steps = epochs * steps_per_epoch
        schedule = training.warmup_schedule(
            total_steps=total_steps,
            base_learning_rate=learning_rate,
            warmup_steps=int(warmup * total_steps),
            schedule="linear",
        )
        model.compile(
            optimizer=keras.optimizers.SGD(
                schedule, momentum=0.9, nesterov=True, weight_decay=5e-3
            ),
            loss=keras.losses.CategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=False,  # TensorFlow's own bfloat16 kernels are faster on CPUs
        )
        batches = data.training_batches(
            source,
            image_size=32,
            batch_size=BATCH_SIZE,
            augmentation=data.Augmentation(crop="pad", pad=4),
            seed=seed,
        )
        model.fit(
            batches,
            steps_per_epoch=steps_per_epoch,
            epochs=epochs,
            validation_data=development,
            shuffle=False,  # the stream is
            verbose=2,
        )


def main():
    """Train and export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="folder of TFDS data sets")
    parser.add_argument("--output", required=True, help="file that ends in .xml")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()

    source, development = (
        data.from_tfds("cifar10", split, data_dir=options.data_dir)
        for split in ("train[:48000]", "train[48000:]")
    )
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(options.dtype)
    model = convolutional_network()
    measured = data.evaluation_batches(development, image_size=32, batch_size=500)
    train(model, source, measured)
    keras.config.set_dtype_policy("float32")
    in_float32 = convolutional_network()
    in_float32.set_weights(model.get_weights())
    in_float32.export(options.output, format="openvino")
    print(f"Written: {options.output}")


if __name__ == "__main__":
    main()
