"""Averaged weights (EMA): swapped into the model for a while, then swapped back."""

import contextlib
from collections.abc import Iterator

import keras


def inner_optimizer(optimizer: keras.Optimizer) -> keras.Optimizer:
    """Return the optimizer that Keras wraps to scale the loss under float16."""
    return getattr(optimizer, "inner_optimizer", optimizer)


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Give the model its averaged weights inside the block, if its optimizer has any.

    The trained weights come back to the bit where the optimizer is of this package;
    Keras's own callback, which serves the others, rounds on TensorFlow.
    """
    optimizer = inner_optimizer(model.optimizer)
    if averages := getattr(optimizer, "averages", []):
        pairs = list(zip(model.trainable_variables, averages, strict=True))
        _swap(pairs)
        try:
            yield
        finally:
            _swap(pairs)
    elif optimizer.use_ema:
        swap = keras.callbacks.SwapEMAWeights()
        swap.set_model(model)
        swap.on_test_begin()
        try:
            yield
        finally:
            swap.on_test_end()
    else:
        yield


def _swap(pairs: list[tuple[keras.Variable, keras.Variable]]) -> None:
    for one, other in pairs:
        value = keras.ops.copy(one)
        one.assign(other)
        other.assign(value)
