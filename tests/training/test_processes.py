import threading
import types

import numpy as np
import pytest

from keras_mixer.training.processes import agreed


class Process:
    """One of several that add up arrays, each in a thread of its own."""

    def __init__(self, index, count, barrier, shared):
        self.shard = (index, count)
        self._barrier, self._shared = barrier, shared

    def add_up(self, arrays):
        self._shared[self.shard[0]] = arrays
        self._barrier.wait(timeout=20)
        return [np.sum(parts, axis=0) for parts in zip(*self._shared, strict=True)]


def outcomes(*steps):
    """What each process gets that finds this step, `None`, or this exception."""
    count = len(steps)
    barrier, shared = threading.Barrier(count), [None] * count
    results = [None] * count

    def work(index):
        def find():
            step = steps[index]
            if isinstance(step, Exception):
                raise step
            return None if step is None else types.SimpleNamespace(step=step)

        try:
            results[index] = agreed(find, Process(index, count, barrier, shared))
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=work, args=[i]) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.backend_free
@pytest.mark.parametrize("step", [0, 7, 2**20 - 1, 123_456_789])
def test_processes_that_found_the_same_go_on(step):
    assert [found.step for found in outcomes(step, step, step)] == [step] * 3
    assert outcomes(None, None) == [None, None]


@pytest.mark.backend_free
def test_processes_that_found_other_steps_all_stop():
    for error in outcomes(10, 5, None):
        assert isinstance(error, RuntimeError)
        assert "process 0: step 10, process 1: step 5, process 2: no" in str(error)


@pytest.mark.backend_free
def test_the_error_of_one_stops_the_others():
    own = FileExistsError("holds a run")
    first, second = outcomes(own, 10)
    assert first is own
    assert isinstance(second, RuntimeError) and "process 0: an error" in str(second)
    assert outcomes(own) == [own]
