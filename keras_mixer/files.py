"""Files that are whole under their name, or absent, whenever the writer is stopped."""

import contextlib
import hashlib
import os
import secrets
import tempfile
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path, mode="b", **options):
    """Give a new file to write, which takes the name `path` once it is on disk.

    Args:
        path: A `Path`; a file that is there is replaced, if nothing fails.
        mode: `"b"` for bytes, `"t"` for text.
        **options: Passed to `open`.

    Raises:
        OSError: If the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, f"x{mode}", **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class NoSuchFileError(FileNotFoundError):
    """The repository or folder is there, but not with this file."""


def sha256_of(path):
    """Return the sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mismatch(path, sha256, size):
    """Return in which way the file is not the expected one, or ''."""
    actual = path.stat().st_size
    if size is not None and actual != size:
        return f"{size} bytes were expected, {actual} are there"
    if sha256 is not None and (actual := sha256_of(path)) != sha256:
        return f"the sha256 {sha256} was expected, it is {actual}"
    return ""


@contextlib.contextmanager
def atomic_replace(target):
    """Give a new path, which takes the place of `target` unless something fails."""
    target = Path(target).absolute()  # Keras saves to no relative folder
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=f".{target.name}."
    ) as scratch:
        new, old = Path(scratch) / target.name, Path(scratch) / "replaced"
        yield new
        if target.is_dir():  # unlike a file, a folder is not replaced in one step
            os.replace(target, old)
        try:
            os.replace(new, target)
        except BaseException:
            if old.exists():
                os.replace(old, target)
            raise
