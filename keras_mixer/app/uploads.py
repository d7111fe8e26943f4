"""Pictures that somebody uploads: read within bounds, refused with a sentence."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from keras_mixer.app.limits import MEBIBYTE, Limits
from keras_mixer.preprocessing import decode_image, printable

_EXPECTED = "Expected a JPEG, PNG, WebP, GIF, BMP or TIFF picture."
# What Pillow may open: its other readers are for rare formats, and start programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")


class Picture(NamedTuple):
    """One uploaded picture: its name, and its pixels or why there are none."""

    name: str
    pixels: NDArray[np.uint8] | None
    problem: str = ""


def check_number(paths: Sequence[Path], limits: Limits) -> None:
    """Raise a `ValueError` unless there are pictures, and not too many."""
    if not paths:
        raise ValueError("There is no picture yet. Drop one, or take an example.")
    if len(paths) > limits.pictures:
        raise ValueError(
            f"At most {limits.pictures} pictures at once. Received: {len(paths)}."
        )


def read_picture(path: Path, limits: Limits) -> Picture:
    """Return a picture with its pixels `(height, width, 3)`, or with the problem.

    Raises:
        MemoryError: If the memory of the machine is too small.
    """
    name = printable(path.name)
    try:
        return Picture(name, _pixels(path, limits))
    except MemoryError:
        raise
    except ValueError as error:
        return Picture(name, None, f"{name}: {error}")
    except Exception:  # each of Pillow's readers has its own
        return Picture(name, None, f"{name}: it is no picture. {_EXPECTED}")


def _pixels(path: Path, limits: Limits) -> NDArray[np.uint8]:
    from PIL import Image

    size = path.stat().st_size
    if not size:
        raise ValueError(f"the file is empty. {_EXPECTED}")
    if size > limits.picture_bytes:
        raise ValueError(
            f"the file has {size / MEBIBYTE:.0f} MiB, at most "
            f"{limits.picture_bytes // MEBIBYTE} are taken. Make it smaller."
        )
    too_large = f"at most {limits.picture_pixels:,} are taken. Make it smaller."
    with warnings.catch_warnings():
        # Pillow warns of large pictures, and of damaged ones that it can read.
        warnings.simplefilter("ignore")
        try:
            opened = Image.open(path, formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise ValueError(f"it has too many pixels, {too_large}") from error
        with opened as image:
            width, height = image.size
            if width * height > limits.picture_pixels:
                raise ValueError(f"it has {width} x {height} pixels, {too_large}")
            try:
                image.load()
                return decode_image(image)
            except ValueError as error:
                raise OSError(f"damaged: {error}") from error
