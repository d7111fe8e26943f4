"""Images to calibrate an int8 file with, from where training images lie."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from keras_mixer.checks import check_dim
from keras_mixer.data import evaluation_batches, open_source
from keras_mixer.preprocessing import list_images, preprocess

if TYPE_CHECKING:
    from keras_mixer.models import MLPMixer


def calibration_images(
    model: "MLPMixer",
    name_or_folder: str | Path,
    *,
    count: int = 300,
    split: str = "train",
    data_dir: str | None = None,
) -> NDArray[np.float32]:
    """Return images as the model takes them, spread over a folder or a data set.

    Args:
        model: The `MLPMixer` that is to be exported.
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
    if Path(name_or_folder).expanduser().is_dir():
        files = list_images(name_or_folder)
        step = max(1, len(files) // count)  # files of a class lie together
        return preprocess(files[::step][:count], model)
    batches = evaluation_batches(
        open_source(name_or_folder, split, data_dir=data_dir),
        image_size=model.input_shape[1:3],
        batch_size=count,
        preprocessing=model.preprocessing,
    )
    pixels = next(batches.as_numpy_iterator())[0]
    if model.config["include_preprocessing"]:
        return pixels
    return pixels * model.preprocessing.scale + model.preprocessing.offset
