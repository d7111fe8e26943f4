"""One file from an official address: whole and checked under its name, or absent.

What arrives must have the expected size and the storage's own MD5 before it gets its
name. Its SHA-256 is kept beside it and compared whenever the file is used again.
Nothing here knows of models.
"""

import base64
import contextlib
import email.utils
import errno
import hashlib
import os
import random
import secrets
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from email.message import Message
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from urllib.parse import urlsplit

from keras_mixer.files import open_regular, remove_stale

_CHUNK = 2**18  # bytes
# So much more than ever before is progress, however often the connection breaks.
_PROGRESS = 2**20  # bytes
_MAX_WAIT = 60.0  # seconds; a server that asks for more is asked again all the same
_REFUSALS: dict[int, type[OSError]] = {
    401: PermissionError,
    403: PermissionError,
    404: FileNotFoundError,
    410: FileNotFoundError,
}


class _InterruptedError(Exception):
    """The transfer broke off; what has arrived is good.

    `wait` is how many seconds the server asks to wait, or 0.
    """

    wait = 0.0


class _DamagedError(Exception):
    """What has arrived, or is about to, is not the file."""


def fetch(
    address: str,
    path: str | os.PathLike[str],
    *,
    size: int,
    tolerance: int = 0,
    check: Callable[[Path], object] | None = None,
    timeout: float = 10.0,
    tries: int = 4,
    pause: float = 1.0,
) -> Path:
    """Return `path`, with the file at `address` in it.

    A file that is there and has the SHA-256 noted beside it is used without any
    request; one that somebody put there by hand needs the right size only. Otherwise it
    is downloaded, with a progress bar on a terminal; a broken connection is resumed.

    Args:
        address: An https address; http is allowed on this machine alone.
        path: Where the file is kept. Its folder is made if need be.
        size: Expected size in bytes.
        tolerance: How many bytes the size may differ from that.
        check: Called with the path of a file that nobody has looked at: a new one, or
            one put there by hand. A `ValueError` means that it cannot be read; it is
            fetched once more, and refused then.
        timeout: Seconds without a byte after which a connection counts as broken.
        tries: How often in a row to fail before giving up.
        pause: Seconds to wait after the first failure, doubled after each one; longer,
            up to a minute, where the server asks for it.

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
    if _is_intact(path, size, tolerance, check):
        return path
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ConnectionError(
            f"There is no intact {path}, and HF_HUB_OFFLINE forbids the download. "
            f"Unset HF_HUB_OFFLINE, or fetch {address} elsewhere and put it there."
        )
    remove_stale(path)
    with _replacing(path) as file, _Part(address, path, file, size, tolerance) as part:
        _complete(part, timeout, tries, pause, check)
        _write_digest(path, part.sha256.hexdigest())
    return path


class _Part:
    """What has arrived of a file, and what the server says of the whole."""

    def __init__(
        self, address: str, path: Path, file: IO[bytes], size: int, tolerance: int
    ) -> None:
        # As for the files of the Hub, with the same switches of the user's.
        from huggingface_hub.utils import tqdm

        self.address, self.path, self.file = address, path, file
        self.size, self.tolerance = size, tolerance
        self.received = self.best = 0
        self.length: int | None = None
        # `disable=None`: on a terminal only.
        self.bar = tqdm(
            desc=path.name, total=size, unit="B", unit_scale=True, disable=None
        )

    def __enter__(self) -> "_Part":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.close()

    def start(self, response: HTTPResponse) -> None:
        """Forget what has arrived, and expect what `response` announces."""
        self.received = 0
        self.sha256, self.md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self.etag = response.headers.get("ETag")
        self.stored_md5 = _stored_md5(response.headers)
        self.length = response.length  # `None` where the server does not say
        if self.length is not None:
            self._check_size(self.length, "the server announces {} bytes")
        expected = self.size if self.length is None else self.length
        with _writing(self.path):
            self.file.seek(0)
            self.file.truncate()
            if shutil.disk_usage(self.path.parent).free < expected:
                raise OSError(errno.ENOSPC, f"{expected} bytes do not fit")
        self.bar.reset(total=self.length)

    def append(self, data: bytes) -> None:
        """Write what arrived, unless it is more than the file can have."""
        if self.received + len(data) > self.size + self.tolerance:
            raise _DamagedError(f"more than its {self.size} bytes arrive")
        with _writing(self.path):
            rest = memoryview(data)
            while rest:  # a disk that fills up takes only some of it
                rest = rest[self.file.write(rest) :]
        self.sha256.update(data)
        self.md5.update(data)
        self.received += len(data)
        self.bar.update(len(data))

    def check(self) -> None:
        """Raise unless the whole file has arrived."""
        expected = self.size - self.tolerance if self.length is None else self.length
        if self.received < expected:
            raise _InterruptedError(
                f"the connection broke after {self.received} of {expected} bytes"
            )
        # After a restart it may be another file than the one first announced.
        if self.length is not None and self.received != self.length:
            raise _DamagedError(
                f"{self.received} bytes arrived where {self.length} were announced"
            )
        self._check_size(self.received, "{} bytes arrived")
        # Storage that composed the object of others knows no MD5: then the checksums
        # inside the file are left.
        md5 = base64.b64encode(self.md5.digest()).decode()
        if self.stored_md5 not in (None, md5):
            raise _DamagedError(f"its MD5 is {md5} where {self.stored_md5} is right")

    def _check_size(self, size: int, what: str) -> None:
        if abs(size - self.size) > self.tolerance:
            raise _DamagedError(f"{what.format(size)} where {self.size} are right")

    def has_grown(self) -> bool:
        """Whether clearly more has arrived than ever before."""
        if self.received < self.best + _PROGRESS:
            return False
        self.best = self.received
        return True


def _complete(
    part: _Part,
    timeout: float,
    tries: int,
    pause: float,
    check: Callable[[Path], object] | None,
) -> None:
    """Receive until `part` is the whole file."""
    opener = urllib.request.build_opener(_SecureRedirects)  # with the user's proxies
    failures = damages = 0
    while True:
        wait = 0.0
        try:
            _receive(opener, part, timeout)
            part.check()
            if check is not None:
                _check_content(part, check)
            return
        except _DamagedError as error:
            damages += 1
            part.received = 0
            if damages == 2:
                raise OSError(
                    f"What arrives from {part.address} is not the right file: {error}. "
                    f"Nothing was kept of two downloads. {_by_hand(part.path)}"
                ) from error
        except _InterruptedError as error:
            wait = error.wait
            failures = 1 if part.has_grown() else failures + 1
            if failures >= tries:
                raise ConnectionError(
                    f"Could not download {part.address}: {error}; gave up after "
                    f"{failures} failures in a row. {_by_hand(part.path)}"
                ) from error
        # At random, so that many who failed together do not come back together.
        own = pause * 2 ** max(failures - 1, 0) * random.uniform(0.5, 1)
        time.sleep(max(own, wait))


def _check_content(part: _Part, check: Callable[[Path], object]) -> None:
    """Have the file read that arrived, before it gets its name."""
    try:
        check(Path(part.file.name))
    except ValueError as error:
        raise _DamagedError(f"it cannot be read ({error})") from error


def _receive(
    opener: urllib.request.OpenerDirector, part: _Part, timeout: float
) -> None:
    """Append to `part` what one request brings."""
    headers = {"User-Agent": "keras-mixer"}
    # Without a tag a changed file could be spliced, without a length not be told whole.
    resumed = bool(part.received and part.etag and part.length is not None)
    if resumed:
        headers |= {"Range": f"bytes={part.received}-", "If-Range": str(part.etag)}
    request = urllib.request.Request(part.address, headers=headers)
    with _open(opener, request, timeout, part) as response:
        if response.status != 206:
            part.start(response)
        elif not resumed:
            part.received = 0
            raise _InterruptedError("the server sent a part, which nobody asked for")
        elif (
            response.headers.get("Content-Range")
            != f"bytes {part.received}-{(part.length or 0) - 1}/{part.length}"
        ):
            raise _DamagedError("the server sent another part than the one needed")
        while True:
            with _interruptible():
                data = response.read1(_CHUNK)  # all there is, when it breaks
            if not data:
                return
            part.append(data)


def _open(
    opener: urllib.request.OpenerDirector,
    request: urllib.request.Request,
    timeout: float,
    part: _Part,
) -> Any:
    """Return the response, if it is a good one."""
    with _interruptible():
        try:
            return opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            error.close()
            refused = error
    answer = f"the server answered {refused.code} {refused.reason}"
    if refused.code == 416:  # it has less than what is there: from the start again
        part.received = 0
    if refused.code in (408, 416, 429) or refused.code >= 500:
        interrupted = _InterruptedError(answer)
        interrupted.wait = retry_after(refused.headers)
        raise interrupted
    raise _REFUSALS.get(refused.code, ConnectionError)(
        f"Could not download {request.full_url}: {answer}. {_by_hand(part.path)}"
    ) from refused


def retry_after(headers: Mapping[str, str] | Message | None) -> float:
    """Return how many seconds a server asks to wait, at most a minute; 0 if none.

    `Retry-After` is a number of seconds or a date (RFC 9110, section 10.2.3).
    """
    text = str((headers or {}).get("Retry-After") or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), _MAX_WAIT)
    try:
        seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (OverflowError, TypeError, ValueError):
        return 0.0
    return min(max(seconds, 0.0), _MAX_WAIT)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Tell the network's errors from those of writing the file."""
    try:
        yield
    except (OSError, HTTPException) as error:
        raise _InterruptedError(str(error) or type(error).__name__) from error


def _by_hand(path: Path) -> str:
    return f"Try again later, or fetch the file elsewhere and put it at {path}"


def _stored_md5(headers: Message) -> str | None:
    """Return the MD5 that Google's storage states, in Base64, or `None`."""
    for value in ",".join(headers.get_all("x-goog-hash", [])).split(","):
        kind, _, digest = value.strip().partition("=")
        if kind == "md5":
            return digest
    return None


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _check_secure(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
    ) -> Any:
        location = headers.get("Location") or headers.get("URI")
        if location is None:
            raise _InterruptedError(f"the server answered {code}, and not where to")
        try:
            # What `urllib` does with it, without its errors.
            urlsplit(location).port  # noqa: B018
        except ValueError as error:
            raise _InterruptedError(
                f"the server redirects to an address that cannot be read: "
                f"{location[:200]!r}"
            ) from error
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _check_secure(address: str) -> None:
    parts = urlsplit(address)
    here = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme != "https" and not (here and parts.scheme == "http"):
        raise ValueError(f"`address` must be an https address. Received: {address!r}")


def _is_intact(
    path: Path,
    size: int,
    tolerance: int,
    check: Callable[[Path], object] | None,
) -> bool:
    """Whether the file is there and as it was downloaded; deletes a damaged one."""
    try:
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return False
    noted = _digest_path(path)
    if not noted.exists():  # put there by hand
        if abs(path.stat().st_size - size) > tolerance:
            return False
        if check is not None:
            try:
                check(path)
            except ValueError:
                return False
        with contextlib.suppress(OSError):  # a cache may be read-only
            _write_digest(path, digest)
        return True
    if noted.read_bytes() == _digest_line(path, digest):
        return True
    forget(path)
    return False


def forget(path: Path) -> None:
    """Delete a file that cannot be used, and its digest.

    Raises:
        OSError: If it cannot be deleted. The message says what to do.
    """
    try:
        path.unlink(missing_ok=True)
        # Or a good file put there by hand would not pass.
        _digest_path(path).unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path} is damaged and cannot be deleted ({error.strerror}). Delete it, "
            "or set KERAS_HOME to another folder",
        ) from error


def _write_digest(path: Path, digest: str) -> None:
    with _replacing(_digest_path(path)) as file:
        file.write(_digest_line(path, digest))


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digest_line(path: Path, digest: str) -> bytes:
    return f"{digest}  {path.name}\n".encode()  # as `sha256sum --check` reads it


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
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
def _writing(path: Path) -> Iterator[None]:
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
