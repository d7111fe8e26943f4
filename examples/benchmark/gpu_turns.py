"""Processes that prepare side by side and are timed alone.

Compiling takes most of the time and needs the processor; a timed call needs the GPU for
itself. So several processes prepare at once, and all others are stopped (SIGSTOP) while
one is timed. A process that ends, hangs or takes too long costs its own result only.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress


class Turns:
    """Runs cells of `gpu_cell.py`.

    Args:
        lanes: Processes at once.
        memory: GiB that all of them may take together.
        end: `time.monotonic()` at which everything ends.
        environment: Variables of all processes.
        least: Seconds before the end with which no cell is begun any more.
    """

    def __init__(self, *, lanes, memory, end, environment, least=15.0):
        self._lanes, self._memory, self._end = lanes, memory, end
        self._environment, self._least = environment, least
        self._running = {}  # process -> GiB
        self._changed = threading.Condition()
        self._alone = threading.Lock()

    def run(self, cells, done):
        """Run cells in their order and call `done(cell, answer)` after each.

        Args:
            cells: Dictionaries with `budget` (seconds), `memory` (GiB), `backend` and
                what `gpu_cell.py` reads.
            done: Gets the answer of the cell, or `{"error": why there is none}`.
        """
        threads = []
        for cell in cells:
            if not self._wait_for_room(cell["memory"]):
                done(cell, {"error": "no time left"})
                continue
            process = self._start(cell)
            thread = threading.Thread(target=self._finish, args=(cell, process, done))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()

    def _wait_for_room(self, memory):
        def room():
            taken = sum(self._running.values())
            free = not self._running or taken + memory <= self._memory
            return free and len(self._running) < self._lanes

        with self._changed:
            left = self._end - self._least - time.monotonic()
            return left > 0 and self._changed.wait_for(room, timeout=left)

    def _start(self, cell):
        script = os.path.join(os.path.dirname(__file__), "gpu_cell.py")
        # Outside the lock: a timed process must not meet one that just starts.
        with self._alone:
            process = subprocess.Popen(
                [sys.executable, script, json.dumps(cell)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=self._environment | {"KERAS_BACKEND": cell["backend"]},
                start_new_session=True,  # it is stopped and ended with its children
            )
        with self._changed:
            self._running[process] = cell["memory"]
        return process

    def _finish(self, cell, process, done):
        words = []  # what it complains of, read as it comes: a full pipe would stop it
        listener = threading.Thread(target=lambda: words.extend(process.stderr))
        listener.start()
        late = threading.Event()

        def end():
            late.set()
            _signal(process, signal.SIGKILL)

        left = max(self._end - time.monotonic(), 0)
        timer = threading.Timer(min(cell["budget"], left), end)
        timer.start()
        try:
            answer = self._answer(process)
        finally:
            timer.cancel()
            _signal(process, signal.SIGKILL)
            process.wait()
            listener.join()
            for pipe in (process.stdin, process.stdout, process.stderr):
                with suppress(OSError):  # a line that nobody has read
                    pipe.close()
            with self._changed:
                del self._running[process]
                self._changed.notify_all()
        if answer is None:
            if late.is_set():
                answer = {"error": f"not done in {min(cell['budget'], left):.0f} s"}
            else:
                answer = {"error": _reason(words)}
        done(cell, answer)

    def _answer(self, process):
        """Return what the process measured, or `None` if it ended before."""
        if process.stdout.readline() != "ready\n":
            return None
        with self._alone, self._others_stopped(process):
            try:
                process.stdin.write("\n")
                process.stdin.flush()
            except OSError:
                return None
            line = process.stdout.readline()
        return json.loads(line) if line.endswith("\n") else None

    @contextmanager
    def _others_stopped(self, process):
        with self._changed:
            others = [other for other in self._running if other is not process]
        for other in others:
            _signal(other, signal.SIGSTOP)
        try:
            if others:
                time.sleep(0.2)  # what they have sent to the GPU already
            yield
        finally:
            for other in others:
                _signal(other, signal.SIGCONT)


def _signal(process, number):
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:  # it has ended
        pass


def _reason(words):
    """Return the last line of a traceback that says something."""
    lines = [line.strip() for line in words if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0]]
    return (errors or lines or ["ended without a word"])[-1][:160]
