"""How far a run is: a bar on a terminal, lines elsewhere, and never a long silence."""

import datetime
import math
import threading
import time
from types import TracebackType
from typing import Any

import keras
from rich import progress as rich_progress
from rich.console import Console

# Without a terminal there is a line at least this often.
_SECONDS_BETWEEN_LINES = 8.0


class Progress(keras.callbacks.Callback):
    """A callback that shows steps, images per second and the time left.

    On a terminal there is a bar, and one line of results stays for each epoch of `fit`,
    that is each checkpoint interval. Where the output is a file there are these lines,
    and one in between whenever the last is some seconds old.

    It asks the device for nothing: a step is counted where Keras has its logs anyway,
    on JAX in a thread beside the training loop, so no step waits for the one before.

    Args:
        total_steps: Steps of the whole run, as many as `fit` makes batches.
        steps_per_epoch: Steps of one epoch.
        batch_size: Images per step.
        first_step: Steps that were made before.
        batches_per_step: Batches of one optimizer step, by which the shown numbers of
            steps are divided.
        console: Where to show it; `None` for the standard error.
        quiet: Whether to show nothing and only measure.
    """

    async_safe = True  # tells Keras not to wait for the logs of every step

    def __init__(
        self,
        *,
        total_steps: int,
        steps_per_epoch: int,
        batch_size: int,
        first_step: int = 0,
        batches_per_step: int = 1,
        console: Console | None = None,
        quiet: bool = False,
    ) -> None:
        super().__init__()
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.first_step = first_step
        self.batches_per_step = batches_per_step
        self.console = console or Console(stderr=True, highlight=False, quiet=quiet)
        self._bar: rich_progress.Progress | None = None
        self._epoch_start = first_step
        self._is_compiled = False
        self._first: tuple[int, float] | None = None
        self._last = (0, 0.0)
        self._loss = math.nan
        self._shown = time.monotonic()
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def images_per_second(self) -> float:
        """Speed of the present epoch, NaN until it is known.

        The first step of all, which holds the compilation, does not count.
        """
        if self._first is None:
            return math.nan
        (first, start), (last, now) = self._first, self._last
        # The end of one step may be seen late, together with that of the next.
        if last - first < (2 if first else 1):
            return math.nan
        return (last - first) * self.batch_size / (now - start)

    @property
    def seconds_left(self) -> float:
        """Seconds to the end of the run at the present speed, NaN until it is known."""
        left = self.total_steps - self._epoch_start - self._last[0]
        return left * self.batch_size / self.images_per_second

    def __enter__(self) -> "Progress":
        if self.console.quiet:
            return self
        if self.console.is_terminal:
            columns = (
                rich_progress.BarColumn(),
                rich_progress.TextColumn("{task.fields[text]}"),
                rich_progress.TimeElapsedColumn(),
            )
            self._bar = rich_progress.Progress(
                *columns, console=self.console, transient=True, refresh_per_second=4
            )
            self._bar.start()
            self._task = self._bar.add_task(
                "", total=self.total_steps, completed=self.first_step, text="starting"
            )
        else:
            self._is_over.clear()
            self._shown = time.monotonic()
            self._thread = threading.Thread(target=self._fill_silence, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None
        if self._thread:
            self._is_over.set()
            self._thread.join()
            self._thread = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch_start = epoch * self.steps_per_epoch
        self._first = (0, time.perf_counter()) if self._is_compiled else None
        self._last = (0, 0.0)

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        made = batch + 1
        if made <= self._last[0]:  # threads may come out of order
            return
        self._last = (made, time.perf_counter())
        self._first = self._first or self._last
        self._is_compiled = True
        self._loss = (logs or {}).get("loss", math.nan)
        if self._bar:
            self._bar.update(
                self._task, completed=self._epoch_start + made, text=self._state()
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        numbers = "  ".join(
            f"{name} {value:.4g}"
            for name, value in (logs or {}).items()
            if name != "images_per_second"
        )
        self._show(f"{self._position()}  {numbers}  {self._speed()}")

    def _fill_silence(self) -> None:
        """Print where the run is, whenever no line has come for a while."""
        while not self._is_over.wait(0.5):
            if time.monotonic() - self._shown >= _SECONDS_BETWEEN_LINES:
                self._show(self._state())

    def _show(self, line: str) -> None:
        self._shown = time.monotonic()
        self.console.print(line.rstrip(), soft_wrap=True)

    def _state(self) -> str:
        loss = "starting" if math.isnan(self._loss) else f"loss {self._loss:.4f}"
        return f"{self._position()}  {loss}  {self._speed()}"

    def _position(self) -> str:
        made = (self._epoch_start + self._last[0]) // self.batches_per_step
        return f"step {made:,}/{self.total_steps // self.batches_per_step:,}"

    def _speed(self) -> str:
        if math.isnan(self.images_per_second):
            return ""
        speed = f"{self.images_per_second:,.0f} images/s"
        left = datetime.timedelta(seconds=round(self.seconds_left))
        return f"{speed}  {left} left" if left else speed
