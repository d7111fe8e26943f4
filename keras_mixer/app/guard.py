"""What stands between the network and the page: bounds, and no other host."""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from keras_mixer.app.limits import MEBIBYTE, Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

# A browser refuses to ask another host for anything, whatever the page says.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; media-src 'self' data: blob:; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)
_HEADERS = {
    b"content-security-policy": _POLICY.encode(),
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}
# What Gradio puts into its page for other hosts: cards for social networks, hints to
# connect to hosts of fonts, a script for pages that embed this one.
_FOREIGN = re.compile(
    rb"<meta\b[^>]*https?://[^>]*>|<link\b[^>]*https?://[^>]*>"
    rb"|<script\b[^>]*\bsrc=\"https?://[^>]*>\s*</script>",
    re.IGNORECASE,
)
_NOT_UNDERSTOOD = "The demo does not understand this request."
_MAX_BODY = MEBIBYTE  # bytes of a request that brings no files
# How much of a refused request is still read, and for how long.
_DRAIN_BYTES, _DRAIN_SECONDS = 256 * MEBIBYTE, 10


class _Refusal(Exception):
    """An answer that is an error: a status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Guard:
    """An ASGI application around another one.

    It bounds the size of a request, the time in which it must arrive, how many of them
    arrive at once, and what the uploads take together. If the inner application fails
    on a request, the answer is status 400 and a sentence. What a page would load from
    other hosts is taken out of it.

    Args:
        inner: The application of Gradio.
        uploads: The folder where it keeps what is uploaded; old files are removed.
        limits: The bounds.
    """

    def __init__(self, inner: Application, uploads: Path, limits: Limits) -> None:
        self.inner, self.uploads, self.limits = inner, uploads, limits
        self.arriving = 0
        self.kept = frozenset(uploads.rglob("*"))  # what the page itself shows

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        answer = _Answer(send, is_page=scope["path"] == "/")
        uploading = scope["path"].rstrip("/").endswith("/upload")
        bound = self.limits.request_bytes if uploading else _MAX_BODY
        body = _Body(receive, bound, self.limits.seconds)
        self.arriving += uploading
        try:
            body.check_length(scope)
            if uploading:
                self._check_room()
                await self.inner(scope, body, answer)
            else:
                asked = await body.whole()
                self._check_files(asked)
                await self.inner(scope, body.again(asked), answer)
        except Exception as error:
            # The inner application may have made an error of its own from the body's.
            refusal = body.refusal or error
            if not isinstance(refusal, _Refusal):
                if answer.started:
                    raise
                refusal = _Refusal(400, _NOT_UNDERSTOOD)
            await body.drain()
            await answer.refuse(refusal.status, refusal.sentence)
        finally:
            self.arriving -= uploading

    def _check_files(self, asked: bytes) -> None:
        """Refuse a request that names a file which was not uploaded, or an address.

        Gradio would copy the file, or fetch the address, and only then look at it.
        """
        if not asked:
            return
        try:
            named = list(_paths_in(json.loads(asked)))
        except (ValueError, RecursionError):
            raise _Refusal(400, "The request is not JSON.") from None
        for path in named:
            inside = isinstance(path, str) and "\0" not in path
            if not (inside and Path(path).resolve().is_relative_to(self.uploads)):
                raise _Refusal(400, "The request names a file that was not uploaded.")

    def _check_room(self) -> None:
        if self.arriving > self.limits.uploads:
            raise _Refusal(503, "Too many uploads at once. Try again in some seconds.")
        kept = remove_old(self.uploads, self.limits.kept_seconds, self.kept)
        if kept > self.limits.stored_bytes:
            raise _Refusal(503, "The demo holds too many pictures. Try again later.")


class _Body:
    """The body of a request, as long as it is short and comes in time."""

    def __init__(self, receive: Receive, bound: int, seconds: float) -> None:
        self.receive, self.bound = receive, bound
        self.deadline = time.monotonic() + seconds
        self.received, self.complete = 0, False
        self.refusal: _Refusal | None = None

    def check_length(self, scope: Message) -> None:
        """Refuse what says itself that it is too long."""
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit():
            raise _Refusal(400, "The length of the request is no number.")
        self._check(int(length))

    def _check(self, size: int) -> None:
        if size > self.bound:
            self.refusal = _Refusal(
                413,
                f"The request is too large: at most {self.bound // MEBIBYTE} MiB are "
                "taken. Send fewer or smaller pictures.",
            )
            raise self.refusal

    async def __call__(self) -> Message:
        """Return the next part, as an ASGI server gives it."""
        if self.complete:  # what comes now is the end of the connection
            return await self.receive()
        try:
            left = max(self.deadline - time.monotonic(), 0.001)
            message = await asyncio.wait_for(self.receive(), left)
        except TimeoutError:
            self.refusal = _Refusal(408, "The request did not arrive in time.")
            raise self.refusal from None
        self.received += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        self._check(self.received)
        return message

    async def whole(self) -> bytes:
        """Return all of it."""
        parts = []
        while not self.complete:
            parts.append((await self()).get("body", b""))
        return b"".join(parts)

    def again(self, contents: bytes) -> Receive:
        """Return what gives the contents once more, and then the connection's end."""
        first = True

        async def receive() -> Message:
            nonlocal first
            if not first:
                return await self.receive()
            first = False
            return {"type": "http.request", "body": contents, "more_body": False}

        return receive

    async def drain(self) -> None:
        """Read a bounded rest: many clients listen only once they have sent all."""
        end, left = time.monotonic() + _DRAIN_SECONDS, _DRAIN_BYTES
        while not self.complete and left > 0:
            try:
                message = await asyncio.wait_for(
                    self.receive(), max(end - time.monotonic(), 0.001)
                )
            except TimeoutError:
                return
            left -= len(message.get("body", b""))
            self.complete = not message.get("more_body", False)


def _paths_in(value: Any) -> Iterator[Any]:
    """Yield what stands for the paths of files in a request."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "path":
                yield inner
            else:
                yield from _paths_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _paths_in(inner)


class _Answer:
    """Sends the answer of the other application, with the headers of this one."""

    def __init__(self, send: Send, *, is_page: bool) -> None:
        self.send, self.is_page = send, is_page
        self.started = False
        self.held: Message | None = None  # the head of a page that is changed
        self.page = b""

    async def __call__(self, message: Message) -> None:
        """Send one part."""
        if message["type"] == "http.response.start":
            message = {**message, "headers": _with_ours(message["headers"])}
            # Nothing is sent before it is known whether there is an answer.
            if message["status"] >= 500 and message["status"] != 503:
                raise _Refusal(400, _NOT_UNDERSTOOD)
            if self.is_page:
                self.held = message
                return
            self.started = True
        elif self.held is not None:
            self.page += message.get("body", b"")
            if message.get("more_body", False):
                return
            page = _FOREIGN.sub(b"", self.page)
            headers = [h for h in self.held["headers"] if h[0] != b"content-length"]
            headers.append((b"content-length", str(len(page)).encode()))
            self.started = True
            await self.send({**self.held, "headers": headers})
            self.held, message = None, {**message, "body": page}
        await self.send(message)

    async def refuse(self, status: int, sentence: str) -> None:
        """Send an error, unless an answer has begun."""
        if self.started:
            return
        self.started, body = True, sentence.encode()
        headers = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),  # not all of a request may be read
        ]
        if status == 503:
            headers.append((b"retry-after", b"10"))
        await self.send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": _with_ours(headers),
            }
        )
        await self.send({"type": "http.response.body", "body": body})


def _with_ours(headers: Any) -> list[tuple[bytes, bytes]]:
    others = [(name, value) for name, value in headers if name.lower() not in _HEADERS]
    return [*others, *_HEADERS.items()]


def remove_old(
    folder: Path, seconds: float, keep: frozenset[Path] = frozenset()
) -> int:
    """Remove the files of a folder that are older; return the bytes of the others."""
    kept, oldest = 0, time.time() - seconds
    for path in folder.rglob("*"):
        try:
            facts = path.stat()
            if not path.is_file():
                continue
            if facts.st_mtime < oldest and path not in keep:
                path.unlink()
                continue
            kept += facts.st_size
        except FileNotFoundError:  # another request was quicker
            continue
    return kept
