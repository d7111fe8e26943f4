"""Checks of arguments that every wing shares: sizes, rates, shapes of images."""

from collections.abc import Iterable
from numbers import Integral, Real
from typing import TypeGuard


def check_dim(name: str, value: object) -> int:
    """Return `value` if it is a positive integer, else raise a `ValueError`."""
    if not _is_dim(value):
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value!r}"
        )
    return int(value)


def check_integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return `value` if it is an integer from `low` to `high`, else raise an error.

    Raises:
        ValueError: If it is not; `high` included, `None` for no limit.
    """
    if (
        not isinstance(value, Integral)
        or isinstance(value, bool)
        or int(value) < low
        or (high is not None and int(value) > high)
    ):
        limits = f"from {low}" + ("" if high is None else f" to {high}")
        raise ValueError(
            f"`{name}` must be an integer {limits}. Received: {name}={value!r}"
        )
    return int(value)


def check_rate(name: str, value: object) -> float:
    """Return `value` if it lies in [0, 1), else raise a `ValueError`."""
    if not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise ValueError(f"`{name}` must lie in [0, 1). Received: {name}={value!r}")
    return float(value)


def check_image_shape(
    image_shape: Iterable[int | None], patch_size: int
) -> tuple[int, int, int]:
    """Return `image_shape` if it can be cut into patches, else raise a `ValueError`.

    The message names the nearest sizes that can.
    """
    sizes = tuple(image_shape)
    if len(sizes) != 3 or not all(map(_is_dim, sizes)):
        raise ValueError(
            "The image shape must be (height, width, channels), all known and positive "
            "(a Mixer's token-mixing kernels depend on the number of patches). "
            f"Received: {sizes}"
        )
    height, width, channels = (int(size) for size in sizes if size)
    for edge, size in (("height", height), ("width", width)):
        if size % patch_size:
            below = size - size % patch_size
            nearest = [str(n) for n in (below, below + patch_size) if n]
            raise ValueError(
                f"The image {edge} must be a multiple of `patch_size`. "
                f"Received: {edge}={size}, patch_size={patch_size}. "
                f"The nearest {edge}s are {' and '.join(nearest)}."
            )
    return height, width, channels


def _is_dim(size: object) -> TypeGuard[Integral]:
    return isinstance(size, Integral) and not isinstance(size, bool) and int(size) > 0
