"""What every kind of devices offers to one training script."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
from numpy.typing import NDArray

from keras_mixer.distribution import loops


class Devices(ABC):
    """Where a model lives and who trains it.

    Attributes:
        shard: `(index, count)`: which part of every global batch this process feeds.
        num_replicas: Copies of the model that train together.
        is_chief: Whether this process writes the files.
    """

    shard: tuple[int, int] = (0, 1)
    num_replicas: int = 1
    is_chief: bool = True

    def scope(self) -> AbstractContextManager[Any]:
        """Return the context in which to build, load and compile the model."""
        return nullcontext()

    @abstractmethod
    def fit(
        self, model: keras.Model, batches: Any, **arguments: Any
    ) -> keras.callbacks.History:
        """Train as `model.fit(batches, **arguments)` does and return its `History`.

        `batches` holds the shard of this process.
        """

    def evaluate(
        self,
        model: keras.Model,
        batches: Any,
        *,
        steps: int | None = None,
        return_dict: bool = False,
        verbose: Any = 0,
    ) -> Any:
        """Return what `model.evaluate` returns on one device.

        `batches` holds the shard of this process; they may have any size. Unlike
        Keras's, this loop leaves the weights in the model, so that an exception does
        not take them away.

        Raises:
            ValueError: If the model was built outside `scope()`.
            RuntimeError: If another process has ended.
        """
        self._check(model)
        with self.scope(), self._clear_errors():
            return loops.evaluate(
                model,
                batches,
                self._forward(model),
                self.add_up,
                steps=steps,
                return_dict=return_dict,
            )

    @abstractmethod
    def predict(
        self, model: keras.Model, x: Any, *, batch_size: int = 32, verbose: Any = 0
    ) -> Any:
        """Return what `model.predict` returns on one device, for all of `x`."""

    def add_up(self, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the sums of arrays over all processes; every one must call it."""
        return arrays

    def _check(self, model: keras.Model) -> None:  # noqa: B027 (nothing to check here)
        """Raise a `ValueError` if these devices cannot run the model."""

    def _clear_errors(self) -> AbstractContextManager[Any]:
        """Return the context in which a lost process becomes one clear error."""
        return nullcontext()

    def _forward(self, model: keras.Model) -> Callable[[Any], NDArray[Any]]:
        """Return the forward pass of one batch on the devices of this process alone."""
        return model.predict_on_batch

    def _logs(self, model: keras.Model, batches: Any) -> dict[str, float]:
        return self.evaluate(model, batches, return_dict=True)
