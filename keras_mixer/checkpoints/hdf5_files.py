"""HDF5 files of unknown origin, looked at where a damaged one can do no harm.

See `hdf5_contents.py`. A file is looked at once: what was found is remembered until
the file changes. Files that are known to be good are looked at in this process.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from keras_mixer.checkpoints import hdf5_contents

# Of real time. The child also limits the time that it computes, to fewer seconds, where
# the system can: a busy machine, or a slow disk, is no damage.
_TIMEOUT = 60 if os.name == "posix" else 8
_MAX_REMEMBERED = 64


class Array(NamedTuple):
    """Where an array lies in a file: its dtype as NumPy writes it, and its offset."""

    dtype: str
    shape: tuple[int, ...]
    offset: int | None


class Contents(NamedTuple):
    """The arrays of an HDF5 file by their paths, and the attributes `name`."""

    arrays: dict[str, Array]
    names: dict[str, str]


_Signature = tuple[int, ...]
_known: dict[_Signature, Contents | None] = {}


def look_at(path: str | os.PathLike[str]) -> Contents:
    """Return what an HDF5 file holds, within seconds and little memory.

    Raises:
        OSError: If there is no such file, or no process to look at it can be started.
        ValueError: If the file is damaged or holds what Keras does not write.
    """
    signature = _signature(path)
    contents = _known.get(signature)
    if contents is None:
        path = str(Path(path).absolute())
        trusted = signature in _known
        found = hdf5_contents.read_contents(path) if trusted else _ask_child(path)
        contents = _parse(found)
        _remember(signature, contents)
    return contents


def trust(path: str | os.PathLike[str]) -> None:
    """Note that a file is what somebody trustworthy wrote: no child needs to look."""
    with contextlib.suppress(OSError):
        signature = _signature(path)
        if signature not in _known:
            _remember(signature, None)


def _remember(signature: _Signature, contents: Contents | None) -> None:
    while len(_known) >= _MAX_REMEMBERED:
        _known.pop(next(iter(_known)), None)
    _known[signature] = contents


def _signature(path: str | os.PathLike[str]) -> _Signature:
    status = os.stat(path)
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _parse(found: dict[str, list[Any]]) -> Contents:
    arrays = {
        path: Array(item[1], tuple(item[2]), item[3])
        for path, item in found.items()
        if len(item) > 1
    }
    names = {path: item[0] for path, item in found.items() if item[0] is not None}
    return Contents(arrays, names)


def _ask_child(path: str) -> dict[str, list[Any]]:
    """Return `hdf5_contents.read_contents(path)` of a process with limits."""
    environment = os.environ | {
        # What this process can import, and one thread: more take memory each.
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    # `-P`: a folder of scripts must not hide modules.
    command = [sys.executable, "-P", hdf5_contents.__file__, path]
    try:
        child = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(_ENDLESS) from error
    try:
        answer = json.loads(child.stdout)
    except ValueError as error:
        if child.returncode < 0 or child.returncode > 2:  # ended by a signal
            raise ValueError(_ENDLESS) from error
        reason = child.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise OSError(
            "The process that checks HDF5 files before they are read failed: "
            f"{' '.join(reason) or child.returncode}"
        ) from error
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["contents"]


_ENDLESS = "HDF5 does not finish it, or crashes. The file looks damaged: get it again."
