from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_mixer.host_values import host_value

ARRAY = np.arange(12, dtype="float32").reshape(3, 4)


def test_variables_and_tensors_are_read():
    np.testing.assert_array_equal(host_value(keras.Variable(ARRAY)), ARRAY)
    np.testing.assert_array_equal(host_value(keras.ops.convert_to_tensor(ARRAY)), ARRAY)


@pytest.mark.skipif(keras.config.backend() != "jax", reason="arrays of several hosts")
def test_the_parts_of_this_host_are_put_together():
    """As on the first of two hosts; `test_distribution.py` has real ones."""
    cuts = [(slice(None), slice(0, 2)), (slice(None), slice(2, 4))]
    array = SimpleNamespace(
        shape=ARRAY.shape,
        dtype=ARRAY.dtype,
        is_fully_addressable=False,
        addressable_shards=[SimpleNamespace(index=c, data=ARRAY[c]) for c in cuts],
    )
    np.testing.assert_array_equal(host_value(array), ARRAY)
