"""Data and model parallel on JAX's devices, of one host or many.

The batch lies along the axis `"batch"` of a mesh, the hidden widths of the MLPs along
the axis `"model"`. The devices of a host are neighbours in the mesh, so that each host
holds a contiguous part of the batch and every weight.
"""

import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_mixer.distribution import loops
from keras_mixer.distribution.devices import Devices

# Only the hidden widths: the number of patches (196) divides by few numbers of devices,
# and what stays whole on every device are the two sides that residuals add up.
_LAYOUTS = {
    r".*/(token|channel)_mixing/dense_0/kernel": (None, "model"),
    r".*/(token|channel)_mixing/dense_0/bias": ("model",),
    r".*/(token|channel)_mixing/dense_1/kernel": ("model", None),
}


def mesh(devices: Sequence[Any], model: int = 1) -> keras.distribution.DeviceMesh:
    """Return the `(batch, model)` mesh of the devices, host after host.

    Args:
        devices: JAX's devices, also those of a topology that is only compiled for.
        model: Devices that share one copy of the weights; divides those of a host.

    Raises:
        ValueError: If it does not.
    """
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    local = sum(d.process_index == devices[0].process_index for d in devices)
    if model < 1 or local % model:
        raise ValueError(
            "The number of devices that share one model must divide the number of "
            "devices per host. "
            f"Received: model:{model} with {local} devices per host."
        )
    shape = (len(devices) // model, model)
    return keras.distribution.DeviceMesh(shape, ("batch", "model"), devices=devices)


def parallel(
    mesh: keras.distribution.DeviceMesh,
) -> keras.distribution.ModelParallel:
    """Return the Keras distribution that lays a Mixer out on the mesh.

    Where one device has the whole model this is data parallel. Else `dense_0` of both
    MLPs is cut along its outputs and `dense_1` along its inputs: one sum over the
    devices per MLP.
    """
    layouts = keras.distribution.LayoutMap(mesh)
    for pattern, axes in _LAYOUTS.items():
        layouts[pattern] = axes
    return keras.distribution.ModelParallel(
        layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False
    )


def connect(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    timeout: int,
) -> None:
    """Join the other processes of the job, if there are any.

    What is `None` is read from `KERAS_DISTRIBUTION_JOB_ADDRESSES`,
    `KERAS_DISTRIBUTION_NUM_PROCESSES` and `KERAS_DISTRIBUTION_PROCESS_ID`. With
    `coordinator="auto"` JAX asks the cluster (TPU slice, Slurm, Open MPI, Kubernetes).
    """
    import jax
    from jax.experimental import multihost_utils

    env = os.environ.get
    coordinator = coordinator or env("KERAS_DISTRIBUTION_JOB_ADDRESSES")
    if coordinator is None:
        return
    if coordinator == "auto":
        arguments: dict[str, Any] = {}
    else:
        arguments = {
            "coordinator_address": coordinator.split(",")[0],
            "num_processes": _integer(num_processes, "NUM_PROCESSES", "num_processes"),
            "process_id": _integer(process_id, "PROCESS_ID", "process_id"),
        }
        if arguments["process_id"]:
            _wait_for(arguments["coordinator_address"], timeout)
    # `keras.distribution.initialize` would do, but for the timeouts: a process that
    # died would be missed after 100 s, and waited for another 300 s at the end.
    jax.distributed.initialize(
        **arguments,
        heartbeat_timeout_seconds=timeout,
        shutdown_timeout_seconds=timeout,
    )
    state = random.getstate()
    draws = multihost_utils.process_allgather(np.array(random.getrandbits(31)))
    random.setstate(state)
    if len(set(draws.tolist())) > 1:  # without a common seed weights would differ
        keras.utils.set_random_seed(int(draws[0]))


def _wait_for(coordinator: str, timeout: int) -> None:
    """Return once process 0 can be reached; JAX itself would end this process by abort.

    Raises:
        ConnectionError: If it cannot be reached within `timeout` seconds.
        ValueError: If it is not an address and a port.
    """
    address, _, port = coordinator.rpartition(":")
    if not address or not port.isdecimal():
        raise ValueError(
            '`coordinator` must be "auto" or "address:port" of process 0. Received: '
            f"coordinator={coordinator!r}"
        )
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((address.strip("[]"), int(port)), 5).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > end:
                raise ConnectionError(
                    f"Process 0 at {coordinator} could not be reached for {timeout} s: "
                    f"{error}. Start all processes of the job; the address of process "
                    "0 must be one that this machine can reach."
                ) from error
        time.sleep(0.5)


def _integer(value: int | None, variable: str, argument: str) -> int:
    given = os.environ.get(f"KERAS_DISTRIBUTION_{variable}") if value is None else value
    try:
        return int("" if given is None else given)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`{argument}` must be an integer, from the argument or from the variable "
            f"KERAS_DISTRIBUTION_{variable}. Received: {given!r}"
        ) from error


class Parallel(Devices):
    """All of JAX's devices, on every host that has been connected.

    Args:
        model: Devices that share one copy of the weights; 1 for data parallel.

    Attributes:
        distribution: The `keras.distribution.ModelParallel`.

    Raises:
        ValueError: If `model` does not divide the devices of a host.
    """

    def __init__(self, model: int = 1) -> None:
        import jax

        self.distribution = parallel(mesh(jax.devices(), model))
        self.shard = (jax.process_index(), jax.process_count())
        self.is_chief = jax.process_index() == 0
        self.num_replicas = jax.device_count() // model
        # The last model and its forward pass.
        self._compiled: tuple[Any, Any] = (None, None)

    def scope(self) -> AbstractContextManager[Any]:
        """Return the context in which to build, load and compile the model."""
        return self.distribution.scope()

    def fit(
        self,
        model: keras.Model,
        batches: Any,
        *,
        validation_data: Any = None,
        validation_freq: int = 1,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Train as `model.fit` does; `batches` holds this process's shard.

        Raises:
            ValueError: If the model was built outside `scope()`, or a batch does not
                divide among the replicas.
            RuntimeError: If another process has ended.
        """
        self._check(model)
        validation = loops.Validation(self._logs, validation_data, validation_freq)
        callbacks = [validation, *(kwargs.pop("callbacks", None) or ())]
        with self.scope(), self._clear_errors(), _weights_survive(model):
            return model.fit(batches, callbacks=callbacks, **kwargs)

    def predict(
        self, model: keras.Model, x: Any, *, batch_size: int = 32, verbose: Any = 0
    ) -> NDArray[Any]:
        """Return the predictions for all of the array `x`, computed by every host."""
        self._check(model)
        with self.scope():
            return loops.predict(self._forward(model), x, batch_size * self._local_rows)

    @property
    def _local_rows(self) -> int:
        return self.num_replicas // self.shard[1]

    def _forward(self, model: keras.Model) -> Callable[[Any], NDArray[Any]]:
        """Return the forward pass of a batch on the devices of this host alone.

        Keras's `predict` cannot fetch what lies on another host.
        """
        import jax
        from jax.sharding import Mesh, NamedSharding, PartitionSpec

        devices = self.distribution.device_mesh.backend_mesh.local_mesh.devices
        local = Mesh(devices, ("batch", "model"))

        def on_this_host(variable: keras.Variable) -> Any:
            value = variable.value
            # After a step on a single device an array has no spec: it lies whole there.
            spec = getattr(value.sharding, "spec", PartitionSpec())
            return jax.make_array_from_single_device_arrays(
                value.shape,
                NamedSharding(local, spec),
                [shard.data for shard in value.addressable_shards],
            )

        weights = [on_this_host(v) for v in model.trainable_variables]
        others = [on_this_host(v) for v in model.non_trainable_variables]
        batch = NamedSharding(local, PartitionSpec("batch"))

        if self._compiled[0] is not model:

            def call(weights: list[Any], others: list[Any], x: Any) -> Any:
                return model.stateless_call(weights, others, x, training=False)[0]

            self._compiled = (model, jax.jit(call))
        run = self._compiled[1]

        def forward(x: Any) -> NDArray[Any]:
            x = jax.device_put(loops.padded(x, self._local_rows), batch)
            return np.asarray(run(weights, others, x))

        return lambda x: forward(x)[: len(x)]

    def add_up(self, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
        from jax.experimental import multihost_utils

        if self.shard[1] == 1:
            return arrays
        return [
            multihost_utils.process_allgather(array).sum(axis=0) for array in arrays
        ]

    def _check(self, model: keras.Model) -> None:
        devices = set(self.distribution.device_mesh.devices.flatten())
        for variable in model.variables:
            if variable.value.sharding.device_set != devices:
                raise ValueError(
                    "`model` must be built, loaded or cloned inside `scope()` of the "
                    f"devices that train it. Received: {variable.path} elsewhere."
                )

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        import jax

        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if self.shard[1] == 1 or "RESOURCE_EXHAUSTED" in str(error):
                raise  # out of memory here, while the other processes live
            raise RuntimeError(loops.LOST) from error
        except ValueError as error:
            if "divi" not in str(error):
                raise
            raise ValueError(
                "The batches of `fit` must divide among the devices: this process has "
                f"{self._local_rows} replicas. Use another batch size, or "
                "`.batch(batch_size, drop_remainder=True)`."
            ) from error


@contextmanager
def _weights_survive(model: keras.Model) -> Iterator[None]:
    """Give back the weights that Keras loses if the first batch raises an exception.

    Its `fit` takes the values out of the variables and puts back those of the last
    step, which in the first step are none.
    """
    values = [(variable, variable.value) for variable in model.variables]
    try:
        yield
    except BaseException:
        for variable, value in values:
            if _is_lost(variable) and not value.is_deleted():
                variable.assign(value)
        raise


def _is_lost(variable: keras.Variable) -> bool:
    try:
        return variable.value is None
    except TypeError:  # Keras calls an initializer that is no longer there
        return True
