"""Ctrl-C ends a command within seconds, whatever C code is doing.

Python acts on a signal between two of its own instructions only. XLA compiles a large
model, and a processor computes its step, for minutes without one. But the byte that
announces a signal is written at once: a thread waits for it. And the exception that
Python raises may crash the C++ code that is being imported, or arrive as another error:
there the process ends at once.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

_SECONDS = 3.0  # for Python to end in order: it also restores the last checkpoint


class Interrupts:
    """Ends this process some seconds after Ctrl-C, unless it has ended itself.

    A file that is being written then is absent under its name, as after any kill; what
    was written of it may stay beside it, in a hidden file or folder.

    Args:
        say: Says that the command was interrupted; called once, here or by `tell`.
        status: The exit status then.

    Attributes:
        happened: Whether there was a Ctrl-C; what fails after it fails because of it.
    """

    def __init__(self, say: Callable[[], None], status: int) -> None:
        self._say, self._status = say, status
        self.happened = False
        try:
            self._error_output: int | None = os.dup(2)
        except OSError:  # there is no standard error
            self._error_output = None
        self._told = threading.Lock()
        # On Windows only a socket can be woken up.
        self._waiting, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        # A job in the background of a shell ignores the signal: it goes on doing so.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)

    def tell(self, say: Callable[[], None] | None = None) -> None:
        """Say that the command was interrupted, unless that was said.

        Args:
            say: Says it with more that is known now; `None` for that of the beginning.
        """
        if self._told.acquire(blocking=False):
            (say or self._say)()

    def _watch(self) -> None:
        while self._waiting.recv(1) != bytes([signal.SIGINT]):
            pass
        time.sleep(_SECONDS)
        self._end()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.happened = True
        if _is_import(frame):
            self._end()
        signal.default_int_handler(number, frame)

    def _end(self) -> NoReturn:
        if self._error_output is not None:  # kept back while TensorFlow is imported
            os.dup2(self._error_output, 2)
        self.tell()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):  # nobody reads it any more
                pass
        os._exit(self._status)


def _is_import(frame: FrameType | None) -> bool:
    """Whether a module is being loaded where the signal arrived."""
    while frame:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False
