"""Train the embedded checkpoint, Mixer-Ti/4 on CIFAR-10, and write its repository.

    KERAS_BACKEND=torch python weights/train_mixer_ti4_cifar10.py \
        --data-dir DIR --teacher runs/teacher.xml \
        --output-dir runs/mixer-ti4-cifar10 --dtype mixed_bfloat16

`DIR` holds CIFAR-10 as TFDS prepares it; without `--data-dir` TFDS downloads it. The
teacher is the network of `train_teacher_cifar10.py`. The model first learns from the
labels alone, in the folder `labels`, then from labels and teacher, in `distilled`.

The last 2,000 training images are the development split: `log.csv` has the accuracy on
them after each epoch, and the test images are seen once, when the training is over.
Then `weights/mixer-ti4-cifar10/` is written anew: weights, config, and a card with the
recipe, the accuracies and versions. A run that was interrupted goes on at its last
whole epoch. The published runs took 105 and 103 minutes on two cores with bfloat16
units.

The recipe is that of small data sets and short runs, not the paper's: Muon, more
augmentation, a mean of the weights, and a convolutional teacher.
"""

import argparse
import datetime
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import keras

from keras_mixer import MixerTi4, data, export, training
from keras_mixer.hub.repository import write_repository
from keras_mixer.labels import CIFAR10_LABELS
from keras_mixer.models.rebuild import rebuilt
from keras_mixer.preprocessing import Preprocessing

EPOCHS = 34
DISTILLED_EPOCHS = 30
BATCH_SIZE = 128
WARMUP_EPOCHS = 2
TRAINING_SPLIT = "train[:48000]"
DEVELOPMENT_SPLIT = "train[48000:]"
LEARNING_RATE = 0.006
LABEL_SMOOTHING = 0.1
DISTILLATION_WEIGHT = 0.8
DISTILLATION_TEMPERATURE = 2.0
MUON = {
    "weight_decay": 0.05,  # of the matrices, per unit of learning rate
    "adam_weight_decay": None,
    # The head, like the stem and the vectors, is trained by Adam.
    "exclude_layers": ["head"],
    "use_ema": True,
    "ema_momentum": 0.999,
}
AUGMENTATION = data.Augmentation(
    crop="pad",
    pad=4,
    # One operation of magnitude 9; pixels as for images of 32, not of 224.
    randaugment=(1, 9, 32 / 224),
    mixup=0.2,
    cutmix=1.0,
)
REPOSITORY = Path(__file__).parent / "mixer-ti4-cifar10"


def main():
    """Train, measure, publish."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="folder of TFDS data sets")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--teacher", required=True, help="exported file")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--distilled-epochs", type=int, default=DISTILLED_EPOCHS)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--remark", help="one more sentence for the card")
    options = parser.parse_args()

    model = train(options)
    development = accuracy(model, DEVELOPMENT_SPLIT, options)
    test = accuracy(model, "test", options)
    print(f"Accuracy in float32: development {development:.2%}, test {test:.2%}")
    publish(model, development, test, options)


def train(options):
    """Run both parts of the recipe, from random weights or from where they stopped."""
    keras.utils.set_random_seed(0)
    if keras.config.backend() == "torch":
        import torch

        # Tiny gradients become denormal numbers, which cost a CPU several times more.
        torch.set_flush_denormal(True)
    model = MixerTi4(num_classes=10, classifier_activation=None, dtype=options.dtype)
    model.preprocessing = Preprocessing(transform="resize")
    teacher = export.load(options.teacher)  # before the hours that do without it
    label_loss = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=LABEL_SMOOTHING
    )
    fit(model, "labels", label_loss, options.epochs, options)
    loss = training.DistillationLoss(
        label_loss, DISTILLATION_WEIGHT, DISTILLATION_TEMPERATURE
    )
    fit(model, "distilled", loss, options.distilled_epochs, options, teacher)
    return rebuilt(model, classifier_activation="softmax")


def fit(model, name, loss, epochs, options, teacher=None):
    """Train `model` in the folder `name`, from the weights that it has."""
    source, development = (
        data.from_tfds("cifar10", split, data_dir=options.data_dir)
        for split in (TRAINING_SPLIT, DEVELOPMENT_SPLIT)
    )
    steps_per_epoch = source.num_examples // BATCH_SIZE
    total_steps = epochs * steps_per_epoch
    learning_rate = training.warmup_schedule(
        total_steps=total_steps,
        base_learning_rate=LEARNING_RATE,
        warmup_steps=WARMUP_EPOCHS * steps_per_epoch,
        schedule="cosine",
    )
    metric = training.LabelAccuracy("accuracy") if teacher else "accuracy"
    model.compile(
        optimizer=keras.optimizers.Muon(learning_rate, **MUON),
        loss=loss,
        metrics=[metric],
        jit_compile=True,
    )
    training.fit(
        model,
        source,
        development,
        options=training.RunOptions(
            output_dir=options.output_dir / name,
            total_steps=total_steps,
            batch_size=BATCH_SIZE,
            save_every=steps_per_epoch,
            resume=True,
        ),
        augmentation=AUGMENTATION,
        teacher=teacher,
    )


def accuracy(model, split, options):
    """Return the share of the images of `split` that `model` classifies correctly."""
    source = data.from_tfds("cifar10", split, data_dir=options.data_dir)
    batches = data.evaluation_batches(source, image_size=32, batch_size=1000)
    model.compile(metrics=["accuracy"], loss="categorical_crossentropy")
    return model.evaluate(batches, verbose=0, return_dict=True)["accuracy"]


def publish(model, development, test, options):
    """Write the repository with what is true of this run."""
    model.labels = CIFAR10_LABELS
    layers, magnitude, pixel_scale = AUGMENTATION.randaugment
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
            "accuracy": (
                f"{test:.2%} top-1 on the 10,000 test images, {development:.2%} on the "
                "2,000 of the development split, float32"
            )
        },
        provenance={
            "training": (
                "from random weights on the first 48,000 training images of CIFAR-10, "
                f"in batches of {BATCH_SIZE}: {options.epochs} epochs with the labels, "
                f"then {options.distilled_epochs} with labels and a teacher (weight "
                f"{DISTILLATION_WEIGHT}, temperature {DISTILLATION_TEMPERATURE}), a "
                "convolutional network trained on the same images. Each time Muon for "
                f"the matrices of the blocks and Adam for the rest (peak learning rate "
                f"{LEARNING_RATE}, {WARMUP_EPOCHS} epochs of warm-up, cosine decay, "
                f"weight decay {MUON['weight_decay']} of the matrices, weights "
                f"averaged with momentum {MUON['ema_momentum']}), label smoothing "
                f"{LABEL_SMOOTHING}, random crop after padding by {AUGMENTATION.pad} "
                f"pixels, horizontal flip, RandAugment ({layers} operation of "
                f"magnitude {magnitude}, pixels times {pixel_scale:.3f}), mixup "
                f"{AUGMENTATION.mixup} or CutMix {AUGMENTATION.cutmix} by batch, "
                f"{options.dtype}; the averaged weights after the last epoch, none "
                "chosen by the test images."
                + (f" {options.remark}" if options.remark else "")
            ),
            "command": (
                "`KERAS_BACKEND=tensorflow python weights/train_teacher_cifar10.py "
                f"--dtype {options.dtype} --output teacher.xml`, then "
                f"`KERAS_BACKEND={keras.config.backend()} python "
                f"weights/train_mixer_ti4_cifar10.py --epochs {options.epochs} "
                f"--distilled-epochs {options.distilled_epochs} --teacher teacher.xml "
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
