"""Zip archives of unknown origin: their directory is bounded before it is read."""

import os
import struct
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

# A million entries would take a gigabyte before anybody looks at one of them. The
# largest Mixer has 12,000, of 150 bytes each.
_MAX_DIRECTORY = 8 * 2**20  # bytes
_ENDS = ((b"PK\x05\x06", "<L", 12), (b"PK\x06\x06", "<Q", 40))
_IN_OTHER_RECORD = 2**32 - 1


def open_archive(file: BinaryIO) -> zipfile.ZipFile:
    """Return the archive in an open file.

    Raises:
        ValueError: If its directory is too large.
        zipfile.BadZipFile: If it is no archive, or damaged.
    """
    for size in _directory_sizes(file):
        if size > _MAX_DIRECTORY:
            raise ValueError(f"its list of entries takes {size} bytes")
    file.seek(0)
    return zipfile.ZipFile(file)


def _directory_sizes(file: BinaryIO) -> Iterator[int]:
    """Yield every size of the directory that the end of the archive may state."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - 2**16 - 100))
    tail = file.read()
    for magic, size_format, offset in _ENDS:
        at = tail.find(magic)
        while at >= 0:
            if len(tail) >= at + offset + struct.calcsize(size_format):
                (size,) = struct.unpack_from(size_format, tail, at + offset)
                if size != _IN_OTHER_RECORD:
                    yield size
            at = tail.find(magic, at + 1)
