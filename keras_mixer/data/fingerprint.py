"""Digests of data that are cheap for any size, to tell a data set from another.

Names, sizes and labels count in full. Of the contents all bytes count in small sets,
and a fixed sample of them in large ones.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

# At most this many bytes of contents are read, of at most this many files.
SAMPLE_BYTES = 2**26
SAMPLE_FILES = 1000
# Examples that are read of a source that does not know its files.
SAMPLE_EXAMPLES = 1000


def digest(parts: Iterable[Any]) -> str:
    """Return the sha256, in hex, of the representations of `parts`, or of their bytes.

    Args:
        parts: Bytes, arrays, or values whose `repr` is the same on every machine.
    """
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(repr((part.shape, part.dtype.str)).encode())
            part = np.ascontiguousarray(part).tobytes()
        elif not isinstance(part, bytes):
            part = repr(part).encode("utf-8", "surrogateescape")
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()


def of_files(paths: Callable[[int], str], count: int, names: Iterable[bytes]) -> str:
    """Return the digest of files: all names and sizes, and a sample of the bytes.

    Args:
        paths: Returns the path of a file by its index.
        count: Number of files.
        names: Their names, independent of where they lie.
    """
    sizes = np.fromiter((os.path.getsize(paths(i)) for i in range(count)), np.int64)
    step = -(-count // SAMPLE_FILES)
    sample = range(0, count, max(step, 1))
    share = SAMPLE_BYTES // max(len(sample), 1)

    def contents() -> Iterator[bytes]:
        for index in sample:
            with open(paths(index), "rb") as file:
                yield file.read(share // 2)
                file.seek(max(file.tell(), sizes[index] - share // 2))
                yield file.read(share // 2)

    return digest([*names, sizes, *contents()])


def of_array(array: NDArray[Any]) -> str:
    """Return the digest of an array, of a large one of evenly spaced rows."""
    step = -(-array.nbytes // (4 * SAMPLE_BYTES))
    return digest([array.shape, array[:: max(step, 1)]])


def of_examples(dataset: Any) -> str:
    """Return the digest of the first examples of a `tf.data.Dataset`."""
    first = dataset.take(SAMPLE_EXAMPLES).as_numpy_iterator()
    return digest(np.asarray(part) for example in first for part in example)
