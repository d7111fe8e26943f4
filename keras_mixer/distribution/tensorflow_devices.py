"""TensorFlow's strategies: several devices of one machine, a TPU, several machines."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_mixer.distribution import loops
from keras_mixer.distribution.devices import Devices


class _Strategy(Devices):
    """Devices of a TensorFlow strategy for which Keras's own `fit` can train.

    What it cannot do on several devices is one clear error before it starts.

    Attributes:
        strategy: The TensorFlow strategy.
    """

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy
        self.num_replicas = strategy.num_replicas_in_sync

    def scope(self) -> AbstractContextManager[Any]:
        """Return the context in which to build, load and compile the model."""
        return self.strategy.scope()

    def _check(self, model: keras.Model) -> None:
        if model.distribute_strategy is not self.strategy:
            raise ValueError(
                "`model` must be built, loaded or cloned inside `scope()` of the "
                "devices that train it. Received: a model built outside."
            )
        if self.num_replicas > 1 and model.compiled and model.jit_compile is True:
            raise ValueError(
                "Several replicas cannot be compiled by `jit_compile=True`. "
                'Use `compile(..., jit_compile="auto")`.'
            )


class Mirrored(_Strategy):
    """`tf.distribute.MirroredStrategy`: every visible GPU holds the whole model.

    Training and evaluation are Keras's own.
    """

    def __init__(self, strategy: Any = None) -> None:
        import tensorflow as tf

        super().__init__(strategy or tf.distribute.MirroredStrategy())

    def fit(
        self, model: keras.Model, batches: Any, **arguments: Any
    ) -> keras.callbacks.History:
        """Train as `model.fit(batches, **arguments)` does and return its `History`."""
        self._check(model)
        return model.fit(batches, **arguments)

    def evaluate(
        self,
        model: keras.Model,
        batches: Any,
        *,
        steps: int | None = None,
        return_dict: bool = False,
        verbose: Any = 0,
    ) -> Any:
        """Return what `model.evaluate` returns."""
        self._check(model)
        return model.evaluate(
            batches, steps=steps, return_dict=return_dict, verbose=verbose
        )

    def predict(
        self, model: keras.Model, x: Any, *, batch_size: int = 32, verbose: Any = 0
    ) -> Any:
        """Return what `model.predict` returns, for all of `x`."""
        self._check(model)
        return model.predict(x, batch_size=batch_size, verbose=verbose)

    def _check(self, model: keras.Model) -> None:
        super()._check(model)
        if self.num_replicas > 1 and model.compiled and model.steps_per_execution > 1:
            raise ValueError(
                "Keras cannot run several steps per execution on several mirrored "
                f"devices. Received: steps_per_execution={model.steps_per_execution}. "
                "Use 1."
            )


class TPU(_Strategy):
    """`tf.distribute.TPUStrategy`: every TPU core holds the whole model.

    A program for TPU has static shapes: `fit` needs full batches (`drop_remainder`);
    `evaluate` and `predict` pad the last one and leave the padding out of the result.
    `compile(..., steps_per_execution=...)` makes several steps per call from the host.
    """

    def fit(
        self,
        model: keras.Model,
        batches: Any,
        *,
        validation_data: Any = None,
        validation_freq: int = 1,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Train as `model.fit` does and return its `History`.

        Raises:
            ValueError: If the size of the batches is not known or does not divide.
        """
        self._check(model)
        _full_batch(batches, self.num_replicas)
        validation = loops.Validation(self._logs, validation_data, validation_freq)
        callbacks = [validation, *(kwargs.pop("callbacks", None) or ())]
        return model.fit(batches, callbacks=callbacks, **kwargs)

    def predict(
        self, model: keras.Model, x: Any, *, batch_size: int = 32, verbose: Any = 0
    ) -> NDArray[Any]:
        """Return the predictions for all of the array `x`."""
        self._check(model)
        return _predict_full(model, np.asarray(x), self.num_replicas * batch_size)

    def _forward(self, model: keras.Model) -> Callable[[Any], NDArray[Any]]:
        size = 0

        def forward(x: Any) -> NDArray[Any]:
            nonlocal size  # that of the first batch: a new one would compile again
            size = size or len(x) + -len(x) % self.num_replicas
            return _predict_full(model, x, size)

        return forward


def _predict_full(model: keras.Model, x: Any, size: int) -> NDArray[Any]:
    """Return the predictions for `x`, computed in full batches of `size`."""
    full = loops.padded(x, size)
    return model.predict(full, batch_size=size, verbose=0)[: len(x)]


def tpu(name: str = "local") -> TPU:
    """Return the `TPU` of that name, initialised.

    Args:
        name: `"local"` on a TPU VM (also Colab and Kaggle), else the name or the
            `grpc://` address of a TPU node.

    Raises:
        RuntimeError: If there is no such TPU, or TensorFlow was built without TPUs.
    """
    import tensorflow as tf

    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, OSError, tf.errors.OpError) as error:
        raise RuntimeError(
            f'TensorFlow found no TPU. Received: name="tpu:{name}". On a TPU VM '
            "install `tensorflow-tpu==2.20.0` with `libtpu==0.0.21` (the newest libtpu "
            "aborts), and see that no other process holds the TPU. TensorFlow says: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    return TPU(tf.distribute.TPUStrategy(resolver))


class MultiWorker(Devices):
    """`tf.distribute.MultiWorkerMirroredStrategy`: all GPUs of several machines.

    One process per machine; `TF_CONFIG` tells each the addresses of all and its own
    number. Keras 3.15 cannot `fit` there (keras issues 20585, 20329), so the loop is
    `loops.fit` around the model's own `train_step`.

    Args:
        timeout: Seconds after which a collective operation that hangs is an error.

    Raises:
        ValueError: If `TF_CONFIG` does not name the workers.
    """

    def __init__(self, timeout: int) -> None:
        import tensorflow as tf

        count = _worker_count()
        options = tf.distribute.experimental.CommunicationOptions(
            timeout_seconds=timeout
        )
        self.strategy = tf.distribute.MultiWorkerMirroredStrategy(
            communication_options=options
        )
        index = self.strategy.cluster_resolver.task_id
        self.shard = (index, count)
        self.is_chief = index == 0
        self.num_replicas = self.strategy.num_replicas_in_sync
        # The last model and its forward pass.
        self._compiled: tuple[Any, Any] = (None, None)

    def scope(self) -> AbstractContextManager[Any]:
        """Return the context in which to build, load and compile the model."""
        return self.strategy.scope()

    def fit(
        self, model: keras.Model, batches: Any, **arguments: Any
    ) -> keras.callbacks.History:
        """Train as `model.fit` does; `batches` holds this worker's shard.

        Raises:
            ValueError: If the size of the batches is not known or does not divide.
            RuntimeError: If another worker has ended.
        """
        per_replica = _full_batch(batches, self._local_replicas) // self._local_replicas
        step = self._train_step(model, batches.element_spec)
        distributed = self.strategy.distribute_datasets_from_function(
            lambda context: batches.rebatch(per_replica)
        )
        with self._clear_errors():
            return loops.fit(model, distributed, step, self._logs, **arguments)

    def _train_step(self, model: keras.Model, spec: Any) -> Callable[[Any], Any]:
        import tensorflow as tf

        with self.scope():
            model.optimizer.build(model.trainable_variables)
            x = np.zeros((1, *model.input_shape[1:]))
            y = np.zeros((1, *spec[1].shape[1:]))
            with keras.StatelessScope():  # creates the variables of the metrics
                model.compute_metrics(x, y, model(x))

        @tf.function
        def step(batch: Any) -> Any:
            self.strategy.run(model.train_step, args=(batch,))
            return model.get_metrics_result()

        return step

    def predict(
        self, model: keras.Model, x: Any, *, batch_size: int = 32, verbose: Any = 0
    ) -> NDArray[Any]:
        """Return the predictions for all of the array `x`, computed by every worker."""
        return loops.predict(self._forward(model), x, batch_size * self._local_replicas)

    @property
    def _local_replicas(self) -> int:
        return self.num_replicas // self.shard[1]

    def _forward(self, model: keras.Model) -> Callable[[Any], NDArray[Any]]:
        """Return the forward pass of a batch on the devices of this worker alone."""
        import tensorflow as tf

        if self._compiled[0] is not model:

            def call(x: Any) -> Any:
                return self.strategy.run(model, args=(x,), kwargs={"training": False})

            self._compiled = (model, tf.function(call, reduce_retracing=True))
        run = self._compiled[1]

        def forward(x: Any) -> NDArray[Any]:
            parts = np.split(
                loops.padded(x, self._local_replicas), self._local_replicas
            )
            outputs = run(self._per_replica(lambda i: parts[i]))
            outputs = self.strategy.experimental_local_results(outputs)
            return np.concatenate([part.numpy() for part in outputs])[: len(x)]

        return forward

    def add_up(self, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
        import tensorflow as tf

        return [
            self.strategy.reduce(
                tf.distribute.ReduceOp.SUM,
                # Once per worker, not once per replica.
                self._per_replica(partial(_on_first, array)),
                axis=None,
            ).numpy()
            for array in arrays
        ]

    def _per_replica(self, value: Callable[[int], Any]) -> Any:
        """Return `value(i)` on the i-th replica of this worker."""
        import tensorflow as tf

        return self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                value(context.replica_id_in_sync_group % self._local_replicas)
            )
        )

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        import tensorflow as tf

        try:
            yield
        except tf.errors.OpError as error:
            lost = (
                tf.errors.UnavailableError,
                tf.errors.AbortedError,
                tf.errors.CancelledError,
                tf.errors.DeadlineExceededError,
                tf.errors.InternalError,
            )
            if not isinstance(error, lost):
                raise
            raise RuntimeError(loops.LOST) from error


def _on_first(array: NDArray[Any], replica: int) -> NDArray[Any]:
    return array if replica == 0 else np.zeros_like(array)


def _full_batch(batches: Any, replicas: int) -> int:
    """Return the size of every batch of a `tf.data.Dataset`, a multiple of `replicas`.

    Raises:
        ValueError: If the size is not known, or no such multiple.
    """
    size = batches.element_spec[0].shape[0]
    if size is None or size % replicas:
        raise ValueError(
            "`batches` must be full and divide among the replicas. Received: batches "
            f"of {size or 'unknown size'} for {replicas} replicas. Use "
            "`.batch(batch_size, drop_remainder=True)`."
        )
    return size


def _worker_count() -> int:
    """Return the number of workers that `TF_CONFIG` names."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        workers = config["cluster"]["worker"]
        config["task"]["index"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            'Distribution "multiworker" needs the environment variable TF_CONFIG, for '
            'example \'{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}\' on the first of two machines. '
            f"Received: TF_CONFIG={text!r}"
        ) from error
    return len(workers)
