"""The folder of a run: one writer at a time, and disk errors that name the path."""

import contextlib
import errno
import warnings
from collections.abc import Iterator
from pathlib import Path

import filelock

# What file systems without locks answer.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the folder is made if need be.

    The operating system releases the lock when the process ends, however it ends: a
    killed run leaves none behind.

    Args:
        folder: The folder of a run.

    Raises:
        FileExistsError: If another run holds it.
        OSError: If the folder cannot be written.
    """
    with disk_errors_name(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        with disk_errors_name(folder):
            lock.acquire()
    except filelock.Timeout as error:
        raise FileExistsError(
            f"Another run is writing to {str(folder)!r} at this moment. Wait for its "
            "end, stop it, or choose another folder."
        ) from error
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"The file system of {str(folder)!r} has no locks: see to it yourself that "
            "no second run writes there.",
            stacklevel=2,
        )
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def disk_errors_name(path: Path) -> Iterator[None]:
    """Let an `OSError` inside name the file, where the system does not.

    Reading, writing and syncing an open file fail without its name.
    """
    try:
        yield
    except OSError as error:
        if str(path) in str(error):
            raise
        if error.errno is None:
            raise type(error)(f"{error}: {str(path)!r}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error
