"""How far a run is, on a terminal as a bar and elsewhere as one line per stretch."""

import datetime
import math
import time

import keras
from rich import progress as rich_progress
from rich.console import Console


class Progress(keras.callbacks.Callback):
    """A callback that shows steps, images per second and the time left.

    On a terminal there is a bar while a stretch (one epoch of `fit`) goes on; its line
    of results stays. Where the output is a file there are the lines alone.

    It asks the device for nothing: a step is counted where Keras has its logs anyway,
    on JAX in a thread beside the training loop, so no step waits for the one before.

    Args:
        total_steps: Steps of the whole run, as many as `fit` makes batches.
        steps_per_epoch: Steps of one stretch.
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
        total_steps,
        steps_per_epoch,
        batch_size,
        first_step=0,
        batches_per_step=1,
        console=None,
        quiet=False,
    ):
        super().__init__()
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.first_step = first_step
        self.batches_per_step = batches_per_step
        self.console = console or Console(stderr=True, highlight=False, quiet=quiet)
        self._bar = None
        self._epoch_start = first_step
        self._first = self._last = (0, 0.0)

    @property
    def images_per_second(self):
        """Speed of the present stretch after its first step, NaN until it is known.

        The first step may hold a compilation.
        """
        (first, start), (last, now) = self._first, self._last
        if last == first:
            return math.nan
        return (last - first) * self.batch_size / (now - start)

    @property
    def seconds_left(self):
        """Seconds to the end of the run at the present speed, NaN until it is known."""
        left = self.total_steps - self._epoch_start - self._last[0]
        return left * self.batch_size / self.images_per_second

    def __enter__(self):
        if self.console.is_terminal and not self.console.quiet:
            columns = (
                rich_progress.BarColumn(),
                rich_progress.TextColumn("{task.fields[text]}"),
            )
            self._bar = rich_progress.Progress(
                *columns, console=self.console, transient=True, refresh_per_second=4
            )
            self._bar.start()
            self._task = self._bar.add_task(
                "", total=self.total_steps, completed=self.first_step, text="starting"
            )
        return self

    def __exit__(self, *error):
        if self._bar:
            self._bar.stop()
            self._bar = None

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch_start = epoch * self.steps_per_epoch
        self._first = self._last = (0, 0.0)

    def on_train_batch_end(self, batch, logs=None):
        made = batch + 1
        if made <= self._last[0]:  # threads may come out of order
            return
        self._last = (made, time.perf_counter())
        if not self._first[0]:
            self._first = self._last
        if self._bar:
            text = f"{self._position()}  loss {logs['loss']:.4f}  {self._speed()}"
            self._bar.update(self._task, completed=self._epoch_start + made, text=text)

    def on_epoch_end(self, epoch, logs=None):
        numbers = "  ".join(
            f"{name} {value:.4g}"
            for name, value in logs.items()
            if name != "images_per_second"
        )
        line = f"{self._position()}  {numbers}  {self._speed()}"
        self.console.print(line.rstrip(), soft_wrap=True)

    def _position(self):
        made = (self._epoch_start + self._last[0]) // self.batches_per_step
        return f"step {made:,}/{self.total_steps // self.batches_per_step:,}"

    def _speed(self):
        if math.isnan(self.images_per_second):
            return ""
        speed = f"{self.images_per_second:,.0f} images/s"
        left = datetime.timedelta(seconds=round(self.seconds_left))
        return f"{speed}  {left} left" if left else speed
