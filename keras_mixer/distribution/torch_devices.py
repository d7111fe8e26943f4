"""torch's DistributedDataParallel: one process per GPU, started by `torchrun`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_mixer.distribution import loops
from keras_mixer.distribution.devices import Devices


class DataParallel(Devices):
    """Every process of the job holds the whole model and trains on its own device.

    Keras 3.15 has no distribution for torch: its `fit` would train a model of its own
    in every process. A Keras model is a `torch.nn.Module`, so torch's own wrapper
    averages the gradients before the Keras optimizer takes them.

    Args:
        timeout: Seconds to wait for another process.

    Raises:
        ValueError: If the process was not started by `torchrun`.
    """

    def __init__(self, timeout: int) -> None:
        import torch

        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
            raise ValueError(
                'Distribution "ddp" reads RANK, WORLD_SIZE and MASTER_ADDR. Start the '
                "script with `torchrun --nproc-per-node=GPUS script.py`."
            )
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        torch.distributed.init_process_group(
            "nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout)
        )
        self.num_replicas = torch.distributed.get_world_size()
        self.shard = (torch.distributed.get_rank(), self.num_replicas)
        self.is_chief = self.shard[0] == 0

    def fit(
        self, model: keras.Model, batches: Any, **arguments: Any
    ) -> keras.callbacks.History:
        """Train as `model.fit` does; `batches` holds this process's shard.

        Raises:
            RuntimeError: If another process has ended.
        """
        from torch.nn.parallel import DistributedDataParallel

        parallel = DistributedDataParallel(model)  # and the weights of the chief

        def train_step(batch: Any) -> dict[str, Any]:
            return self._train_step(model, parallel, batch)

        with self._clear_errors():
            return loops.fit(model, batches, train_step, self._logs, **arguments)

    def _train_step(
        self, model: keras.Model, parallel: Any, batch: Any
    ) -> dict[str, Any]:
        """Make the step of the global batch and return its metrics."""
        import torch

        x, y, *rest = (_tensor(part) for part in batch)
        weights = rest[0] if rest else None
        variables = model.trainable_variables
        # A step that is not one backward pass, such as SAM's, has gradients of its own.
        own = getattr(model.train_step, "gradients", None)
        if own is not None:
            loss, predictions, gradients = own(x, y, weights)
            gradients = [self._mean(gradient) for gradient in gradients]
        else:
            parallel.zero_grad()
            predictions = parallel(x, training=True)
            loss = model.compute_loss(x, y, predictions, weights)
            model.optimizer.scale_loss(loss).backward()  # and averages the gradients
            gradients = [v.value.grad for v in variables]
        with torch.no_grad():
            model.optimizer.apply(gradients, variables)
            y, predictions = self._gather(y), self._gather(predictions)
            weights = None if weights is None else self._gather(weights)
            loss = self._gather(loss[None]).mean()
            model.metrics[0].update_state(loss, sample_weight=len(y))
            return model.compute_metrics(None, y, predictions, weights)

    def predict(self, model: keras.Model, x: Any, **arguments: Any) -> Any:
        """Return what `model.predict(x, **arguments)` returns, in every process."""
        return model.predict(x, **arguments)

    def _gather(self, part: Any) -> Any:
        """Return the parts of all processes, in their order, as one tensor."""
        import torch

        parts = [torch.empty_like(part) for _ in range(self.num_replicas)]
        torch.distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def _mean(self, gradient: Any) -> Any:
        """Return the mean of a gradient over all processes; `None` stays `None`."""
        import torch

        if gradient is None:
            return None
        gradient = gradient.contiguous()
        torch.distributed.all_reduce(gradient)
        return gradient / self.num_replicas

    def add_up(self, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
        return [
            keras.ops.convert_to_numpy(self._gather(_tensor(array)[None]).sum(axis=0))
            for array in arrays
        ]

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        import torch

        try:
            yield
        except RuntimeError as error:
            lost = isinstance(error, torch.distributed.DistError)
            if not lost and "gloo" not in str(error):
                raise
            raise RuntimeError(loops.LOST) from error


def _tensor(array: Any) -> Any:
    return keras.ops.convert_to_tensor(np.asarray(array))


def num_processes() -> int:
    """Return how many processes torch knows of, 1 without a process group."""
    import torch

    group = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if group else 1
