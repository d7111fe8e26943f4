"""Learned filters: units of the token-mixing MLPs and embeddings of the patches.

Source: paper, section 3.5, figures 5 to 7.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
from keras import ops
from numpy.typing import ArrayLike, NDArray

from keras_mixer.models import MLPMixer
from keras_mixer.visualize.figure import (
    TINY,
    add_caption,
    check_count,
    largest,
    new_figure,
    num_columns,
    to_float,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MIXING_CAPTION = (
    "Each square is one hidden unit, with one weight per patch. What to expect: after "
    "training on very many images, smooth waves from low to high frequency, many in "
    "pairs of opposite sign, and less regular ones in later blocks (paper, figures 5 "
    "and 6). Strong augmentation changes them. Small models, and models trained on few "
    "images, look noisier; random weights are pure noise."
)
_STEM_CAPTION = (
    "Each square is one unit, with one weight per pixel and colour; grey is zero. What "
    "to expect: with patches of 32 pixels, blobs, edges and stripes of low frequency; "
    "with 16 or fewer little structure (paper, figure 7)."
)


def token_mixing_filters(
    model: MLPMixer, block: int = 0, count: int | None = None
) -> "Figure":
    """Draw the hidden units of a block's token-mixing MLP (paper, figures 5 and 6).

    A unit is one column of `block_{i}/token_mixing/dense_0/kernel`: a weight per patch,
    drawn where the patch lies in the image, blue below zero and red above, relative to
    the unit's largest weight. Each unit is beside the one that is closest to its
    inverse; pairs of low spatial frequency come first. See `pair_by_frequency`. A
    caption says what to expect.

    Args:
        model: An `MLPMixer`.
        block: Number of the block.
        count: How many units to draw; `None` for all.

    Raises:
        ValueError: If there is no such block, or `count` is not positive.
        ImportError: If matplotlib is not installed.
    """
    num_blocks = len(model.blocks)
    if not -num_blocks <= block < num_blocks:
        raise ValueError(
            f"`block` must be one of the model's {num_blocks} blocks, 0 to "
            f"{num_blocks - 1}. Received: block={block!r}"
        )
    mixing = model.blocks[block].token_mixing
    kernel = to_float(ops.convert_to_tensor(mixing.dense_0.kernel))  # (S, D_S)
    rows, columns = model.get_layer("stem").grid

    order = pair_by_frequency(kernel, (rows, columns))
    units = kernel.T[order[: check_count(count, len(order))]]
    units = units.reshape(-1, rows, columns) / largest(units)[:, None, None]
    mosaic = _mosaic(units, pair_gap=1)

    figure, axes = _mosaic_figure(mosaic, _MIXING_CAPTION)
    axes.set_title(
        f"Token mixing of {model.blocks[block].name}: {len(units)} of {len(order)} "
        f"hidden units over {rows} x {columns} patches\n"
        "inverses side by side, low frequencies first",
        fontsize=11,
    )
    image = axes.imshow(mosaic, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, ticks=[-1, 0, 1], shrink=0.5, aspect=25)
    bar.set_label("weight / largest weight of the unit")
    bar.outline.set_visible(False)
    return figure


def pair_by_frequency(kernel: ArrayLike, grid: tuple[int, int]) -> NDArray[np.int64]:
    """Return the order of units: pairs of opposite sign, low frequencies first.

    The paper does not say how it measures either; this is one simple way. The two units
    with the most negative cosine form a pair, then the next two of the others, and so
    on. The frequency of a unit is the mean radius of its two-dimensional Fourier
    spectrum, weighted by power; that of a pair the mean of both. In a pair the unit of
    lower frequency comes first. An unpaired unit comes last.

    Args:
        kernel: `(S, D_S)`, patches row by row.
        grid: `(rows, columns)` of patches, S in all.

    Returns:
        `D_S` indices.
    """
    units = np.asarray(kernel, np.float64).T  # (D_S, S)
    frequencies = _frequencies(units.reshape(-1, *grid))
    unit_vectors = units / np.maximum(
        np.linalg.norm(units, axis=1, keepdims=True), TINY
    )
    cosines = unit_vectors @ unit_vectors.T
    np.fill_diagonal(cosines, np.inf)
    pairs = []
    for _ in range(len(units) // 2):
        pair = np.array(np.unravel_index(cosines.argmin(), cosines.shape))
        pairs.append(pair[np.argsort(frequencies[pair], kind="stable")])
        cosines[pair, :] = cosines[:, pair] = np.inf
    pairs.sort(key=lambda pair: frequencies[pair].mean())
    paired = np.array(pairs, int).ravel()
    return np.concatenate([paired, np.setdiff1d(np.arange(len(units)), paired)])


def stem_filters(model: MLPMixer, count: int | None = None) -> "Figure":
    """Draw the linear patch embeddings as small images (paper, figure 7).

    A unit is `stem/projection/kernel[..., c]`, one weight per pixel and colour. Grey is
    zero; the largest weight of a unit is at the end of the colour range. A caption says
    what to expect.

    Args:
        model: An `MLPMixer` of images with 1 or 3 channels.
        count: How many units to draw; `None` for all.

    Raises:
        ValueError: If the images have other channels, or `count` is not positive.
        ImportError: If matplotlib is not installed.
    """
    stem = model.get_layer("stem")
    kernel = to_float(
        ops.convert_to_tensor(stem.projection.kernel)
    )  # (P, P, channels, C)
    channels, num_units = kernel.shape[2:]
    if channels not in (1, 3):
        raise ValueError(
            "`model` must take images of 1 or 3 channels, which can be shown as grey "
            f"or colour. Received: {channels} channels"
        )
    units = np.moveaxis(kernel, -1, 0)[: check_count(count, num_units)]
    units = 0.5 + 0.5 * units / largest(units)[:, None, None, None]
    units = np.broadcast_to(units, (*units.shape[:3], 3))
    mosaic = _mosaic(units, fill=1.0)

    figure, axes = _mosaic_figure(mosaic, _STEM_CAPTION)
    axes.set_title(
        f"Patch embedding: {len(units)} of {num_units} units, "
        f"{stem.patch_size} x {stem.patch_size} pixels each",
        fontsize=11,
    )
    axes.imshow(mosaic, interpolation="nearest")
    return figure


def _frequencies(units: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean frequency of each `(rows, columns)` unit, in cycles per patch."""
    power = np.abs(np.fft.fft2(units)) ** 2
    vertical, horizontal = (np.fft.fftfreq(size) for size in units.shape[1:])
    radius = np.hypot(vertical[:, None], horizontal)
    total = np.maximum(power.sum(axis=(1, 2)), TINY)
    return (power * radius).sum(axis=(1, 2)) / total


def _mosaic(
    units: NDArray[np.float64], pair_gap: int = 0, fill: float = np.nan
) -> NDArray[np.float64]:
    """Return one picture of all units `(n, height, width, ...)`, row by row.

    Units are one element apart; `pair_gap` is added after every second and between
    rows.
    """
    n, height, width = units.shape[:3]
    columns = num_columns(n, width / height)
    rows = math.ceil(n / columns)
    tops = np.arange(rows) * (height + 1 + pair_gap)
    lefts = np.arange(columns) * (width + 1) + np.arange(columns) // 2 * pair_gap
    mosaic = np.full((tops[-1] + height, lefts[-1] + width, *units.shape[3:]), fill)
    for i, unit in enumerate(units):
        top, left = tops[i // columns], lefts[i % columns]
        mosaic[top : top + height, left : left + width] = unit
    return mosaic


def _mosaic_figure(
    mosaic: NDArray[np.float64], caption: str
) -> tuple["Figure", "Axes"]:
    height, width = mosaic.shape[:2]
    figure = new_figure(8, 1.8 + min(7 * height / width, 9))
    axes = figure.subplots()
    axes.axis("off")
    add_caption(figure, caption)
    return figure, axes
