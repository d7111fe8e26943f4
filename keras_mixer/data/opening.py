"""From the name of a TFDS data set, or a folder, to a `Source`."""

import os
import re
import warnings
from pathlib import Path

from keras_mixer.data.image_folder import Corrupt, from_folder
from keras_mixer.data.sources import Source, from_tfds, hold_out, import_tfds
from keras_mixer.preprocessing import printable

# Splits that a run is measured on by default, the first that the data set has.
_MEASURED_ON = ("validation", "test")


def open_source(
    name_or_folder: str | os.PathLike[str],
    split: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    corrupt: Corrupt = "raise",
) -> Source:
    """Return the `Source` of a folder of pictures or of a TFDS name.

    What looks like a path is a path: a `Path`, and text with a dot or a slash, unless
    it is the name of a TFDS data set with its configuration or version
    (`"cifar10_corrupted/fog_1"`, `"cifar10:3.0.2"`). A plain name is a folder in the
    working directory, if there is one, and with a warning if TFDS has this name, too;
    but a data set in `data_dir`, if that is given, comes first. No server is asked.

    Args:
        name_or_folder: See `from_folder` and `from_tfds`.
        split: Name of a split, slices included: `"train[:98%]"`.
        data_dir: Folder of prepared TFDS data sets; `None` for TFDS's own default.
        corrupt: What becomes of damaged files in a folder, see `from_folder`.

    Raises:
        FileNotFoundError: If a path does not exist.
        ImportError: If a package that reads it is not installed.
        ValueError: If there is no such data set, folder or split, or it is unusable.
    """
    text = os.fspath(name_or_folder)
    if not text:
        raise ValueError(
            "`name_or_folder` must be a folder or a name of TFDS. Received: ''"
        )
    folder = Path(text).expanduser()
    if isinstance(name_or_folder, os.PathLike) or _looks_like_path(text):
        return from_folder(folder, split, corrupt=corrupt)
    prepared = data_dir is not None and (Path(data_dir) / _plain(text)).is_dir()
    if folder.is_dir() and not prepared:
        if _is_of_tfds(text):
            warnings.warn(
                f"{text!r} is read from the folder of this name in the working "
                f"directory, not from TFDS. Write './{text}' if that is meant; rename "
                "the folder for the data set of TFDS.",
                stacklevel=2,
            )
        return from_folder(folder, split, corrupt=corrupt)
    return from_tfds(text, split, data_dir=data_dir)


def open_training_sources(
    name_or_folder: str | os.PathLike[str],
    split: str = "train",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    corrupt: Corrupt = "raise",
    share: float = 0.1,
    seed: int = 0,
) -> tuple[Source, Source, str]:
    """Return what to train on, what to measure on, and a sentence that says which.

    It is measured on the validation split, or else on the test split; where the data
    set has neither, a part of `split` is held out (`hold_out`), the same for the same
    seed.

    Args:
        name_or_folder: As in `open_source`.
        split: What to train on.
        data_dir: As in `open_source`.
        corrupt: As in `open_source`.
        share: Share of the examples to hold out where it must be.
        seed: Seed of that draw.

    Returns:
        Both sources, and for example "Measured on 12 of 120 examples of train, which
        are held out (seed 0): there is no validation or test split."

    Raises:
        The errors of `open_source` and `hold_out`.
        ValueError: If there is only one class.
    """
    train = open_source(name_or_folder, split, data_dir=data_dir, corrupt=corrupt)
    check_classes(train)
    for name in _MEASURED_ON:
        try:
            held = open_source(name_or_folder, name, data_dir=data_dir, corrupt=corrupt)
        except ValueError as error:
            if "`split` must be one of" not in str(error):
                raise
        else:
            return train, held, f"Measured on {held.num_examples} examples of {name}."
    count = train.num_examples
    train, held = hold_out(train, share, seed=seed)
    return (
        train,
        held,
        f"Measured on {held.num_examples} of {count} examples of {split}, which are "
        f"held out (seed {seed}): there is no validation or test split.",
    )


def check_classes(source: Source) -> None:
    """Raise a `ValueError` unless there are two classes to tell apart.

    A model of one class is right about every picture, and learns nothing.
    """
    if source.num_classes < 2:
        raise ValueError(
            "A data set to train on must have two classes or more, such as one folder "
            "of pictures for each. Received: "
            f"{', '.join(map(printable, source.label_names)) or 'none'}"
        )


def _looks_like_path(text: str) -> bool:
    plain = text.split(":")[0]
    if text.startswith("~") or "." in plain or "\\" in text:
        return True
    if "/" not in text:
        return False
    return Path(text).is_dir() or text.startswith("/") or not _is_of_tfds(text)


def _plain(text: str) -> str:
    return re.split("[/:]", text)[0]


def _is_of_tfds(text: str) -> bool:
    try:
        tfds = import_tfds()
    except ImportError:
        return False
    return _plain(text) in tfds.list_builders(with_community_datasets=False)
