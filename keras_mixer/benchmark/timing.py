"""How long calls take, on devices that work after the call has returned.

Calls that are compared take turns, one call each, so that slow changes of the machine
(clock speed, heat, other processes) affect all of them and cancel in their ratios.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import keras


@dataclass(frozen=True)
class Timing:
    """Seconds of several calls of one function, in the order of the calls.

    Attributes:
        seconds: At least one.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the seconds."""
        return _quartiles(self.seconds)


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one function is as another, over their common rounds.

    Attributes:
        median: Median of the rounds' ratios; above 1 if the first is faster.
        low: First quartile of the rounds' ratios.
        high: Third quartile of the rounds' ratios.
    """

    median: float
    low: float
    high: float


def speed_ratio(ours: Timing, theirs: Timing) -> Ratio:
    """Return how many times as fast `ours` is as `theirs`, both of one `alternate`.

    Each round gives one ratio, `seconds of theirs / seconds of ours`, so that what
    slowed both in a round cancels.
    """
    pairs = zip(ours.seconds, theirs.seconds, strict=True)
    ratios = [other / own for own, other in pairs]
    low, high = _quartiles(ratios)
    return Ratio(statistics.median(ratios), low, high)


def alternate(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = 20, warmup: int = 2
) -> dict[str, Timing]:
    """Time calls that take turns.

    Every second round runs in reverse order, so that no call always follows the same
    other one.

    Args:
        calls: Functions without arguments by their names; each returns what it
            computes, arrays of any framework, possibly nested, to wait for.
        rounds: Timed calls of each. Positive.
        warmup: Calls of each before these, not timed.

    Returns:
        A `Timing` by name.

    Raises:
        ValueError: If there is nothing to call or to time.
    """
    if not calls or rounds < 1 or warmup < 0:
        raise ValueError(
            "`calls` must hold a function, `rounds` be positive and `warmup` not "
            f"negative. Received: {list(calls)}, rounds={rounds}, warmup={warmup}"
        )
    order = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + rounds):
        for name in order:
            duration = timed(calls[name])
            if turn >= warmup:
                seconds[name].append(duration)
        order.reverse()
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def timed(call: Callable[[], object]) -> float:
    """Return the seconds from a call until all its results are computed."""
    start = time.perf_counter()
    wait(call())
    return time.perf_counter() - start


def wait(outputs: object) -> None:
    """Return when the devices have computed every array of a nested structure.

    It waits for JAX arrays and for TensorFlow and torch tensors; anything else is taken
    to be computed already.
    """
    for array in keras.tree.flatten(outputs):
        kind = type(array).__module__.partition(".")[0]
        if hasattr(array, "block_until_ready"):  # JAX
            array.block_until_ready()
        elif kind == "torch" and array.device.type != "cpu":
            import torch

            torch.accelerator.synchronize(array.device)
        elif kind == "tensorflow" and "CPU" not in array.device:
            import tensorflow as tf

            tf.test.experimental.sync_devices()


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
