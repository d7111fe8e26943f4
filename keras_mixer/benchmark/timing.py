"""How long calls take, on devices that work after the call has returned.

Calls that are compared take turns, one call each, so that what drifts on the machine
(clocks, heat, neighbours) meets all of them and cancels in their ratios.
"""

import statistics
import time
from dataclasses import dataclass

import keras


@dataclass(frozen=True)
class Timing:
    """Seconds of several calls of one thing, in the order of the calls.

    Attributes:
        seconds: At least one.
    """

    seconds: tuple[float, ...]

    @property
    def median(self):
        """Half of the calls took less."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self):
        """What a quarter and three quarters of the calls took less than."""
        return _quartiles(self.seconds)


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one thing is as another, over the rounds they shared.

    Attributes:
        median: Above 1 where the first is faster.
        low: First quartile of the rounds.
        high: Third quartile.
    """

    median: float
    low: float
    high: float


def speed_ratio(ours, theirs):
    """Return how many times as fast `ours` is as `theirs`, from one `alternate`.

    Each round gives one ratio; a disturbance of both does not show.
    """
    pairs = zip(ours.seconds, theirs.seconds, strict=True)
    ratios = [other / own for own, other in pairs]
    low, high = _quartiles(ratios)
    return Ratio(statistics.median(ratios), low, high)


def alternate(calls, *, rounds=20, warmup=2):
    """Time calls that take turns.

    In every second round the order is reversed, so that none always follows the same
    other.

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
    seconds = {name: [] for name in calls}
    for turn in range(warmup + rounds):
        for name in order:
            duration = timed(calls[name])
            if turn >= warmup:
                seconds[name].append(duration)
        order.reverse()
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def timed(call):
    """Return the seconds from a call to the moment all its results are there."""
    start = time.perf_counter()
    wait(call())
    return time.perf_counter() - start


def wait(outputs):
    """Return when the devices have computed every array of a nested structure.

    JAX arrays, TensorFlow and torch tensors are waited for; anything else is there.
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


def _quartiles(values):
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
