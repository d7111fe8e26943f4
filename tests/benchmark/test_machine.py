import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_mixer.benchmark.machine import describe_machine, device_peak, host_peak

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_the_peak_remembers_what_was_freed():
    before = host_peak()
    block = np.ones(2**28, "uint8")
    assert block.sum() == 2**28
    del block
    assert host_peak() >= before
    assert host_peak() > 2**28


# In a process of its own: what other tests leave to be freed would blur it.
ANEW = """
import numpy as np
from keras_mixer.benchmark.machine import host_peak, reset_peaks
block = np.ones(2**28, "uint8")
del block
with_block = host_peak()
reset_peaks()
assert host_peak() < with_block - 2**27, (host_peak(), with_block)
"""


@pytest.mark.nightly
@pytest.mark.backend_free
@linux_only
def test_the_peak_can_begin_anew():
    subprocess.run([sys.executable, "-c", ANEW], check=True, timeout=120)


def test_a_cpu_has_no_peak_of_its_own():
    if keras.config.backend() == "torch":
        import torch

        if torch.cuda.is_available():
            pytest.skip("has a GPU")
    peak = device_peak()
    assert peak is None or peak > 0


def test_it_says_what_it_runs_on():
    machine = describe_machine()
    name, version = machine["backend"].split()
    assert name == keras.config.backend()
    assert version[0].isdigit()
    assert machine["keras"] == keras.version()
    assert machine["devices"]
    cores = int(machine["processor"].rsplit(", ", 1)[1].split()[0])
    assert 1 <= cores <= (os.cpu_count() or 1)
