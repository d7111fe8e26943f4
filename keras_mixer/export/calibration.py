"""Images to calibrate an int8 file with, from where training images lie."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from keras_mixer.checks import check_dim
from keras_mixer.data import evaluation_batches, open_source
from keras_mixer.models import find_mixer, preprocess
from keras_mixer.preprocessing import list_images

if TYPE_CHECKING:
    import keras


def calibration_images(
    model: "keras.Model",
    name_or_folder: str | Path,
    *,
    count: int = 300,
    split: str = "train",
    data_dir: str | None = None,
) -> NDArray[np.float32]:
    """Return images as the model takes them, spread over a folder or a data set.

    Args:
        model: The model that is to be exported: a Mixer, or one around a Mixer.
        name_or_folder: A folder of pictures, with or without folders in it, or the name
            of a TFDS data set.
        count: Number of images, if there are so many. Positive.
        split: Which examples of a data set.
        data_dir: Folder of prepared TFDS data sets; `None` for TFDS's own default.

    Returns:
        Array `(n, height, width, channels)`.

    Raises:
        ImportError: If a package that reads the images is not installed.
        OSError: If they cannot be read.
        ValueError: If there are none, or no such data set or split.
    """
    check_dim("count", count)
    found = find_mixer(model)
    if Path(name_or_folder).expanduser().is_dir():
        files = list_images(name_or_folder)
        step = max(1, len(files) // count)  # files of a class lie together
        return preprocess(files[::step][:count], model)
    batches = evaluation_batches(
        open_source(name_or_folder, split, data_dir=data_dir),
        image_size=found.image_shape[:2],
        batch_size=count,
        preprocessing=found.preprocessing,
    )
    pixels = next(batches.as_numpy_iterator())[0]
    return pixels * np.float32(found.scale) + np.float32(found.offset)
