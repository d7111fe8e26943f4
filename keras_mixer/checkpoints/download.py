"""One file from an official address: whole and checked under its name, or absent.

What arrives must have the expected size and the storage's own MD5 before it gets its
name. Its SHA-256 is kept beside it and compared whenever the file is used again.
Nothing here knows of models.
"""

import base64
import contextlib
import errno
import glob
import hashlib
import os
import random
import secrets
import shutil
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

_CHUNK = 2**18  # bytes
_STALE = 86400.0  # seconds without a write, after which nobody writes any more
# So much more than ever before is progress, however often the connection breaks.
_PROGRESS = 2**20  # bytes
_REFUSALS = {
    401: PermissionError,
    403: PermissionError,
    404: FileNotFoundError,
    410: FileNotFoundError,
}


class _InterruptedError(Exception):
    """The transfer broke off; what has arrived is good."""


class _DamagedError(Exception):
    """What has arrived, or is about to, is not the file."""


def fetch(address, path, *, size, tolerance=0, timeout=10.0, tries=4, pause=1.0):
    """Return `path`, with the file at `address` in it.

    A file that is there and has the SHA-256 noted beside it is used without any
    request; one that somebody put there by hand needs the right size only. Otherwise it
    is downloaded, with a progress bar on a terminal; a broken connection is resumed.

    Args:
        address: An https address; http is allowed on this machine alone.
        path: Where the file is kept. Its folder is made if need be.
        size: Expected size in bytes.
        tolerance: How many bytes the size may differ from that.
        timeout: Seconds without a byte after which a connection counts as broken.
        tries: How often in a row to fail before giving up.
        pause: Seconds to wait after the first failure, doubled after each one.

    Raises:
        ConnectionError: If the server cannot be reached, fails again and again, or is
            not to be asked because `HF_HUB_OFFLINE` is set.
        FileNotFoundError: If there is no such file.
        OSError: If the file is damaged twice in a row, or cannot be written.
        PermissionError: If the server refuses access.
        ValueError: If `address` is not secure.
    """
    path = Path(path)
    _check_secure(address)
    if _is_intact(path, size, tolerance):
        return path
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ConnectionError(
            f"There is no intact {path}, and HF_HUB_OFFLINE forbids to download it. "
            f"Unset HF_HUB_OFFLINE, or fetch {address} elsewhere and put it there."
        )
    _remove_stale(path)
    with _replacing(path) as file, _Part(address, path, file, size, tolerance) as part:
        _complete(part, timeout, tries, pause)
        _write_digest(path, part.sha256.hexdigest())
    return path


class _Part:
    """What has arrived of a file, and what the server says of the whole."""

    def __init__(self, address, path, file, size, tolerance):
        # As for the files of the Hub, with the same switches of the user's.
        from huggingface_hub.utils import tqdm

        self.address, self.path, self.file = address, path, file
        self.size, self.tolerance = size, tolerance
        self.received = self.best = 0
        # `disable=None`: on a terminal only.
        self.bar = tqdm(desc=path.name, unit="B", unit_scale=True, disable=None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def start(self, response):
        """Forget what has arrived, and expect what `response` announces."""
        self.received = 0
        self.sha256, self.md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self.etag = response.headers.get("ETag")
        self.stored_md5 = _stored_md5(response.headers)
        self.length = response.length or 0
        if abs(self.length - self.size) > self.tolerance:
            raise _DamagedError(
                f"the server announces {self.length} bytes where {self.size} are right"
            )
        with _writing(self.path):
            self.file.seek(0)
            self.file.truncate()
            if shutil.disk_usage(self.path.parent).free < self.length:
                raise OSError(errno.ENOSPC, f"{self.length} bytes do not fit")
        self.bar.reset(total=self.length)

    def append(self, data):
        with _writing(self.path):
            rest = memoryview(data)
            while rest:  # a disk that fills up takes only some of it
                rest = rest[self.file.write(rest) :]
        self.sha256.update(data)
        self.md5.update(data)
        self.received += len(data)
        self.bar.update(len(data))

    def check(self):
        """Raise unless the whole file has arrived."""
        if self.received < self.length:
            raise _InterruptedError(
                f"the connection broke after {self.received} of {self.length} bytes"
            )
        # Storage that composed the object of others knows no MD5: then the checksums
        # inside the file are left.
        md5 = base64.b64encode(self.md5.digest()).decode()
        if self.stored_md5 not in (None, md5):
            raise _DamagedError(f"its MD5 is {md5} where {self.stored_md5} is right")

    def has_grown(self):
        """Whether clearly more has arrived than ever before."""
        if self.received < self.best + _PROGRESS:
            return False
        self.best = self.received
        return True


def _complete(part, timeout, tries, pause):
    """Receive until `part` is the whole file."""
    opener = urllib.request.build_opener(_SecureRedirects)  # with the user's proxies
    failures = damages = 0
    while True:
        try:
            _receive(opener, part, timeout)
            return part.check()
        except _DamagedError as error:
            damages += 1
            part.received = 0
            if damages == 2:
                raise OSError(
                    f"What arrives from {part.address} is not the right file: {error}. "
                    f"Nothing was kept of two downloads. {_by_hand(part.path)}"
                ) from error
        except _InterruptedError as error:
            failures = 1 if part.has_grown() else failures + 1
            if failures >= tries:
                raise ConnectionError(
                    f"Could not download {part.address}: {error}; gave up after "
                    f"{failures} failures in a row. {_by_hand(part.path)}"
                ) from error
        # At random, so that many who failed together do not come back together.
        time.sleep(pause * 2 ** max(failures - 1, 0) * random.uniform(0.5, 1))


def _receive(opener, part, timeout):
    """Append to `part` what one request brings."""
    headers = {"User-Agent": "keras-mixer"}
    if part.received and part.etag:  # without it, a changed file could be spliced
        headers |= {"Range": f"bytes={part.received}-", "If-Range": part.etag}
    request = urllib.request.Request(part.address, headers=headers)
    with _open(opener, request, timeout, part.path) as response:
        if response.status != 206:
            part.start(response)
        elif (
            response.headers.get("Content-Range")
            != f"bytes {part.received}-{part.length - 1}/{part.length}"
        ):
            raise _DamagedError("the server sent another part than the one needed")
        while True:
            with _interruptible():
                data = response.read1(_CHUNK)  # all there is, when it breaks
            if not data:
                return
            part.append(data)


def _open(opener, request, timeout, path):
    """Return the response, if it is a good one."""
    with _interruptible():
        try:
            return opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            error.close()
            refused = error
    answer = f"the server answered {refused.code} {refused.reason}"
    if refused.code in (408, 429) or refused.code >= 500:
        raise _InterruptedError(answer)
    raise _REFUSALS.get(refused.code, ConnectionError)(
        f"Could not download {request.full_url}: {answer}. {_by_hand(path)}"
    ) from refused


@contextlib.contextmanager
def _interruptible():
    """Tell the network's errors from those of writing the file."""
    try:
        yield
    except (OSError, HTTPException) as error:
        raise _InterruptedError(str(error) or type(error).__name__) from error


def _by_hand(path):
    return f"Try again later, or fetch the file elsewhere and put it at {path}"


def _stored_md5(headers):
    """Return the MD5 that Google's storage states, in Base64, or `None`."""
    for value in ",".join(headers.get_all("x-goog-hash", [])).split(","):
        kind, _, digest = value.strip().partition("=")
        if kind == "md5":
            return digest
    return None


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_secure(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_secure(address):
    parts = urlsplit(address)
    here = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme != "https" and not (here and parts.scheme == "http"):
        raise ValueError(f"`address` must be an https address. Received: {address!r}")


def _is_intact(path, size, tolerance):
    """Whether the file is there and as it was downloaded; deletes a damaged one."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return False
    noted = _digest_path(path)
    if not noted.exists():  # put there by hand
        if abs(path.stat().st_size - size) > tolerance:
            return False
        with contextlib.suppress(OSError):  # a cache may be read-only
            _write_digest(path, digest)
        return True
    if noted.read_bytes() == _digest_line(path, digest):
        return True
    path.unlink(missing_ok=True)
    noted.unlink(missing_ok=True)  # or a good file put there by hand would not pass
    return False


def _write_digest(path, digest):
    with _replacing(_digest_path(path)) as file:
        file.write(_digest_line(path, digest))


def _digest_path(path):
    return path.with_name(f"{path.name}.sha256")


def _digest_line(path, digest):
    return f"{digest}  {path.name}\n".encode()  # as `sha256sum --check` reads it


@contextlib.contextmanager
def _replacing(path):
    """Give a file to write that gets its name at the end, or vanishes."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer, closing has nothing left to write that could fail.
        file = open(temporary, "xb", buffering=0)
    try:
        with file:
            yield file
            with _writing(path):
                os.fsync(file.fileno())
        with _writing(path):
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(path):
    """Say what to do when writing fails."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"Cannot write a download: {error.strerror}. Make room there, or set "
            "KERAS_HOME to a folder that has room and can be written",
            str(path),
        ) from error


def _remove_stale(path):
    """Delete what processes that were killed left behind."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):  # another process was faster
            if time.time() - temporary.stat().st_mtime > _STALE:
                temporary.unlink()
