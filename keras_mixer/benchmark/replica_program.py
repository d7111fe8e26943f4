"""TensorFlow's step of one replica, as a program that another compiler can read.

`tf.distribute.TPUStrategy` lets every TPU core run one program: Keras's own
`train_step` on this core's images, in which gradients are summed over all cores.
TensorFlow makes this program here without a TPU, as StableHLO: weights and optimizer
are arguments, what the step assigns to them are results.
"""

import re
from dataclasses import dataclass
from typing import Any

import keras

# TensorFlow copies the results by an operation that only its own compiler knows.
_COPY = re.compile(r"mhlo\.copy (?=%)")
# TensorFlow counts cores as replicas, JAX as partitions of one program.
_CHANNEL = re.compile(
    r"channel_handle = #stablehlo\.channel_handle<handle = \d+, type = \d+>"
)
_PARTITIONS = (
    "channel_handle = #stablehlo.channel_handle<handle = 1, type = 1>, "
    "use_global_device_ids"
)
_DYNAMIC = re.compile(r"tensor<[0-9x]*\?[^>]*>")
_HOST = re.compile(r"stablehlo\.(?:infeed|outfeed|send|recv)\b")
_NO_KERNEL = re.compile(r"No registered '(\w+)' OpKernel")
_ALIAS = re.compile(r"parameter_number = (\d+) : i64\}, output_index")


@dataclass(frozen=True)
class ReplicaProgram:
    """What one replica computes in a step.

    Attributes:
        text: A StableHLO module. The arguments of `main` are images, labels, then all
            variables; its results are logs, then all variables that are assigned to.
        assigned: Numbers of the arguments whose memory the results can take.
        num_replicas: Replicas that sum their gradients.
    """

    text: str
    assigned: tuple[int, ...]
    num_replicas: int


def replicas(count: int) -> Any:
    """Return a TensorFlow strategy that reports `count` replicas; none is needed.

    A model that is built and compiled in its `scope()` divides its loss, and clips its
    gradients, as one of so many replicas. It cannot run; see `replica_program`.
    """
    import tensorflow as tf

    class Replicas(tf.distribute.OneDeviceStrategy):
        @property
        def num_replicas_in_sync(self) -> int:
            return count

    return Replicas("/cpu:0")


def replica_program(
    model: keras.Model, batch_size: int, *, training: bool = True
) -> ReplicaProgram:
    """Return `model.train_step` of one replica as a program.

    Args:
        model: A model built and compiled in the scope of `replicas`, with its optimizer
            and its metrics built.
        batch_size: Images of this replica.
        training: Whether it is `train_step`, or `test_step`.

    Raises:
        ValueError: If the step calls the host, has an operation that XLA cannot
            compile, or a shape that depends on values.
    """
    import tensorflow as tf

    strategy = model.distribute_strategy
    count = strategy.num_replicas_in_sync
    replica = _replica(strategy, count)

    def step(x: Any, y: Any) -> Any:
        with replica:
            return (model.train_step if training else model.test_step)((x, y))

    shapes = (model.input_shape[1:], model.output_shape[1:])
    batch = [tf.TensorSpec((batch_size, *shape), "float32") for shape in shapes]
    compiled = tf.function(step, jit_compile=True, autograph=False)
    try:
        text = compiled.experimental_get_compiler_ir(*batch)(stage="stablehlo")
    except (ValueError, tf.errors.OpError) as error:
        unknown = _NO_KERNEL.search(str(error))
        reason = f"XLA has no {unknown[1]}" if unknown else str(error).splitlines()[0]
        raise ValueError(_refusal(reason)) from error
    if found := _HOST.search(text):
        raise ValueError(_refusal(f"it calls the host by {found.group()}"))
    if found := _DYNAMIC.search(text):
        raise ValueError(_refusal(f"it has a dynamic shape, {found.group()}"))
    assigned = tuple(int(number) for number in _ALIAS.findall(text))
    text = _COPY.sub("stablehlo.optimization_barrier ", text)
    return ReplicaProgram(_CHANNEL.sub(_PARTITIONS, text), assigned, count)


def lower(program: ReplicaProgram, devices: Any) -> Any:
    """Return the program of all replicas, lowered by JAX for the devices.

    Each device gets its part of the batch and all variables.

    Args:
        program: That of one replica.
        devices: As many of JAX's devices as there are replicas; they may be those of a
            TPU slice that is only compiled for.

    Returns:
        A `jax.stages.Lowered`.
    """
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    split, whole = PartitionSpec("batch"), PartitionSpec()
    mesh = jax.make_mesh((len(devices),), ("batch",), devices=devices)
    before = jax.config.jax_enable_x64  # type: ignore[attr-defined]
    jax.config.update("jax_enable_x64", True)  # TensorFlow counts steps in int64
    try:
        call, arguments = _jax_function(program.text, devices[0].platform)
        layouts = (split, split, *[whole] * (len(arguments) - 2))
        arguments = [
            jax.ShapeDtypeStruct(
                (len(devices) * a.shape[0], *a.shape[1:])
                if place == split
                else a.shape,
                a.dtype,
                sharding=NamedSharding(mesh, place),
            )
            for a, place in zip(arguments, layouts, strict=True)
        ]
        # Every device has its own metrics: JAX must not check that they are equal.
        parallel = jax.shard_map(
            call, mesh=mesh, in_specs=layouts, out_specs=whole, check_vma=False
        )
        step = jax.jit(parallel, donate_argnums=program.assigned)
        platforms = (devices[0].platform,)
        return step.trace(*arguments).lower(lowering_platforms=platforms)
    finally:
        jax.config.update("jax_enable_x64", before)


def _replica(strategy: Any, count: int) -> Any:
    """Return the context of one replica, whose sums are operations of XLA."""
    import tensorflow as tf

    class Replica(tf.distribute.ReplicaContext):
        sums = 0

        @property
        def num_replicas_in_sync(self) -> int:
            return count

        def all_reduce(self, reduce_op: Any, value: Any, options: Any = None) -> Any:
            if reduce_op != tf.distribute.ReduceOp.SUM:
                raise ValueError(f"Replicas only sum. Received: {reduce_op}")
            return tf.nest.map_structure(self._sum, value)

        def _sum(self, tensor: Any) -> Any:
            self.sums += 1
            return tf.raw_ops.CollectiveReduceV2(
                input=tensor,
                group_size=count,
                group_key=1,
                instance_key=self.sums,
                ordering_token=[],
                merge_op="Add",
                final_op="Id",
            )

    return Replica(strategy, replica_id_in_sync_group=0)


def _jax_function(text: str, platform: str) -> tuple[Any, list[Any]]:
    """Return a function of JAX that is the module, and its arguments' shapes."""
    from dataclasses import replace

    import jax
    import jax.export
    import jax.numpy as jnp
    from jax.extend.mlir.dialects import stablehlo
    from jax.interpreters import mlir

    with mlir.make_ir_context():
        module = mlir.ir.Module.parse(text)
        functions: list[Any] = list(module.body.operations)
        main = next(item for item in functions if item.name.value == "main")
        arguments, results = (
            [_shape(mlir.ir.RankedTensorType(kind)) for kind in kinds]
            for kinds in (main.type.inputs, main.type.results)
        )
        portable = stablehlo.serialize_portable_artifact_str(
            str(module), stablehlo.get_current_version()
        )

    # A function with the same arguments and results, whose body is replaced below.
    def same(*arguments: Any) -> Any:
        return tuple(jnp.zeros(result.shape, result.dtype) for result in results)

    exported = jax.export.export(jax.jit(same), platforms=[platform])(*arguments)
    exported = replace(
        exported,
        mlir_module_serialized=bytes(portable),
        module_kept_var_idx=tuple(range(len(arguments))),
    )
    return exported.call, arguments


def _shape(kind: Any) -> Any:
    import jax

    return jax.ShapeDtypeStruct(tuple(kind.shape), _DTYPES[str(kind.element_type)])


_DTYPES = {
    **{"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16"},
    **{"i64": "int64", "i32": "int32", "ui32": "uint32", "i8": "int8", "i1": "bool"},
}


def _refusal(reason: str) -> str:
    return (
        "`model` has a step that no TPU can run. A TPU needs operations that XLA "
        f"compiles and shapes that are known beforehand. TensorFlow says: {reason}"
    )
