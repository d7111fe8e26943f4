"""Will it fit? The whole JAX training step, compiled for a TPU slice without the slice.

    python -m keras_mixer.tpu_compile --variant B/16 --topology v5e:2x2 --batch 1024

prints what the TPU's own compiler says of one device: memory and floating-point
operations per step. `--batch largest` looks for the largest batch that fits. It runs on
any machine with `pip install 'keras_mixer[tpu-compile]'`, and neither runs the program
nor times it.
"""

import argparse
import os
import re
import sys
from dataclasses import dataclass

import keras
import numpy as np

from keras_mixer.distribution import jax_devices
from keras_mixer.models import CONSTRUCTORS
from keras_mixer.training import finetune_optimizer, pretrain_optimizer, set_remat

_COLLECTIVE = re.compile(r" (?:all-reduce|all-gather|reduce-scatter)(?:-start)?\(")

OPTIMIZERS = {
    "finetune": lambda: finetune_optimizer(total_steps=10_000),
    "pretrain": lambda: pretrain_optimizer(total_steps=100_000),
}


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of one device, in bytes, and of one step.

    Attributes:
        batch_size: Images of a step, over all devices.
        state: Weights, optimizer and metrics, and this device's part of the batch.
        temporary: Activations and gradients at their peak.
        program: The compiled code.
        flops: Floating-point operations of this device in one step.
        collectives: Operations in which devices exchange data.
    """

    batch_size: int
    state: int
    temporary: int
    program: int
    flops: float
    collectives: int


def topology(name):
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
            "Compiling for TPUs needs libtpu: pip install 'keras_mixer[tpu-compile]'"
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


def compile_step(model, devices, batch_size, *, model_devices=1):
    """Compile `model.train_step` for the devices and return what the compiler says.

    The step is the one that `fit` runs under `jax_devices.Parallel`: loss, gradients,
    optimizer, metrics, the state's memory given back.

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

    def placed(variable):
        sharding = layout.get_variable_layout(variable).backend_layout
        return jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=sharding)

    def batch(*shape):
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
        state=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        program=memory.generated_code_size_in_bytes,
        flops=program.cost_analysis()["flops"],
        collectives=len(_COLLECTIVE.findall(program.as_text())),
    )


def _create_state(model):
    """Create what `fit` creates with its first batch: optimizer and metrics."""
    x, y = (np.zeros((1, *s[1:])) for s in (model.input_shape, model.output_shape))
    model.optimizer.build(model.trainable_variables)
    with keras.StatelessScope():
        model.compute_metrics(x, y, y)


def largest_batch(model, devices, *, model_devices=1, first=16):
    """Return the `Compiled` of the largest batch that fits, or `None`.

    Batches are a power of two of images for each copy of the model.

    Args:
        model: As in `compile_step`.
        devices: As in `compile_step`.
        model_devices: As in `compile_step`.
        first: Images per copy to begin the search with, a power of two.
    """
    replicas = len(devices) // model_devices

    def fits(images):
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


def main(arguments=None):
    """Print the table that the command line asks for; return the exit code."""
    options = _parser().parse_args(arguments)
    if keras.config.backend() != "jax":
        sys.exit("tpu_compile needs JAX: set KERAS_BACKEND=jax")
    import jax

    # The device of this process stays the CPU: the TPU is only compiled for.
    jax.config.update("jax_platforms", "cpu")
    try:
        devices = topology(options.topology)
        model = CONSTRUCTORS[options.variant](
            input_shape=(options.image_size, options.image_size, 3),
            num_classes=options.classes,
            classifier_activation=None,
            dtype=options.dtype,
        )
        set_remat(model, options.remat)
        model.compile(
            OPTIMIZERS[options.optimizer](),
            keras.losses.CategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        if options.batch == "largest":
            found = largest_batch(model, devices, model_devices=options.model)
        else:
            found = compile_step(
                model, devices, int(options.batch), model_devices=options.model
            )
    except (ImportError, ValueError) as error:
        sys.exit(str(error))
    print(_table(options, len(devices), found))  # noqa: T201
    return 0 if found else 1


def _table(options, count, found):
    name = f"{options.variant} at {options.image_size}, {options.dtype}, "
    name += f"{options.topology} ({count} devices, {options.model} per model)"
    name += ", remat" if options.remat else ""
    if found is None:
        return f"{name}: batch {options.batch} does not fit"
    rows = {
        "batch, all devices": f"{found.batch_size:,}",
        "state and input, MiB": f"{found.state / 2**20:,.0f}",
        "temporary, MiB": f"{found.temporary / 2**20:,.0f}",
        "program, MiB": f"{found.program / 2**20:,.0f}",
        "TFLOP per step": f"{found.flops / 1e12:,.3f}",
        "collectives": f"{found.collectives}",
    }
    lines = [f"{key:<22}{value:>12}" for key, value in rows.items()]
    return "\n".join([f"{name}; per device:", *lines])


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m keras_mixer.tpu_compile",
        description="Compile the JAX training step of a Mixer for a TPU slice.",
    )
    parser.add_argument("--variant", default="B/16", choices=CONSTRUCTORS)
    parser.add_argument("--topology", default="v5e:2x2", help="v5e:2x2, v6e:16x16, ...")
    parser.add_argument(
        "--batch", default="largest", help="images over all devices, or largest"
    )
    parser.add_argument(
        "--model", type=int, default=1, help="devices that share one model"
    )
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--dtype", default="mixed_bfloat16")
    parser.add_argument(
        "--remat", action="store_true", help="compute blocks twice, to save memory"
    )
    parser.add_argument("--optimizer", default="finetune", choices=OPTIMIZERS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
