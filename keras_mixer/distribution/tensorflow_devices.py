"""TensorFlow's strategies: several devices of one machine, a TPU, several machines."""

import json
import os
from contextlib import contextmanager

import numpy as np

from keras_mixer.distribution import loops


class Mirrored:
    """`tf.distribute.MirroredStrategy`: every visible GPU holds the whole model.

    Keras's own `fit` and `evaluate`, and before them one clear error for what they
    cannot do there.

    Attributes:
        strategy: The TensorFlow strategy.
        shard, num_replicas, is_chief: As in `SingleDevice`.
    """

    shard = (0, 1)
    is_chief = True

    def __init__(self, strategy=None):
        import tensorflow as tf

        self.strategy = strategy or tf.distribute.MirroredStrategy()
        self.num_replicas = self.strategy.num_replicas_in_sync

    def scope(self):
        """Return the context in which to build, load and compile the model."""
        return self.strategy.scope()

    def fit(self, model, batches, **arguments):
        """Train as `model.fit(batches, **arguments)` does and return its `History`."""
        self._check(model)
        return model.fit(batches, **arguments)

    def evaluate(self, model, batches, **arguments):
        """Return what `model.evaluate(batches, **arguments)` returns."""
        self._check(model)
        return model.evaluate(batches, **arguments)

    def predict(self, model, x, **arguments):
        """Return what `model.predict(x, **arguments)` returns, for all of `x`."""
        self._check(model)
        return model.predict(x, **arguments)

    def _check(self, model):
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
        if self.num_replicas > 1 and model.compiled and model.steps_per_execution > 1:
            self._check_steps_per_execution(model)

    def _check_steps_per_execution(self, model):
        raise ValueError(
            "Keras cannot run several steps per execution on several mirrored devices. "
            f"Received: steps_per_execution={model.steps_per_execution}. Use 1."
        )


class TPU(Mirrored):
    """`tf.distribute.TPUStrategy`: every TPU core holds the whole model.

    A program for TPU has static shapes: `fit` needs full batches (`drop_remainder`);
    `evaluate` and `predict` pad the last one and leave the padding out of the result.
    `compile(..., steps_per_execution=...)` makes several steps per visit of the host.
    """

    def _check_steps_per_execution(self, model):
        pass

    def fit(self, model, batches, *, validation_data=None, validation_freq=1, **kwargs):
        """Train as `model.fit` does and return its `History`.

        Raises:
            ValueError: If the size of the batches is not known or does not divide.
        """
        self._check(model)
        _full_batch(batches, self.num_replicas)
        validation = loops.Validation(self._logs, validation_data, validation_freq)
        callbacks = [validation, *(kwargs.pop("callbacks", None) or ())]
        return model.fit(batches, callbacks=callbacks, **kwargs)

    def evaluate(self, model, batches, *, steps=None, return_dict=False, verbose=0):
        """Return what `model.evaluate` returns on one device."""
        self._check(model)
        size = None

        def forward(x):
            nonlocal size
            size = size or len(x) + -len(x) % self.num_replicas
            return self._forward(model, x, size)

        with self.scope():
            return loops.evaluate(
                model, batches, forward, list, steps=steps, return_dict=return_dict
            )

    def predict(self, model, x, *, batch_size=32, verbose=0):
        """Return the predictions for all of the array `x`."""
        self._check(model)
        return self._forward(model, np.asarray(x), self.num_replicas * batch_size)

    def _logs(self, model, batches):
        return self.evaluate(model, batches, return_dict=True)

    def _forward(self, model, x, size):
        full = loops.padded(x, size)
        return model.predict(full, batch_size=size, verbose=0)[: len(x)]


def tpu(name="local"):
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


class MultiWorker:
    """`tf.distribute.MultiWorkerMirroredStrategy`: all GPUs of several machines.

    One process per machine; `TF_CONFIG` tells each the addresses of all and its own
    number. Keras 3.15 cannot `fit` there (keras issues 20585, 20329), so the loop is
    `loops.fit` around the model's own `train_step`.

    Args:
        timeout: Seconds after which a collective operation that hangs is an error.

    Attributes:
        shard, num_replicas, is_chief: As in `SingleDevice`.

    Raises:
        ValueError: If `TF_CONFIG` does not name the workers.
    """

    def __init__(self, timeout):
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
        self._compiled = (None, None)  # the last model and its forward pass

    def scope(self):
        """Return the context in which to build, load and compile the model."""
        return self.strategy.scope()

    def fit(self, model, batches, **arguments):
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
        with self._others_alive():
            return loops.fit(model, distributed, step, self._logs, **arguments)

    def _train_step(self, model, spec):
        import keras
        import tensorflow as tf

        with self.scope():
            model.optimizer.build(model.trainable_variables)
            x = np.zeros((1, *model.input_shape[1:]))
            y = np.zeros((1, *spec[1].shape[1:]))
            with keras.StatelessScope():  # creates the variables of the metrics
                model.compute_metrics(x, y, model(x))

        @tf.function
        def step(batch):
            self.strategy.run(model.train_step, args=(batch,))
            return model.get_metrics_result()

        return step

    def evaluate(self, model, batches, *, steps=None, return_dict=False, verbose=0):
        """Return what `model.evaluate` returns; `batches` holds this worker's shard."""
        with self.scope(), self._others_alive():
            return loops.evaluate(
                model,
                batches,
                self._forward(model),
                self.add_up,
                steps=steps,
                return_dict=return_dict,
            )

    def predict(self, model, x, *, batch_size=32, verbose=0):
        """Return the predictions for all of the array `x`, computed by every worker."""
        return loops.predict(self._forward(model), x, batch_size * self._local_replicas)

    @property
    def _local_replicas(self):
        return self.num_replicas // self.shard[1]

    def _forward(self, model):
        """Return the forward pass of a batch on the devices of this worker alone."""
        import tensorflow as tf

        if self._compiled[0] is not model:

            def call(x):
                return self.strategy.run(model, args=(x,), kwargs={"training": False})

            self._compiled = (model, tf.function(call, reduce_retracing=True))
        run = self._compiled[1]

        def forward(x):
            parts = np.split(
                loops.padded(x, self._local_replicas), self._local_replicas
            )
            outputs = run(self._per_replica(lambda i: parts[i]))
            outputs = self.strategy.experimental_local_results(outputs)
            return np.concatenate([part.numpy() for part in outputs])[: len(x)]

        return forward

    def add_up(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Return the sums of arrays over all processes; every one must call it."""
        import tensorflow as tf

        return [
            self.strategy.reduce(
                tf.distribute.ReduceOp.SUM,
                # Once per worker, not once per replica.
                self._per_replica(lambda i, a=array: a if i == 0 else np.zeros_like(a)),
                axis=None,
            ).numpy()
            for array in arrays
        ]

    def _per_replica(self, value):
        """Return `value(i)` on the i-th replica of this worker."""
        import tensorflow as tf

        return self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                value(context.replica_id_in_sync_group % self._local_replicas)
            )
        )

    def _logs(self, model, batches):
        return self.evaluate(model, batches, return_dict=True)

    @contextmanager
    def _others_alive(self):
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


def _full_batch(batches, replicas):
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


def _worker_count():
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
