"""What all figures share: a new one, the file it is written to, sizes of a mosaic."""

import math
from numbers import Integral
from pathlib import Path

import numpy as np
from keras import ops

from keras_mixer.files import atomic_write

TINY = float(np.finfo(np.float64).tiny)  # keeps 0 / 0 at 0


def save(figure, path):
    """Write a figure as a PNG of 150 dots per inch; the folder is made if missing.

    The file appears whole or not at all.

    Raises:
        ValueError: If `path` does not end in `.png`.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"`path` must end in `.png`. Received: {str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)


def new_figure(width, height):
    """Return an empty figure of so many inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "`keras_mixer.visualize` needs matplotlib: pip install 'keras_mixer[plot]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def largest(units):
    """Return the largest absolute weight of each unit, never zero."""
    return np.maximum(np.abs(units.reshape(len(units), -1)).max(axis=1), TINY)


def num_columns(n, aspect):
    """Return an even number of columns: a mosaic wider than high, few empty places."""

    def cost(columns):
        rows = math.ceil(n / columns)
        shape = abs(math.log(columns / rows * aspect / 1.5))
        return shape + 8 * (rows * columns - n) / n

    return min(range(2, n + 1, 2), key=cost, default=1)


def check_count(name, value, largest=None):
    """Return a positive integer, `largest` for `None`."""
    if value is None and largest is not None:
        return largest
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value!r}"
        )
    return value


def to_float(array):
    """Return an array or tensor as float64."""
    return np.asarray(ops.convert_to_numpy(array), np.float64)


def short_name(name, length=26):
    """Return a name that fits beside an axis."""
    return (
        name if len(name) <= length else name[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"
    )
