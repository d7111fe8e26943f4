"""The numbers of a run: rows of `log.csv` and of trackers, and Keras's `History`."""

import csv
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import keras

from keras_mixer.files import atomic_write
from keras_mixer.training.run_folder import disk_errors_name
from keras_mixer.training.trackers import Tracker

Numbers = dict[str, float]

_FIRST = ("step", "loss", "accuracy")
# The file is written anew with its rows, so not more often than this.
_SECONDS_BETWEEN_WRITES = 1.0


class TrainingLog:
    """Rows of numbers by the steps they were measured at, each in the file once.

    The file is written anew and takes the place of the old one when it is complete: a
    killed run leaves no half row, and one that goes on from an earlier step drops the
    rows after it.

    Args:
        path: The CSV file.
        trackers: What gets the rows, too.
        is_writer: Whether this process writes the files, of several that all know the
            rows.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        trackers: Sequence[Tracker] = (),
        is_writer: bool = True,
    ) -> None:
        self.path = Path(path)
        self.rows: list[Numbers] = []
        self._is_writer = is_writer
        self._trackers = trackers if is_writer else ()
        self._written = -math.inf

    def go_on_from(self, step: int) -> None:
        """Take over the rows that the file has up to `step`."""
        if self.path.is_file():
            with disk_errors_name(self.path):
                with open(self.path, newline="", encoding="utf-8") as file:
                    cells = list(csv.DictReader(file))
            rows = [
                {n: float(cell) for n, cell in row.items() if cell} for row in cells
            ]
            self.rows = [
                {**row, "step": int(row["step"])} for row in rows if row["step"] <= step
            ]

    def append(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add the numbers of one step; the file may follow a second later."""
        self.rows.append({"step": step, **numbers})
        for tracker in self._trackers:
            tracker.add(step, numbers)
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_WRITES:
            self.flush()

    def flush(self) -> None:
        """Write all rows to the file."""
        if not self._is_writer or not self.rows:
            return
        names = _columns(self.rows)
        with disk_errors_name(self.path):
            with atomic_write(self.path, "t", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, names, restval="")
                writer.writeheader()
                writer.writerows(self.rows)
        self._written = time.monotonic()


class IntervalMeans:
    """Means between two rows of a log, from the running means that Keras gives.

    Keras's logs hold means over the epoch so far. With `m` the running mean after `n`
    batches, and `m'` after `n'` batches at the row before, the mean in between is
    `(n m - n' m') / (n - n')`.

    Steps may be reported out of order: Keras calls some callbacks in threads.

    Args:
        length: Batches between two rows.
        batches: Batches of this epoch; the row at its end is `last`'s.
        names: Which of the numbers are means; the others are left as they are.
        step: Batches of one report, Keras's `steps_per_execution`.
    """

    def __init__(
        self, length: int, batches: int, names: frozenset[str], step: int = 1
    ) -> None:
        self.length = length
        self.names = names
        self.batches = batches
        self.step = step
        self._waiting: dict[int, Numbers] = {}
        self._made = 0
        self._means: Numbers = {}

    def add(self, made: int, means: Numbers) -> Iterator[tuple[int, Numbers]]:
        """Yield the batches made and the means of every row that is complete now."""
        if (
            made < self.batches
            and made // self.length > (made - self.step) // self.length
        ):
            self._waiting[made] = means
        while (due := self._next()) in self._waiting:
            yield due, self._since(due, self._waiting.pop(due))

    def last(self, made: int, means: Numbers) -> Numbers:
        """Return the means of the row at the end of the epoch, {} if there is none."""
        return self._since(made, means) if made > self._made else {}

    def _next(self) -> int:
        due = (self._made // self.length + 1) * self.length
        return -(-due // self.step) * self.step

    def _since(self, made: int, means: Numbers) -> Numbers:
        batches = made - self._made
        row = dict(means)
        for name in self.names & means.keys():
            before = self._made * self._means.get(name, 0.0)
            row[name] = (made * means[name] - before) / batches
        self._made, self._means = made, means
        return row


def keras_history(
    model: keras.Model, entries: list[Numbers]
) -> keras.callbacks.History:
    """Return Keras's `History` of the numbers of each checkpoint interval.

    Every list has one entry per interval; what was not measured there is NaN.
    """
    history = keras.callbacks.History()
    history.set_model(model)
    history.epoch = list(range(len(entries)))
    history.history = {
        name: [entry.get(name, math.nan) for entry in entries]
        for name in _columns(entries)
    }
    return history


def _columns(rows: list[Numbers]) -> list[str]:
    names = {name for row in rows for name in row}
    return [n for n in _FIRST if n in names] + sorted(names - set(_FIRST))
