"""Will it fit? The whole JAX training step, compiled for a TPU slice without the slice.

The TPU's own compiler reports, for one device, memory and floating-point operations per
step. It runs on any machine with `pip install 'keras-mixer[tpu-compile]'`. The program
is compiled only: it does not run, and no time is measured.

`compile_for_slice` builds and compiles what a `SliceStep` describes, and `table` shows
the result. `topology`, `compile_step` and `largest_batch` do the same for any model.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np

from keras_mixer.distribution import jax_devices
from keras_mixer.models import CONSTRUCTORS, MLPMixer
from keras_mixer.training import finetune_optimizer, pretrain_optimizer, set_remat

_COLLECTIVE = re.compile(r" (?:all-reduce|all-gather|reduce-scatter)(?:-start)?\(")

_OPTIMIZERS = {
    "finetune": lambda: finetune_optimizer(total_steps=10_000),
    "pretrain": lambda: pretrain_optimizer(total_steps=100_000),
}


@dataclass(frozen=True)
class SliceStep:
    """One training step on a TPU slice.

    Attributes:
        variant: Name of a model of the family, such as `"B/16"`.
        topology: Kind and shape of the slice, for example `"v5e:2x2"`.
        model_devices: Devices that share one copy of the weights. Positive.
        image_size: Edge of the square images in pixels.
        num_classes: Number of classes. Positive.
        dtype: Dtype policy of the model.
        remat: Whether the blocks' activations are computed again in the backward pass,
            which saves memory.
        optimizer: Whose step: that of the official fine-tuning or pre-training.
    """

    variant: str = "B/16"
    topology: str = "v5e:2x2"
    model_devices: int = 1
    image_size: int = 224
    num_classes: int = 1000
    dtype: str = "mixed_bfloat16"
    remat: bool = False
    optimizer: Literal["finetune", "pretrain"] = "finetune"


@dataclass(frozen=True)
class Compiled:
    """What the compiler reports of one device, in bytes, and of one step.

    Attributes:
        batch_size: Images of a step, over all devices.
        num_devices: Devices of the slice.
        state: Weights, optimizer and metrics, and this device's part of the batch.
        temporary: Activations and gradients at their peak.
        program: The compiled code.
        flops: Floating-point operations of this device in one step.
        collectives: Number of operations in which devices exchange data.
    """

    batch_size: int
    num_devices: int
    state: int
    temporary: int
    program: int
    flops: float
    collectives: int


def compile_for_slice(
    step: SliceStep, batch_size: int | None = None
) -> Compiled | None:
    """Build a model, compile its training step, and return the compiler's report.

    The process computes on its CPU from now on: JAX must not look for a TPU.

    Args:
        step: The model, its optimizer and the slice.
        batch_size: Images of a step, over all devices; `None` to find the largest
            batch that fits (see `largest_batch`).

    Returns:
        A `Compiled`, or `None` if the memory of a device is too small.

    Raises:
        ImportError: If libtpu is not installed.
        ValueError: If the backend is not JAX, there is no such variant, slice or
            optimizer, or the batch does not divide among the devices.
    """
    if keras.config.backend() != "jax":
        raise ValueError(
            "Compiling for a TPU slice needs the backend JAX. Received: "
            f"{keras.config.backend()}. Set KERAS_BACKEND=jax."
        )
    for name, value, choices in (
        ("variant", step.variant, CONSTRUCTORS),
        ("optimizer", step.optimizer, _OPTIMIZERS),
    ):
        if value not in choices:
            raise ValueError(
                f"`{name}` must be one of {', '.join(choices)}. Received: {value!r}"
            )
    import jax

    jax.config.update("jax_platforms", "cpu")
    devices = topology(step.topology)
    model = _trained_model(step)
    if batch_size is None:
        return largest_batch(model, devices, model_devices=step.model_devices)
    return compile_step(model, devices, batch_size, model_devices=step.model_devices)


def table(step: SliceStep, compiled: Compiled | None) -> str:
    """Return the result of `compile_for_slice` as lines of text."""
    name = f"{step.variant} at {step.image_size}, {step.dtype}, {step.topology}"
    if step.remat:
        name += ", remat"
    if compiled is None:
        return f"{name}: it does not fit into the memory of a device"
    rows = {
        "batch, all devices": f"{compiled.batch_size:,}",
        "state and input, MiB": f"{compiled.state / 2**20:,.0f}",
        "temporary, MiB": f"{compiled.temporary / 2**20:,.0f}",
        "program, MiB": f"{compiled.program / 2**20:,.0f}",
        "TFLOP per step": f"{compiled.flops / 1e12:,.3f}",
        "collectives": f"{compiled.collectives}",
    }
    shared = f"{compiled.num_devices} devices, {step.model_devices} per model"
    lines = [f"{key:<22}{value:>12}" for key, value in rows.items()]
    return "\n".join([f"{name} ({shared}); per device:", *lines])


def topology(name: str) -> Sequence[Any]:
    """Return the devices of a TPU slice that need not exist.

    Args:
        name: Kind and shape, for example `"v5e:2x2"`, `"v6e:16x16"`, `"v4:2x2x1"`.

    Raises:
        ImportError: If libtpu is not installed.
        ValueError: If there is no such slice.
    """
    # What libtpu would otherwise look for on a TPU VM, for minutes, or write and lock.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_LOG_DIR", "disabled")
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Compiling for TPUs needs libtpu: pip install 'keras-mixer[tpu-compile]'"
        ) from error
    import jax
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            "`topology` must be a TPU slice such as v5e:2x2 or v6e:16x16. Received: "
            f"topology={name!r}. libtpu says: {str(error).splitlines()[0]}"
        ) from error


def compile_step(
    model: keras.Model,
    devices: Sequence[Any],
    batch_size: int,
    *,
    model_devices: int = 1,
) -> Compiled | None:
    """Compile `model.train_step` for the devices and return the compiler's report.

    The step is the one that `fit` runs under `jax_devices.Parallel`: loss, gradients,
    optimizer, metrics; the memory of the old state is reused.

    Args:
        model: A compiled (`model.compile`) model with logits, on one device.
        devices: Those of `topology`.
        batch_size: Images of a step, over all devices.
        model_devices: Devices that share one copy of the weights.

    Returns:
        A `Compiled`, or `None` if the memory of a device is too small.

    Raises:
        ValueError: If the batch does not divide among the devices.
    """
    import jax

    replicas = len(devices) // model_devices
    if batch_size < 1 or batch_size % replicas:
        raise ValueError(
            f"`batch_size` must be a multiple of the {replicas} copies of the model. "
            f"Received: batch_size={batch_size}"
        )
    layout = jax_devices.parallel(jax_devices.mesh(devices, model_devices))
    _create_state(model)

    def placed(variable: keras.Variable) -> Any:
        sharding = layout.get_variable_layout(variable).backend_layout
        return jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=sharding)

    def batch(*shape: int) -> Any:
        sharding = layout.get_data_layout((batch_size, *shape)).backend_layout
        return jax.ShapeDtypeStruct((batch_size, *shape), "float32", sharding=sharding)

    state = tuple(
        [placed(variable) for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    )
    step = jax.jit(
        model.train_step,
        donate_argnums=0,
        out_shardings=(None, jax.tree.map(lambda part: part.sharding, state)),
    )
    data = (batch(*model.input_shape[1:]), batch(*model.output_shape[1:]))
    lowered = step.trace(state, data).lower(lowering_platforms=("tpu",))
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    memory = program.memory_analysis()
    return Compiled(
        batch_size=batch_size,
        num_devices=len(devices),
        state=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        program=memory.generated_code_size_in_bytes,
        flops=program.cost_analysis()["flops"],
        collectives=len(_COLLECTIVE.findall(program.as_text())),
    )


def largest_batch(
    model: keras.Model,
    devices: Sequence[Any],
    *,
    model_devices: int = 1,
    first: int = 16,
) -> Compiled | None:
    """Return the `Compiled` of the largest batch that fits, or `None`.

    Each copy of the model gets a power of two of images.

    Args:
        model: As in `compile_step`.
        devices: As in `compile_step`.
        model_devices: As in `compile_step`.
        first: Images per copy to begin the search with, a power of two.
    """
    replicas = len(devices) // model_devices

    def fits(images: int) -> Compiled | None:
        return compile_step(
            model, devices, images * replicas, model_devices=model_devices
        )

    images, best = first, fits(first)
    while best is None and images > 1:
        images //= 2
        best = fits(images)
    while best and images >= first and (larger := fits(2 * images)):
        images, best = 2 * images, larger
    return best


def _trained_model(step: SliceStep) -> MLPMixer:
    """Return the model of a `SliceStep` after `compile`."""
    model = CONSTRUCTORS[step.variant](
        input_shape=(step.image_size, step.image_size, 3),
        num_classes=step.num_classes,
        classifier_activation=None,
        dtype=step.dtype,
    )
    set_remat(model, step.remat)
    model.compile(
        _OPTIMIZERS[step.optimizer](),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _create_state(model: keras.Model) -> None:
    """Create what `fit` creates with its first batch: optimizer and metrics."""
    x, y = (np.zeros((1, *s[1:])) for s in (model.input_shape, model.output_shape))
    model.optimizer.build(model.trainable_variables)
    with keras.StatelessScope():
        model.compute_metrics(x, y, y)
