"""Weight files: read safely, written whole, every array accounted for.

Nothing in a file is executed: neither a pickle nor the header of an `.npy`. The names
and shapes are read and compared first; only then is memory taken for numbers.
"""

import contextlib
import errno
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from keras_mixer.checkpoints.archives import open_archive
from keras_mixer.checkpoints.convert import (
    KERAS,
    OFFICIAL,
    OLDER,
    TIMM,
    Arrays,
    Layout,
    Shapes,
    check_finite,
    common_prefix,
    describe_shapes,
    differences,
    match_names,
    older_shapes,
    to_official,
)
from keras_mixer.checkpoints.hdf5_files import look_at
from keras_mixer.files import atomic_write, open_regular, read_bounded, reason_of
from keras_mixer.variants import weight_shapes

# What `weights=` recognises as a path.
WEIGHT_ENDINGS = (
    ".npz",
    ".safetensors",
    ".weights.h5",
    ".safetensors.index.json",
)

# NumPy has no bfloat16: an `.npz` holds it as two opaque bytes.
_BFLOAT16 = np.dtype("V2")
_NPY_FLOATS: dict[str, np.dtype] = {
    f"{e}f{n}": np.dtype(f"{e}f{n}") for e in "<>" for n in (2, 4, 8)
}
_NPY_FLOATS |= {"|V2": _BFLOAT16, "<V2": _BFLOAT16}
_SAFETENSORS_FLOATS: dict[str, np.dtype] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "BF16": _BFLOAT16,
}

# Matched, never evaluated: nothing in a hostile header can be run, warn or recurse.
_NPY_HEADER = re.compile(
    rb"\{ ?'descr': ?'([^']*)', ?'fortran_order': ?(True|False), ?"
    rb"'shape': ?\(([0-9, ]{0,200})\),? ?\}\s*"
)

_MAX_BYTES = 8 * 2**30  # four times the largest Mixer; a zip bomb declares more
_MAX_HEADER = 8 * 2**20  # of an `.npy` or a `.safetensors`; a Mixer's takes 1 MiB
_MAX_INDEX = 4 * 2**20
_SHARD = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)
_CHUNK = 2**18  # numbers handled at once; small enough to stay in the cache

# Of the disk or the network, not of what is in the file.
_DISK_ERRORS = (errno.EIO, errno.ENXIO, errno.ESTALE, errno.ETIMEDOUT)

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"
# What files turn out to be whose names promise something else.
_TORCH = (
    "it is a pickle of `torch.save`, which can run any code and is not opened. Where "
    "you trust it, convert it: `safetensors.torch.save_file(torch.load(path, "
    "weights_only=True), new_path)`"
)
_OTHER_FILES = {
    b"\x80": _TORCH,
    _HDF5: "it is an HDF5 file: give it the ending `.weights.h5`",
    _ZIP: "it is a zip archive: an `.npz`, a `.keras`, or a pickle of `torch.save`",
    b"version https://git-lfs": (
        "it is a pointer of Git LFS, not the file itself: run `git lfs pull`"
    ),
    b"<": "it is a web page, not the file itself: download it anew",
}


class _Stored(NamedTuple):
    """An array in an open file: its name there, our shape, and how it is read."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], npt.NDArray[Any]]


_Contents = tuple[dict[str, _Stored], Layout]


def read_weights(
    path: str | os.PathLike[str], names: Container[str] | None = None
) -> tuple[Arrays, str]:
    """Read a checkpoint file and check that it holds one whole Mixer.

    An `.npz` may have the official layout or the older `Mixer/encoderblock_*` one, at
    the root or under `params/` or `opt/target/`, where the state of an optimizer beside
    them is left out. A prefix that all names have in common, such as `model.`, is taken
    off. Half, single, double precision and bfloat16 become float32.

    Args:
        path: An official `.npz`, a `.safetensors` with the names of timm or the index
            of several (`.safetensors.index.json`), or a `.weights.h5` of a Mixer that
            is not quantized.
        names: Our names of the arrays to read; `None` for all.

    Returns:
        A pair `(weights, layout)`: our names to float32 arrays in the orientation of
        the model, and `"official"`, `"timm"` or `"keras"`.

    Raises:
        OSError: If the file cannot be opened (`FileNotFoundError` if there is none).
        ValueError: If the file is damaged, is not a Mixer, or an array is missing,
            unknown, not of floats or not finite. The message names file and array.
    """
    with _open(path) as (stored, layout):
        weights = {}
        for name, array in stored.items():
            if names is None or name in names:
                with _naming(f"array {array.name!r}"):
                    weights[name] = array.read()
    return weights, _name_of(layout)


def read_shapes(path: str | os.PathLike[str]) -> tuple[Shapes, str]:
    """Return the shapes of the arrays that `read_weights` would read, and the layout.

    No number is read. Raises the same, apart from what the numbers tell.
    """
    with _open(path) as (stored, layout):
        return {name: array.shape for name, array in stored.items()}, _name_of(layout)


def check_file(path: str | os.PathLike[str], ending: str) -> None:
    """Raise what `read_weights` would for a file, one array in memory at a time.

    Args:
        path: Of the file, whatever its name.
        ending: What its name would end in, one of `WEIGHT_ENDINGS`.
    """
    with _open(path, ending) as (stored, _):
        for array in stored.values():
            with _naming(f"array {array.name!r}"):
                array.read()


def write_official(path: str | os.PathLike[str], weights: Arrays) -> None:
    """Write `weights` (our names) as an official `.npz`, all of it or nothing.

    Raises:
        ValueError: If `path` does not end in `.npz`, or as in `to_official`.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(
            f"An official checkpoint file ends in `.npz`. Received: {str(path)!r}"
        )
    official: dict[str, Any] = to_official(weights)
    with atomic_write(path) as file:
        np.savez(file, **official)


@contextlib.contextmanager
def _open(
    path: str | os.PathLike[str], ending: str | None = None
) -> Iterator[_Contents]:
    """Give what an open file holds, once its shapes are known to make one Mixer."""
    path = Path(path)
    if ending is None:
        ending = next((end for end in WEIGHT_ENDINGS if path.name.endswith(end)), None)
    if ending is None:
        raise ValueError(
            "A weight file ends in `.npz` (official layout), `.safetensors` or "
            "`.safetensors.index.json` (timm layout), or `.weights.h5` (Keras). "
            f"Received: {str(path)!r}"
        )
    openers = {
        ".npz": _open_npz,
        ".safetensors": _open_safetensors,
        ".weights.h5": _open_h5,
        ".safetensors.index.json": _open_index,
    }
    with open_regular(path) as file, _naming(f"Cannot read {str(path)!r}"):
        _check_kind(file, ending)
        with openers[ending](file, path) as (stored, layout):
            shapes = {name: array.shape for name, array in stored.items()}
            size = 4 * sum(map(math.prod, shapes.values()))
            if size > _MAX_BYTES:
                raise ValueError(
                    f"its arrays claim {size} bytes, more than the {_MAX_BYTES} allowed"
                )
            expected = weight_shapes(**describe_shapes(shapes))
            if lines := differences(shapes, expected, "a Mixer"):
                raise ValueError(
                    "the shapes do not make one Mixer (models with a gate, such as "
                    "timm's gmixer, are not supported)\n" + lines
                )
            yield stored, layout


def _name_of(layout: Layout) -> str:
    return {TIMM.block: "timm", KERAS.block: "keras"}.get(layout.block, "official")


def _check_kind(file: BinaryIO, ending: str) -> None:
    """Raise a `ValueError` that says what the file is, if it is of another format."""
    head = file.read(64).lstrip(b"\r\n\t " if ending != ".safetensors" else b"")
    file.seek(0)
    own = {".npz": _ZIP, ".weights.h5": _HDF5}.get(ending)
    if own is not None and head.startswith(own):
        return
    if ending == ".safetensors" and head[8:9] == b"{":
        return
    for magic, sentence in _OTHER_FILES.items():
        if head.startswith(magic):
            if magic == _ZIP and _holds_pickle(file):
                sentence = _TORCH
            raise ValueError(sentence)


def _holds_pickle(file: BinaryIO) -> bool:
    """Whether an archive is one of `torch.save`."""
    with contextlib.suppress(ValueError, zipfile.BadZipFile):
        with open_archive(file) as archive:
            return _is_torch(archive)
    return False


def _is_torch(archive: zipfile.ZipFile) -> bool:
    return any(n.rsplit("/", 1)[-1] == "data.pkl" for n in archive.namelist())


@contextlib.contextmanager
def _open_npz(file: BinaryIO, path: Path) -> Iterator[_Contents]:
    with open_archive(file) as archive:
        if _is_torch(archive):
            raise ValueError(_TORCH)
        members: dict[str, zipfile.ZipInfo] = {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name in members:
                raise ValueError(f"there are two arrays {name[:200]!r}")
            members[name] = member
        size = sum(member.file_size for member in members.values())
        if size > _MAX_BYTES:
            raise ValueError(
                f"its arrays claim {size} bytes, more than the {_MAX_BYTES} allowed"
            )
        members = _inside_root(members)
        older = any("Mixer/encoderblock_" in name for name in members)
        layout = OLDER if older else OFFICIAL
        members = _without_prefix(members, layout)
        stored = {}
        for ours, theirs in match_names(members, layout).items():
            with _naming(f"array {theirs!r}"):
                stored[ours] = _stored_npy(archive, members[theirs], theirs)
        if older:
            shapes = {name: array.shape for name, array in stored.items()}
            for name, shape in older_shapes(shapes).items():
                stored[name] = stored[name]._replace(
                    shape=shape, read=_reshaped(stored[name].read, shape)
                )
        yield stored, layout


def _reshaped(
    read: Callable[[], npt.NDArray[Any]], shape: tuple[int, ...]
) -> Callable[[], npt.NDArray[Any]]:
    return lambda: read().reshape(shape)


def _inside_root(members: dict[str, Any]) -> dict[str, Any]:
    """Return `members` by their names below the root, if they have one."""
    for root in ("params/", "opt/target/"):
        if not any(name.startswith(root) for name in members):
            continue
        inside = {}
        for name, member in members.items():
            if name.startswith(root):
                inside[name.removeprefix(root)] = member
            elif not name.startswith(("opt/", "extra/")):  # the state of a training run
                raise ValueError(
                    f"array {name[:200]!r} is not under {root!r} like the rest"
                )
        return inside
    return members


def _without_prefix(members: dict[str, Any], layout: Layout) -> dict[str, Any]:
    prefix = common_prefix(members, layout)
    return {name.removeprefix(prefix): member for name, member in members.items()}


def _stored_npy(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str
) -> _Stored:
    """Return one array of a zip archive; reading it checks every byte."""
    # Other compressions can inflate a few bytes to any size at once.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is neither stored nor deflated; write the file anew")
    with archive.open(member) as stream:
        magic = stream.read(8)
        if magic != b"\x93NUMPY\x01\x00":
            raise ValueError(f"it is not an `.npy`, version 1.0. Received: {magic!r}")
        header = stream.read(int.from_bytes(stream.read(2), "little"))
    fields = _NPY_HEADER.fullmatch(header)
    if fields is None:
        received = f"Received: {header[:100]!r}"
        raise ValueError(f"its header is not that of a float array. {received}")
    dtype = _check_float(fields[1].decode(), _NPY_FLOATS)
    shape = tuple(int(size) for size in fields[3].split(b",") if size.strip())
    # Reading to the very end, and only that, makes `zipfile` compare the checksum.
    start = len(magic) + 2 + len(header)
    if math.prod(shape) * dtype.itemsize != member.file_size - start:
        raise ValueError(
            f"its shape {shape} does not fit its {member.file_size - start} bytes"
        )
    if not math.prod(shape):
        raise ValueError(f"it is empty. Received: shape {shape}")

    def read() -> npt.NDArray[Any]:
        with archive.open(member) as stream:
            stream.read(start)
            if fields[2] == b"True":
                return np.ascontiguousarray(_read_floats(stream, dtype, shape[::-1]).T)
            return _read_floats(stream, dtype, shape)

    return _Stored(name, shape, read)


@contextlib.contextmanager
def _open_safetensors(file: BinaryIO, path: Path) -> Iterator[_Contents]:
    yield _by_our_names(_stored_tensors(file, path)), TIMM


@contextlib.contextmanager
def _open_index(file: BinaryIO, path: Path) -> Iterator[_Contents]:
    """Give the arrays of the files that an index names."""
    stored: dict[str, _Stored] = {}
    with contextlib.ExitStack() as files:
        for name, arrays in read_index(path).items():
            with _naming(f"file {name!r}"):
                part_path = path.with_name(name)
                part = files.enter_context(open_regular(part_path))
                _check_kind(part, ".safetensors")
                of_part = _stored_tensors(part, part_path)
                if differing := sorted(of_part.keys() ^ arrays):
                    raise ValueError(f"it and the index differ in {differing[:5]}")
            stored |= of_part
        yield _by_our_names(stored), TIMM


def read_index(path: Path) -> dict[str, set[str]]:
    """Return filename -> names of its arrays of a `.safetensors.index.json`.

    Raises:
        ValueError: If it is not such an index, or names a file in another folder.
    """
    index = json.loads(read_bounded(path, _MAX_INDEX))
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names:
        raise ValueError("the index has no object `weight_map`")
    files: dict[str, set[str]] = {}
    for name, file in names.items():
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise ValueError(
                "the index must name `.safetensors` files beside it. Received: "
                f"{str(file)[:100]!r}"
            )
        files.setdefault(file, set()).add(name)
    return files


def _by_our_names(stored: dict[str, _Stored]) -> dict[str, _Stored]:
    prefix = common_prefix(stored, TIMM)
    names = match_names([name.removeprefix(prefix) for name in stored], TIMM)
    return {ours: stored[f"{prefix}{theirs}"] for ours, theirs in names.items()}


def _stored_tensors(file: BinaryIO, path: Path) -> dict[str, _Stored]:
    """Return the arrays of a `.safetensors` by the names there."""
    from safetensors import safe_open

    header_size = int.from_bytes(file.read(8), "little")
    if header_size > _MAX_HEADER:
        raise ValueError(
            f"its header claims {header_size} bytes. The file looks damaged: get it "
            "again"
        )
    # The library checks the header; it cannot give bfloat16 to NumPy, so the arrays
    # are read here: in the order of the file, in which it allows no gaps.
    with safe_open(path, framework="np") as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.offset_keys()}
        header = {
            name: (info.get_dtype(), tuple(info.get_shape()))
            for name, info in slices.items()
        }
    stored = {}
    offset = 8 + header_size
    for name, (kind, shape) in header.items():
        with _naming(f"array {name!r}"):
            dtype = _check_float(kind, _SAFETENSORS_FLOATS)
            stored[name] = _stored_tensor(file, name, dtype, shape, offset)
        offset += math.prod(shape) * dtype.itemsize
    return stored


def _stored_tensor(
    file: BinaryIO, name: str, dtype: np.dtype, shape: tuple[int, ...], offset: int
) -> _Stored:
    """Return one tensor of PyTorch, in the orientation of Keras."""
    # PyTorch puts outputs first, and of a convolution the inputs second.
    axes = (2, 3, 1, 0) if len(shape) == 4 else tuple(range(len(shape)))[::-1]

    def read() -> npt.NDArray[Any]:
        file.seek(offset)
        array = _read_floats(file, dtype, shape)
        return np.ascontiguousarray(array.transpose(axes))

    return _Stored(name, tuple(shape[axis] for axis in axes), read)


@contextlib.contextmanager
def _open_h5(file: BinaryIO, path: Path) -> Iterator[_Contents]:
    """Give the arrays of a `.weights.h5`.

    Keras numbers the groups by class; the names of the layers are in attributes.
    """
    contents = look_at(path)
    arrays = {}
    for place, array in contents.arrays.items():
        # Beside the layers there may be an optimizer and seeds.
        if place.startswith("layers/") and "seed_generator" not in place:
            *groups, _, number = place.split("/")
            layers = ("/".join(groups[:stop]) for stop in range(2, len(groups) + 1))
            layers = (
                contents.names.get(f"{layer}/vars", layer.split("/")[-1])
                for layer in layers
            )
            arrays[f"{'_'.join(layers)}/{number}"] = (place, array)
    stored = {}
    for ours, theirs in match_names(arrays, KERAS).items():
        place, array = arrays[theirs]
        with _naming(f"array '/{place}'"):
            dtype = _check_float(array.dtype, _NPY_FLOATS)
            if array.offset is None:
                raise ValueError(f"it is empty. Received: shape {array.shape}")
            read = _reader_at(file, dtype, array.shape, array.offset)
            stored[ours] = _Stored(f"/{place}", array.shape, read)
    yield stored, KERAS


def _reader_at(
    file: BinaryIO, dtype: np.dtype, shape: tuple[int, ...], offset: int
) -> Callable[[], npt.NDArray[Any]]:
    def read() -> npt.NDArray[Any]:
        file.seek(offset)
        return _read_floats(file, dtype, shape)

    return read


def _check_float(name: str, floats: dict[str, np.dtype]) -> np.dtype:
    """Return the dtype called `name` in a file, if it is one of `floats`."""
    if name not in floats:
        raise ValueError(f"it is not of floats. Received: dtype {name!r}")
    return floats[name]


def _read_floats(
    stream: Any, dtype: np.dtype, shape: Iterable[int]
) -> npt.NDArray[np.float32]:
    """Return the next array of `stream` as float32, read piece by piece."""
    array = np.empty(tuple(shape), np.float32)
    flat = array.reshape(-1)
    if not flat.size:
        raise ValueError(f"it is empty. Received: shape {array.shape}")
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        data = stream.read(chunk.size * dtype.itemsize)
        if len(data) != chunk.size * dtype.itemsize:
            raise EOFError("the file ends before the array does")
        if dtype == _BFLOAT16:  # the upper half of a float32
            halves = np.frombuffer(data, "<u2")
            np.left_shift(halves, 16, out=chunk.view(np.uint32), dtype=np.uint32)
        else:
            with np.errstate(over="ignore", invalid="ignore"):  # found just below
                chunk[:] = np.frombuffer(data, dtype)
    check_finite(array)
    return array


@contextlib.contextmanager
def _naming(subject: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into a `ValueError` that names `subject`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{subject}: {error}") from error
    except MemoryError as error:
        raise MemoryError(f"{subject}: there is not enough memory") from error
    except Exception as error:  # a damaged file can make the libraries raise anything
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            reason = error.strerror or str(error)
            raise OSError(error.errno, f"{subject}: {reason}") from error
        raise ValueError(
            f"{subject}: {reason_of(error)}. The file looks damaged: get it again."
        ) from error
