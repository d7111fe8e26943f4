"""What lies where in an HDF5 file, found without reading any array.

HDF5's C code can run for ever, take any memory or crash on a damaged file, and nothing
inside the process can stop it. So this file is also a program of its own:
`hdf5_files.py` runs it in a child process, where it limits its own time and memory.
It imports nothing of the package, nor Keras.
"""

import json
import os
import signal
import sys
from typing import Any

_MAX_OBJECTS = 20_000
_MAX_DEPTH = 64
_MAX_NAME = 4096
# Seconds that this process may compute: a Mixer of 12 blocks takes a twentieth of one,
# 3000 arrays take one, and large files may have more.
_SECONDS, _MAX_SECONDS, _BYTES_PER_SECOND = 1.0, 5.0, 2**22
_MEMORY = 192 * 2**20  # bytes beyond what Python and HDF5 take themselves
# Numbers of fixed width: integers, floats, booleans, and the opaque bytes of bfloat16.
_KINDS = "biufV"


def read_contents(path: str) -> dict[str, list[Any]]:
    """Return what an HDF5 file holds: path -> name, dtype, shape and offset.

    Of a group it is `[name]`, its attribute `name` or `None`; of an array
    `[name, dtype, shape, offset]`, where `offset` counts bytes from the start of the
    file, or is `None` for an array without any element.

    Every object and every attribute is visited, so that whoever opens the file after
    this meets nothing that this has not.

    Raises:
        ValueError: If there is anything that Keras does not write: links to other
            places, compressed or scattered arrays, numbers of varying width.
        Exception: Whatever h5py raises for a damaged file.
    """
    import h5py

    contents: dict[str, list[Any]] = {}
    with h5py.File(path, "r", locking=False) as file:
        size = file.id.get_filesize()
        groups = [("", file)]
        while groups:
            above, group = groups.pop()
            if above.count("/") > _MAX_DEPTH:
                raise ValueError(f"its groups are nested deeper than {_MAX_DEPTH}")
            for name in group:  # a link to a group above ends at the depth
                path = f"{above}{name}"
                if len(path) > _MAX_NAME or len(contents) >= _MAX_OBJECTS:
                    raise ValueError("it has too many objects, or too long names")
                if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                    raise ValueError(f"{path!r} is a link to another place")
                item = group[name]
                contents[path] = [_attributes(item).get("name")]
                if isinstance(item, h5py.Group):
                    groups.append((f"{path}/", item))
                elif isinstance(item, h5py.Dataset):
                    contents[path] += _array(path, item, size)
                else:
                    raise ValueError(f"{path!r} is neither a group nor an array")
    return contents


def _attributes(item: Any) -> dict[str, str]:
    """Return the attributes that are text; all others are read, too."""
    values = {str(key): item.attrs[key] for key in item.attrs}
    return {key: value for key, value in values.items() if isinstance(value, str)}


def _array(path: str, item: Any, size: int) -> list[Any]:
    """Return dtype, shape and offset of an array that lies in one piece."""
    dtype = item.dtype
    if dtype.kind not in _KINDS or dtype.hasobject or dtype.fields:
        raise ValueError(f"array {path!r} is not of numbers. Received: dtype {dtype}")
    if item.shape is None:
        raise ValueError(f"array {path!r} has no shape")
    # Anything else could inflate when it is read, or lie in another file.
    if item.chunks or item.is_virtual or item.external:
        raise ValueError(f"array {path!r} is not stored in one piece; save it anew")
    offset = item.id.get_offset()
    if not item.nbytes:
        offset = None
    elif (
        offset is None
        or item.id.get_storage_size() != item.nbytes
        or offset + item.nbytes > size
    ):
        raise ValueError(
            f"the shape {item.shape} of array {path!r} does not fit the bytes stored"
        )
    return [dtype.str, list(item.shape), offset]


def _limit(size: int) -> None:
    """Bound the time and the memory of this process, where the system can."""
    try:
        import resource
    except ImportError:  # Windows: the parent's timeout is the only limit
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The signal ends the process: nobody handles it. HDF5 could not run a handler.
    seconds = min(_SECONDS + size / _BYTES_PER_SECOND, _MAX_SECONDS)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
    except OSError:  # not Linux
        return
    memory = pages * resource.getpagesize() + _MEMORY
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or memory <= hard:
        resource.setrlimit(resource.RLIMIT_AS, (memory, hard))


def _main(path: str) -> None:
    """Print the contents of a file as JSON, or what is wrong with it."""
    import h5py  # noqa: F401  # its own memory does not count

    _limit(os.path.getsize(path))
    try:
        answer: dict[str, Any] = {"contents": read_contents(path)}
    except MemoryError:
        answer = {"error": "its objects claim more memory than they need"}
    except Exception as error:  # a damaged file can make HDF5 raise anything
        answer = {"error": str(error) or type(error).__name__}
    print(json.dumps(answer))  # noqa: T201


if __name__ == "__main__":
    _main(sys.argv[1])
