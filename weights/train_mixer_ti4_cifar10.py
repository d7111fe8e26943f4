"""Train the embedded checkpoint, Mixer-Ti/4 on CIFAR-10, and write its repository.

    KERAS_BACKEND=torch python weights/train_mixer_ti4_cifar10.py \
        --data-dir DIR --output-dir runs/mixer-ti4-cifar10

`DIR` holds CIFAR-10 as TFDS prepares it; without `--data-dir` TFDS downloads it. A run
that was interrupted goes on at its last whole epoch. When the training is over, the
test accuracy is measured once more in float32 and `weights/mixer-ti4-cifar10/` is
written anew: weights, config, and a card with the recipe, the accuracy and versions.

Expect about 140 s an epoch, 70 minutes in all, on two cores of a server CPU with
bfloat16 instructions (torch; TensorFlow and JAX take two to three times as long there).
"""

import argparse
import datetime
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import keras

from keras_mixer import MixerTi4, data, training
from keras_mixer.hub.repository import write_repository
from keras_mixer.labels import CIFAR10_LABELS
from keras_mixer.models.rebuild import rebuilt
from keras_mixer.preprocessing import Preprocessing

BATCH_SIZE = 256
RECIPE = {
    "schedule": "cosine",
    "base_learning_rate": 0.002,
    "warmup_steps": 390,
    "weight_decay": 0.1,
    "label_smoothing": 0.1,
}
MIXUP = 0.2
PAD = 4
STOCHASTIC_DEPTH_RATE = 0.1
REPOSITORY = Path(__file__).parent / "mixer-ti4-cifar10"


def main():
    """Train, measure, publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="folder of TFDS data sets")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--dtype", default="mixed_bfloat16")
    parser.add_argument("--remark", help="one more sentence for the card")
    options = parser.parse_args()

    test = data.from_tfds("cifar10", "test", data_dir=options.data_dir)
    model = train(options, test)
    model.compile(metrics=["accuracy"], loss="categorical_crossentropy")
    batches = data.evaluation_batches(test, image_size=32, batch_size=1000)
    accuracy = model.evaluate(batches, verbose=0, return_dict=True)["accuracy"]
    print(f"Test accuracy in float32: {accuracy:.2%}")
    publish(model, accuracy, options)


def train(options, test):
    """Run the recipe from random weights, or from where it stopped."""
    keras.utils.set_random_seed(0)
    if keras.config.backend() == "torch":
        import torch

        # Tiny gradients become denormal numbers, which cost a CPU several times more.
        torch.set_flush_denormal(True)
    source = data.from_tfds("cifar10", "train", data_dir=options.data_dir)
    model = MixerTi4(
        num_classes=10,
        classifier_activation=None,
        stochastic_depth_rate=STOCHASTIC_DEPTH_RATE,
        dtype=options.dtype,
    )
    model.preprocessing = Preprocessing(transform="resize")
    steps_per_epoch = source.num_examples // BATCH_SIZE
    training.pretrain(
        model,
        source,
        test,
        output_dir=options.output_dir,
        total_steps=options.epochs * steps_per_epoch,
        save_every=steps_per_epoch,
        batch_size=BATCH_SIZE,
        crop="pad",
        pad=PAD,
        mixup=MIXUP,
        resume=True,
        **RECIPE,
    )
    return rebuilt(
        model,
        classifier_activation="softmax",
        dropout_rate=0.0,
        stochastic_depth_rate=0.0,
    )


def publish(model, accuracy, options):
    """Write the repository with what is true of this run."""
    model.labels = CIFAR10_LABELS
    recipe = ", ".join(f"{key} {value}" for key, value in RECIPE.items())
    versions = ", ".join(
        f"{name} {version(name)}"
        for name in ("keras", keras.config.backend(), "tensorflow-datasets")
    )
    shutil.rmtree(REPOSITORY, ignore_errors=True)
    write_repository(
        model,
        REPOSITORY,
        repo_id="keras-mixer/mixer-ti4-cifar10",
        datasets=["uoft-cs/cifar10"],
        metrics={
            "accuracy": f"{accuracy:.2%} top-1 on the 10,000 test images, float32"
        },
        provenance={
            "training": (
                f"from random weights on the 50,000 training images of CIFAR-10, "
                f"{options.epochs} epochs of batches of {BATCH_SIZE}, AdamW "
                f"({recipe}), "
                f"random crop after padding by {PAD} pixels, horizontal flip, mixup "
                f"{MIXUP}, stochastic depth {STOCHASTIC_DEPTH_RATE}, {options.dtype}; "
                "the last epoch's weights, none chosen by the test images."
                + (f" {options.remark}" if options.remark else "")
            ),
            "command": (
                f"`KERAS_BACKEND={keras.config.backend()} python "
                f"weights/train_mixer_ti4_cifar10.py --epochs {options.epochs} "
                f"--dtype {options.dtype}` of the keras_mixer source"
            ),
            "versions": (
                f"{versions}, Python {platform.python_version()}, "
                f"{datetime.date.today()}"
            ),
        },
    )
    print(f"Written: {REPOSITORY}")


if __name__ == "__main__":
    main()
