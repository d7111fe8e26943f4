"""Runs the demo: a socket, a folder that is removed at the end, and the page."""

import contextlib
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from keras_mixer.app.guard import Guard
from keras_mixer.app.limits import Limits
from keras_mixer.app.shelf import EMBEDDED, PRECISIONS, Precision, Shelf

PORT = 7860
# Read by Gradio when it is imported, or at each request.
_SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SSR_MODE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    source: str = EMBEDDED,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    precision: Precision = "float32",
    limits: Limits | None = None,
    ready: Callable[[str], object] | None = None,
) -> None:
    """Serve the demo until it is interrupted.

    It takes `limits` of each request, computes one after the other, and answers 503
    when too many wait. What is uploaded lies in a temporary folder, which is removed
    at the end. No other host is asked for anything but the weights that somebody
    chooses, and nothing is reported to anybody.

    Args:
        source: The model at the start: a name of `list_models(pretrained=True)`, a path
            of what `hub.read_model` reads, or `"hf://owner/name[@revision]"`.
        host: Address to listen on. On any other than this machine's own the page offers
            `source` and the named checkpoints alone, no paths and no addresses.
        port: Port to listen on; 0 for any free one.
        precision: `"float32"`, `"bfloat16"` or `"float16"`, at the start.
        limits: What a request may be; `None` for `Limits()`.
        ready: Called with the address once it can be opened.

    Raises:
        ImportError: If Gradio is not installed.
        OSError: If the model cannot be read, or the port is not free.
        ValueError: If there is no such model, or an argument is out of its range.
    """
    limits = limits or Limits()
    if precision not in PRECISIONS:
        raise ValueError(
            f"`precision` must be one of {', '.join(PRECISIONS)}. Received: "
            f"precision={precision!r}"
        )
    with _listening(host, port) as listener, _folder() as folder:
        drawings, uploads = folder / "drawings", folder / "uploads"
        drawings.mkdir()
        uploads.mkdir()
        # Before Gradio is imported.
        os.environ.update({**_SETTINGS, "GRADIO_TEMP_DIR": str(uploads)})
        try:
            import gradio
            import uvicorn
            from fastapi import FastAPI
        except ImportError as error:
            raise ImportError(
                "The demo needs Gradio: pip install 'keras-mixer[app]'"
            ) from error
        from keras_mixer.app.page import STYLE, page, theme

        shelf = Shelf(source, any_source=host in _LOOPBACK)
        shelf.get(source, precision)  # so that an error comes before the page
        blocks = page(shelf, precision, limits, drawings)
        application = gradio.mount_gradio_app(
            FastAPI(openapi_url=None),
            blocks,
            path="/",
            allowed_paths=[str(drawings)],
            max_file_size=limits.picture_bytes,
            show_error=True,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            pwa=False,
            run_history=False,
            footer_links=[],
            theme=theme(),
            css=STYLE,
        )
        # Without this Gradio accepts any file of this machine as an upload.
        blocks.has_launched = True
        guarded: Any = Guard(application, uploads, limits)
        config = uvicorn.Config(
            guarded, log_level="warning", access_log=False, timeout_graceful_shutdown=3
        )
        if ready is not None:
            shown = f"[{host}]" if ":" in host else host
            ready(f"http://{shown}:{listener.getsockname()[1]}")
        with contextlib.suppress(KeyboardInterrupt), _ending_in_order():
            uvicorn.Server(config).run(sockets=[listener])


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let SIGTERM end the process as Ctrl+C does: the folder is still removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Give a socket that listens, so that nobody else can take the port meanwhile."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(
            f"`host` must be an address of this machine. Received: host={host!r}"
        ) from error
    with contextlib.closing(listener):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(256)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OSError(
                f"The demo cannot listen on {host}, port {port}: {reason}. Choose "
                "another `port`; 0 takes any free one."
            ) from error
        yield listener


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(
        prefix="keras-mixer-app-", ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder).resolve()
