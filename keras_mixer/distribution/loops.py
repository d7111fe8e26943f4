"""`fit` and `evaluate` from what a backend can do in one step, for several devices.

Keras's own loops fail or go wrong on some of them. These two call the same callbacks
and give the same logs, and need two functions: one step of training, and the forward
pass of one batch on the devices of this process.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

LOST = (
    "Another process of this job has ended, or cannot be reached. Its own output says "
    "why. Start all processes again: they go on from the last checkpoint, if any."
)


def fit(
    model: keras.Model,
    batches: Iterable[Any],
    train_step: Callable[[Any], dict[str, Any]],
    evaluate: Callable[[keras.Model, Any], dict[str, float]],
    *,
    epochs: int = 1,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_data: Any = None,
    validation_freq: int = 1,
    callbacks: list[keras.callbacks.Callback] | None = None,
    verbose: Any = "auto",
    shuffle: bool = False,
) -> keras.callbacks.History:
    """Train as `model.fit` does, but with the given training step.

    Args:
        model: A compiled model.
        batches: Iterable of what `train_step` takes. With `steps_per_epoch` it is one
            stream for all epochs, else it is begun anew in each.
        train_step: Takes a batch, makes one step and returns the logs so far.
        evaluate: Takes the model and `validation_data` and returns a dictionary.
        epochs: As in `model.fit`, and so are all further arguments.
        initial_epoch: First epoch, from 0.
        steps_per_epoch: Batches per epoch, `None` for all.
        validation_data: What `evaluate` takes, `None` for no validation.
        validation_freq: Epochs between two validations.
        callbacks: List of Keras callbacks.
        verbose: 0 for no progress bar.
        shuffle: Must be false: batches come in their own order.

    Returns:
        Keras's `History`.

    Raises:
        ValueError: If `shuffle` is true.
    """
    if shuffle:
        raise ValueError("`shuffle` must be false: shuffle the examples of `batches`.")
    calls = keras.callbacks.CallbackList(
        [Validation(evaluate, validation_data, validation_freq), *(callbacks or ())],
        add_history=True,
        add_progbar=verbose != 0,
        verbose=1 if verbose == "auto" else verbose,
        epochs=epochs,
        steps=steps_per_epoch,
        model=model,
    )
    model.stop_training = False
    calls.on_train_begin()
    stream = iter(batches)
    logs: dict[str, Any] = {}
    for epoch in range(initial_epoch, epochs):
        model.reset_metrics()
        calls.on_epoch_begin(epoch)
        if not steps_per_epoch and epoch > initial_epoch:
            stream = iter(batches)
        for step, batch in enumerate(islice(stream, steps_per_epoch)):
            calls.on_train_batch_begin(step)
            logs = train_step(batch)
            calls.on_train_batch_end(step, logs)
            if model.stop_training:
                break
        calls.on_epoch_end(epoch, dict(logs))
        if model.stop_training:
            break
    calls.on_train_end(logs)
    return model.history


class Validation(keras.callbacks.Callback):
    """Adds what `evaluate` finds to the logs of an epoch, before the other callbacks.

    Args:
        evaluate: Takes the model and `data` and returns a dictionary.
        data: What to evaluate on; `None` for nothing.
        every: Epochs between two evaluations.
    """

    def __init__(
        self,
        evaluate: Callable[[keras.Model, Any], dict[str, float]],
        data: Any,
        every: int = 1,
    ) -> None:
        super().__init__()
        self.evaluate, self.data, self.every = evaluate, data, every

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Evaluate and write `val_...` into the logs."""
        if logs is not None and self.data is not None and (epoch + 1) % self.every == 0:
            found = self.evaluate(self.model, self.data)
            logs.update({f"val_{name}": value for name, value in found.items()})


def evaluate(
    model: keras.Model,
    batches: Iterable[Any],
    forward: Callable[[Any], Any],
    add_up: Callable[[list[NDArray[Any]]], list[NDArray[Any]]],
    *,
    steps: int | None = None,
    return_dict: bool = False,
) -> Any:
    """Return the loss and the metrics over `batches`, each example counted once.

    The forward pass may pad a batch as its devices need it: what it returns is without
    the padding. Sample weights of zero would not do: Keras counts padded examples in
    the mean of the loss and in every metric that is not a weighted one.

    Args:
        model: A compiled model. Its weights and metrics are not touched.
        batches: Iterable of `(x, y)` or `(x, y, sample_weight)`: the part of this
            process.
        forward: Takes `x` and returns the predictions, both NumPy arrays.
        add_up: Takes a list of arrays and returns their sums over all processes. The
            states of metrics add up by Keras's own contract (`aggregation="sum"`).
        steps: Number of batches, `None` for all.
        return_dict: As in `model.evaluate`.

    Returns:
        A dictionary, or without `return_dict` a list (one number if it is only one).
    """
    state = None
    for x, y, *weights in islice(batches, steps):
        x, y = np.asarray(x), np.asarray(y)
        weights = np.asarray(weights[0]) if weights else None
        predictions = forward(x)
        if state is None:
            with keras.StatelessScope(_zeros(model)):  # creates what is still missing
                model.compute_metrics(x, y, predictions, weights)
            state = _zeros(model)
        with keras.StatelessScope(state) as scope:
            loss = model.compute_loss(x, y, predictions, weights, training=False)
            mean_loss = model.metrics[0]
            mean_loss.update_state(loss * _replicas_in_scope(), sample_weight=len(x))
            model.compute_metrics(x, y, predictions, weights)
        state = [(v, scope.get_current_value(v)) for v in model.metrics_variables]
    if state is None:  # a short set may leave the last host without a batch
        state = _zeros(model)
    sums = add_up([keras.ops.convert_to_numpy(value) for _, value in state])
    state = [(v, value) for (v, _), value in zip(state, sums, strict=True)]
    with keras.StatelessScope(state):
        results = model.get_metrics_result()
    results = {name: float(value) for name, value in results.items()}
    if return_dict:
        return results
    return list(results.values()) if len(results) > 1 else results["loss"]


def predict(forward: Callable[[Any], NDArray[Any]], x: Any, size: int) -> NDArray[Any]:
    """Return the predictions for all of the array `x`, `size` rows at a time.

    Args:
        forward: As in `evaluate`.
        x: NumPy array.
        size: Rows that all devices of this process take together.
    """
    return np.concatenate([forward(x[i : i + size]) for i in range(0, len(x), size)])


def _zeros(model: keras.Model) -> list[tuple[Any, Any]]:
    # Not `reset_state`: on several hosts every one would have to call it.
    return [(v, np.zeros(v.shape, v.dtype)) for v in model.metrics_variables]


def _replicas_in_scope() -> int:
    """Number by which Keras divides a loss computed here."""
    if keras.config.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def padded(x: NDArray[Any], multiple: int) -> NDArray[Any]:
    """Return `x` with its last row repeated up to a multiple of `multiple` rows."""
    missing = -len(x) % multiple
    return np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing else x
