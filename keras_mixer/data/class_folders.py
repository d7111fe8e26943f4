"""Which folders are splits, which are classes, and which pictures belong to them.

folder/cat/1.jpg, folder/dog/2.png, ...                    one split, "train"
folder/train/cat/1.jpg, folder/test/cat/2.jpg, ...         these splits
"""

import hashlib
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from keras_mixer.data.sources import import_tfds
from keras_mixer.preprocessing import (
    SUFFIXES,
    printable,
    walk_images,
    warn_of_left_out,
)

# Usual names of the folders of splits, in any case, and what they mean.
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}

_MUST = (
    "`folder` must have one folder of pictures per class, or such folders in `train` "
    "and `test`. "
)


@dataclass(frozen=True)
class ClassFolders:
    """The classes of a folder, and where the pictures of each split lie.

    Attributes:
        root: The folder.
        label_names: Names of the classes, sorted; composed Unicode (NFC).
        splits: Name of a split -> its folder, and the folders of its classes by the
            name of the class; there may be several, if accents are written in two ways.
    """

    root: Path
    label_names: tuple[str, ...]
    splits: dict[str, tuple[Path, dict[str, list[Path]]]]


@dataclass(frozen=True)
class Pictures:
    """The pictures of a split expression: paths below the root, and labels."""

    root: Path
    paths: NDArray[np.object_]
    labels: NDArray[np.int64]

    def path(self, index: int) -> str:
        """Return the path of a picture."""
        return os.path.join(self.root, os.fsdecode(self.paths[index]))


def read_folder(folder: str | os.PathLike[str]) -> ClassFolders:
    """Find the splits and classes of a folder; no picture is looked at.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there are no classes, two names differ by case only, or the
            classes lie one level deeper.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {printable(root)!r}")
    subfolders = _subfolders(root)
    if not subfolders:
        raise ValueError(_MUST + f"Received: {printable(root)!r}, which has no folders")
    splits: dict[str, tuple[Path, dict[str, list[Path]]]] = {}
    beside: list[str] = []
    for path in subfolders:
        split = _split_of(path.name)
        if split is None or not _subfolders(path):
            beside.append(str(path))
            continue
        if split in splits:
            raise ValueError(
                f"`folder` must have one folder of the split {split!r}. Received: "
                f"{printable(root)!r} with {printable(splits[split][0].name)!r} and "
                f"{printable(path.name)!r}"
            )
        splits[split] = path, _classes(path)
    if not splits:
        _check_no_split(root, subfolders)
        splits = {"train": (root, _classes(root))}
    elif beside:
        warn_of_left_out(root, {"folder(s) beside the splits": beside})
    names = sorted({name for _, classes in splits.values() for name in classes})
    _check_cases(names, root)
    _check_level(root, splits)
    return ClassFolders(root, tuple(names), splits)


def pictures_of(found: ClassFolders, split: str) -> Pictures:
    """Return the pictures of a split expression such as "train[:9%]+val".

    Their order is drawn from their names, so that every slice of a split has pictures
    of all classes, and a new picture leaves the others where they are.

    Raises:
        ValueError: If there is no such split, it has no pictures, or a class has none.
    """
    tfds = import_tfds()

    def canonical(word: re.Match[str]) -> str:
        return _split_of(word[0]) or word[0]

    expression = re.sub(r"\b[A-Za-z_]\w*", canonical, split)
    used = set(re.findall(r"\b[A-Za-z_]\w*", expression)) & set(found.splits)
    files = {name: _files(found, name) for name in sorted(used)}
    sizes = {
        name: SimpleNamespace(num_examples=len(labels))
        for name, (_, labels) in files.items()
    }
    try:
        parts = tfds.core.ReadInstruction.from_spec(expression).to_absolute(sizes)
    except ValueError as error:
        raise _no_split(split, found) from error
    chosen = [
        tuple(array[part.from_ : part.to] for array in files[part.splitname])
        for part in parts
    ]
    if not sum(len(labels) for _, labels in chosen):
        raise _no_split(split, found)
    paths, labels = (np.concatenate(arrays) for arrays in zip(*chosen, strict=True))
    return Pictures(found.root, paths, labels)


def _no_split(split: str, found: ClassFolders) -> ValueError:
    return ValueError(
        f"`split` must be one of {', '.join(found.splits)}, or a slice of one that has "
        f'examples, such as "{next(iter(found.splits))}[:80%]". '
        f"Received: split={split!r}"
    )


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if not entry.name.startswith((".", "__MACOSX")) and entry.is_dir()
        ]
    return [folder / name for name in sorted(names)]


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Return the folders of each class. Accents in either form are one name."""
    classes: dict[str, list[Path]] = {}
    for path in _subfolders(folder):
        name = unicodedata.normalize("NFC", printable(path.name))
        classes.setdefault(name, []).append(path)
    return classes


def _split_of(name: str) -> str | None:
    return _SPLITS.get(name.strip().lower())


def _check_no_split(root: Path, folders: list[Path]) -> None:
    """Raise a `ValueError` if folders that would be classes seem to be splits."""
    if all(_split_of(path.name) for path in folders):
        what = f"pictures in {_shown(folders)}, but no folders of classes there"
        raise ValueError(f"{_MUST}Received: {printable(root)!r} with {what}.")
    for path in folders:
        words = re.split(r"[\W_]+", path.name)
        split = next(filter(None, map(_split_of, words)), None)
        below = _subfolders(path) if split else []
        if below and not _has_images(path):
            raise ValueError(
                f"{_MUST}Received: {printable(root)!r}, where {printable(path.name)!r} "
                "seems to be a split: it has no pictures, but folders: "
                f"{_shown(below)}. Rename it to {split!r}."
            )


def _shown(folders: list[Path]) -> str:
    """The names of some folders, for a message."""
    names = [printable(path.name) for path in folders[:5]]
    return ", ".join(names) + (", ..." if len(folders) > 5 else "")


def _check_cases(names: list[str], root: Path) -> None:
    """Raise a `ValueError` if two names differ by case or spaces around them only."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.strip().casefold(), name)
        if other != name:
            raise ValueError(
                "`folder` must have names of classes that differ by more than case or "
                "spaces. "
                f"Received: {printable(root)!r} with {printable(other)!r} and "
                f"{printable(name)!r}. Rename one of them."
            )


def _check_level(
    root: Path, splits: dict[str, tuple[Path, dict[str, list[Path]]]]
) -> None:
    """Raise a `ValueError` if the classes seem to lie one level deeper.

    They do if a folder that would be a class holds folders but no picture, and these
    are named as splits, or it is the only class.
    """
    classes = [path for _, of in splits.values() for one in of.values() for path in one]
    num_classes = len({name for _, of in splits.values() for name in of})
    for path in classes:
        below = _subfolders(path)
        inner = [one for one in below if _split_of(one.name)]
        if (inner or (num_classes == 1 and below)) and not _has_images(path):
            kind = "splits" if inner else "classes"
            raise ValueError(
                "`folder` must be the folder that holds the classes or the splits. "
                f"Received: {printable(root)!r}. There, "
                f"{printable(path.relative_to(root))!r} has no pictures, but folders: "
                f"{_shown(inner or below)}. If they are the {kind}, give "
                f"{printable(path)!r}."
            )


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(SUFFIXES) for entry in entries)


def _files(
    found: ClassFolders, split: str
) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Return paths and labels of a split, in the order of their names' hashes."""
    folder, classes = found.splits[split]
    above = os.fsencode(os.path.relpath(folder, found.root))
    start = b"" if above == b"." else above + b"/"
    skipped = len(os.fsencode(folder)) + 1
    left_out: dict[str, list[str]] = {}
    paths: list[bytes] = []
    labels: list[int] = []
    keys = bytearray()
    for name, folders in classes.items():
        before = len(paths)
        for one in folders:
            for path in walk_images(str(one), left_out):
                relative = os.fsencode(path)[skipped:]
                keys += hashlib.md5(relative, usedforsecurity=False).digest()
                paths.append(start + relative)
        labels += [found.label_names.index(name)] * (len(paths) - before)
        if len(paths) == before:
            raise ValueError(
                "`folder` must have pictures of every class, and one class has no "
                f"images ({', '.join(SUFFIXES)}). Received: {printable(folders[0])!r}"
            )
    warn_of_left_out(found.root, left_out)
    high, low = np.frombuffer(keys, ">u8").reshape(-1, 2).T
    order = np.lexsort((low, high))
    array = np.empty(len(paths), object)
    array[:] = paths
    return array[order], np.array(labels, np.int64)[order]
