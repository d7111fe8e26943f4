"""Folders of pictures, one folder per class, as a `Source`.

`class_folders` says which folders are splits and which are classes. Files that
TensorFlow decodes to the same pixels as Pillow go to it as they are; all others are
decoded by Pillow, as `preprocess` does, so that every picture is the same everywhere.
"""

import os
import re
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from keras_mixer.data import fingerprint
from keras_mixer.data.class_folders import Pictures, pictures_of, read_folder
from keras_mixer.data.sources import Source
from keras_mixer.preprocessing import decode_image, printable

if TYPE_CHECKING:
    import tensorflow as tf

Corrupt = Literal["raise", "skip", "trust"]

# Of larger splits only a sample is checked beforehand, of about this many files; each
# other file is checked when it is first read.
CHECKED_FILES = 100_000
CHECKED_SAMPLE = 1000

# What TensorFlow decodes to the same pixels as Pillow, by Pillow's format and modes. Of
# 16 bits it takes the upper eight.
_PLAIN = {"JPEG": {"L", "RGB"}, "PNG": {"L", "RGB", "RGBA", "I;16", "I"}}
_EXIF_ORIENTATION = 0x0112
# Where a PNG may say that it lies on its side, also after the image.
_PNG_ORIENTATION = re.compile(b"eXIf|XML:com.adobe.xmp|Raw profile type")
# What is known of a file.
_UNKNOWN, _IS_PLAIN, _NEEDS_PILLOW = 0, 1, 2


def from_folder(
    folder: str | os.PathLike[str], split: str = "train", *, corrupt: Corrupt = "raise"
) -> Source:
    """Return the `Source` of a folder that has one folder of pictures per class.

    The classes are the names of their folders, sorted; all splits share them. Accents
    in either of Unicode's forms are one name. The files are those of
    `preprocessing.list_images`. Their order is drawn from their names, so that every
    slice of a split has pictures of all classes, and a new picture leaves the others
    where they are.

    Every file of a split of at most 100,000 is decoded once before anything else
    happens, on all cores; of a larger one a sample is, unless damaged files are to be
    skipped. What was not decoded before is checked when its turn first comes: a damaged
    file then ends the run with its name.

    Args:
        folder: The folder. Folders in it whose names are usual ones of splits, in any
            case (train, training, val, valid, validation, dev, test, testing), are
            splits if they hold the folders of the classes.
        split: `"train"`, `"validation"` or `"test"`, with slices as in TFDS:
            `"train[:80%]"`. A folder without splits is `"train"`.
        corrupt: `"raise"`, a file that cannot be decoded is an error; `"skip"`, such
            files are left out, with one warning that counts them; `"trust"`, no file is
            opened beforehand.

    Raises:
        FileNotFoundError: If there is no such folder.
        ImportError: If Pillow, TensorFlow or tensorflow-datasets is not installed.
        ValueError: If there are no classes, one is empty, two names differ by case
            only, the classes lie one level deeper, there is no such split, or a file
            cannot be decoded.
    """
    import tensorflow as tf

    if corrupt not in get_args(Corrupt):
        raise ValueError(
            f"`corrupt` must be one of {', '.join(map(repr, get_args(Corrupt)))}. "
            f"Received: corrupt={corrupt!r}"
        )
    found = read_folder(folder)
    pictures = pictures_of(found, split)
    known = np.full(len(pictures.labels), _UNKNOWN, np.uint8)
    if corrupt != "trust":
        pictures, known = _checked(pictures, known, skip=corrupt == "skip")
    count = len(pictures.labels)
    with tf.device("CPU"):
        dataset = tf.data.Dataset.from_tensor_slices(
            (np.arange(count), pictures.labels)
        )

    def file_names() -> list[str]:
        return [os.path.basename(os.fsdecode(path)) for path in pictures.paths]

    def digest() -> str:
        files = fingerprint.of_files(pictures.path, count, pictures.paths)
        return fingerprint.digest([files, pictures.labels])

    return Source(
        dataset,
        count,
        found.label_names,
        _reader(pictures, known),
        file_names,
        digest=digest,
    )


def _checked(
    pictures: Pictures, known: NDArray[np.uint8], *, skip: bool
) -> tuple[Pictures, NDArray[np.uint8]]:
    """Return the pictures that can be decoded, and what is known of them."""
    count = len(known)
    whole = skip or count <= CHECKED_FILES
    indices = range(0, count, 1 if whole else count // CHECKED_SAMPLE)
    broken: dict[int, str] = {}

    def check(some: range) -> None:
        for index in some:
            try:
                known[index] = _inspect(pictures.path(index))
            except ValueError as error:
                broken[index] = str(error)

    groups = [indices[start : start + 64] for start in range(0, len(indices), 64)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(check, groups):
            pass
    if not broken:
        return pictures, known
    message = (
        f"{len(broken)} of {len(indices)} images in {printable(pictures.root)!r} "
        "cannot be read"
    )
    examples = "; ".join(broken[index] for index in sorted(broken)[:3])
    examples += "; ..." if len(broken) > 3 else ""
    if not skip or len(broken) == count:
        raise ValueError(
            f'{message}: {examples}. `corrupt="skip"` (--corrupt skip) leaves them out.'
        )
    warnings.warn(f"{message} and are left out: {examples}", stacklevel=3)
    kept = np.ones(count, bool)
    kept[list(broken)] = False
    pictures = Pictures(pictures.root, pictures.paths[kept], pictures.labels[kept])
    return pictures, known[kept]


def _inspect(path: str) -> int:
    """Decode a file and return whether it needs Pillow.

    Raises:
        ValueError: If it cannot be decoded; names the file.
    """
    import tensorflow as tf

    kind = _kind_of(path)
    if kind == _IS_PLAIN:
        with open(path, "rb") as file:
            contents = file.read()
        is_jpeg = contents.startswith(b"\xff\xd8")
        try:
            # An eighth of the size: the whole file is read, but not all is computed.
            tf.io.decode_jpeg(contents, 3, ratio=8 if is_jpeg else 1)
            return _IS_PLAIN
        except tf.errors.InvalidArgumentError:
            pass  # Pillow forgives more
    decode_image(path)
    return _NEEDS_PILLOW


def _kind_of(path: str) -> int:
    """Return what the beginning of a file says, and in a PNG all its chunks' names."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in _PLAIN.get(image.format or "", ()):
                return _NEEDS_PILLOW
            if image.format == "JPEG":
                upright = image.getexif().get(_EXIF_ORIENTATION, 1) == 1
            else:
                with open(path, "rb") as file:
                    upright = not _PNG_ORIENTATION.search(file.read())
            return _IS_PLAIN if upright else _NEEDS_PILLOW
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # each of Pillow's readers has its own
        raise ValueError(f"{printable(path)}: {printable(str(error))}") from error


def _reader(
    pictures: Pictures, known: NDArray[np.uint8]
) -> Callable[["tf.Tensor"], "tf.Tensor"]:
    """Return what reads the picture of an index, in TensorFlow.

    It gives the bytes of a file, as PNG where TensorFlow would decode it otherwise.
    """
    import tensorflow as tf

    def contents(index: NDArray[np.int64]) -> bytes:
        path = pictures.path(int(index))
        if known[index] == _UNKNOWN:
            known[index] = _inspect(path)
        if known[index] == _NEEDS_PILLOW:
            return _as_png(path)
        with open(path, "rb") as file:
            return file.read()

    def through_python(index: "tf.Tensor") -> "tf.Tensor":
        return tf.ensure_shape(tf.numpy_function(contents, [index], tf.string), ())

    if (known == _IS_PLAIN).mean() < 0.5:
        return through_python
    # Without Python, which has one thread, where nothing needs it.
    with tf.device("CPU"):
        is_plain = tf.constant(known == _IS_PLAIN)
        paths = tf.constant(pictures.paths)
    root = os.fsencode(pictures.root) + b"/"

    def read(index: "tf.Tensor") -> "tf.Tensor":
        return tf.cond(
            is_plain[index],
            lambda: tf.io.read_file(root + paths[index]),
            lambda: through_python(index),
        )

    return read


def _as_png(path: str) -> bytes:
    from PIL import Image

    png = BytesIO()
    Image.fromarray(decode_image(path)).save(png, "PNG", compress_level=0)
    return png.getvalue()
