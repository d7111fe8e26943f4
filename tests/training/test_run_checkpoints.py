import errno
import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from keras_mixer.models.mixer import mlp_mixer
from keras_mixer.training.optimizers import finetune_optimizer
from keras_mixer.training.run_checkpoints import (
    Checkpoints,
    first_not_finite,
    read_checkpoint,
    restore,
    seed_states,
    state_of,
)

ARRAYS = {"weights/a": np.arange(6.0).reshape(2, 3), "seeds/0": np.array([7, 1], "u4")}


def trained(tiny, images, steps, **changes):
    model = mlp_mixer(**{**tiny, **changes})
    compiled(model)
    train(model, images, steps)
    return model


def compiled(model):
    model.compile(
        finetune_optimizer(total_steps=10, warmup_steps=2),
        "sparse_categorical_crossentropy",
    )
    # Or TensorFlow traces the first step twice.
    model.optimizer.build(model.trainable_variables)
    return model


def train(model, images, steps):
    model.fit(images, np.arange(4), epochs=steps, shuffle=False, verbose=0)


@pytest.mark.skipif(
    keras.config.backend() == "torch", reason="Keras's dropout there takes no seed"
)
def test_a_restored_run_makes_the_same_steps(tiny, tiny_images):
    """Dropout included: Keras saves no seeds, so this fails without them."""
    random = {"dropout_rate": 0.3, "stochastic_depth_rate": 0.3}
    model = trained(tiny, tiny_images, 2, **random)
    state = state_of(model)
    train(model, tiny_images, 3)
    keras.utils.set_random_seed(5)  # other initial weights and other seeds
    again = compiled(mlp_mixer(**{**tiny, **random}))
    restore(again, state)
    train(again, tiny_images, 3)
    for name, array in state_of(again).items():
        np.testing.assert_array_equal(array, state_of(model)[name], err_msg=name)


def test_the_state_is_complete(tiny, tiny_images):
    model = trained(tiny, tiny_images, 3, dropout_rate=0.1, stochastic_depth_rate=0.1)
    state = state_of(model)
    assert sum(name.startswith("weights/") for name in state) == len(model.weights)
    # Two mixings in each of two blocks, stochastic depth in all but the first.
    assert len(seed_states(model)) == 5
    assert state["optimizer/0000"] == 3  # steps
    assert len(state) == len(model.weights) + 5 + len(model.optimizer.variables)


def test_bfloat16_comes_back_bit_for_bit(tmp_path, tiny):
    model = compiled(mlp_mixer(**tiny, dtype="bfloat16"))
    before = state_of(model)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(1, before, settings={})
    other = compiled(mlp_mixer(**tiny, dtype="bfloat16"))
    restore(other, checkpoints.latest().arrays)
    after = state_of(other)
    assert all(np.array_equal(after[name], before[name]) for name in before)
    assert after["weights/stem/projection/kernel"].any()


def test_another_model_is_refused_whole(tiny, tiny_images):
    state = state_of(trained(tiny, tiny_images, 1))
    other = compiled(mlp_mixer(**{**tiny, "num_classes": 6}))
    before = state_of(other)
    with pytest.raises(ValueError, match="weights/head/bias: \\(5,\\), not \\(6,\\)"):
        restore(other, state)
    after = state_of(other)
    assert all(np.array_equal(after[name], before[name]) for name in before)


@pytest.mark.backend_free
def test_a_file_gives_back_what_was_written(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new")
    path = checkpoints.write(12, ARRAYS, settings={"seed": 3}, score=0.5)
    checkpoint = checkpoints.latest()
    assert (checkpoint.step, checkpoint.settings) == (12, {"seed": 3})
    assert (checkpoint.score, checkpoint.path) == (0.5, path)
    assert checkpoint.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(checkpoint.arrays[name], array)
        assert checkpoint.arrays[name].dtype == array.dtype


@pytest.mark.backend_free
def test_the_last_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, score in enumerate([0.1, 0.9, None, 0.3, 0.9, 0.2, 0.1, 0.4]):
        checkpoints.write(step, ARRAYS, settings={}, score=score)
    assert [path.name for path in checkpoints.paths] == [
        "step-000000004.npz",  # the newer of two equals
        "step-000000006.npz",
        "step-000000007.npz",
    ]
    assert checkpoints.best() == checkpoints.paths[0]
    checkpoints.set_aside_after(6)
    assert checkpoints.latest().step == 6
    aside = tmp_path / "step-000000007.npz.damaged"
    assert read_checkpoint(aside).step == 7  # nothing is lost


@pytest.mark.backend_free
def test_without_files_there_is_none(tmp_path):
    checkpoints = Checkpoints(tmp_path / "absent")
    assert checkpoints.latest() is checkpoints.best() is None
    assert checkpoints.paths == []


@pytest.mark.backend_free
def test_a_damaged_file_is_passed_over_wherever_it_is_damaged(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(1, ARRAYS, settings={}, score=0.1)
    path = checkpoints.write(2, ARRAYS, settings={}, score=0.2)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.warns(UserWarning, match="step-000000002.npz is damaged"):
            assert checkpoints.latest().step == 1
    for place in rng.integers(0, len(whole), 200):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.MonkeyPatch.context() as patch:
            warned = []
            patch.setattr("warnings.warn", lambda *a, **k: warned.append(a))  # noqa: B023
            checkpoint = checkpoints.latest()
        # A date of the archive says nothing about the run: such a file is whole.
        assert checkpoint.step == 1 if warned else checkpoint.step == 2
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(checkpoint.arrays[name], array)
    path.write_bytes(whole[:50])
    assert Checkpoints(tmp_path).best().name == "step-000000001.npz"


@pytest.mark.backend_free
def test_where_all_are_damaged_nothing_starts_anew(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.write(1, ARRAYS, settings={})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="is damaged"):
        with pytest.raises(ValueError, match="All checkpoints in .* are damaged"):
            checkpoints.latest()
    assert path.exists()


@pytest.mark.backend_free
def test_an_error_of_the_disk_is_no_damage_and_costs_no_file(tmp_path, monkeypatch):
    writer = Checkpoints(tmp_path, keep=1)
    for step in (1, 2):
        writer.write(step, ARRAYS, settings={}, score=-step)
    checkpoints = Checkpoints(tmp_path, keep=1)

    def failing(*args, **kwargs):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr("zipfile.ZipFile.testzip", failing)
        with pytest.raises(OSError, match=r"error: '.*step-000000002.npz'"):
            checkpoints.latest()
    with monkeypatch.context() as patch:
        patch.setattr("numpy.load", failing)
        checkpoints.write(3, ARRAYS, settings={}, score=-9)  # the best is not known
    assert [path.stem[-1] for path in checkpoints.paths] == ["1", "2", "3"]


@pytest.mark.backend_free
def test_a_full_disk_names_the_checkpoint(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("numpy.savez", full)
    with pytest.raises(OSError, match=r"No space left .*step-000000001.npz"):
        Checkpoints(tmp_path).write(1, ARRAYS, settings={})
    assert not list(tmp_path.iterdir())


# NumPy 2.0 leaves the archive open.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function ZipFile:"
    "pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.backend_free
def test_a_failed_write_leaves_the_others(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(1, ARRAYS, settings={})

    class Unwritable:
        def __array__(self, *args, **kwargs):
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        checkpoints.write(2, {**ARRAYS, "z": Unwritable()}, settings={})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.npz"]


_WRITER = """
import sys
import numpy as np
from keras_mixer.training.run_checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=1)
for step in range(100000):
    arrays = {"weights/a": np.full(200_000, step, "float32")}
    checkpoints.write(step, arrays, settings={}, score=-step)
    print(step, flush=True)
"""


@pytest.mark.backend_free
def test_killed_at_any_moment_a_whole_checkpoint_is_there(tmp_path):
    rng = np.random.default_rng()
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, folder], stdout=subprocess.PIPE, text=True
        ) as process:
            written = int(process.stdout.readline())
            time.sleep(float(rng.uniform(0, 0.3)))
            os.kill(process.pid, signal.SIGKILL)
            written = int([written, *process.stdout.read().split()][-1])
        checkpoint = Checkpoints(folder).latest()
        assert checkpoint.step >= written
        assert (checkpoint.arrays["weights/a"] == checkpoint.step).all()
        # The next write clears what the killed one left.
        Checkpoints(folder).write(10**6, ARRAYS, settings={})
        assert not [p for p in folder.iterdir() if p.suffix == ".tmp"]


@pytest.mark.backend_free
def test_numbers_that_are_none_are_found():
    good = {"a": np.ones(2), "b": np.array([1, 2])}
    assert first_not_finite(good) is None
    assert first_not_finite({**good, "c": np.array([1, np.inf])}) == "c"
    assert first_not_finite({"n": np.float32("nan"), **good}) == "n"


@pytest.mark.backend_free
def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)
