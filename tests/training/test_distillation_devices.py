"""With a teacher several devices make the steps of one; in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

BACKEND = keras.config.backend()
pytest.importorskip("tensorflow")

CODE = """
import sys
import keras
import numpy as np
from drawn import drawn_model
from drawn_run import LABELS, drawn_mixer, drawn_source
from keras_mixer import distribution, training

if keras.config.backend() == "tensorflow":
    import tensorflow as tf
    from keras_mixer.distribution.tensorflow_devices import Mirrored

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    several = Mirrored(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
else:
    several = distribution.start("data")

found = {}
for name, devices, inside in (
    ("one", distribution.start(None), False),
    ("outside", several, False),
    ("inside", several, True),
):
    def build():
        return drawn_model(
            5, input_shape=(8, 24, 3), num_classes=LABELS, patch_size=8
        )

    teacher = None if inside else build()
    with devices.scope():
        teacher = teacher or build()
        keras.utils.set_random_seed(1)
        student = drawn_mixer()
    training.finetune(
        student,
        drawn_source(),
        output_dir=f"{sys.argv[1]}-{name}",
        total_steps=3,
        warmup_steps=1,
        batch_size=8,
        base_learning_rate=0.3,
        teacher=teacher,
        distillation_weight=0.8,
        distribution=devices,
        quiet=True,
    )
    for i, weight in enumerate(student.get_weights()):
        found[f"{name}/{i:03}"] = weight
np.savez(sys.argv[1], replicas=several.num_replicas, **found)
"""


@pytest.mark.skipif(BACKEND == "torch", reason="its processes are tested as one")
def test_several_devices_train_as_one(tmp_path):
    path = tmp_path / "found.npz"
    four = {"JAX_NUM_CPU_DEVICES": "4"}
    here = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    result = subprocess.run(
        [sys.executable, "-c", CODE, str(path)],
        env=os.environ | {"PYTHONPATH": here} | four,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = dict(np.load(path))
    assert found.pop("replicas") == {"jax": 4, "tensorflow": 2}[BACKEND]
    one = {n: v for n, v in found.items() if n.startswith("one/")}
    assert max(np.abs(v).max() for v in one.values()) > 1e-2
    for place in ("outside", "inside"):
        for name, value in one.items():
            other = found[name.replace("one", place)]
            np.testing.assert_allclose(other, value, atol=2e-6, err_msg=name)
