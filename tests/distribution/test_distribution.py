"""One device, simulated devices, and two processes over loopback give the same run."""

import os
import subprocess
import sys
import time
from pathlib import Path

import devices_job
import keras
import numpy as np
import pytest
from hosts import TWO_HOSTS, environment, free_ports

from keras_mixer import distribution
from keras_mixer.training.run_checkpoints import Checkpoints, read_checkpoint, restore

BACKEND = keras.config.backend()
OTHERS = {"mirrored", "tpu", "multiworker", "data", "model:2", "ddp"} - {
    "jax": {"data", "model:2"},
    "tensorflow": {"mirrored", "tpu", "multiworker"},
    "torch": {"ddp"},
}[BACKEND]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """What one device finds: the truth."""
    devices = distribution.start(None)
    model, history = devices_job.train(devices, tmp_path_factory.mktemp("one"))
    return devices_job.findings(devices, model, history)


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory):
    """Two processes that train together until one of them is killed."""
    folder = tmp_path_factory.mktemp("two")
    ports = free_ports(2)
    processes = []
    for index in (0, 1):
        with (folder / f"{index}.log").open("w") as log:
            command = [sys.executable, devices_job.__file__, str(folder), TWO_HOSTS]
            processes.append(
                subprocess.Popen(
                    [*command, str(index)],
                    env=os.environ | environment(index, ports),
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                )
            )
    try:
        killed = processes[1].wait(timeout=900)
        since = time.monotonic()
        ended = processes[0].wait(timeout=120)
        seconds = time.monotonic() - since
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = [(folder / f"{index}.log").read_text() for index in (0, 1)]
    assert killed == -9, logs[1]
    return {
        "folder": folder,
        "found": [dict(np.load(folder / f"{index}.npz")) for index in (0, 1)],
        "ended": ended,
        "seconds": seconds,
        "log": logs[0],
    }


def assert_same_run(found, expected, tolerance=2e-5):
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[name], value, rtol=0, atol=tolerance, err_msg=name
        )


def test_training_moves_the_weights_and_clips(one_device):
    start = {f"weights/{v.path}": v for v in devices_job.compiled_model().weights}
    moved = {
        name: np.abs(value - keras.ops.convert_to_numpy(start[name])).max()
        for name, value in one_device.items()
        if name in start
    }
    assert max(moved.values()) > 1e-2


def test_two_hosts_train_as_one_device(two_hosts, one_device):
    chief, other = two_hosts["found"]
    assert_same_run(chief, one_device)
    of_the_chief = {name for name in one_device if name.startswith("history/")}
    assert_same_run(other, {k: one_device[k] for k in one_device.keys() - of_the_chief})


def test_two_hosts_share_the_work_and_one_writes(two_hosts):
    first, second = two_hosts["found"]
    assert (*first["shard"], *second["shard"]) == (0, 2, 1, 2)
    assert (first["chief"], second["chief"]) == (True, False)
    assert first["replicas"] == 2
    header, *rows = (two_hosts["folder"] / "run" / "log.csv").read_text().splitlines()
    steps = [int(row.split(",")[0]) for row in rows]
    assert header.startswith("step,") and steps == sorted(set(steps))  # each once
    assert steps[-1] == devices_job.STEPS


def test_the_checkpoint_of_two_hosts_loads_on_one_device(two_hosts, one_device):
    (path,) = (two_hosts["folder"] / "run").glob(f"*/step-{devices_job.STEPS:09}.npz")
    model = devices_job.compiled_model()
    restore(model, read_checkpoint(path).arrays)
    devices = distribution.start(None)
    found = {
        f"evaluated/{k}": v for k, v in devices_job.evaluated(devices, model).items()
    }
    found["predicted"] = devices_job.predicted(devices, model)
    assert_same_run(found, {name: one_device[name] for name in found})


def test_a_dead_host_ends_the_job_with_a_clear_error(two_hosts):
    assert two_hosts["ended"] != 0
    assert "Another process of this job has ended" in two_hosts["log"]
    assert two_hosts["seconds"] < 60


def test_a_dead_host_leaves_a_checkpoint_that_loads(two_hosts):
    last = Checkpoints(two_hosts["folder"] / "endless" / "checkpoints").latest()
    assert last.step >= 2
    model = devices_job.compiled_model(total_steps=100_000)
    restore(model, last.arrays)
    assert int(model.optimizer.iterations) == last.step


@pytest.mark.parametrize("name", [*sorted(OTHERS), "model:0.5", "gpu", ""])
def test_a_name_of_another_backend_is_an_error(name):
    with pytest.raises(ValueError, match=f"on the {BACKEND} backend, one of") as error:
        distribution.start(name)
    assert f"name={name!r}" in str(error.value)


FOUR_DEVICES = {"JAX_NUM_CPU_DEVICES": "4"}


def in_a_process_of_its_own(code, path):
    """Run `code` with four devices; return the arrays it writes to `path`."""
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | FOUR_DEVICES,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return dict(np.load(path, allow_pickle=False))


ON_JAX = """
import sys
import keras
import numpy as np
import pytest
from devices_job import compiled_model, evaluated, examples, findings, train
from keras_mixer import distribution
from pathlib import Path

path = Path(sys.argv[1])
found = {}
for name in ("data", "model:2"):
    devices = distribution.start(name)
    model, history = train(devices, path.with_name(f"run-{name}"))
    results = findings(devices, model, history)
    found |= {f"{name}/{key}": value for key, value in results.items()}
    found[f"{name}/replicas"] = devices.num_replicas
    if name == "model:2":
        variables = model.trainable_variables + model.optimizer.variables
        whole = [v.value.sharding.is_fully_replicated for v in variables]
        found["cut"] = [v.path for v, w in zip(variables, whole) if not w]

# An exception in the middle of `evaluate` must not take the weights.
before = model.get_weights()
class Broken:
    def __iter__(self):
        images, labels = examples()
        yield images[:5].astype("float32"), np.eye(5)[labels[:5]]
        raise OSError("the disk is gone")
with pytest.raises(OSError, match="the disk is gone"):
    devices.evaluate(model, Broken())
for now, then in zip(model.get_weights(), before, strict=True):
    np.testing.assert_array_equal(now, then)

images, labels = examples()
one_hot = np.eye(5)[labels]
def full(batch_size):
    for i in range(0, 32, batch_size):
        yield images[i:i + batch_size].astype("float32"), one_hot[i:i + batch_size]
with pytest.raises(ValueError, match="this process has 2 replicas"):
    devices.fit(model, full(7), verbose=0)
for now, then in zip(model.get_weights(), before, strict=True):
    np.testing.assert_array_equal(now, then)
with pytest.raises(ValueError, match="inside `scope\\(\\)`.*stem/projection/kernel"):
    devices.fit(compiled_model(), full(8))
with pytest.raises(ValueError, match="model:3 with 4 devices per host"):
    distribution.start("model:3")
with pytest.raises(ValueError, match="`num_processes` must be an integer"):
    distribution.start("data", coordinator="127.0.0.1:1")
np.savez(path, **found)
"""


@pytest.fixture(scope="module")
def on_jax(tmp_path_factory):
    if BACKEND != "jax":
        pytest.skip("JAX's devices")
    return in_a_process_of_its_own(ON_JAX, tmp_path_factory.mktemp("jax") / "f.npz")


@pytest.mark.parametrize(("name", "replicas"), [("data", 4), ("model:2", 2)])
def test_jax_devices_train_as_one(on_jax, one_device, name, replicas):
    own = {k.removeprefix(f"{name}/"): v for k, v in on_jax.items()}
    assert_same_run(own, one_device)
    assert own["replicas"] == replicas


def test_model_parallel_cuts_every_hidden_width(on_jax):
    kinds = ("dense_0/kernel", "dense_0/bias", "dense_1/kernel")
    weights = {
        f"block_{i}/{mixing}_mixing/{kind}"
        for i in range(devices_job.CONFIG["num_blocks"])
        for mixing in ("token", "channel")
        for kind in kinds
    }
    cut = set(on_jax["cut"].tolist())
    assert weights <= cut
    # And one trace of the optimizer for each.
    assert len(cut) == 2 * len(weights)


ON_TENSORFLOW = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)
import keras
import numpy as np
import pytest
from devices_job import compiled_model, evaluated, examples, findings, predicted, train
from keras_mixer import distribution
from keras_mixer.layers import MixerBlock
from keras_mixer.distribution.tensorflow_devices import TPU
from pathlib import Path

path = Path(sys.argv[1])
devices = distribution.start("mirrored")
assert (devices.num_replicas, devices.shard, devices.is_chief) == (2, (0, 1), True)
model, history = train(devices, path.with_name("run"))
found = {f"mirrored/{k}": v for k, v in findings(devices, model, history).items()}

# There is no TPU here: its loops, with their static shapes, on two other devices.
devices = TPU(devices.strategy)
model, history = train(devices, path.with_name("tpu"))
found |= {f"tpu/{k}": v for k, v in findings(devices, model, history).items()}

with devices.scope():
    block = MixerBlock(4, 6, dropout_rate=0.5, stochastic_depth_rate=0.5)
    block.build((None, 8, 6))
x = tf.random.stateless_normal((16, 8, 6), (0, 1))  # the same on both
outputs = devices.strategy.run(lambda: block(x, training=True))
outputs = devices.strategy.experimental_local_results(outputs)
found["different masks"] = [part.numpy() for part in outputs]

images, labels = examples()
pairs = tf.data.Dataset.from_tensor_slices((images, tf.one_hot(labels, 5)))
with pytest.raises(ValueError, match="batches of 7 for 2 replicas"):
    devices.fit(model, pairs.batch(7, drop_remainder=True))
with pytest.raises(ValueError, match="batches of unknown size for 2"):
    devices.fit(model, pairs.batch(8))
devices = distribution.start("mirrored")
with pytest.raises(ValueError, match="inside `scope"):
    devices.fit(compiled_model(), pairs.batch(8))
for argument, value in (("steps_per_execution", 4), ("jit_compile", True)):
    with devices.scope():
        model = compiled_model()
        model.compile(loss="mse", **{argument: value})
    with pytest.raises(ValueError, match=argument):
        devices.fit(model, pairs.batch(8))
np.savez(path, **found)
"""


@pytest.fixture(scope="module")
def on_tensorflow(tmp_path_factory):
    if BACKEND != "tensorflow":
        pytest.skip("TensorFlow's strategies")
    folder = tmp_path_factory.mktemp("tensorflow")
    return in_a_process_of_its_own(ON_TENSORFLOW, folder / "found.npz")


@pytest.mark.parametrize("name", ["mirrored", "tpu"])
def test_tensorflow_devices_train_as_one(on_tensorflow, one_device, name):
    own = {k.removeprefix(f"{name}/"): v for k, v in on_tensorflow.items()}
    assert_same_run(own, one_device)


def test_tensorflow_replicas_drop_different_places(on_tensorflow):
    first, second = on_tensorflow["different masks"]
    assert first.shape == second.shape
    assert (first != second).any()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's resolvers")
@pytest.mark.parametrize("name", ["tpu", "tpu:", "tpu:no-such-node"])
def test_no_tpu_is_a_clear_error(name):
    with pytest.raises(RuntimeError, match="TensorFlow found no TPU.*On a TPU VM"):
        distribution.start(name)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's cluster")
@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"cluster": {"worker": []}}'])
def test_no_cluster_is_a_clear_error(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="needs the environment variable TF_CONFIG"):
        distribution.start("multiworker")


@pytest.mark.skipif(BACKEND != "torch", reason="torch's process groups")
class TestTorch:
    def test_no_torchrun_is_a_clear_error(self, monkeypatch):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        with pytest.raises(ValueError, match="torchrun"):
            distribution.start("ddp")

    def test_fit_of_one_device_refuses_a_process_group(self, monkeypatch):
        import torch

        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        with pytest.raises(ValueError, match='a torch process group of 2.*"ddp"'):
            distribution.start(None).fit(devices_job.compiled_model(), [])


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's alone")
@pytest.mark.parametrize(
    ("coordinator", "error", "match"),
    [
        ("127.0.0.1:1", ConnectionError, "Process 0 at 127.0.0.1:1 could not be rea"),
        ("127.0.0.1", ValueError, "`coordinator` must be .auto. or .address:port"),
    ],
)
def test_a_process_without_its_coordinator_ends_with_an_error(
    coordinator, error, match
):
    from keras_mixer.distribution import jax_devices

    with pytest.raises(error, match=match):
        jax_devices.connect(coordinator, 2, 1, timeout=0)


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's alone")
@pytest.mark.parametrize(
    ("said", "lost"), [("RESOURCE_EXHAUSTED: Out of memory", False), ("gone", True)]
)
def test_too_little_memory_is_no_lost_process(said, lost, monkeypatch):
    import jax

    from keras_mixer.distribution import jax_devices

    devices = jax_devices.Parallel.__new__(jax_devices.Parallel)
    monkeypatch.setattr(jax_devices.Parallel, "shard", (0, 2))
    with pytest.raises(RuntimeError) as caught, devices._clear_errors():
        raise jax.errors.JaxRuntimeError(said)
    assert ("Another process" in str(caught.value)) == lost


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's alone")
def test_the_first_process_has_the_number_0(monkeypatch):
    """As an argument, too: 0 is not nothing."""
    from keras_mixer.distribution import jax_devices

    assert jax_devices._integer(0, "PROCESS_ID", "process_id") == 0
    monkeypatch.delenv("KERAS_DISTRIBUTION_PROCESS_ID", raising=False)
    with pytest.raises(ValueError, match="`process_id` must be an integer"):
        jax_devices._integer(None, "PROCESS_ID", "process_id")
