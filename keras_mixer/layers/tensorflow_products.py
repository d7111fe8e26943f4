"""Dense layers on TensorFlow's CPUs: product, bias and GELU in one call of oneDNN.

Without XLA, TensorFlow's graph optimizer joins the three where it finds them one after
another: a product of two matrices, a bias, the operations of `tf.nn.gelu`. In Keras's
product of three axes there is a reshape between them. With XLA the program is the same.
"""

from typing import TYPE_CHECKING

import keras

from keras_mixer.layers.torch_products import GeluForm
from keras_mixer.processor import multiplies

if TYPE_CHECKING:
    import tensorflow as tf


def linear(
    x: "tf.Tensor",
    kernel: "tf.Tensor",
    bias: "tf.Tensor | None",
    gelu: GeluForm | None = None,
) -> "tf.Tensor":
    """Return `x kernel + bias`, or its GELU.

    Args:
        x: `(batch, n, rows)`.
        kernel: `(rows, columns)` of the same dtype.
        bias: `(columns,)` of the same dtype, or `None`.
        gelu: Form of the GELU; only where `can_fuse` said so.
    """
    import tensorflow as tf

    n, rows = x.shape[1:]
    y = tf.matmul(tf.reshape(x, (-1, rows)), kernel)  # (batch n, columns)
    if bias is not None:
        y = tf.nn.bias_add(y, bias)
    if gelu is not None:
        y = tf.nn.gelu(y, approximate=gelu == "tanh")
    return tf.reshape(y, (-1, n, kernel.shape[1]))


def fits(x: "tf.Tensor", kernel: "tf.Tensor") -> bool:
    """Return whether `linear` computes what Keras's own product does."""
    return _is_batch_of_tokens(x) and x.dtype == kernel.dtype


def can_fuse(layer: keras.layers.Dense, x: "tf.Tensor", training: bool | None) -> bool:
    """Return whether oneDNN may make the GELU part of this layer's product.

    Not in training: the gradient needs what lies between product and GELU.
    """
    return (
        not training
        and _is_batch_of_tokens(x)
        and x.dtype == layer.compute_dtype
        and layer.quantization_mode is None
    )


def is_onednns(dtype: str) -> bool:
    """Return whether a Mixer in this dtype computes by oneDNN, without XLA.

    Without XLA 16-bit products use the units that processors have for them; those of
    XLA's CPU code do not. Without such units, and in float32, XLA is faster. A
    strategy's devices may be others than this machine's.
    """
    if not multiplies(dtype):
        return False
    import tensorflow as tf

    devices = {device.device_type for device in tf.config.list_physical_devices()}
    return devices == {"CPU"} and not tf.distribute.has_strategy()


def _is_batch_of_tokens(x: "tf.Tensor") -> bool:
    return len(x.shape) == 3 and None not in x.shape[1:]
