"""The published weights: one frozen record per file, and where the file is found.

A record says all that the file itself does not: which model it is for, how its images
are prepared, which form of GELU it was trained with, where it comes from and what is
known of its accuracy.
"""

from dataclasses import dataclass
from pathlib import Path

from keras_mixer.labels import CIFAR10_LABELS
from keras_mixer.preprocessing import Preprocessing


@dataclass(frozen=True)
class Checkpoint:
    """One published file of weights.

    Attributes:
        name: What `weights=` takes, for example `"cifar10"`.
        variant: The model it belongs to, for example `"Ti/4"`.
        origin: Who trained it on what.
        num_classes: Width of its head.
        image_size: Edge of the square images it was trained on, in pixels.
        preprocessing: How its images are prepared.
        approximate_gelu: Tanh form of GELU (`True`) or the exact one.
        licence: SPDX identifier.
        accuracy: Published top-1 accuracy with its source, or "not published".
        labels: One name per class, or `None` where `decode_predictions` knows them by
            their number.
        embedded: Folder of the package that holds it.
    """

    name: str
    variant: str
    origin: str
    num_classes: int
    image_size: int
    preprocessing: Preprocessing
    approximate_gelu: bool
    licence: str
    accuracy: str
    labels: tuple[str, ...] | None
    embedded: str


_CHECKPOINTS = (
    Checkpoint(
        name="cifar10",
        variant="Ti/4",
        origin="keras_mixer, trained from scratch on CIFAR-10",
        num_classes=10,
        image_size=32,
        preprocessing=Preprocessing(transform="resize"),
        approximate_gelu=True,
        licence="Apache-2.0",
        accuracy="TODO",
        labels=CIFAR10_LABELS,
        embedded="mixer-ti4-cifar10",
    ),
)


def list_checkpoints(variant=None):
    """Return the records of all published checkpoints, or of one variant (`"B/16"`)."""
    return tuple(
        checkpoint
        for checkpoint in _CHECKPOINTS
        if variant in (None, checkpoint.variant)
    )


def find_checkpoint(variant, name):
    """Return the record of a checkpoint.

    Raises:
        ValueError: If the variant has no checkpoint of that name; the message lists
            those it has.
    """
    names = [checkpoint.name for checkpoint in list_checkpoints(variant)]
    if name in names:
        return list_checkpoints(variant)[names.index(name)]
    elsewhere = [c.variant for c in list_checkpoints() if c.name == name]
    raise ValueError(
        f"Mixer-{variant} has no checkpoint of that name. Received: weights={name!r}. "
        f"It has {', '.join(map(repr, names)) if names else 'none'}"
        + (f"; {name!r} exists for {', '.join(elsewhere)}" if elsewhere else "")
        + ". `weights` may also be the path of an official .npz, a timm .safetensors "
        "or a .weights.h5 of this package."
    )


def weights_path(checkpoint):
    """Return the path of the checkpoint's weights on this machine.

    Raises:
        FileNotFoundError: If the package was installed without it.
    """
    package = Path(__file__).parent
    # In the wheel the folder lies inside the package, in a checkout beside it.
    for folder in (package / "embedded", package.parent / "weights"):
        path = folder / checkpoint.embedded / "model.weights.h5"
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"The embedded checkpoint {checkpoint.embedded} is missing from this "
        "installation. Install keras-mixer again."
    )
