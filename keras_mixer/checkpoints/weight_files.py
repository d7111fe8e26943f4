"""Weight files: read safely, written whole, every array accounted for.

Nothing in a file is executed: neither a pickle nor the header of an `.npy`.
"""

import contextlib
import math
import re
import zipfile
from pathlib import Path

import numpy as np
from safetensors import safe_open

from keras_mixer.checkpoints.convert import (
    KERAS,
    OFFICIAL,
    OLDER,
    TIMM,
    check_finite,
    describe_shapes,
    differences,
    drop_older_axes,
    match_names,
    shapes_of,
    to_official,
)
from keras_mixer.files import atomic_write
from keras_mixer.variants import weight_shapes

# What `weights=` recognises as a path.
WEIGHT_ENDINGS = (".npz", ".safetensors", ".weights.h5")

# NumPy has no bfloat16: an `.npz` holds it as two opaque bytes.
_BFLOAT16 = np.dtype("V2")
_NPY_FLOATS = {f"{e}f{n}": np.dtype(f"{e}f{n}") for e in "<>" for n in (2, 4, 8)}
_NPY_FLOATS |= {"|V2": _BFLOAT16, "<V2": _BFLOAT16}
_SAFETENSORS_FLOATS = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "BF16": _BFLOAT16,
}

# Matched, never evaluated: nothing in a hostile header can be run, warn or recurse.
_NPY_HEADER = re.compile(
    rb"\{ ?'descr': ?'([^']*)', ?'fortran_order': ?(True|False), ?"
    rb"'shape': ?\(([0-9, ]*)\),? ?\}\s*"
)

_MAX_BYTES = 8 * 2**30  # four times the largest Mixer; a zip bomb declares more
_CHUNK = 2**18  # numbers handled at once; small enough to stay in the cache


def read_weights(path):
    """Read a checkpoint file and check that it holds one whole Mixer.

    An `.npz` may have the official layout or the older `Mixer/encoderblock_*` one, at
    the root or under `params/` or `opt/target/`, where the state of an optimizer beside
    them is left out. Half, single, double precision and bfloat16 become float32.

    Args:
        path: An official `.npz`, a `.safetensors` with the names of timm, or a
            `.weights.h5` of a Mixer that is neither quantized nor half precision.

    Returns:
        A pair `(weights, layout)`: our names to float32 arrays in the orientation of
        the model, and `"official"`, `"timm"` or `"keras"`.

    Raises:
        OSError: If the file cannot be opened (`FileNotFoundError` if there is none).
        ValueError: If the file is damaged, is not a Mixer, or an array is missing,
            unknown, not of floats or not finite. The message names file and array.
    """
    path = Path(path)
    readers = zip(WEIGHT_ENDINGS, (_read_npz, _read_safetensors, _read_h5), strict=True)
    readers = [read for ending, read in readers if path.name.endswith(ending)]
    if not readers:
        raise ValueError(
            "A weight file ends in `.npz` (official layout), `.safetensors` (timm "
            f"layout) or `.weights.h5` (Keras). Received: {str(path)!r}"
        )
    with open(path, "rb") as file, _naming(f"Cannot read {str(path)!r}"):
        weights, layout = readers[0](file)
        shapes = shapes_of(weights)
        lines = differences(shapes, weight_shapes(**describe_shapes(shapes)), "a Mixer")
        if lines:
            raise ValueError(
                "the shapes do not make one Mixer (models with a gate, such as "
                "timm's gmixer, are not supported)\n" + lines
            )
    return weights, {TIMM.block: "timm", KERAS.block: "keras"}.get(
        layout.block, "official"
    )


def write_official(path, weights):
    """Write `weights` (our names) as an official `.npz`, all of it or nothing.

    Raises:
        ValueError: If `path` does not end in `.npz`, or as in `to_official`.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(
            f"An official checkpoint file ends in `.npz`. Received: {str(path)!r}"
        )
    official = to_official(weights)
    with atomic_write(path) as file:
        np.savez(file, **official)


def _read_npz(file):
    """Return the weights of an open `.npz` and their layout."""
    with zipfile.ZipFile(file) as archive:
        members = {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name in members:
                raise ValueError(f"there are two arrays {name!r}")
            members[name] = member
        size = sum(member.file_size for member in members.values())
        if size > _MAX_BYTES:
            raise ValueError(
                f"its arrays claim {size} bytes, more than the {_MAX_BYTES} allowed"
            )
        members = _inside_root(members)
        older = any(name.startswith("Mixer/encoderblock_") for name in members)
        layout = OLDER if older else OFFICIAL
        weights = {}
        for ours, theirs in match_names(members, layout).items():
            with _naming(f"array {theirs!r}"):
                weights[ours] = _read_npy(archive, members[theirs])
    if layout is OLDER:
        drop_older_axes(weights)
    return weights, layout


def _inside_root(members):
    """Return `members` by their names below the root, if they have one."""
    for root in ("params/", "opt/target/"):
        if not any(name.startswith(root) for name in members):
            continue
        inside = {}
        for name, member in members.items():
            if name.startswith(root):
                inside[name.removeprefix(root)] = member
            elif not name.startswith(("opt/", "extra/")):  # the state of a training run
                raise ValueError(f"array {name!r} is not under {root!r} like the rest")
        return inside
    return members


def _read_npy(archive, member):
    """Return one array of a zip archive as float32, every byte of it checked."""
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
            received = f"Received: {header[:100]}"
            raise ValueError(f"its header is not that of a float array. {received}")
        dtype = _check_float(fields[1].decode(), _NPY_FLOATS)
        shape = tuple(int(size) for size in fields[3].split(b",") if size.strip())
        # Reading to the very end, and only that, makes `zipfile` compare the checksum.
        size = member.file_size - len(magic) - 2 - len(header)
        if math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"its shape {shape} does not fit its {size} bytes")
        if fields[2] == b"True":
            return np.ascontiguousarray(_read_floats(stream, dtype, shape[::-1]).T)
        return _read_floats(stream, dtype, shape)


def _read_safetensors(file):
    """Return the weights of an open `.safetensors` and their layout."""
    # The library checks the header; it cannot give bfloat16 to NumPy, so the arrays
    # are read here: in the order of the file, in which it allows no gaps.
    with safe_open(file.name, framework="np") as tensors:
        header = {name: tensors.get_slice(name) for name in tensors.offset_keys()}
        header = {n: (info.get_dtype(), info.get_shape()) for n, info in header.items()}
    names = match_names(header, TIMM)
    file.seek(8 + int.from_bytes(file.read(8), "little"))
    arrays = {}
    for name, (dtype, shape) in header.items():
        with _naming(f"array {name!r}"):
            dtype = _check_float(dtype, _SAFETENSORS_FLOATS)
            array = _read_floats(file, dtype, shape)
            # PyTorch puts outputs first, and of a convolution the inputs second.
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
            arrays[name] = np.ascontiguousarray(array)
    return {ours: arrays[theirs] for ours, theirs in names.items()}, TIMM


def _read_h5(file):
    """Return the weights of an open `.weights.h5` and their layout.

    Keras numbers the groups by class; the names of the layers are in attributes.
    """
    import h5py  # slow to import, and only this format needs it

    with h5py.File(file, "r") as h5:
        datasets = {}

        def collect(path, item):
            # Beside the layers there may be an optimizer and seeds.
            if path.startswith("layers/") and isinstance(item, h5py.Dataset):
                if "seed_generator" not in path:
                    datasets[_keras_name(h5, path)] = item

        h5.visititems(collect)
        size = sum(dataset.nbytes for dataset in datasets.values())
        if size > _MAX_BYTES:
            raise ValueError(
                f"its arrays claim {size} bytes, more than the {_MAX_BYTES} allowed"
            )
        weights = {}
        for ours, theirs in match_names(datasets, KERAS).items():
            with _naming(f"array {datasets[theirs].name!r}"):
                weights[ours] = _read_dataset(datasets[theirs])
    return weights, KERAS


def _keras_name(h5, path):
    """Return `block_0_norm_0/1` for the path `layers/mixer_block/norm_0/vars/1`."""
    *groups, _, number = path.split("/")
    layers = ("/".join(groups[:stop]) for stop in range(2, len(groups) + 1))
    names = (str(h5[layer]["vars"].attrs["name"]) for layer in layers)
    return f"{'_'.join(names)}/{number}"


def _read_dataset(dataset):
    """Return one array of an h5 file as float32."""
    _check_float(dataset.dtype.str, _NPY_FLOATS)
    # Keras does not compress; anything else could inflate, or lie in another file.
    if dataset.is_virtual or dataset.external or dataset.chunks:
        raise ValueError("it is not stored as Keras stores weights; save them anew")
    if dataset.id.get_storage_size() != dataset.nbytes:
        raise ValueError(f"its shape {dataset.shape} does not fit its size")
    with np.errstate(over="ignore"):  # found just below
        array = dataset[()].astype(np.float32)
    check_finite(array)
    return array


def _check_float(name, floats):
    """Return the dtype called `name` in a file, if it is one of `floats`."""
    if name not in floats:
        raise ValueError(f"it is not of floats. Received: dtype {name!r}")
    return floats[name]


def _read_floats(stream, dtype, shape):
    """Return the next array of `stream` as float32, read piece by piece."""
    array = np.empty(shape, np.float32)
    flat = array.reshape(-1)
    if not flat.size:
        raise ValueError(f"it is empty. Received: shape {tuple(shape)}")
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
def _naming(subject):
    """Turn whatever goes wrong inside into a `ValueError` that names `subject`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{subject}: {error}") from error
    except Exception as error:  # a damaged file can make the libraries raise anything
        raise ValueError(
            f"{subject}: {str(error) or type(error).__name__}. The file looks damaged: "
            "get it again."
        ) from error
