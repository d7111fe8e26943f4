"""Dense layers on torch: the bias inside the product, on CPUs the GELU as well.

The tanh form of GELU costs torch's CPU code up to a quarter of a Mixer's forward pass.
oneDNN, which makes the products, applies it to the numbers that it still holds in
registers; what torch itself would compile for a CPU is `compiled_gelu`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import keras
from keras import ops

if TYPE_CHECKING:
    import torch

GeluForm = Literal["tanh", "none"]  # torch's names of the approximation

_for_compiler = ContextVar("for_compiler", default=False)


@contextmanager
def for_compiler() -> Iterator[None]:
    """Let the layers compute in the forms that torch's compiler makes fast."""
    token = _for_compiler.set(True)
    try:
        yield
    finally:
        _for_compiler.reset(token)


def is_for_compiler() -> bool:
    """Return whether this is inside `for_compiler`."""
    return _for_compiler.get()


def linear(x: Any, kernel: Any, bias: Any, gelu: GeluForm | None = None) -> Any:
    """Return `x kernel + bias`, or its GELU.

    Args:
        x: `(..., rows)`, a tensor.
        kernel: `(rows, columns)` of the same dtype, which is a floating one.
        bias: `(columns,)` of the same dtype, or `None`.
        gelu: Form of the GELU; only where `can_fuse` said so.
    """
    import torch

    if gelu is None:
        return torch.nn.functional.linear(x, kernel.mT, bias)
    columns = kernel.shape[1]
    if x.dtype is torch.float32 and columns & (columns - 1):
        # oneDNN wants the kernel transposed. It copies one whose rows are as long as a
        # power of two, and reads any other across the rows, at half the speed.
        outputs = torch.nn.functional.linear(x, kernel.mT, bias)
        return torch.ops.aten.gelu_(outputs, approximate=gelu)
    product = torch.ops.mkldnn._linear_pointwise
    return product(x, kernel.mT, bias, "gelu", [], gelu)


def fits(x: Any, kernel: Any) -> bool:
    """Return whether `linear` computes what Keras's own product does."""
    import torch

    if x.dtype != kernel.dtype or x.ndim < 2:
        return False
    if x.dtype is torch.float16 and x.device.type == "cpu":
        return _onednn_has(torch.float16)  # else Keras computes in float32
    return x.dtype.is_floating_point


def is_inference_on_cpu(x: Any) -> bool:
    """Return whether torch's CPU code alone computes with `x`, and no gradient.

    Compilers and exporters must see the usual operations.
    """
    import torch

    return (
        type(x) is torch.Tensor
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    )


def can_fuse(layer: keras.layers.Dense, x: Any) -> bool:
    """Return whether oneDNN can make the GELU part of this layer's product.

    It has no gradient.
    """
    import torch

    return (
        is_inference_on_cpu(x)
        and x.ndim == 3
        and layer.quantization_mode is None
        and not layer._forward_hooks  # they get the product itself
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and _onednn_has(x.dtype)
    )


@cache
def _onednn_has(dtype: "torch.dtype") -> bool:
    """Return whether oneDNN computes in a dtype on this processor."""
    import torch

    if not torch.backends.mkldnn.is_available():
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


def compiled_gelu(x: Any) -> Any:
    """Return the tanh form of `gelu(x)`, written for torch's compiler on CPUs.

    `0.5 (1 + tanh(u)) = sigmoid(2 u)`, and only the second is fast in its vector code.
    """
    y = ops.cast(x, "float32")
    twice = 2 * math.sqrt(2 / math.pi) * y * (1 + 0.044715 * y * y)
    return ops.cast(y * ops.sigmoid(twice), x.dtype)
