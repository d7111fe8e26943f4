"""SAM on several devices: each part of a batch has its perturbation, or all one."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import sharpness_job
from hosts import environment, free_ports

from keras_mixer import distribution

pytest.importorskip("tensorflow")

BACKEND = keras.config.backend()
PROCESSES = {"jax": 1, "tensorflow": 1, "torch": 2}[BACKEND]
NAME = {"jax": "data", "tensorflow": "mirrored", "torch": "ddp"}[BACKEND]


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """The weights after training on two devices."""
    folder = tmp_path_factory.mktemp("several")
    ports = free_ports(2)
    processes = []
    for index in range(PROCESSES):
        file = folder / f"{index}.npz"
        of_jax = {"JAX_NUM_CPU_DEVICES": "2"}
        given = environment(index, ports) if PROCESSES > 1 else of_jax
        with file.with_suffix(".log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, sharpness_job.__file__, str(file), NAME],
                    env=os.environ | given,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                )
            )
    for process in processes:
        try:
            process.wait(timeout=600)
        finally:
            process.kill()
    logs = [Path(folder / f"{i}.log").read_text() for i in range(PROCESSES)]
    assert [p.returncode for p in processes] == [0] * PROCESSES, "\n".join(logs)
    return [dict(np.load(folder / f"{i}.npz")) for i in range(PROCESSES)]


def one_device(folder, **arguments):
    return sharpness_job.train(distribution.start(None), folder, **arguments)


def test_each_device_perturbs_by_its_part_of_the_batch(several, tmp_path):
    """As batches of that size that are accumulated; on JAX all devices are one."""
    parts = 1 if BACKEND == "jax" else 2
    expected = one_device(tmp_path / "same", accumulation_steps=parts)
    other = one_device(tmp_path / "other", accumulation_steps=3 - parts)
    for found in several:
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=2e-5, err_msg=name)
    assert max(np.abs(expected[n] - other[n]).max() for n in expected) > 1e-3
