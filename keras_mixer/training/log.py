"""The numbers of a run, one row per stretch: `log.csv`, TensorBoard, `History`."""

import csv
from pathlib import Path

import keras

from keras_mixer.files import atomic_write

_FIRST = ("step", "loss", "accuracy")


class TrainingLog:
    """Rows of numbers by the steps they were measured at, each in the file once.

    The file is written anew with every row and takes the place of the old one when it
    is complete: a killed run leaves no half row, and one that goes on from an earlier
    step drops the rows after it.

    Args:
        path: The CSV file.
        tensorboard: Folder for TensorBoard, or `None`.
        is_writer: Whether this process writes the files, of several that all know the
            rows.

    Raises:
        ImportError: If TensorBoard is asked for and not installed.
    """

    def __init__(self, path, *, tensorboard=None, is_writer=True):
        self.path = Path(path)
        self.rows = []
        self._is_writer = is_writer
        self._writer = None
        if tensorboard is not None and is_writer:
            try:
                from tensorboard.summary import Writer
            except ImportError as error:
                raise ImportError(
                    "Logs for TensorBoard need tensorboard: "
                    "pip install 'keras-mixer[tensorboard]'"
                ) from error
            self._writer = Writer(str(tensorboard))

    def go_on_from(self, step):
        """Take over the rows that the file has up to `step`."""
        if self.path.is_file():
            with open(self.path, newline="", encoding="utf-8") as file:
                rows = [
                    {name: float(cell) for name, cell in row.items() if cell}
                    for row in csv.DictReader(file)
                ]
            self.rows = [
                {**row, "step": int(row["step"])} for row in rows if row["step"] <= step
            ]

    def append(self, step, numbers):
        """Add the numbers of one step."""
        self.rows.append({"step": step, **numbers})
        if self._is_writer:
            self._write()
        if self._writer:
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def history(self, model):
        """Return Keras's `History` of all rows, those before an interruption too.

        Every list has one entry per row; what was not measured there is NaN.
        """
        history = keras.callbacks.History()
        history.set_model(model)
        history.epoch = list(range(len(self.rows)))
        history.history = {
            name: [row.get(name, float("nan")) for row in self.rows]
            for name in self._columns()
        }
        return history

    def _columns(self):
        names = {name for row in self.rows for name in row}
        return [n for n in _FIRST if n in names] + sorted(names - set(_FIRST))

    def _write(self):
        with atomic_write(self.path, "t", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns(), restval="")
            writer.writeheader()
            writer.writerows(self.rows)
