"""What half precision means on CPUs, where not every compiler has the units for it."""

import warnings

import keras

from keras_mixer.processor import cpu_field

HALF = ("bfloat16", "float16")
_warned: set[str] = set()


def loses_onednn(model: keras.Model) -> bool:
    """Return whether TensorFlow would lose fast 16-bit products with XLA here.

    Without XLA TensorFlow calls oneDNN, whose products use AMX; those of XLA do not.
    On a processor without AMX XLA is 1.7 times as fast.
    """
    import tensorflow as tf

    devices = {device.device_type for device in tf.config.list_physical_devices()}
    return devices == {"CPU"} and _half(model) is not None and has_amx()


def has_amx() -> bool:
    """Return whether the processor has units for products in bfloat16 (on Linux)."""
    return "amx_bf16" in cpu_field("flags").split()


def warn_where_slow(model: keras.Model) -> None:
    """Warn, once for each dtype, if half precision is slower than float32 here."""
    if keras.config.backend() != "jax":
        return
    import jax

    dtype = _half(model)
    if dtype is None or dtype in _warned or jax.default_backend() != "cpu":
        return
    _warned.add(dtype)
    warnings.warn(
        f"`{dtype}` is slower than float32 on a CPU with JAX, whose compiler has no "
        'fast 16-bit products there. Build the model with `dtype="float32"`; its '
        "weights are the same. On processors with AMX the backends torch and "
        "TensorFlow, and an exported OpenVINO file, are fast in half precision.",
        UserWarning,
        stacklevel=4,
    )


def _half(model: keras.Model) -> str | None:
    """Return the 16-bit dtype that the blocks compute in, or `None`."""
    dtypes = {block.compute_dtype for block in model.blocks}
    return next((dtype for dtype in HALF if dtype in dtypes), None)
