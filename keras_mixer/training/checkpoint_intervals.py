"""What happens in and between the checkpoint intervals of a run."""

import math
import threading
from collections.abc import Callable
from typing import Any

import keras

from keras_mixer.training.log import IntervalMeans, Numbers, TrainingLog
from keras_mixer.training.progress import Progress
from keras_mixer.training.run_checkpoints import (
    Checkpoints,
    first_not_finite,
    state_of,
)
from keras_mixer.training.run_options import RunOptions


class CheckpointIntervals(keras.callbacks.Callback):
    """Rows of the log while training goes on; at the end of each epoch a checkpoint.

    One epoch is one checkpoint interval. At its end, in this order: measure, log, save.
    The row comes before the checkpoint: a run that is killed between them drops it and
    writes it again, and never misses one.

    Args:
        checkpoints: Where to save.
        settings: What the checkpoints say of the run.
        log: Gets the rows.
        history: The numbers of the intervals before; those of each further one are
            added.
        options: The options of the run.
        devices: What `distribution.start` returned.
        accumulation: Batches of one optimizer step.
        validate: Returns the numbers of the validation data.
        progress: Measures the speed.
    """

    async_safe = True  # tells Keras not to wait for the logs of every step

    def __init__(
        self,
        *,
        checkpoints: Checkpoints,
        settings: dict[str, Any],
        log: TrainingLog,
        history: list[Numbers],
        options: RunOptions,
        devices: Any,
        accumulation: int,
        validate: Callable[[], Numbers],
        progress: Progress,
    ) -> None:
        super().__init__()
        self.checkpoints = checkpoints
        self.settings = settings
        self.log = log
        self.history = history
        self.options = options
        self.devices = devices
        self.accumulation = accumulation
        self.validate = validate
        self.progress = progress
        self._lock = threading.Lock()

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        # On JAX `self.model` gives the variables the arrays of the last step. While a
        # step runs, these are gone, so the thread of `on_train_batch_end` must not ask.
        self._in_training = self.model

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        options = self.options
        self._start = epoch * options.save_every
        steps = min(options.save_every, options.total_steps - self._start)
        self._batches = steps * self.accumulation
        self._made = 0
        self._bad_batches: set[int] = set()
        self._means = IntervalMeans(
            options.log_interval * self.accumulation,
            self._batches,
            frozenset(),
            self.model.steps_per_execution,
        )
        self._rate = _rate_by_step(self.model.optimizer, self.accumulation)

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self._made = batch + self._in_training.steps_per_execution
        is_short = self._batches < self.options.save_every * self.accumulation
        if is_short and self._made >= self._batches:
            # Keras ends the epoch after the batch in which this is set.
            self._in_training.stop_training = True

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        numbers = dict(logs or {})
        if not math.isfinite(numbers["loss"]):
            self._bad_batches.add(batch)
            # Processes that share a model must leave the interval at the same step.
            if self.devices.shard == (0, 1):
                self._in_training.stop_training = True
            return
        with self._lock:
            # Not before: some backends make the metrics in the first step.
            self._means.names = self._means.names or _names_of_means(self._in_training)
            for made, means in self._means.add(batch + 1, numbers):
                step = self._step(made)
                row = {**means, "learning_rate": self._rate(step), **self._speed()}
                self.log.append(step, row)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        numbers: dict[str, Any] = {} if logs is None else logs
        if self._bad_batches:
            bad = self._start + min(self._bad_batches) // self.accumulation + 1
            raise _not_finite("the loss", bad)
        step = self._step(self._made)
        state = state_of(self.model)
        if name := first_not_finite(state):
            raise _not_finite(name, step)
        means = self._means.last(self._made, dict(numbers))
        numbers["learning_rate"] = _present_rate(self.model.optimizer)
        numbers.update(self._speed())
        # Another callback may stop the run in the middle of an interval. Then there is
        # no checkpoint: a run that goes on begins an interval anew.
        is_complete = self._made >= self._batches
        if is_complete and self.options.is_validated(step):
            numbers.update(self.validate())
        self.history.append({"step": step, **numbers})
        if means:
            self.log.append(step, {**numbers, **means})
        self.log.flush()
        if is_complete and self.devices.is_chief:
            self.checkpoints.write(
                step,
                state,
                settings=self.settings,
                score=numbers.get("val_accuracy"),
                history=self.history,
            )

    def _step(self, batches: int) -> int:
        return self._start + batches // self.accumulation

    def _speed(self) -> Numbers:
        speed = self.progress.images_per_second
        return {"images_per_second": speed} if math.isfinite(speed) else {}


def _names_of_means(model: keras.Model) -> frozenset[str]:
    metrics = [m for one in model.metrics for m in getattr(one, "metrics", [one])]
    return frozenset(m.name for m in metrics if isinstance(m, keras.metrics.Mean))


def _present_rate(optimizer: keras.Optimizer) -> float:
    return float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def _rate_by_step(
    optimizer: keras.Optimizer, accumulation: int
) -> Callable[[int], float]:
    """Return the learning rate as a function of the step.

    While an interval goes on, the optimizer's own count of steps cannot be read.
    """
    config = keras.optimizers.serialize(optimizer)["config"]
    config = config.get("inner_optimizer", {}).get("config", config)
    if not isinstance(config["learning_rate"], dict):
        present = _present_rate(optimizer)
        return lambda step: present
    schedule = keras.saving.deserialize_keras_object(config["learning_rate"])

    def rate(step: int) -> float:
        batches = keras.ops.convert_to_tensor(step * accumulation)
        return float(keras.ops.convert_to_numpy(schedule(batches)))

    return rate


def _not_finite(name: str, step: int) -> FloatingPointError:
    return FloatingPointError(
        f"Training stopped: {name} is NaN or infinite at step {step}. A smaller "
        "learning rate, a longer warm-up or clipping may help."
    )
