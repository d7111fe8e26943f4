"""Images and predictions of any Keras model that holds a Mixer."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_mixer.labels import Prediction
from keras_mixer.labels import decode_predictions as decode_by_names
from keras_mixer.models.find_mixer import find_mixer
from keras_mixer.preprocessing import prepare_images


def preprocess(images: Any, model_or_checkpoint: Any) -> NDArray[np.float32]:
    """Return images as the batch of pixels that a model takes.

    Each image is resized and cropped as the checkpoint's record says. Values stay in
    [0, 255] where the model normalises inside. Where it does not, they are mapped to
    the record's `value_range`. They are whole grey levels for records of timm, and not
    rounded for the others (the official code truncates them, less than one grey level
    away).

    Args:
        images: A path to a file or to a folder (see `list_images`), a PIL image, an
            array `(height, width)`, `(height, width, channels)` or
            `(batch, height, width, channels)`, or a list of files, PIL images and
            arrays of any sizes. Values in [0, 255]. Grey images become RGB for a model
            of 3 channels. Files are turned upright and lose their alpha channel: what
            is transparent keeps the colour below it, so that a black drawing on a
            transparent ground is all black. Of 16 bits only the upper eight are used.
        model_or_checkpoint: A Keras model that is a Mixer or holds one at any depth
            (see `models.find_mixer`), or a checkpoint's record.

    Returns:
        Float32 array `(batch, height, width, channels)`.

    Raises:
        FileNotFoundError: If a path does not exist.
        ImportError: If a file is to be read and Pillow is not installed.
        ValueError: If there is no Mixer in the model; there is no image, a file is not
            an image, or an array has values outside [0, 255], values that look scaled
            to [0, 1] already, NaNs or a wrong number of channels.
    """
    target = model_or_checkpoint
    if isinstance(target, keras.Model):
        found = find_mixer(target)
        return prepare_images(
            images, found.preprocessing, found.image_shape, found.value_range
        )
    if hasattr(target, "preprocessing") and hasattr(target, "image_size"):
        shape = (target.image_size, target.image_size, 3)
        return prepare_images(images, target.preprocessing, shape)
    raise ValueError(
        "`model_or_checkpoint` must be a Keras model or a checkpoint's record. "
        f"Received: {target!r}"
    )


def decode_predictions(
    predictions: Any,
    labels: Sequence[str] | str | keras.Model | None = None,
    top: int = 5,
) -> list[list[Prediction]]:
    """Return the `top` classes of each image, best first.

    Args:
        predictions: Scores `(batch, classes)`, an array or a tensor.
        labels: One name per class; `"imagenet1k"`, `"imagenet21k"` or `"cifar10"`;
            the model that made the predictions, for its own names; `None` for the
            ImageNet list of 1000 or 21843 classes.
        top: Number of classes per image; all of them if there are fewer.

    Returns:
        One list of `Prediction` per image.

    Raises:
        OSError: If a label list cannot be downloaded or is damaged.
        ValueError: If an argument is out of its range or the labels do not fit.
    """
    if isinstance(labels, keras.Model):
        labels = find_mixer(labels).labels
    return decode_by_names(predictions, labels, top)
