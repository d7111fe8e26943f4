import time

import keras
import numpy as np
import pytest

from keras_mixer.benchmark.timing import (
    Timing,
    alternate,
    speed_ratio,
    timed,
    wait,
)


class Pending:
    """An array whose device is busy, as JAX's are."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.ready = False

    def block_until_ready(self):
        time.sleep(self.seconds)
        self.ready = True


def test_time_includes_the_work_after_the_call():
    array = Pending(0.05)
    assert 0.05 <= timed(lambda: array) < 1
    assert array.ready


def test_every_array_of_a_nested_result_is_waited_for():
    arrays = [Pending(0) for _ in range(3)]
    wait({"a": arrays[0], "b": (arrays[1], [arrays[2], None, 3.0, np.ones(2)])})
    assert all(array.ready for array in arrays)


def test_the_backends_own_tensors_are_waited_for():
    if keras.config.backend() != "jax":
        wait([keras.ops.ones(3)])  # computed before the call returned
        return
    import jax

    def slow(x):
        time.sleep(0.2)
        return x

    shape = jax.ShapeDtypeStruct((3,), "float32")
    call = jax.jit(lambda x: jax.pure_callback(slow, shape, x))
    x = np.ones(3, "float32")
    wait(call(x))
    assert timed(lambda: call(x)) >= 0.2


def test_calls_take_turns_and_change_their_order():
    log = []
    calls = {name: lambda name=name: log.append(name) for name in "abc"}
    timings = alternate(calls, rounds=3, warmup=1)
    assert "".join(log) == "abc" + "cba" + "abc" + "cba"
    assert {name: len(t.seconds) for name, t in timings.items()} == dict.fromkeys(
        "abc", 3
    )


def test_warmup_is_not_timed():
    pauses = iter([0.2, 0.2, 0.0, 0.0])
    timings = alternate({"a": lambda: time.sleep(next(pauses))}, rounds=2, warmup=2)
    assert max(timings["a"].seconds) < 0.1


def test_median_and_quartiles():
    timing = Timing((4.0, 1.0, 2.0, 3.0, 100.0))
    assert timing.median == 3.0
    assert timing.quartiles == (2.0, 4.0)
    assert Timing((5.0,)).quartiles == (5.0, 5.0)


def test_drift_that_meets_both_cancels_in_the_ratio():
    drift = np.array([1.0, 5.0, 0.3, 2.0, 40.0])
    ours, theirs = Timing(tuple(drift)), Timing(tuple(1.5 * drift))
    ratio = speed_ratio(ours, theirs)
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((1.5, 1.5, 1.5))
    assert speed_ratio(theirs, ours).median == pytest.approx(1 / 1.5)


def test_the_spread_of_a_ratio_is_that_of_its_rounds():
    ratio = speed_ratio(Timing((1.0,) * 5), Timing((1.0, 2.0, 3.0, 4.0, 50.0)))
    assert (ratio.median, ratio.low, ratio.high) == (3.0, 2.0, 4.0)


def test_ratios_need_the_same_rounds():
    with pytest.raises(ValueError):
        speed_ratio(Timing((1.0,)), Timing((1.0, 2.0)))


@pytest.mark.parametrize(
    "calls, rounds, warmup",
    [({}, 1, 0), ({"a": int}, 0, 0), ({"a": int}, 1, -1)],
)
def test_nothing_to_time(calls, rounds, warmup):
    with pytest.raises(ValueError, match=f"rounds={rounds}, warmup={warmup}"):
        alternate(calls, rounds=rounds, warmup=warmup)
