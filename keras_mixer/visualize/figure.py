"""What all figures share: a new one, the file it is written to, sizes, numbers."""

import math
import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_mixer.checks import check_dim
from keras_mixer.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TINY = float(np.finfo(np.float64).tiny)  # keeps 0 / 0 at 0


def save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure as a PNG of 150 dots per inch; the folder is made if missing.

    The file is complete under its name, or not there.

    Raises:
        ValueError: If `path` does not end in `.png`.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"`path` must end in `.png`. Received: {str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of this width and height in inches.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Drawing needs matplotlib: pip install 'keras-mixer[plot]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def add_caption(figure: "Figure", text: str) -> None:
    """Write some lines below a figure; they use its width."""
    letters = int(16 * figure.get_figwidth())
    figure.supxlabel(
        textwrap.fill(text, letters), x=0.02, ha="left", fontsize=8, color="#444444"
    )


def largest(units: NDArray[Any]) -> NDArray[Any]:
    """Return the largest absolute weight of each unit, never zero."""
    return np.maximum(np.abs(units.reshape(len(units), -1)).max(axis=1), TINY)


def num_columns(n: int, aspect: float) -> int:
    """Return an even number of columns: a mosaic wider than high, few empty places.

    Args:
        n: Number of tiles.
        aspect: Width of a tile over its height.
    """

    def cost(columns: int) -> float:
        rows = math.ceil(n / columns)
        shape = abs(math.log(columns / rows * aspect / 1.5))
        return shape + 8 * (rows * columns - n) / n

    return min(range(2, n + 1, 2), key=cost, default=1)


def check_count(value: int | None, largest: int) -> int:
    """Return `count`, a positive integer; `largest` for `None`."""
    return largest if value is None else check_dim("count", value)


def to_float(array: Any) -> NDArray[np.float64]:
    """Return an array or tensor as float64."""
    return np.asarray(ops.convert_to_numpy(array), np.float64)


def to_picture(image: Any) -> NDArray[np.float64]:
    """Return pixels in [0, 255] as `(height, width, 3)` in [0, 1].

    Raises:
        ValueError: If it is not an image of 1 or 3 channels.
    """
    pixels = to_float(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(
            "`images` must be (height, width, channels) each, with 1 or 3 channels. "
            f"Received: shape={pixels.shape}"
        )
    pixels = np.clip(pixels, 0, 255) / 255
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
