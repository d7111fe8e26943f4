"""The Mixer of the paper in NumPy and float64, to compare models with.

It shares no code with the layers. Source: paper, section 2.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def mixer(
    weights: Mapping[str, Array], images: Array, *, approximate_gelu: bool = True
) -> tuple[Array, Array | None]:
    """Return `(pre_logits, logits)` of a Mixer.

    Args:
        weights: Arrays by the names that this package gives to weights.
        images: `(batch, height, width, channels)`, normalised.
        approximate_gelu: Tanh form of GELU or the exact one.

    Returns:
        Two arrays; `logits` is `None` for weights without a head.
    """

    def get(name: str) -> Array:
        return np.asarray(weights[name], np.float64)

    def dense(x: Array, name: str) -> Array:
        return x @ get(f"{name}/kernel") + get(f"{name}/bias")

    def norm(x: Array, name: str) -> Array:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * get(f"{name}/gamma") + get(f"{name}/beta")

    def mlp(x: Array, name: str) -> Array:
        x = _gelu(dense(x, f"{name}/dense_0"), approximate_gelu)
        return dense(x, f"{name}/dense_1")

    x = _patches(images, get("stem/projection/kernel")) + get("stem/projection/bias")
    for i in range(sum(name.endswith("/norm_0/gamma") for name in weights)):
        y = norm(x, f"block_{i}/norm_0").swapaxes(1, 2)
        x = x + mlp(y, f"block_{i}/token_mixing").swapaxes(1, 2)
        x = x + mlp(norm(x, f"block_{i}/norm_1"), f"block_{i}/channel_mixing")
    pre_logits = norm(x, "pre_head_layer_norm").mean(1)
    return pre_logits, dense(pre_logits, "head") if "head/kernel" in weights else None


def _patches(images: Array, kernel: Array) -> Array:
    """Return the projections of the patches, row by row: `(batch, S, width)`."""
    batch, height, width, channels = images.shape
    size = len(kernel)
    x = images.reshape(batch, height // size, size, width // size, size, channels)
    x = np.tensordot(x.transpose(0, 1, 3, 2, 4, 5), kernel, 3)
    return x.reshape(batch, -1, kernel.shape[-1])


def _gelu(x: Array, approximate: bool) -> Array:
    if approximate:
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / 2 * (1 + _erf(x / math.sqrt(2)))
