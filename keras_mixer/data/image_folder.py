"""Folders of pictures, one folder per class, as a `Source`.

folder/cat/1.jpg, folder/dog/2.png, ...                    one split, "train"
folder/train/cat/1.jpg, folder/test/cat/2.jpg, ...         these splits
"""

import hashlib
import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

from keras_mixer.data.sources import Source, import_tfds
from keras_mixer.preprocessing import decode_image, list_images

CORRUPT = ("raise", "skip", "trust")

_SPLITS = {
    "train": "train",
    "test": "test",
    "val": "validation",
    "validation": "validation",
}
# What TensorFlow decodes to the same pixels as Pillow, by Pillow's format and modes,
# and PNGs of 16 bits, of which TensorFlow takes the upper eight.
_PLAIN = {"JPEG": {"L", "RGB"}, "PNG": {"L", "RGB", "RGBA", "I;16"}}
_EXIF_ORIENTATION = 0x0112


def from_folder(folder, split="train", *, corrupt="raise"):
    """Return the `Source` of a folder that has one folder of pictures per class.

    The classes are the names of their folders, sorted; all splits share them. Which
    files count says `preprocessing.list_images`. Their order is drawn from their names,
    so that every slice of a split has pictures of all classes, and a new picture leaves
    the others where they are.

    Every file is decoded once before anything else happens, on all cores; with
    `"trust"` only the beginning of each is read.

    Args:
        folder: The folder; `train`, `test`, `val` and `validation` in it are splits if
            they hold the folders of the classes.
        split: Name of a split, with slices as in TFDS: `"train[:80%]"`. A folder
            without splits is `"train"`.
        corrupt: `"raise"`, a file that cannot be decoded is an error; `"skip"`, such
            files are left out, with one warning that counts them; `"trust"`, a file
            that is damaged further on ends the run when its turn comes.

    Raises:
        FileNotFoundError: If there is no such folder.
        ImportError: If Pillow, TensorFlow or tensorflow-datasets is not installed.
        ValueError: If there are no classes, one is empty, there is no such split, or a
            file cannot be decoded.
    """
    import tensorflow as tf

    if corrupt not in CORRUPT:
        raise ValueError(
            f"`corrupt` must be one of {', '.join(map(repr, CORRUPT))}. "
            f"Received: corrupt={corrupt!r}"
        )
    folder = Path(folder).expanduser()
    splits = _splits(folder)
    names = sorted({path.name for one in splits.values() for path in _subfolders(one)})
    files = _chosen(split, splits)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        decode = corrupt != "trust"
        found = list(threads.map(lambda file: _inspect(file[0], decode), files))
    broken = [fault for fault, _ in found if fault]
    if broken:
        _report(broken, len(files), folder, skip=corrupt == "skip")
    kept = [
        (os.fsencode(path), plain, names.index(name))
        for (path, name), (fault, plain) in zip(files, found, strict=True)
        if not fault
    ]
    paths, plain, labels = map(list, zip(*kept, strict=True))
    # A dictionary, because `map` spreads a tuple over several arguments.
    dataset = tf.data.Dataset.from_tensor_slices(
        ({"path": paths, "plain": plain}, tf.constant(labels, tf.int64))
    )

    def file_names():
        return [os.path.basename(os.fsdecode(path)) for path in paths]

    return Source(dataset, len(kept), tuple(names), _read, file_names)


def _splits(folder):
    """Return the folders of the splits by name."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r}")
    subfolders = _subfolders(folder)
    if not subfolders:
        raise ValueError(
            "`folder` must have one folder of pictures per class, or such folders in "
            f"`train` and `test`. Received: {str(folder)!r}, which has no folders"
        )
    splits = {
        _SPLITS[path.name]: path
        for path in subfolders
        if path.name in _SPLITS and _subfolders(path)
    }
    return splits or {"train": folder}


def _subfolders(folder):
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    ]


def _chosen(split, splits):
    """Return path and class of each file of a split expression such as "a[:9%]+b"."""
    tfds = import_tfds()
    used = re.findall(r"\b[A-Za-z_]\w*", split)
    files = {name: _files(splits[name]) for name in used if name in splits}
    sizes = {name: SimpleNamespace(num_examples=len(files[name])) for name in files}
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(sizes)
    except ValueError as error:
        raise _no_split(split, splits) from error
    chosen = [
        file for part in parts for file in files[part.splitname][part.from_ : part.to]
    ]
    if not chosen:
        raise _no_split(split, splits)
    return chosen


def _no_split(split, splits):
    return ValueError(
        f"`split` must be one of {', '.join(splits)}, or a slice of one that has "
        f'examples, such as "{next(iter(splits))}[:80%]". Received: split={split!r}'
    )


def _files(folder):
    """Return path and class of each picture, in the order of their names' hashes."""
    files = [
        (path, subfolder.name)
        for subfolder in _subfolders(folder)
        for path in list_images(subfolder)
    ]
    return sorted(
        files,
        key=lambda file: hashlib.md5(
            os.fsencode(file[0].relative_to(folder)), usedforsecurity=False
        ).digest(),
    )


def _inspect(path, decode):
    """Return what is wrong with a file, if anything, and whether it is a plain one.

    Plain files are those that TensorFlow decodes as `decode_image` does.
    """
    import tensorflow as tf
    from PIL import Image

    try:
        with Image.open(path) as image:
            jpeg = image.format == "JPEG"
            if jpeg:
                upright = image.getexif().get(_EXIF_ORIENTATION, 1) == 1
            else:  # `getexif` would decode the whole image first
                upright = "exif" not in image.info
            plain = upright and image.mode in _PLAIN.get(image.format, ())
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's for broken files
        return f"{path}: {error}", False
    if not decode:
        return None, plain
    if plain:
        contents = tf.io.read_file(str(path))
        try:
            # An eighth of the size: the whole file is read, but not all is computed.
            tf.io.decode_jpeg(contents, ratio=8) if jpeg else tf.io.decode_png(contents)
            return None, True
        except tf.errors.InvalidArgumentError:
            pass  # Pillow forgives more
    try:
        decode_image(path)
        return None, False
    except ValueError as error:
        return str(error), False


def _report(broken, count, folder, *, skip):
    """Raise, or warn, once for all files that cannot be read."""
    message = f"{len(broken)} of {count} images in {str(folder)!r} cannot be read"
    examples = "; ".join(broken[:3]) + ("; ..." if len(broken) > 3 else "")
    if skip and len(broken) < count:
        warnings.warn(f"{message} and are left out: {examples}", stacklevel=3)
        return
    raise ValueError(
        f'{message}: {examples}. `corrupt="skip"` (--corrupt skip) leaves them out.'
    )


def _read(image):
    """Return the bytes of a file, as PNG where TensorFlow would decode it otherwise."""
    import tensorflow as tf

    def as_png():
        png = tf.numpy_function(_as_png, [image["path"]], tf.string)
        return tf.ensure_shape(png, ())

    return tf.cond(image["plain"], lambda: tf.io.read_file(image["path"]), as_png)


def _as_png(path):
    from PIL import Image

    png = BytesIO()
    pixels = decode_image(os.fsdecode(path))
    Image.fromarray(pixels).save(png, "PNG", compress_level=0)
    return png.getvalue()
