"""Variables as NumPy arrays, also those that lie on the devices of several hosts."""

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray


def host_value(value: Any) -> NDArray[Any]:
    """Return a variable or a tensor as a NumPy array.

    NumPy reads no JAX array of which parts lie on other hosts. Every host has a copy
    of each weight, whole or in parts, on its own devices: `jax_devices.mesh` sees to
    it, and so nothing has to be sent.

    Args:
        value: A `keras.Variable` or a tensor of the backend.
    """
    if keras.config.backend() == "jax":
        array = value.value if isinstance(value, keras.Variable) else value
        if not getattr(array, "is_fully_addressable", True):
            whole = np.empty(array.shape, array.dtype)
            for shard in array.addressable_shards:
                whole[shard.index] = shard.data
            return whole
    return keras.ops.convert_to_numpy(value)
