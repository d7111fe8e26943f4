"""What the classes are called, and predictions with their names.

ImageNet's lists are downloaded once; what a model of this package was fine-tuned on
travels with it as `model.labels`.
"""

import json
import os
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import numpy as np

IMAGENET1K_ADDRESS = (
    "https://storage.googleapis.com/download.tensorflow.org/data/"
    "imagenet_class_index.json"
)
# The folder of the two lists of the official 21,843 classes.
IMAGENET21K_ADDRESS = "https://storage.googleapis.com/bit_models"

CIFAR10_LABELS = tuple(
    "airplane automobile bird cat deer dog frog horse ship truck".split()
)


class Prediction(NamedTuple):
    """One class of a prediction: WordNet id or index, name, and the model's score."""

    class_id: str
    name: str
    score: float


def decode_predictions(predictions, labels=None, top=5):
    """Return the `top` classes of each image, best first.

    Args:
        predictions: Scores `(batch, classes)`, an array or a tensor.
        labels: As in `label_names`.
        top: Number of classes per image; all of them if there are fewer.

    Returns:
        One list of `Prediction` per image.

    Raises:
        OSError: If a label list cannot be downloaded or is damaged.
        ValueError: If an argument is out of its range or the labels do not fit.
    """
    import keras

    if not isinstance(top, Integral) or isinstance(top, bool) or top < 1:
        raise ValueError(f"`top` must be a positive integer. Received: top={top!r}")
    scores = np.asarray(keras.ops.convert_to_numpy(predictions), "float32")
    if scores.ndim != 2:
        raise ValueError(
            "`predictions` must have the shape (batch, classes). "
            f"Received: shape={scores.shape}. One image is `predictions[None]`."
        )
    names = label_names(labels, scores.shape[1])

    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        [Prediction(*names[i], float(row[i])) for i in best]
        for row, best in zip(scores, order, strict=True)
    ]


def label_names(labels, num_classes):
    """Return a tuple of `(class_id, name)`, one per class.

    Args:
        labels: `"imagenet1k"`, `"imagenet21k"` (both downloaded once), `"cifar10"`, a
            sequence of names, or `None` for the ImageNet list of 1000 or 21843 classes.
            The id is the WordNet id for ImageNet and the index otherwise.
        num_classes: Number of classes the names must be for.

    Raises:
        OSError: If a label list cannot be downloaded or is damaged.
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


def _numbered(names):
    return tuple((str(i), str(name)) for i, name in enumerate(names))


def _imagenet1k():
    def parse(text):
        index = json.loads(text)
        pairs = (index[str(i)] for i in range(1000))
        return tuple((wordnet_id, name) for wordnet_id, name in pairs)

    return _read_list(IMAGENET1K_ADDRESS, parse)


def _imagenet21k():
    def parse(text):
        lines = text.splitlines()
        if len(lines) != 21843:
            raise ValueError(f"{len(lines)} lines where 21843 should be")
        return lines

    ids, lemmas = (
        _read_list(f"{IMAGENET21K_ADDRESS}/imagenet21k_wordnet_{kind}.txt", parse)
        for kind in ("ids", "lemmas")
    )
    return tuple(zip(ids, lemmas, strict=True))


_LABEL_LISTS = {
    "imagenet1k": _imagenet1k,
    "imagenet21k": _imagenet21k,
    "cifar10": lambda: _numbered(CIFAR10_LABELS),
}


def _read_list(address, parse):
    """Return `parse(text)` of the file at `address`, downloaded once."""
    cache = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    path = cache / "keras_mixer" / address.rsplit("/", 1)[1]
    if not path.is_file():
        path = _download(address, path)
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (KeyError, TypeError, ValueError) as error:
        path.unlink()
        raise OSError(
            f"The label list {path} was damaged ({error}) and has been deleted. "
            f"Run again to download it from {address}"
        ) from error


def _download(address, path):
    import keras

    try:
        # An absolute `cache_subdir` is the whole place.
        return Path(
            keras.utils.get_file(path.name, address, cache_subdir=str(path.parent))
        )
    except Exception as error:  # `get_file` raises bare exceptions
        raise ConnectionError(
            f"Could not download {address} ({error}). Without a connection, fetch the "
            f"file elsewhere and put it at {path}"
        ) from error
