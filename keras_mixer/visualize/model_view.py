"""One image twice: as a model takes it, and as a person sees it."""

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_mixer.models import MLPMixer, preprocess
from keras_mixer.preprocessing import Preprocessing, decode_image
from keras_mixer.visualize.figure import to_float, to_picture

# (left, right, bottom, top) of a part of a picture, in pixels from its upper left.
Region = tuple[float, float, float, float]


def _is_input(model: MLPMixer, image: Any) -> bool:
    return tuple(getattr(image, "shape", ())) == tuple(model.input_shape[1:])


def as_input(model: MLPMixer, image: Any) -> NDArray[np.float32]:
    """Return an image as the model takes it, `(height, width, channels)`."""
    if _is_input(model, image):
        return np.asarray(keras.ops.convert_to_numpy(image), "float32")
    return preprocess([image], model)[0]


def as_seen(model: MLPMixer, image: Any) -> tuple[NDArray[np.float64], Region]:
    """Return the picture in [0, 1], and the part of it that the model sees."""
    record: Preprocessing = model.preprocessing
    if _is_input(model, image):
        pixels = to_float(image)
        if not model.config["include_preprocessing"]:
            pixels = (pixels - record.offset) / record.scale
        height, width = pixels.shape[:2]
        return to_picture(pixels), (0, width, height, 0)
    if not hasattr(image, "shape"):
        image = decode_image(image, model.input_shape[-1])
    picture = to_picture(image)
    edges, size = np.array(picture.shape[:2]), np.array(model.input_shape[1:3])
    fraction = np.ones(2)
    if record.transform == "resize_crop":
        fraction = np.full(2, record.crop_fraction)
    if record.transform == "resmall_crop":
        # Resized until the picture covers the uncropped size, then cropped.
        factor = np.max(size / record.crop_fraction / edges)
        fraction = size / (factor * edges)
    if record.transform == "resize_pad":
        # Until it fits in that size; what is padded lies beyond the picture.
        factor = np.min(size / record.crop_fraction / edges)
        fraction = size / (factor * edges)
    low, high = edges * (1 - fraction) / 2, edges * (1 + fraction) / 2
    return picture, (low[1], high[1], high[0], low[0])
