"""One training script for one device or many: where the model lives and who trains it.

    devices = distribution.start("data")  # or "mirrored", "tpu", ...; None: one device
    with devices.scope():
        model = build()
        model.compile(...)
    devices.fit(model, batches, epochs=3, steps_per_epoch=100)

A global batch gives the same step on any number of devices: same loss, same clipping,
same learning rate. With several processes each runs the same script, feeds its own
contiguous part of every global batch (`shard` of `data.training_batches`), and only the
chief should write files.

| name | backend | devices |
| --- | --- | --- |
| `None` | any | one |
| `"mirrored"` | tensorflow | the GPUs of this machine |
| `"tpu"`, `"tpu:NAME"` | tensorflow | the TPU of this virtual machine, or a named one |
| `"multiworker"` | tensorflow | the GPUs of the machines in `TF_CONFIG` |
| `"data"` | jax | all devices of all hosts, each with the whole model |
| `"model:N"` | jax | likewise, but every N devices share one copy of the weights |
| `"ddp"` | torch | one per process that `torchrun` starts |
"""

from typing import Any

import keras

from keras_mixer.distribution.devices import Devices

_NAMES = {
    "tensorflow": ("mirrored", "tpu", "tpu:NAME", "multiworker"),
    "jax": ("data", "model:N"),
    "torch": ("ddp",),
}


def start(
    name: str | None = None,
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 300,
) -> Devices:
    """Return the devices that `name` asks for, ready to build a model on.

    Call it first: a backend must know of the other processes before it computes
    anything.

    Args:
        name: A name of the table above, or `None` for one device.
        coordinator: JAX on several hosts: `"address:port"` of process 0, or `"auto"`
            to ask the cluster (TPU slices, Slurm, Open MPI). `None`: the variable
            `KERAS_DISTRIBUTION_JOB_ADDRESSES`, and without it one host.
        num_processes: JAX: number of hosts. `None`: the variable
            `KERAS_DISTRIBUTION_NUM_PROCESSES`.
        process_id: JAX: number of this host, from 0. `None`: the variable
            `KERAS_DISTRIBUTION_PROCESS_ID`.
        timeout: Seconds without a sign of life after which another process counts as
            dead and the job ends with an error. Longer than the slowest step.

    Returns:
        The `Devices`.

    Raises:
        ValueError: If the running backend has no such name, or the description of the
            processes is incomplete.
        RuntimeError: If there is no TPU.
    """
    if name is None:
        return SingleDevice()
    backend = keras.config.backend()
    kind, _, detail = name.partition(":")
    if backend == "tensorflow" and kind in ("mirrored", "tpu", "multiworker"):
        from keras_mixer.distribution import tensorflow_devices

        if kind == "tpu":
            return tensorflow_devices.tpu(detail or "local")
        if not detail:
            if kind == "mirrored":
                return tensorflow_devices.Mirrored()
            return tensorflow_devices.MultiWorker(timeout)
    if backend == "jax" and (name == "data" or (kind == "model" and detail.isdigit())):
        from keras_mixer.distribution import jax_devices

        jax_devices.connect(coordinator, num_processes, process_id, timeout)
        return jax_devices.Parallel(int(detail or 1))
    if backend == "torch" and name == "ddp":
        from keras_mixer.distribution import torch_devices

        return torch_devices.DataParallel(timeout)
    raise ValueError(
        f"`name` must be None or, on the {backend} backend, one of "
        f"{', '.join(_NAMES.get(backend, ()))}. Received: name={name!r}"
    )


class SingleDevice(Devices):
    """Keras as it is: one process, the device the backend chooses."""

    def fit(
        self, model: keras.Model, batches: Any, **arguments: Any
    ) -> keras.callbacks.History:
        """Train as `model.fit(batches, **arguments)` does and return its `History`.

        Raises:
            ValueError: If torch knows of other processes: each would silently train
                a model of its own.
        """
        if keras.config.backend() == "torch":
            from keras_mixer.distribution.torch_devices import num_processes

            if num_processes() > 1:
                raise ValueError(
                    "One device cannot train with other processes. Received: a torch "
                    f"process group of {num_processes()}. Use "
                    'distribution.start("ddp").'
                )
        return model.fit(batches, **arguments)

    def evaluate(self, model: keras.Model, batches: Any, **arguments: Any) -> Any:
        """Return what `model.evaluate(batches, **arguments)` returns."""
        return model.evaluate(batches, **arguments)

    def predict(self, model: keras.Model, x: Any, **arguments: Any) -> Any:
        """Return what `model.predict(x, **arguments)` returns, for all of `x`."""
        return model.predict(x, **arguments)
