"""Will it fit? A whole training step, compiled for a TPU slice without the slice.

The TPU's own compiler reports, for one device, memory and floating-point operations per
step, of JAX and of TensorFlow. It runs on any machine with
`pip install 'keras-mixer[tpu-compile]'`. The program is compiled only: it does not run,
and no time is measured. Of TensorFlow the runtime, the strategy's own way to start the
program on every core, and the input pipeline remain untested.

`compile_for_slice` builds and compiles what a `SliceStep` describes, and `table` shows
the result. `topology`, `compile_step` and `largest_batch` do the same for any model.
"""

import multiprocessing
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np

from keras_mixer.benchmark import replica_program
from keras_mixer.distribution import jax_devices
from keras_mixer.models import CONSTRUCTORS, MLPMixer
from keras_mixer.training import finetune_optimizer, pretrain_optimizer, set_remat

# Those whose steps can be compiled.
BACKENDS = ("jax", "tensorflow")

_COLLECTIVE = re.compile(r" (?:all-reduce|all-gather|reduce-scatter)(?:-start)?\(")

_OPTIMIZERS = {
    "finetune": lambda: finetune_optimizer(total_steps=10_000),
    "pretrain": lambda: pretrain_optimizer(total_steps=100_000),
}


@dataclass(frozen=True)
class SliceStep:
    """One step, of training or evaluation, on a TPU slice.

    Attributes:
        variant: Name of a model of the family, such as `"B/16"`.
        topology: Kind and shape of the slice, for example `"v5e:2x2"`.
        model_devices: Devices that share one copy of the weights. Positive.
        image_size: Edge of the square images in pixels.
        num_classes: Number of classes. Positive.
        dtype: Dtype policy of the model.
        remat: Whether the blocks' activations are computed again in the backward pass,
            which saves memory.
        optimizer: That of the official fine-tuning or pre-training.
        training: Whether it is `train_step`, or `test_step`, which has no optimizer.
    """

    variant: str = "B/16"
    topology: str = "v5e:2x2"
    model_devices: int = 1
    image_size: int = 224
    num_classes: int = 1000
    dtype: str = "mixed_bfloat16"
    remat: bool = False
    optimizer: Literal["finetune", "pretrain"] = "finetune"
    training: bool = True


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
    """Build a model, compile its step, and return the compiler's report.

    The step is that of the backend, JAX or TensorFlow. The process computes on its CPU
    from now on: JAX must not look for a TPU.

    Args:
        step: The model, its optimizer and the slice.
        batch_size: Images of a step, over all devices; `None` to find the largest
            batch that fits (see `largest_batch`).

    Returns:
        A `Compiled`, or `None` if the memory of a device is too small.

    Raises:
        ImportError: If libtpu is not installed.
        ValueError: If the backend is neither JAX nor TensorFlow, there is no such
            variant, slice or optimizer, the batch does not divide among the devices,
            devices of TensorFlow are to share a model, or no TPU can run the step.
    """
    backend = keras.config.backend()
    if backend not in BACKENDS:
        raise ValueError(
            "Compiling for a TPU slice needs the backend JAX or TensorFlow. Received: "
            f"{backend}. Set KERAS_BACKEND=jax."
        )
    for name, value, choices in (
        ("variant", step.variant, CONSTRUCTORS),
        ("optimizer", step.optimizer, _OPTIMIZERS),
    ):
        if value not in choices:
            raise ValueError(
                f"`{name}` must be one of {', '.join(choices)}. Received: {value!r}"
            )
    _check_model_devices(step.model_devices)
    import jax

    jax.config.update("jax_platforms", "cpu")
    devices = topology(step.topology)
    on_slice: Any = nullcontext()
    if backend == "tensorflow":
        on_slice = replica_program.replicas(len(devices)).scope()
    with on_slice:
        model = _trained_model(step)
    how: dict[str, Any] = {
        "model_devices": step.model_devices,
        "training": step.training,
    }
    if batch_size is None:
        return largest_batch(model, devices, **how)
    return compile_step(model, devices, batch_size, **how)


def compile_in_backends(
    step: SliceStep, batch_size: int | None, backends: Sequence[str]
) -> dict[str, Compiled | None]:
    """Return the report of `compile_for_slice` for every backend.

    Backends other than this process's have a process of their own, one after another.

    Args:
        step: As in `compile_for_slice`.
        batch_size: As in `compile_for_slice`.
        backends: Some of `BACKENDS`.
    """
    return {
        name: compile_for_slice(step, batch_size)
        if name == keras.config.backend()
        else _compile_elsewhere(name, step, batch_size)
        for name in backends
    }


def table(step: SliceStep, compiled: Mapping[str, Compiled | None]) -> str:
    """Return the result of `compile_in_backends` as lines of text."""
    name = f"{step.variant} at {step.image_size}, {step.dtype}, {step.topology}"
    if step.remat:
        name += ", remat"
    if not step.training:
        name += ", evaluation"
    columns = [_column(report) for report in compiled.values()]
    titles = [f"{backend:>14}" for backend in compiled]
    lines = [f"{'':<22}{''.join(titles)}"]
    for row, key in enumerate(_ROWS):
        cells = [f"{column[row]:>14}" for column in columns]
        lines.append(f"{key:<22}{''.join(cells)}")
    shared = f"{step.model_devices} per model"
    if found := next(filter(None, compiled.values()), None):
        shared = f"{found.num_devices} devices, {shared}"
    return "\n".join([f"{name} ({shared}); per device:", *lines])


_ROWS = (
    "batch, all devices",
    "state and input, MiB",
    "temporary, MiB",
    "program, MiB",
    "TFLOP per step",
    "collectives",
)


def _column(report: Compiled | None) -> list[str]:
    if report is None:
        return ["does not fit", *["-"] * (len(_ROWS) - 1)]
    return [
        f"{report.batch_size:,}",
        f"{report.state / 2**20:,.0f}",
        f"{report.temporary / 2**20:,.0f}",
        f"{report.program / 2**20:,.0f}",
        f"{report.flops / 1e12:,.3f}",
        f"{report.collectives}",
    ]


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
    training: bool = True,
) -> Compiled | None:
    """Compile `model.train_step` for the devices and return the compiler's report.

    The step is the one that `fit` runs, on JAX under `jax_devices.Parallel`, on
    TensorFlow in every replica of `TPUStrategy`: loss, gradients and their sum over the
    devices, optimizer, metrics; the memory of the old state is reused.

    Args:
        model: A compiled (`model.compile`) model with logits: on JAX on one device, on
            TensorFlow built in the scope of `replica_program.replicas(len(devices))`.
        devices: Those of `topology`.
        batch_size: Images of a step, over all devices.
        model_devices: Devices that share one copy of the weights. 1 on TensorFlow.
        training: Whether it is `train_step`, or `test_step`.

    Returns:
        A `Compiled`, or `None` if the memory of a device is too small.

    Raises:
        ValueError: If the batch does not divide among the devices, or no TPU can run
            the step.
    """
    _check_model_devices(model_devices)
    replicas = len(devices) // model_devices
    if batch_size < 1 or batch_size % replicas:
        raise ValueError(
            f"`batch_size` must be a multiple of the {replicas} copies of the model. "
            f"Received: batch_size={batch_size}"
        )
    import jax

    if keras.config.backend() == "tensorflow":
        lowered = _lowered_tensorflow(model, devices, batch_size, training)
    else:
        lowered = _lowered_jax(model, devices, batch_size, model_devices, training)
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return None
        raise ValueError(
            "`model` has a step that no TPU can run. The TPU's compiler says: "
            f"{str(error).splitlines()[0]}"
        ) from error
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


def _lowered_tensorflow(
    model: keras.Model, devices: Sequence[Any], batch_size: int, training: bool
) -> Any:
    if model.distribute_strategy.num_replicas_in_sync != len(devices):
        raise ValueError(
            "`model` must be built and compiled in the scope of "
            f"`replica_program.replicas({len(devices)})`. Received: a model of "
            f"{model.distribute_strategy.num_replicas_in_sync} replicas."
        )
    with model.distribute_strategy.scope():
        create_state(model)
        program = replica_program.replica_program(
            model, batch_size // len(devices), training=training
        )
    return replica_program.lower(program, devices)


def _lowered_jax(
    model: keras.Model,
    devices: Sequence[Any],
    batch_size: int,
    model_devices: int,
    training: bool,
) -> Any:
    import jax

    layout = jax_devices.parallel(jax_devices.mesh(devices, model_devices))
    create_state(model)

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
            *([model.optimizer.variables] if training else []),
            model.metrics_variables,
        )
    )
    step = jax.jit(
        model.train_step if training else model.test_step,
        donate_argnums=0,
        out_shardings=(None, jax.tree.map(lambda part: part.sharding, state)),
    )
    data = (batch(*model.input_shape[1:]), batch(*model.output_shape[1:]))
    return step.trace(state, data).lower(lowering_platforms=("tpu",))


def largest_batch(
    model: keras.Model,
    devices: Sequence[Any],
    *,
    model_devices: int = 1,
    training: bool = True,
    first: int = 16,
) -> Compiled | None:
    """Return the `Compiled` of the largest batch that fits, or `None`.

    Each copy of the model gets a power of two of images.

    Args:
        model: As in `compile_step`.
        devices: As in `compile_step`.
        model_devices: As in `compile_step`.
        training: As in `compile_step`.
        first: Images per copy to begin the search with, a power of two.
    """
    replicas = len(devices) // model_devices

    def fits(images: int) -> Compiled | None:
        return compile_step(
            model,
            devices,
            images * replicas,
            model_devices=model_devices,
            training=training,
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


def create_state(model: keras.Model) -> None:
    """Create what `fit` creates with its first batch: optimizer and metrics."""
    x, y = (np.zeros((1, *s[1:])) for s in (model.input_shape, model.output_shape))
    model.optimizer.build(model.trainable_variables)
    with keras.StatelessScope():
        model.compute_metrics(x, y, y)


def _check_model_devices(model_devices: int) -> None:
    if keras.config.backend() == "tensorflow" and model_devices != 1:
        raise ValueError(
            "`model_devices` must be 1 on TensorFlow, whose TPUStrategy gives every "
            f"core the whole model. Received: model_devices={model_devices}"
        )


def _compile_elsewhere(
    backend: str, step: SliceStep, batch_size: int | None
) -> Compiled | None:
    """Return the report of another process, whose backend is another one."""
    before = os.environ.get("KERAS_BACKEND")
    os.environ["KERAS_BACKEND"] = backend  # read by the process that starts
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(compile_for_slice, step, batch_size).result()
    finally:
        del os.environ["KERAS_BACKEND"]
        if before is not None:
            os.environ["KERAS_BACKEND"] = before
