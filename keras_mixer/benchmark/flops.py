"""How many floating-point operations a Mixer needs, and how many a device can do.

Both count matrix products only, a multiplication and an addition as two operations.
Everything else (norms, GELU, residuals) can ideally run at the same time as them.
"""

import math
import statistics
from collections.abc import Sequence
from functools import partial

from keras import ops, random

from keras_mixer.benchmark.compiled_steps import compiled
from keras_mixer.benchmark.timing import timed
from keras_mixer.variants import num_patches, weight_shapes


def matrix_flops(
    *,
    input_shape: tuple[int, int, int],
    patch_size: int,
    training: bool = False,
    **sizes: int,
) -> int:
    """Return the operations of all matrix products for one image.

    A kernel of shape `(m, n)` applied to `k` vectors takes `2 k m n`: k is the number
    of patches S in the stem and in channel mixing, C in token mixing, 1 in the head.
    So the cost is linear in S at a fixed `tokens_mlp_dim` (paper, section 2).

    Args:
        input_shape: `(height, width, channels)`.
        patch_size: Edge of a patch in pixels.
        training: Whether to add the gradients: that of a kernel and that of its input
            take as much as its product. The gradient of the images is not computed.
        **sizes: The other sizes of `mlp_mixer`, and `num_classes`.
    """
    patches = num_patches(input_shape, patch_size)
    shapes = weight_shapes(
        patch_size=patch_size, num_patches=patches, channels=input_shape[2], **sizes
    )
    flops = 0
    for path, shape in shapes.items():
        if not path.endswith("/kernel"):
            continue
        vectors = patches
        if "/token_mixing/" in path:
            vectors = sizes["hidden_dim"]
        elif path == "head/kernel":
            vectors = 1
        passes = 1
        if training:
            passes = 2 if path.startswith("stem/") else 3
        flops += 2 * passes * vectors * math.prod(shape)
    return flops


def matrix_product_ceiling(
    dtype: str,
    *,
    smallest: int = 512,
    largest: int = 16384,
    long_enough: float = 0.05,
) -> float:
    """Return the most operations per second that square matrix products reach here.

    The edge doubles until a product takes `long_enough` seconds. The fastest of five
    products of each size counts.

    Args:
        dtype: Of the matrices, such as `"bfloat16"`.
        smallest: First edge. Positive.
        largest: Last edge: three such matrices must fit into the device's memory.
        long_enough: Seconds of one product after which the search ends.
    """
    product = compiled(ops.matmul, jit_compile=False)
    best, edge = 0.0, smallest
    while edge <= largest:
        a, b = (random.normal((edge, edge), dtype=dtype, seed=i) for i in range(2))
        call = partial(product, a, b)
        timed(call)  # compiles
        seconds = min(timed(call) for _ in range(5))
        best = max(best, 2 * edge**3 / seconds)
        if seconds > long_enough:
            break
        edge *= 2
    return best


def growth_exponent(counts: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the exponent `p` of `seconds ~ counts**p`: least squares on logarithms.

    Raises:
        ValueError: If there are not two different counts.
    """
    if len(set(counts)) < 2 or len(counts) != len(seconds):
        raise ValueError(
            "An exponent needs two different counts and a time for each. Received: "
            f"counts={list(counts)}, seconds={list(seconds)}"
        )
    x, y = ([math.log(value) for value in values] for values in (counts, seconds))
    return statistics.linear_regression(x, y).slope
