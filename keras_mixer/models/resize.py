"""The same Mixer at another image size: new token-mixing weights from the old ones.

Only the token-mixing MLPs know the number of patches; all other weights are copied.
With the patches of an image as a grid of `rows` x `columns`, S of them, there are two
ways to the weights of a larger or smaller grid. Both are plain NumPy functions here.

Source: paper, section 3 and appendix C ("block-diagonal"); the interpolation follows
what is usual for position embeddings (Dosovitskiy et al. 2020, section 3.2).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from keras_mixer.checks import check_image_shape
from keras_mixer.host_values import host_value
from keras_mixer.layers import nested_layers, path_below_model, zero_kernels
from keras_mixer.models.config import MixerConfig
from keras_mixer.models.mixer import MLPMixer, mlp_mixer, set_weights
from keras_mixer.variants import patch_grid

METHODS = ("auto", "block_diagonal", "interpolate")

_WEIGHT_NAMES = ("kernel", "bias", "gamma", "beta")
_MIXING_WEIGHTS = ("dense_0/kernel", "dense_0/bias", "dense_1/kernel", "dense_1/bias")


def resize(
    model: MLPMixer,
    input_shape: Sequence[int],
    method: Literal["auto", "block_diagonal", "interpolate"] = "auto",
) -> MLPMixer:
    """Return the same model for images of another size; `model` is left as it is.

    Args:
        model: An `MLPMixer` in floating point.
        input_shape: `(height, width, channels)` of the new images: edges that are
            multiples of the patch size, and the channels of `model`.
        method: `"block_diagonal"` (the paper's): each edge grows by an integer factor,
            and every part of the image is mixed as a whole image was; the token-mixing
            MLPs widen with the number of parts, see `block_diagonal`.
            `"interpolate"`: any size, the MLPs keep their width, see `interpolate`.
            `"auto"`: block-diagonal where it is possible, else interpolated.

    Returns:
        An `MLPMixer`, not compiled, with the head, the dtype policy, the preprocessing,
        the labels and the frozen layers of `model`. Fine-tune it: the weights are a
        good start, not trained ones.

    Raises:
        ValueError: If `model` is not a float `MLPMixer`, or the size does not fit the
            patches or the method.

    Reference: paper, section 3 and appendix C.
    """
    if not isinstance(model, MLPMixer):
        raise ValueError(
            "`model` must be an `MLPMixer`, as `keras_mixer.mlp_mixer` and "
            f"`keras_mixer.MixerB16` return it. Received: {type(model).__name__}"
        )
    if method not in METHODS:
        raise ValueError(
            f"`method` must be one of {', '.join(map(repr, METHODS))}. "
            f"Received: method={method!r}"
        )
    _check_weights(model)
    config = model.config
    image_shape = _check_input_shape(input_shape, config)
    factors = _integer_factors(config["input_shape"], image_shape)
    if method == "auto":
        method = "block_diagonal" if factors else "interpolate"
    if method == "block_diagonal" and factors is None:
        height, width, channels = config["input_shape"]
        raise ValueError(
            f"`method='block_diagonal'` needs a height that is a multiple of {height} "
            f"and a width that is a multiple of {width}, for example "
            f"{(2 * height, 2 * width, channels)}. Received: input_shape="
            f"{image_shape}. `method='interpolate'` takes any size."
        )

    grid = patch_grid(config["input_shape"], config["patch_size"])
    if method == "block_diagonal" and factors is not None:
        transform = partial(block_diagonal, grid=grid, factors=factors)
        config["tokens_mlp_dim"] *= math.prod(factors)
    else:
        new_grid = patch_grid(image_shape, config["patch_size"])
        transform = partial(interpolate, grid=grid, new_grid=new_grid)
    config["input_shape"] = image_shape
    with zero_kernels():
        resized = mlp_mixer(
            **config,
            preprocessing=model.preprocessing,
            name=model.name,
            dtype=model.blocks[0].dtype_policy,
        )
    resized.labels = model.labels
    _copy_weights(model, resized, transform)
    _copy_trainable(model, resized)
    return resized


def block_diagonal(
    kernel_0: NDArray[Any],
    bias_0: NDArray[Any],
    kernel_1: NDArray[Any],
    bias_1: NDArray[Any],
    grid: tuple[int, int],
    factors: tuple[int, int],
) -> tuple[NDArray[Any], ...]:
    """Return token-mixing weights for a grid that is an integer factor larger.

    The larger image is cut into K = `factors[0] * factors[1]` parts of the old size.
    With `r(q, s)` the place of patch `s` of part `q` in the larger image, row by row,

        kernel_0'[r(q, s), q D_S + d] = kernel_0[s, d]    bias_0'[q D_S + d] = bias_0[d]
        kernel_1'[q D_S + d, r(q, s)] = kernel_1[d, s]    bias_1'[r(q, s)] = bias_1[s]

    and zero elsewhere: every part passes its own copy of the MLP. Right after, the
    pooled features of an image are the mean of those of its parts.

    Args:
        kernel_0: `(S, D_S)`.
        bias_0: `(D_S,)`.
        kernel_1: `(D_S, S)`.
        bias_1: `(S,)`.
        grid: `(rows, columns)` of patches, S in all.
        factors: How many parts `(down, across)`.

    Returns:
        The four arrays with S and D_S both K times as large.
    """
    places = _places_of_parts(grid, factors)  # (K, S)
    new_bias_1 = np.empty(places.size, bias_1.dtype)
    new_bias_1[places] = bias_1
    return (
        _on_diagonal(kernel_0, places),
        np.tile(bias_0, len(places)),
        _on_diagonal(kernel_1.T, places).T,
        new_bias_1,
    )


def interpolate(
    kernel_0: NDArray[Any],
    bias_0: NDArray[Any],
    kernel_1: NDArray[Any],
    bias_1: NDArray[Any],
    grid: tuple[int, int],
    new_grid: tuple[int, int],
) -> tuple[NDArray[Any], ...]:
    """Return token-mixing weights for any other grid, of the same width D_S.

    With R of shape (S', S) the bilinear resampling from the old patches to the new,

        kernel_0' = (S / S') R kernel_0    bias_0' = bias_0
        kernel_1' = kernel_1 R^T           bias_1' = R bias_1

    The rows of R sum to one, so what is the same for all patches stays so. `kernel_0`
    sums over the patches, hence the factor: a constant image gives a hidden unit with
    a constant kernel the same value at any size. The same grid changes nothing.

    Args:
        kernel_0: `(S, D_S)`.
        bias_0: `(D_S,)`.
        kernel_1: `(D_S, S)`.
        bias_1: `(S,)`.
        grid: `(rows, columns)` of patches, S in all.
        new_grid: `(rows, columns)` of the new patches, S' in all.

    Returns:
        The four arrays with S' in place of S.
    """
    rows, columns = map(_resampling, grid, new_grid)
    resampling = np.kron(rows, columns)  # (S', S)
    scale = resampling.shape[1] / resampling.shape[0]
    new = (scale * resampling @ kernel_0, kernel_1 @ resampling.T, resampling @ bias_1)
    new_kernel_0, new_kernel_1, new_bias_1 = (x.astype(kernel_0.dtype) for x in new)
    return new_kernel_0, bias_0, new_kernel_1, new_bias_1


def _places_of_parts(grid: tuple[int, int], factors: tuple[int, int]) -> NDArray[Any]:
    """Return `(K, S)`: where patch `s` of part `q` lies in the whole, row by row."""
    (rows, columns), (down, across) = grid, factors
    numbers = np.arange(down * rows * across * columns)
    places = numbers.reshape(down, rows, across, columns).swapaxes(1, 2)
    return places.reshape(down * across, rows * columns)


def _on_diagonal(kernel: NDArray[Any], places: NDArray[Any]) -> NDArray[Any]:
    """Return `(K * S, K * D_S)` with `kernel` of shape `(S, D_S)` once per part."""
    num_parts, width = len(places), kernel.shape[1]
    new = np.zeros((places.size, num_parts, width), kernel.dtype)
    new[places, np.arange(num_parts)[:, None]] = kernel
    return new.reshape(places.size, num_parts * width)


def _resampling(size: int, new_size: int) -> NDArray[Any]:
    """Return the `(new_size, size)` matrix of bilinear resampling along one edge.

    Both edges span the same length. A new patch takes the old ones under a triangle
    around its centre, which is wider when shrinking, so that no old patch is lost.
    """
    centres = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    distances = np.abs(centres[:, None] - np.arange(size))
    weights = np.maximum(0.0, 1.0 - distances / max(1.0, size / new_size))
    return weights / weights.sum(axis=1, keepdims=True)


def _integer_factors(
    old_shape: Sequence[int], new_shape: Sequence[int]
) -> tuple[int, int] | None:
    """Return how many times the old edges fit into the new, or `None` if not evenly."""
    (height, width, _), (new_height, new_width, _) = old_shape, new_shape
    if new_height % height or new_width % width:
        return None
    return new_height // height, new_width // width


def _check_weights(model: MLPMixer) -> None:
    extra = [w.path for w in model.weights if w.name not in _WEIGHT_NAMES]
    if extra:
        raise ValueError(
            "`model` must have the weights of a float Mixer only: resize it before it "
            f"is quantized or gets LoRA weights. Received: {len(extra)} other weights, "
            f"for example {extra[0]!r}"
        )


def _check_input_shape(
    input_shape: Sequence[int], config: MixerConfig
) -> tuple[int, int, int]:
    input_shape = check_image_shape(input_shape, config["patch_size"])
    channels = config["input_shape"][2]
    if input_shape[2] != channels:
        raise ValueError(
            f"`input_shape` must keep the {channels} channels of the model: only its "
            f"height and width can change. Received: input_shape={input_shape}"
        )
    return input_shape


def _copy_weights(
    model: MLPMixer, resized: MLPMixer, transform: Callable[..., Any]
) -> None:
    """Assign to `resized` the weights of `model`, token mixing through `transform`."""
    arrays = {path_below_model(w.path): host_value(w) for w in model.weights}
    for block in resized.blocks:
        mixing = [f"{block.name}/token_mixing/{weight}" for weight in _MIXING_WEIGHTS]
        new = transform(*(arrays[path] for path in mixing))
        arrays.update(zip(mixing, new, strict=True))
    set_weights(resized, arrays)


def _copy_trainable(model: MLPMixer, resized: MLPMixer) -> None:
    # Outer layers come first: freezing one also freezes all inside it.
    resized.trainable = model.trainable
    for layer, new_layer in zip(
        nested_layers(model), nested_layers(resized), strict=True
    ):
        new_layer.trainable = layer.trainable
