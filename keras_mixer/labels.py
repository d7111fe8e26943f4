"""What the classes are called, and predictions with their names.

ImageNet's lists are downloaded once; what a model of this package was fine-tuned on
travels with it as `model.labels`.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

IMAGENET1K_ADDRESS = (
    "https://storage.googleapis.com/download.tensorflow.org/data/"
    "imagenet_class_index.json"
)
# The folder of the two lists of the official 21,843 classes.
IMAGENET21K_ADDRESS = "https://storage.googleapis.com/bit_models"

# Of the lines of each file, every one ended by a line feed, so that a list that went
# through another system is the same. The first has the MD5 that Keras pins for
# `keras.applications`; the ids are those that timm publishes as
# `imagenet21k_goog_synsets.txt`, and the lemmas its names of these ids.
SHA256 = {
    "imagenet_class_index.json": (
        "b090d218c425be1c056c8cb9dae307b70e349714712013b5b11265bd2cb9d80a"
    ),
    "imagenet21k_wordnet_ids.txt": (
        "66362bdedf36d933382edca5493fc562dcc17128ce36403c9e730a75f48cb2f2"
    ),
    "imagenet21k_wordnet_lemmas.txt": (
        "860c2ce731aa376d21352403caf83069577a71c26462a618621ccd38ae9c8c7f"
    ),
}
_MAX_SIZE = 2**20  # bytes; the largest list has half as many

CIFAR10_LABELS = tuple(
    "airplane automobile bird cat deer dog frog horse ship truck".split()
)


class Prediction(NamedTuple):
    """One class of a prediction: WordNet id or index, name, and the model's score."""

    class_id: str
    name: str
    score: float


def decode_predictions(
    predictions: Any, labels: str | Iterable[object] | None = None, top: int = 5
) -> list[list[Prediction]]:
    """Return the `top` classes of each image, best first.

    Args:
        predictions: Scores `(batch, classes)`, an array or a tensor.
        labels: As in `label_names`.
        top: Number of classes per image; all of them if there are fewer.

    Returns:
        One list of `Prediction` per image. Characters of a name that steer a terminal
        are escaped, as in `printable`.

    Raises:
        OSError: If a label list cannot be downloaded or is not the published one.
        ValueError: If an argument is out of its range or the labels do not fit.
    """
    if not isinstance(top, Integral) or isinstance(top, bool) or top < 1:
        raise ValueError(f"`top` must be a positive integer. Received: top={top!r}")
    import keras  # slow to import, and not needed for the names of a list

    scores = np.asarray(keras.ops.convert_to_numpy(predictions), "float32")
    if scores.ndim != 2:
        raise ValueError(
            "`predictions` must have the shape (batch, classes). "
            f"Received: shape={scores.shape}. One image is `predictions[None]`."
        )
    names = label_names(labels, scores.shape[1])

    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        [Prediction(names[i][0], printable(names[i][1]), float(row[i])) for i in best]
        for row, best in zip(scores, order, strict=True)
    ]


def printable(text: object) -> str:
    r"""Return a text on one line, without what would steer a terminal.

    Line breaks, escape sequences and marks that turn the direction of writing become
    what Python writes for them, such as `\x1b`.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in str(text)
    )


def label_names(
    labels: str | Iterable[object] | None, num_classes: int
) -> tuple[tuple[str, str], ...]:
    """Return a tuple of `(class_id, name)`, one per class.

    Args:
        labels: `"imagenet1k"`, `"imagenet21k"` (both downloaded once), `"cifar10"`, a
            sequence of names, or `None` for the ImageNet list of 1000 or 21843 classes.
            The id is the WordNet id for ImageNet and the index otherwise.
        num_classes: Number of classes the names must be for.

    Raises:
        OSError: If a label list cannot be downloaded or is not the published one.
        ValueError: If the labels are unknown or not `num_classes`.
    """
    if labels is None:
        labels = {1000: "imagenet1k", 21843: "imagenet21k"}.get(num_classes)
        if labels is None:
            raise ValueError(
                "`labels` can be left out for 1000 classes (ImageNet-1k) and 21843 "
                f"(ImageNet-21k) only. Received: {num_classes} classes. Pass the names "
                'of the classes, or "cifar10" if they are those.'
            )
    if isinstance(labels, str):
        if labels not in _LABEL_LISTS:
            raise ValueError(
                "`labels` must be one name per class, or one of "
                f"{', '.join(map(repr, _LABEL_LISTS))}. Received: labels={labels!r}"
            )
        names = _LABEL_LISTS[labels]()
    else:
        names = _numbered(labels)
    if len(names) != num_classes:
        raise ValueError(
            f"`labels` must have one name per class. Received: {len(names)} names for "
            f"{num_classes} classes"
        )
    return names


def _numbered(names: Iterable[object]) -> tuple[tuple[str, str], ...]:
    return tuple((str(i), str(name)) for i, name in enumerate(names))


def _imagenet1k() -> tuple[tuple[str, str], ...]:
    index = json.loads("".join(_read_lines(IMAGENET1K_ADDRESS)))
    pairs = (index[str(i)] for i in range(1000))
    return tuple((wordnet_id, name) for wordnet_id, name in pairs)


def _imagenet21k() -> tuple[tuple[str, str], ...]:
    ids, lemmas = (
        _read_lines(f"{IMAGENET21K_ADDRESS}/imagenet21k_wordnet_{kind}.txt")
        for kind in ("ids", "lemmas")
    )
    return tuple(zip(ids, lemmas, strict=True))


_LABEL_LISTS = {
    "imagenet1k": _imagenet1k,
    "imagenet21k": _imagenet21k,
    "cifar10": lambda: _numbered(CIFAR10_LABELS),
}


def _read_lines(address: str) -> list[str]:
    """Return the lines of the list at `address`, downloaded once."""
    name = address.rsplit("/", 1)[1]
    cache = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    path = cache / "keras_mixer" / name
    if not path.exists():
        _download(address, path)
    # Somebody may have put it there: what is wrong is refused, and stays.
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        with open(path, "rb") as file:
            lines = file.read(_MAX_SIZE).decode().splitlines()
    except ValueError as error:
        raise _other_list(path, address, str(error)) from error
    digest = hashlib.sha256("".join(f"{line}\n" for line in lines).encode())
    if (actual := digest.hexdigest()) != SHA256[name]:
        raise _other_list(path, address, f"the sha256 of its lines is {actual}")
    return lines


def _other_list(path: Path, address: str, reason: str) -> OSError:
    return OSError(
        f"The label list {path} is not the published one: {reason}. Delete it, and it "
        f"is downloaded again from {address}"
    )


def _download(address: str, path: Path) -> None:
    by_hand = f"fetch {address} elsewhere and put it at {path}"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ConnectionError(
            f"There is no label list {path}, and HF_HUB_OFFLINE forbids the "
            f"download. Unset HF_HUB_OFFLINE, or {by_hand}"
        )
    import keras

    # An absolute `cache_subdir` is the whole place. The file gets its name at the end:
    # a download that was killed leaves nothing that could be taken for the list.
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        keras.utils.get_file(part.name, address, cache_subdir=str(part.parent))
        os.replace(part, path)
    except Exception as error:  # `get_file` raises bare exceptions
        raise ConnectionError(
            f"Could not download {address} ({error}). Without a connection, {by_hand}"
        ) from error
    finally:
        part.unlink(missing_ok=True)
