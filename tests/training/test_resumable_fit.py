import csv
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from drawn_run import LABELS, drawn_mixer, drawn_source, run
from left_by_runs import assert_same, last_step

from keras_mixer import data
from keras_mixer.distribution import SingleDevice
from keras_mixer.training import resumable_fit
from keras_mixer.training.optimizers import finetune_optimizer
from keras_mixer.training.run_checkpoints import Checkpoints, read_checkpoint, state_of
from keras_mixer.training.run_options import RunOptions

pytest.importorskip("tensorflow")

KILLS = "KERAS_MIXER_KILLS"


def numbers(folder):
    """The rows of a log without the one column that depends on the day."""
    with open(folder / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.pop("images_per_second", None)
    return rows


@pytest.mark.skipif(
    keras.config.backend() == "torch", reason="promised on JAX and TensorFlow"
)
def test_killed_at_random_moments_the_run_ends_with_the_same_bits(tmp_path):
    """Dropout, stochastic depth, mixup, accumulation and averaged weights included.

    `make nightly` kills more often, and a real run (tests/cli/test_training.py).
    """
    model, history = run(tmp_path / "whole")
    folder = tmp_path / "killed"
    rng = np.random.default_rng()
    checkpoints = Checkpoints(folder / "checkpoints")
    kills = 0
    for step in sorted(rng.integers(0, 90, int(os.environ.get(KILLS, "2")))):
        process = subprocess.Popen(
            [sys.executable, Path(__file__).parents[1] / "drawn_run.py", folder],
            stderr=subprocess.PIPE,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        with process:
            while process.poll() is None:
                if last_step(folder) >= step:
                    break
                time.sleep(0.002)
            time.sleep(float(rng.uniform(0, 0.1)))
            process.kill()
            process.wait()
            kills += process.returncode == -signal.SIGKILL
            assert process.returncode in (0, -signal.SIGKILL), process.stderr.read()
    assert kills
    again, history_again = run(folder)
    assert_same(
        checkpoints.latest().arrays,
        Checkpoints(tmp_path / "whole" / "checkpoints").latest().arrays,
    )
    assert_same(state_of(again), state_of(model))
    assert numbers(folder) == numbers(tmp_path / "whole")
    assert history_again.history["loss"] == history.history["loss"]


@pytest.mark.skipif(
    keras.config.backend() == "torch", reason="promised for JAX and TensorFlow"
)
def test_the_same_run_twice_has_the_same_bits(tmp_path):
    """Of a model so wide that its sums are divided among threads."""
    wide = {
        "patch_size": 4,
        "hidden_dim": 128,
        "tokens_mlp_dim": 64,
        "channels_mlp_dim": 512,
        "input_shape": (32, 32, 3),
    }
    source = drawn_source(examples=64, size=32)
    states = []
    for name in "ab":
        keras.utils.set_random_seed(0)
        model = compiled(2, model=drawn_mixer(**wide))
        options = RunOptions(
            output_dir=tmp_path / name,
            total_steps=2,
            batch_size=64,
            save_every=2,
            quiet=True,
        )
        resumable_fit.fit(model, source, options=options)
        states.append(state_of(model))
    assert_same(*states)


def compiled(total_steps=20, rate=0.1, model=None, **optimizer):
    model = model or drawn_mixer()
    model.compile(
        finetune_optimizer(
            total_steps=total_steps,
            base_learning_rate=rate,
            warmup_steps=0,
            **optimizer,
        ),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
    )
    return model


def fit(model, folder, *, validation=None, callbacks=(), source=None, **arguments):
    given = {"total_steps": 20, "batch_size": 8, "save_every": 5, "quiet": True}
    options = RunOptions(output_dir=folder, **{**given, **arguments})
    return resumable_fit.fit(
        model,
        source or drawn_source(),
        validation,
        options=options,
        callbacks=callbacks,
    )


def test_it_trains_as_a_bare_loop_over_the_same_batches(tmp_path):
    model = compiled()
    bare = keras.models.clone_model(model)
    bare.set_weights(model.get_weights())
    compiled(model=bare)
    losses = fit(model, tmp_path, total_steps=12, save_every=4).history["loss"]
    batches = data.training_batches(drawn_source(), image_size=16, batch_size=8, seed=0)
    each = np.array(
        [
            bare.train_on_batch(*batch)[0]
            for batch in batches.take(12).as_numpy_iterator()
        ]
    )
    np.testing.assert_allclose(losses, each.reshape(3, 4).mean(axis=1), atol=2e-6)
    for one, other in zip(model.get_weights(), bare.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_a_nan_stops_the_run_and_the_last_good_checkpoint_stays(tmp_path):
    model = compiled(rate=1e30, clip_norm=None)
    with pytest.raises(FloatingPointError, match="NaN or infinite at step") as caught:
        fit(model, tmp_path, save_every=2)
    (note,) = caught.value.__notes__
    path = Checkpoints(tmp_path / "checkpoints").paths[-1]
    assert str(path) in note
    # The model has those weights, not the broken ones.
    assert_same(state_of(model), read_checkpoint(path).arrays)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_an_interruption_costs_no_weights(tmp_path, monkeypatch):
    """On JAX the weights of a model are gone while a step runs."""
    model = compiled()
    write = Checkpoints.write

    def interrupt(self, step, *args, **kwargs):
        if step == 15:
            raise KeyboardInterrupt
        return write(self, step, *args, **kwargs)

    monkeypatch.setattr(Checkpoints, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(model, tmp_path)
    checkpoint = Checkpoints(tmp_path / "checkpoints").latest()
    assert checkpoint.step == 10
    assert_same(state_of(model), checkpoint.arrays)
    monkeypatch.undo()
    history = fit(model, tmp_path, resume=True).history
    assert history["step"] == [5, 10, 15, 20]
    # A run that is over is not run again.
    state = state_of(model)
    assert fit(model, tmp_path, resume=True).history == history
    assert_same(state_of(model), state)


@pytest.mark.backend_free
def test_the_best_weights_can_be_the_last_word(tmp_path, monkeypatch):
    model = compiled()
    accuracies = iter([0.2, 0.9, 0.1, 0.3])
    monkeypatch.setattr(
        SingleDevice,
        "evaluate",
        lambda *args, **kwargs: {"loss": 1.0, "accuracy": next(accuracies)},
    )
    history = fit(
        model, tmp_path, validation=drawn_source(), use_best=True, keep=1
    ).history
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert [path.stem for path in checkpoints.paths] == [
        "step-000000010",
        "step-000000020",
    ]
    assert_same(state_of(model), read_checkpoint(checkpoints.paths[0]).arrays)
    assert history["val_accuracy"] == [0.2, 0.9, 0.1, 0.3]


@pytest.mark.backend_free
def test_averaged_weights_are_measured_and_left_in_the_model(tmp_path):
    # Keras's dropout on torch takes no seed.
    model = drawn_mixer(dropout_rate=0.1 * (keras.config.backend() != "torch"))
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    source = drawn_source()
    history = fit(
        compiled(model=model, ema_momentum=0.8), tmp_path / "a", validation=source
    ).history
    batches = data.evaluation_batches(
        source, image_size=16, batch_size=8, preprocessing=model.preprocessing
    )
    measured = model.evaluate(batches, verbose=0, return_dict=True)
    assert history["val_loss"][-1] == pytest.approx(measured["loss"], abs=1e-6)
    # Measuring has not changed a bit of the run.
    fit(compiled(model=other, ema_momentum=0.8), tmp_path / "b")
    one, two = (Checkpoints(tmp_path / n / "checkpoints").latest() for n in "ab")
    assert_same(one.arrays, two.arrays)
    name = model.weights[0].path
    assert not np.array_equal(one.arrays[f"weights/{name}"], model.get_weights()[0])


@pytest.mark.backend_free
def test_accumulation_does_not_change_the_log(tmp_path):
    model = drawn_mixer()
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    one = fit(compiled(model=model), tmp_path / "one").history
    two = fit(compiled(model=other, accumulation_steps=2), tmp_path / "two").history
    np.testing.assert_allclose(one["loss"], two["loss"], atol=1e-5)
    np.testing.assert_allclose(one["learning_rate"], two["learning_rate"], atol=1e-7)
    assert one["step"] == two["step"] == [5, 10, 15, 20]


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_steps": 0}, "total_steps=0"),
        ({"save_every": 0}, "save_every=0"),
        ({"validate_every": 7}, "validate_every=7"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"use_best": True}, "`use_best` needs `validation`"),
        ({"keep": 0}, "keep=0"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_written(
    tmp_path, arguments, message
):
    with pytest.raises(ValueError, match=message):
        fit(compiled(), tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.backend_free
def test_a_run_goes_on_only_as_it_was_begun(tmp_path):
    fit(compiled(), tmp_path, total_steps=10)
    with pytest.raises(FileExistsError, match="resume=True"):
        fit(compiled(), tmp_path, total_steps=10)
    with pytest.raises(ValueError, match="batch_size: 8 there, 4 now") as caught:
        fit(compiled(rate=0.2), tmp_path, total_steps=10, batch_size=4, resume=True)
    assert "0.1 there, 0.2 now" in str(caught.value)


@pytest.mark.backend_free
def test_only_the_training_loop_asks_a_callback_for_its_model(monkeypatch, tmp_path):
    # On JAX the question writes the last step's arrays back, which the next step owns.
    asked = []

    def model(self):
        asked.append(threading.current_thread())
        return self._model

    monkeypatch.setattr(keras.callbacks.Callback, "model", property(model))
    fit(compiled(), tmp_path, total_steps=6, save_every=3, log_every=1)
    assert set(asked) == {threading.main_thread()}


@pytest.mark.backend_free
def test_forty_steps_have_twenty_rows_and_one_checkpoint(tmp_path):
    """Rows are not bound to checkpoints; the means of all rows are that of the run."""
    history = fit(compiled(total_steps=40), tmp_path, total_steps=40, save_every=500)
    rows = numbers(tmp_path)
    assert [int(row["step"]) for row in rows] == list(range(1, 41))
    losses = [float(row["loss"]) for row in rows]
    assert history.history["step"] == [40]
    assert np.mean(losses) == pytest.approx(history.history["loss"][0], abs=1e-5)
    assert len({round(loss, 5) for loss in losses}) > 20
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates == sorted(rates, reverse=True) and rates[-1] == 0
    fit(compiled(), tmp_path / "b", log_every=3, save_every=10)
    steps = [int(row["step"]) for row in numbers(tmp_path / "b")]
    assert steps == [3, 6, 9, 10, 13, 16, 19, 20]


@pytest.mark.backend_free
def test_another_run_of_the_same_sizes_is_not_gone_on_with(tmp_path):
    model = compiled()
    first = model.get_weights()
    fit(model, tmp_path, total_steps=10, validation=drawn_source())

    def go_on(message, model=None, **arguments):
        model = model or compiled()
        if "weights" not in message:
            model.set_weights(first)
        given = {"validation": drawn_source(), **arguments}
        with pytest.raises(ValueError, match=message):
            fit(model, tmp_path, total_steps=10, resume=True, **given)

    images = np.random.default_rng(4).integers(0, 256, (40, 16, 16, 3), "uint8")
    names = [str(i) for i in range(LABELS)]
    labels = np.arange(40) % LABELS
    go_on("training_data", source=data.from_arrays(images, labels, label_names=names))
    go_on("validation_data", validation=drawn_source(examples=39))
    go_on("validation_data", validation=None)
    go_on("starting_weights.*set_random_seed", model=compiled())
    other = compiled()
    other.preprocessing = dataclasses.replace(other.preprocessing, crop_fraction=0.5)
    go_on("image_record.crop_fraction", model=other)
    # The same in a new model, and the model that the run has left.
    again = compiled()
    again.set_weights(first)
    for same in (again, model):
        fit(same, tmp_path, total_steps=10, resume=True, validation=drawn_source())


@pytest.mark.backend_free
def test_a_second_run_is_refused_while_the_first_lives(tmp_path):
    class Second(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            files = sorted((tmp_path / "checkpoints").iterdir())
            for resume in (False, True):
                with pytest.raises(FileExistsError, match="Another run is writing"):
                    fit(compiled(), tmp_path, resume=resume)
            assert sorted((tmp_path / "checkpoints").iterdir()) == files

    fit(compiled(), tmp_path, total_steps=5, callbacks=[Second()])
    assert last_step(tmp_path) == 5


@pytest.mark.backend_free
def test_an_interruption_says_how_to_go_on(tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        fit(compiled(), tmp_path, callbacks=[Interrupt()])
    notes = "\n".join(caught.value.__notes__)
    assert "step-000000000.npz" in notes and "`resume=True`" in notes


def test_jit_compile_is_put_back(tmp_path):
    model = compiled()
    model.compile(model.optimizer, model.loss, jit_compile=False)
    fit(model, tmp_path, total_steps=5)
    assert model.jit_compile is False
