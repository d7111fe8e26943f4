"""What the layers compute with, each operation in the form that compiles best.

The numbers are those of Keras's own operations; the passes over memory are fewer, where
a backend or a device leaves some to save.
"""

import math
from functools import partial
from typing import Any

import keras
from keras import ops

from keras_mixer.layers import tensorflow_products, torch_products
from keras_mixer.layers.inner_calls import call_inner


def dense(
    layer: keras.layers.Dense,
    x: keras.KerasTensor,
    outer: keras.layers.Layer | None = None,
) -> keras.KerasTensor:
    """Return `layer(x)`, `x kernel + bias` along the last axis.

    On GPUs the tensor cores want sizes of 16-bit products in multiples of 8; 49 and 196
    patches are none. XLA pads such products by itself, but with a copy of all
    activations, and it then leaves the GELU after the product a pass of its own. Zeros
    that are appended here become part of the operation that makes `x`.

    Args:
        layer: A built `keras.layers.Dense` with a bias and without an activation.
        x: `(batch, n, kernel rows)`.
        outer: The layer that calls it, if one does; see `call_inner`.

    Returns:
        `(batch, n, layer.units)`.
    """
    # Not from `layer.kernel`, which LoRA and int4 compute again at each access.
    rows, columns = -x.shape[-1] % 8, -layer.units % 8
    half = keras.backend.standardize_dtype(x.dtype) in ("bfloat16", "float16")
    if not (rows or columns) or not half or layer.quantization_mode or not _on_gpu():
        return call_inner(layer, x, outer)
    x = ops.pad(x, [[0, 0], [0, 0], [0, rows]])
    kernel = ops.pad(layer.kernel, [[0, rows], [0, columns]])
    bias = ops.pad(layer.bias, [[0, columns]])
    return ops.add(ops.matmul(x, kernel), bias)[..., : layer.units]


def dense_gelu(
    layer: keras.layers.Dense,
    x: keras.KerasTensor,
    approximate: bool,
    training: bool | None,
    outer: keras.layers.Layer | None = None,
) -> keras.KerasTensor:
    """Return `gelu(layer(x))`, of a `Dense` of this package.

    On torch's and TensorFlow's CPUs one operation, where no gradient is asked for.
    """
    if _can_fuse(layer, x, training):
        form = "tanh" if approximate else "none"
        return call_inner(layer, x, outer, gelu=form)
    return gelu(dense(layer, x, outer), approximate, training)


def _can_fuse(
    layer: keras.layers.Dense, x: keras.KerasTensor, training: bool | None
) -> bool:
    match keras.config.backend():
        case "torch":
            return torch_products.can_fuse(layer, x)
        case "tensorflow":
            return not _on_gpu() and tensorflow_products.can_fuse(layer, x, training)
    return False


def gelu(
    x: keras.KerasTensor, approximate: bool, training: bool | None
) -> keras.KerasTensor:
    """Return `x Phi(x)`, Phi in its tanh form if `approximate`, else the exact one.

    On GPUs XLA makes the tanh form, written like this, part of the product before it.
    In training Phi is computed again for the gradient there, from `x` alone: a quarter
    of all activations need not be kept. Elsewhere neither saves time.
    """
    if torch_products.is_for_compiler() and approximate and x.device.type == "cpu":
        return torch_products.compiled_gelu(x)
    if keras.config.backend() == "torch" or not _on_gpu():
        return ops.gelu(x, approximate=approximate)
    function = _tanh_gelu if approximate else partial(ops.gelu, approximate=False)
    return keras.remat(function)(x) if training else function(x)


def _tanh_gelu(x: Any) -> Any:
    cubic = x + 0.044715 * (x * x * x)
    return x * (0.5 * (1.0 + ops.tanh(math.sqrt(2 / math.pi) * cubic)))


class LayerNorm(keras.layers.LayerNormalization):
    """`gamma (x - mean) / sqrt(variance + epsilon) + beta` over the channels.

    Keras's layer, but on JAX, and on TensorFlow on GPUs and without XLA, with the
    statistics of the official code, in one pass: `variance = mean(x^2) - mean(x)^2`. On
    torch's CPUs numbers of 16 bits are read and written as such.
    """

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        if keras.config.backend() == "torch" and self._reads_half(x):
            return self._with_wide_weights(x)
        if not self._in_one_pass():
            return super().call(x)
        x = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
        # Before the mean: XLA orders the gradient's sums by it, and on CPUs the other
        # order, like Keras's formula, makes JAX's training step up to twice as long.
        squares = ops.square(x)
        mean = ops.mean(x, axis=-1, keepdims=True)
        variance = ops.mean(squares, axis=-1, keepdims=True) - ops.square(mean)
        variance = ops.maximum(variance, 0)  # rounding can make it negative
        x = (x - mean) * (ops.rsqrt(variance + self.epsilon) * self.gamma) + self.beta
        return ops.cast(x, self.compute_dtype)

    def _reads_half(self, x: Any) -> bool:
        import torch

        half = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
        is_half = half.get(x.dtype) == self.compute_dtype
        return is_half and torch_products.is_inference_on_cpu(x)

    def _with_wide_weights(self, x: Any) -> Any:
        # torch's CPU code reads 16 bits, and computes in the float32 of gamma and beta.
        # Not for training: it would sum the gradient of gamma in 16 bits.
        import torch

        gamma, beta = self.gamma.value, self.beta.value
        return torch.nn.functional.layer_norm(x, gamma.shape, gamma, beta, self.epsilon)

    def _in_one_pass(self) -> bool:
        match keras.config.backend():
            case "torch":
                return False
            case "tensorflow":
                by_onednn = tensorflow_products.is_onednns(self.compute_dtype)
                return _on_gpu() or by_onednn
        return True


def _on_gpu() -> bool:
    if keras.config.backend() == "jax":
        import jax

        return jax.default_backend() == "gpu"
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.list_logical_devices("GPU"))
    import torch

    return torch.cuda.is_available()
