"""What training runs leave in their folders, to look at while they run and after."""

import numpy as np

from keras_mixer.training.run_checkpoints import Checkpoints


def last_step(folder):
    """The step of the newest checkpoint of a run, -1 before there is one."""
    paths = Checkpoints(folder / "checkpoints").paths
    return int(paths[-1].stem.removeprefix("step-")) if paths else -1


def assert_same(arrays, expected):
    """Same names and same bits."""
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
