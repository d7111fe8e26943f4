"""Several points of loss and accuracy per epoch, for the picture of the demo.

A file of its own because it imports Keras, which the parsers of commands must not.
"""

from collections.abc import Mapping

import keras

_METRICS = ("loss", "accuracy")


class Curve(keras.callbacks.Callback):
    """Keeps the mean of loss and accuracy over every few steps of `fit`.

    Args:
        interval: Steps per point; the last point of an epoch may have fewer.

    Attributes:
        history: As `visualize.training_curves` takes it.
    """

    def __init__(self, interval: int) -> None:
        super().__init__()
        self._interval = interval
        names = ("step", *_METRICS, *(f"val_{name}" for name in _METRICS))
        self.history: dict[str, list[float]] = {name: [] for name in names}
        self._step = 0

    def on_epoch_begin(
        self, epoch: int, logs: Mapping[str, float] | None = None
    ) -> None:
        """Start the sums of an epoch: Keras gives means since its beginning."""
        self._seen, self._at_point = 0, 0
        self._sums = dict.fromkeys(_METRICS, 0.0)
        self._sums_at_point = dict(self._sums)

    def on_train_batch_end(
        self, batch: int, logs: Mapping[str, float] | None = None
    ) -> None:
        """Add a point after every `interval` steps."""
        self._step += 1
        self._seen += 1
        means = logs or {}
        self._sums = {name: self._seen * means[name] for name in _METRICS}
        if self._seen - self._at_point == self._interval:
            self._add_point()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Add the rest of the epoch, and the validation to its last point."""
        if self._seen > self._at_point:
            self._add_point()
        for name in _METRICS:
            self.history[f"val_{name}"][-1] = (logs or {})[f"val_{name}"]

    def _add_point(self) -> None:
        steps = self._seen - self._at_point
        self.history["step"].append(self._step)
        for name in _METRICS:
            change = self._sums[name] - self._sums_at_point[name]
            self.history[name].append(change / steps)
            self.history[f"val_{name}"].append(float("nan"))
        self._at_point, self._sums_at_point = self._seen, dict(self._sums)
