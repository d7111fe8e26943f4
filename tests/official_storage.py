"""Google's storage on loopback: buckets of files, its headers, and faults on demand.

with OfficialStorage(folder) as storage:
    storage.fault("drop", 4096)    # the next download breaks there
    fetch(f"{storage.url}/mixer_models/sam/Mixer-B_16.npz", ...)
    assert storage.log[-1]["range"] == "bytes=4096-"
"""

import base64
import hashlib
import re
import socket
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = (
    "status",  # answers with this code
    "drop",  # breaks the connection after so many bytes of the body
    "drop_untagged",  # the same, and sends no ETag
    "hang_up",  # ends the connection in an orderly way after so many bytes of the body
    "truncate",  # announces and sends so many bytes as if they were the whole
    "announce",  # announces so many bytes more than there are
    "corrupt",  # flips a bit so many bytes after the start
    "corrupt_unhashed",  # the same, and says nothing of MD5
    "stall",  # waits so many seconds before the body
    "slow",  # sends so many bytes in a second
    "ignore_range",  # sends the whole to whoever asks for a part
    "wrong_range",  # sends a part that was not asked for
    "redirect",  # to this address
    "no_hash",  # says nothing of MD5
    "chunked",  # does not announce the length
)

_CHUNK = 2**18
_SLOW_CHUNK = 2**14


class OfficialStorage:
    """The files below `folder`, what was asked for, and the faults to come."""

    def __init__(self, folder):
        self.folder, self.log, self._faults = Path(folder), [], []
        self._md5 = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.storage = self
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a client that went away
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        ).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def fault(self, kind, value=None, times=1):
        """Spoil the next `times` requests in one of the ways of `FAULTS`."""
        assert kind in FAULTS, kind
        with self._lock:
            self._faults += [(kind, value)] * times

    def take_fault(self):
        with self._lock:
            return self._faults.pop(0) if self._faults else (None, None)

    def md5(self, path):
        """Return the MD5 of a file, computed once for each content."""
        stat = path.stat()
        key = (path, stat.st_mtime_ns, stat.st_size)
        if key not in self._md5:
            with open(path, "rb") as file:
                self._md5[key] = hashlib.file_digest(file, "md5").digest()
        return self._md5[key]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        storage = self.server.storage
        path = storage.folder / self.path.lstrip("/")
        self.kind, self.value = storage.take_fault()
        self.record = {
            "path": self.path,
            "range": self.headers.get("Range"),
            "if_range": self.headers.get("If-Range"),
            "status": None,
            "sent": 0,
        }
        storage.log.append(self.record)
        try:
            if self.kind == "status":
                self._refuse(self.value)
            elif self.kind == "redirect":
                self._head(302, 0, {"Location": self.value})
            elif not path.is_file():
                self._refuse(404)
            else:
                self._send(path, storage.md5(path))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _refuse(self, status):
        body = b"<?xml version='1.0'?><Error><Code>Injected</Code></Error>"
        self._head(status, len(body), {"Content-Type": "application/xml"})
        self.wfile.write(body)

    def _head(self, status, length, headers=()):
        self.record["status"] = status
        self.send_response(status)
        if self.kind != "chunked":
            self.send_header("Content-Length", str(length))
        for name, value in dict(headers).items():
            for line in value if isinstance(value, list) else [value]:
                self.send_header(name, line)
        self.end_headers()

    def _send(self, path, md5):
        size = path.stat().st_size
        tag = f'"{md5.hex()}"'
        headers = {"Accept-Ranges": "bytes", "ETag": tag}
        # The storage sends each hash in a header of its own; the CRC is not read.
        crc = base64.b64encode(struct.pack(">I", zlib.crc32(md5))).decode()
        md5 = base64.b64encode(md5).decode()
        headers["x-goog-hash"] = [f"crc32c={crc}", f"md5={md5}"]
        if self.kind in ("no_hash", "corrupt_unhashed"):
            headers["x-goog-hash"] = [f"crc32c={crc}"]
        if self.kind == "drop_untagged":
            del headers["ETag"]
        if self.kind == "truncate":
            size = self.value
        whole = size + (self.value if self.kind == "announce" else 0)
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, tag)
        if asked and same and self.kind != "ignore_range":
            start, status = int(asked[1]) + (self.kind == "wrong_range"), 206
            headers["Content-Range"] = f"bytes {start}-{whole - 1}/{whole}"
        if self.kind == "chunked":
            headers["Connection"] = "close"
        self._head(status, whole - start, headers)
        if self.kind == "stall":
            time.sleep(self.value)
        with open(path, "rb") as file:
            file.seek(start)
            self._body(file, size - start)
        if self.kind in ("announce", "chunked"):
            self.close_connection = True

    def _body(self, file, left):
        chunk = _SLOW_CHUNK if self.kind == "slow" else _CHUNK
        while left:
            data = bytearray(file.read(min(chunk, left)))
            sent = self.record["sent"]
            corrupt = self.kind in ("corrupt", "corrupt_unhashed")
            if corrupt and sent <= self.value < sent + len(data):
                data[self.value - sent] ^= 1
            breaks = self.kind in ("drop", "drop_untagged", "hang_up")
            if breaks and self.value <= sent + len(data):
                self.wfile.write(data[: self.value - sent])
                self.record["sent"] = self.value
                if self.kind == "hang_up":
                    self.close_connection = True
                    return
                return self._reset()
            self.wfile.write(data)
            self.record["sent"] += len(data)
            left -= len(data)
            if self.kind == "slow":
                time.sleep(len(data) / self.value)

    def _reset(self):
        """Break the connection as a network that fails does, not in an orderly way."""
        self.close_connection = True
        self.wfile.flush()
        # What is on its way is delivered before it; an unread answer would be lost.
        time.sleep(0.02)
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
