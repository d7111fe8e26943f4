"""The command `demo`: the main job on real data, offline.

The embedded checkpoint is fine-tuned on scikit-learn's 1797 handwritten digits (8 x 8
pixels, enlarged to the model's 32 x 32). The pretrained model and the same model from
random weights get the same images, steps and optimizer.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from keras_mixer.cli.arguments import add_command, path_of
from keras_mixer.cli.early_checks import (
    check_backend,
    check_packages,
    check_writable,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from keras_mixer.cli.arguments import Commands
    from keras_mixer.models import MLPMixer

    Examples = tuple[NDArray[np.float32], NDArray[np.int64]]

EPOCHS = 3
BATCH_SIZE = 32
# 1440 digits are left to train: whole batches, so that nothing is compiled twice.
_NUM_TEST = 357
LABELS = tuple(str(digit) for digit in range(10))


def add(commands: "Commands") -> None:
    """Add the command to the command line."""
    command = add_command(
        commands,
        "demo",
        _demo,
        "fine-tune the embedded checkpoint on digits, offline",
        examples=("demo", "demo --output somewhere/"),
        check=_check,
    )
    command.add_argument(
        "--output",
        type=path_of,
        default=Path("keras-mixer-demo"),
        metavar="FOLDER",
        help="for the model and the pictures (default: %(default)s)",
    )


def _check(options: argparse.Namespace) -> None:
    check_writable(options.output, "--output", folder=True)
    check_packages("The demo", "demo", "scikit-learn", "matplotlib", "pillow")
    check_backend()


def _demo(options: argparse.Namespace) -> None:
    run(options.output)


def load_digits(model: "MLPMixer", seed: int = 0) -> "tuple[Examples, Examples]":
    """Return `(train_images, train_labels), (test_images, test_labels)`.

    Four fifths of each digit train, the rest test. Images are what `model` takes.
    """
    from keras_mixer.models import preprocess

    (train, train_labels), (test, test_labels) = _split_digits(seed)
    return (
        (preprocess(list(train), model), train_labels),
        (preprocess(list(test), model), test_labels),
    )


def _split_digits(seed: int = 0) -> "tuple[Examples, Examples]":
    """Return what `load_digits` does, at the digits' own 8 x 8 pixels."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).astype("float32")
    train, test = train_test_split(
        np.arange(len(pixels)),
        test_size=_NUM_TEST,
        stratify=digits.target,
        random_state=seed,
    )
    return (
        (pixels[train], digits.target[train]),
        (pixels[test], digits.target[test]),
    )


def run(output_dir: str | Path, *, epochs: int = EPOCHS) -> Mapping[str, float]:
    """Fine-tune, compare, save, load again, and draw; print what comes out.

    Writes `model.keras`, `predictions.png`, `training.png`, `token_mixing.png` and
    `stem.png` into `output_dir`.

    Returns:
        Test accuracies by name, `{"pretrained": ..., "from scratch": ...}`.

    Raises:
        RuntimeError: If the saved model predicts anything else than the trained one.
    """
    import keras
    import numpy as np

    from keras_mixer import visualize
    from keras_mixer.models import MixerTi4

    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    print(f"Keras {keras.version()} on {keras.config.backend()}")

    # One model is trained from both starts, so that its step is compiled once.
    model = MixerTi4(num_classes=10, name="digits")
    pretrained = MixerTi4(weights="cifar10", num_classes=0)
    from_scratch = model.get_weights()
    starts = {
        "from scratch": from_scratch,
        # A new head, as the paper's: the other ten classes say nothing of digits.
        "pretrained": [*pretrained.get_weights(), *from_scratch[-2:]],
    }
    print(f"MixerTi4: {model.count_params():,} parameters")
    train, test = load_digits(model)
    print(f"Handwritten digits: {len(train[0])} to train, {len(test[0])} to test\n")

    filters = {
        "token_mixing.png": visualize.token_mixing_filters(pretrained),
        "stem.png": visualize.stem_filters(pretrained),
    }
    _compile(model, steps_per_epoch=len(train[0]) // BATCH_SIZE, epochs=epochs)
    histories, accuracies = {}, {}
    for name, weights in starts.items():
        print(f"Fine-tuning, {name}:")
        histories[name] = _finetune(model, weights, train, test, epochs)
        accuracies[name] = histories[name]["val_accuracy"][-1]
    print("\nTest accuracy after the same budget:")
    for name, accuracy in accuracies.items():
        print(f"  {name:<13}{accuracy:7.2%}")

    model.labels = LABELS
    scores = keras.ops.convert_to_numpy(model(test[0]))
    model.save(output_dir / "model.keras")
    again = keras.saving.load_model(output_dir / "model.keras")
    repeated = keras.ops.convert_to_numpy(again(test[0]))
    difference = np.abs(repeated - scores).max()
    if difference > 1e-6:
        raise RuntimeError(
            f"The loaded model's predictions differ by {difference:.1e}."
        )
    print(f"\nSaved and loaded again: predictions differ by at most {difference:.1e}")

    pictures = (
        filters
        | {
            "training.png": visualize.training_curves(histories),
            "predictions.png": visualize.predictions(
                _split_digits()[1][0][:12],  # not as enlarged for the model
                scores[:12],
                LABELS,
                true_labels=test[1][:12].tolist(),
            ),
        }
    )
    for file_name, figure in pictures.items():
        visualize.save(figure, output_dir / file_name)
    print("Written:")
    for path in sorted(output_dir.iterdir()):
        print(f"  {path}")
    return accuracies


def _compile(model: "MLPMixer", *, steps_per_epoch: int, epochs: int) -> None:
    """Compile the model with the official fine-tuning optimizer."""
    from keras_mixer.training import finetune_optimizer

    model.compile(
        optimizer=finetune_optimizer(
            total_steps=epochs * steps_per_epoch, warmup_steps=steps_per_epoch // 2
        ),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)


def _finetune(
    model: "MLPMixer",
    weights: "list[NDArray[np.float32]]",
    train: "Examples",
    test: "Examples",
    epochs: int,
) -> dict[str, list[float]]:
    """Train the whole compiled model from `weights` and the optimizer's first step.

    Returns:
        `step`, `loss` and `accuracy` of five points per epoch, each a mean over the
        steps since the point before; `val_loss` and `val_accuracy`, NaN between the
        ends of epochs.
    """
    import numpy as np

    from keras_mixer.cli.demo_curve import Curve

    model.set_weights(weights)
    for variable in model.optimizer.variables:  # its momentum and its count of steps
        variable.assign(np.zeros(variable.shape))
    curve = Curve(interval=max(1, len(train[0]) // BATCH_SIZE // 5))
    model.fit(
        *train,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        validation_data=test,
        validation_batch_size=len(test[0]),
        callbacks=[curve],
        verbose=1,
    )
    return curve.history
