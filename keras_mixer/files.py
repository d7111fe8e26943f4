"""Files and folders: read only where they are regular, written whole or not at all."""

import contextlib
import glob
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

_MAX_REASON = 500  # characters
_STALE = 86400.0  # seconds without a write, after which nobody writes any more


class NoSuchFileError(FileNotFoundError):
    """The repository or folder is there, but not with this file."""


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "b", **options: Any) -> Iterator[IO[Any]]:
    """Give a new file to write, which takes the name `path` once it is on disk.

    Args:
        path: A `Path`; a file that is there is replaced, if nothing fails.
        mode: `"b"` for bytes, `"t"` for text.
        **options: Passed to `open`.

    Raises:
        OSError: If the file cannot be written.
    """
    remove_stale(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, f"x{mode}", **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_replace(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a new path, which takes the place of `target` unless something fails."""
    target = Path(target).absolute()  # Keras cannot save to a relative folder
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():  # or what was killed may hold the only copy
        remove_stale(target)
    with tempfile.TemporaryDirectory(
        dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"
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


def remove_stale(path: Path) -> None:
    """Delete what processes that were killed while they wrote `path` left behind."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):  # another process was faster
            if time.time() - temporary.stat().st_mtime < _STALE:
                continue
            if temporary.is_dir():
                shutil.rmtree(temporary)
            else:
                temporary.unlink()


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file to read its bytes.

    Reading a pipe waits for ever, and a device may never end: both are refused, as are
    folders and links that lead nowhere.

    Raises:
        FileNotFoundError: If there is no such file.
        IsADirectoryError: If it is a folder.
        OSError: If it is something else, or cannot be opened.
    """
    name = str(path)
    try:
        # A pipe that nobody writes to would keep `open` waiting.
        descriptor = os.open(
            path,
            os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0),
        )
    except FileNotFoundError as error:
        broken = f": it is a link to {os.readlink(path)!r}" if _is_link(path) else ""
        raise FileNotFoundError(f"There is no file {name!r}{broken}") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"Cannot open {name!r}: {reason}") from error
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{name!r} must be a file. It is a folder")
    raise OSError(
        f"{name!r} must be a regular file. It is a pipe, a socket or a device, which "
        "may never end"
    )


def read_bounded(path: str | os.PathLike[str], max_size: int) -> bytes:
    """Return the bytes of a regular file that has at most `max_size` of them.

    Raises:
        OSError: As `open_regular` does.
        ValueError: If the file is larger.
    """
    with open_regular(path) as file:
        data = file.read(max_size + 1)
    if len(data) > max_size:
        raise ValueError(f"it has more than {max_size} bytes")
    return data


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file, in hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mismatch(path: str | os.PathLike[str], sha256: str | None, size: int | None) -> str:
    """Return in which way the file is not the expected one, or ''."""
    with open_regular(path) as file:
        actual = os.fstat(file.fileno()).st_size
        if size is not None and actual != size:
            return f"{size} bytes were expected, {actual} are there"
        if sha256 is None:
            return ""
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        return f"the sha256 {sha256} was expected, it is {digest}"
    return ""


def reason_of(error: BaseException | str) -> str:
    """Return what an exception of a library says, on one line of bounded length.

    Some print all that they were given, with control characters.
    """
    words = " ".join(str(error).split()) or type(error).__name__
    text = "".join(c if c.isprintable() else "?" for c in words[: _MAX_REASON + 1])
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]} ..."


def _is_link(path: str | os.PathLike[str]) -> bool:
    return Path(path).is_symlink()
