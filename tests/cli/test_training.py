import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from drawn import LABELS, drawn_model
from hosts import TWO_HOSTS, environment, free_ports
from left_by_runs import assert_same, last_step

import keras_mixer
from keras_mixer import visualize
from keras_mixer.cli.main import main, parser
from keras_mixer.cli.messages import UsageError
from keras_mixer.cli.training_options import finetune_arguments, pretrain_arguments
from keras_mixer.training.run_checkpoints import Checkpoints

pytest.importorskip("tensorflow_datasets")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two splits of two classes, one dark and one bright."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name, level in (("dark", 40), ("bright", 200)):
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(level, level + 30, (20, 20, 3), "uint8")
                Image.fromarray(pixels).save(place / f"{i}.png")
    return folder


@pytest.fixture
def start(tmp_path):
    """A small model whose classes are others than the pictures'."""
    model = drawn_model(input_shape=(16, 16, 3))
    model.labels = LABELS
    model.save(tmp_path / "start.keras")
    return tmp_path / "start.keras"


def finetune(pictures, start, output, *more, steps=6):
    if "--grid" not in more:
        more = ("--learning-rate", "0.05", *more)
    return main(
        [
            *("finetune", "--data", str(pictures), "--model", str(start)),
            *("--steps", str(steps), "--batch-size", "8", "--save-every", "3"),
            *("--output", str(output), *more),
        ]
    )


def test_finetune_trains_writes_and_says_where(
    pictures, start, tmp_path, capsys, monkeypatch
):
    output, drawn = tmp_path / "run", {}
    draw = visualize.training_curves
    monkeypatch.setattr(
        visualize, "training_curves", lambda logs: drawn.update(logs) or draw(logs)
    )
    assert finetune(pictures, start, output) == 0
    out, progress = capsys.readouterr()
    assert "2 classes, 24 images to train on, 8 to measure on" in out
    assert "step 6/6" in progress
    with open(output / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    # Every row is drawn, not only the checkpoints, of which there are two.
    assert drawn["finetune"]["loss"] == [float(row["loss"]) for row in rows]
    assert (
        f"Accuracy: {float(rows[-1]['val_accuracy']):.2%} on {pictures}, "
        "8 examples of test" in out
    )
    for name in ("model.keras", "model", "curves.png", "log.csv"):
        assert f"  {output / name}\n" in out and (output / name).exists()
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")

    # Both forms are the trained model: probabilities under the new names.
    model = keras.saving.load_model(output / "model.keras")
    same = keras_mixer.from_pretrained(output / "model")
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), "uint8")
    scores = model.predict(images, verbose=0)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(same.predict(images, verbose=0), scores, atol=1e-6)
    assert model.labels == same.labels == ("bright", "dark")
    arrays = Checkpoints(output / "checkpoints").latest().arrays
    for weight in model.weights:
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(weight), arrays[f"weights/{weight.path}"]
        )

    # A run is not overwritten; going on with one that is over is no error.
    assert finetune(pictures, start, output) == 1
    assert "--resume" in capsys.readouterr().err
    assert finetune(pictures, start, output, "--resume") == 0
    assert finetune(pictures, start, output, "--resume", steps=7) == 1
    assert "total_steps: 6 there, 7 now" in capsys.readouterr().err


@pytest.mark.backend_free
def test_a_teacher_of_the_command_line(pictures, start, tmp_path, capsys):
    """A model in a file; with other classes, nothing is written."""
    teacher = drawn_model(3, input_shape=(24, 24, 3), patch_size=8, num_classes=2)
    teacher.labels = ("bright", "dark")
    teacher.save(tmp_path / "teacher.keras")
    more = ("--teacher", str(tmp_path / "teacher.keras"), "--temperature", "2")
    assert finetune(pictures, start, tmp_path / "run", *more) == 0
    settings = Checkpoints(tmp_path / "run" / "checkpoints").latest().settings
    assert settings["loss"]["config"]["temperature"] == 2.0
    assert settings["loss"]["config"]["weight"] == 0.5
    capsys.readouterr()
    assert finetune(pictures, start, tmp_path / "run", "--resume") == 1
    assert "the teacher's weights" in capsys.readouterr().err
    assert finetune(pictures, start, tmp_path / "no", "--teacher", str(start)) == 1
    assert "--teacher and --model must have the same number" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.backend_free
def test_a_part_is_held_out_where_there_is_nothing_to_measure_on(
    pictures, start, tmp_path, capsys
):
    output = tmp_path / "run"
    assert finetune(pictures / "train", start, output, steps=3) == 0
    out = capsys.readouterr().out
    assert "22 images to train on, 2 to measure on" in out
    held = "2 of 24 examples of train, which are held out (seed 0): there is no"
    assert f"Measured on {held}" in out and f", {held}" in out


@pytest.mark.backend_free
def test_a_grid_is_searched_on_a_part_of_the_training_images(
    pictures, start, tmp_path, capsys
):
    output = tmp_path / "run"
    grid = ("--grid", "0.1", "0.0001", "--validation-split", "none")
    assert finetune(pictures, start, output, *grid, steps=3) == 0
    out = capsys.readouterr().out
    assert "learning rate 0.1: " in out and "on train[90%:]" in out
    runs = sorted(path.name for path in (output / "grid").iterdir())
    assert runs == ["rate-0.0001", "rate-0.1"]
    assert "Accuracy" not in out
    # There is one way to say the rate.
    with pytest.raises(SystemExit):
        finetune(pictures, start, output, *grid, "--learning-rate", "0.1")


@pytest.mark.backend_free
def test_pretrain_draws_a_model(pictures, tmp_path, capsys):
    arguments = ["pretrain", "--data", str(pictures), "--validation-split", "test"]
    arguments += ["--steps", "2", "--batch-size", "4", "--stochastic-depth", "0.1"]
    arguments += ["--mixup", "0.2", "--loss", "sigmoid", "--ema", "0.5"]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 0
    assert "2 classes" in capsys.readouterr().out
    model = keras.saving.load_model(tmp_path / "run" / "model.keras")
    assert model.config["num_classes"] == 2
    assert model.config["classifier_activation"] == "sigmoid"
    assert model.config["stochastic_depth_rate"] == 0


def test_pretrain_goes_on_from_a_model_that_the_flags_change(
    pictures, start, tmp_path, monkeypatch
):
    seen = []

    def pretrain(model, train, validation, **arguments):
        seen.append((model, arguments))
        raise ValueError("far enough")

    monkeypatch.setattr("keras_mixer.training.pretrain", pretrain)
    arguments = ["pretrain", "--data", str(pictures), "--model", str(start)]
    arguments += ["--validation-split", "test", "--steps", "2", "--loss", "sigmoid"]
    arguments += ["--dtype", "mixed_bfloat16", "--stochastic-depth", "0.2"]
    arguments += ["--dropout", "0.1", "--image-size", "32"]
    assert main([*arguments, "--output", str(tmp_path / "run")]) == 1
    ((model, _),) = seen
    assert model.blocks[0].compute_dtype == "bfloat16"
    config = model.config
    assert (config["stochastic_depth_rate"], config["dropout_rate"]) == (0.2, 0.1)
    assert config["input_shape"] == (32, 32, 3)
    assert config["classifier_activation"] == "linear"
    assert model.labels == ("bright", "dark")
    # The body is that of the model, the head is new.
    old = keras.saving.load_model(start).get_layer("stem").weights[0]
    new = model.get_layer("stem").weights[0]
    for one, other in zip(*map(keras.ops.convert_to_numpy, (old, new)), strict=True):
        np.testing.assert_array_equal(one, other)
    bias = keras.ops.convert_to_numpy(model.get_layer("head").bias)
    np.testing.assert_allclose(bias, -np.log(2), rtol=1e-6)


@pytest.mark.backend_free
def test_a_diverging_run_is_one_sentence_and_a_status(
    pictures, start, tmp_path, capsys
):
    rate = ("--learning-rate", "1e38", "--clip-norm", "1e30", "--warmup-steps", "0")
    assert finetune(pictures, start, tmp_path / "run", *rate) == 1
    error = capsys.readouterr().err
    assert "keras-mixer finetune: Training stopped: " in error
    assert "The last good checkpoint: " in error and "Traceback" not in error


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("data", "message"),
    [("nothing_of_the_kind", "nothing_of_the_kind"), ("empty", "empty")],
)
def test_unusable_data_is_one_sentence_before_a_model_is_made(
    tmp_path, monkeypatch, capsys, data, message
):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "keras_mixer.cli.training.chosen_model",
        lambda *args, **kwargs: pytest.fail("a model was made"),
    )
    arguments = ["finetune", "--data", data, "--data-dir", str(tmp_path)]
    assert main([*arguments, "--steps", "5", "--output", "run"]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.backend_free
def test_a_damaged_picture_is_named_or_skipped(pictures, start, tmp_path, capsys):
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    (folder / "train" / "dark" / "0.png").write_bytes(b"no picture")
    assert finetune(folder, start, tmp_path / "run", steps=1) == 1
    error = capsys.readouterr().err
    assert "1 of 24 images" in error and "0.png" in error and "Traceback" not in error
    with pytest.warns(UserWarning, match=r"1 of 24 images .* left out: .*0\.png"):
        assert finetune(folder, start, tmp_path / "run", "--corrupt", "skip") == 0
    assert "2 classes, 23 images to train on" in capsys.readouterr().out


def options(command, *arguments):
    """The parsed options of a command."""
    return parser().parse_args([command, "--output", "run", *arguments])


@pytest.mark.backend_free
def test_what_is_not_given_is_the_papers():
    arguments = finetune_arguments(options("finetune", "--data", "cifar10"))
    assert (arguments["total_steps"], arguments["warmup_steps"]) == (10_000, 500)
    pets = finetune_arguments(options("finetune", "--data", "oxford_iiit_pet:3.2.0"))
    assert (pets["total_steps"], pets["warmup_steps"]) == (500, 100)
    model, arguments = pretrain_arguments(
        options("pretrain", "--data", "imagenet2012", "--variant", "B/16"), 1_281_167
    )
    assert model == {"dropout_rate": 0.0, "stochastic_depth_rate": 0.1}
    assert arguments["total_steps"] == round(300 * 1_281_167 / 4096)
    assert arguments["warmup_steps"] == 10_000
    assert (arguments["randaugment"], arguments["mixup"]) == ((2, 15), 0.5)
    given = ("--mixup", "0", "--steps", "50")
    _, arguments = pretrain_arguments(
        options("pretrain", "--data", "imagenet2012", "--variant", "B/16", *given), 9
    )
    assert (arguments["mixup"], arguments["total_steps"]) == (0, 50)
    assert arguments["warmup_steps"] == 10
    with pytest.raises(UsageError, match="Give --steps"):
        finetune_arguments(options("finetune", "--data", "a_folder"))


@pytest.mark.backend_free
def test_sharpness_aware_training_by_flags_or_by_the_name_of_a_run():
    run = ("--data", "cifar10", "--steps", "50")
    arguments = finetune_arguments(options("finetune", *run, "--sam-rho", "0.1"))
    assert arguments["sam_rho"] == 0.1 and "gsam_alpha" not in arguments
    flags = ("--sam-rho", "0.1", "0.6", "--gsam-alpha", "0.5")
    _, arguments = pretrain_arguments(options("pretrain", *run, *flags), 9)
    assert (arguments["sam_rho"], arguments["gsam_alpha"]) == ((0.1, 0.6), 0.5)
    named = ("--data", "imagenet2012", "--recipe", "gsam", "--gsam-alpha", "0.4")
    model, arguments = pretrain_arguments(options("pretrain", *named), 1_281_167)
    assert model == {"dropout_rate": 0.0, "stochastic_depth_rate": 0.0}
    assert arguments["total_steps"] == round(300 * 1_281_167 / 4096)
    assert (arguments["sam_rho"], arguments["gsam_alpha"]) == ((0.1, 0.6), 0.4)
    assert (arguments["base_learning_rate"], arguments["loss"]) == (0.003, "sigmoid")


def started(arguments, log, **environment):
    """A `keras-mixer` of its own process."""
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "keras_mixer", *map(str, arguments)],
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
            stdout=file,
            stderr=file,
        )


@pytest.mark.nightly
@pytest.mark.skipif(
    keras.config.backend() == "torch", reason="promised on JAX and TensorFlow"
)
@pytest.mark.parametrize("data", ["pictures", "cifar10"])
def test_a_real_run_killed_at_random_ends_with_the_same_weights(
    data, pictures, tmp_path
):
    """The embedded checkpoint is fine-tuned; CIFAR-10 lies where TFDS looks for it."""
    prepared = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
    if data == "cifar10" and not (prepared.expanduser() / "cifar10").exists():
        pytest.skip("TFDS has not prepared CIFAR-10")
    kills = int(os.environ.get("KERAS_MIXER_KILLS", "10"))
    steps, log = 5 * (4 * kills + 2), tmp_path / "log"
    arguments = ["finetune", "--data", pictures if data == "pictures" else data]
    arguments += ["--steps", steps, "--save-every", 5, "--batch-size", 16]
    arguments += ["--validation-split", "test[:4]", "--resume", "--mixup", 0.2]
    arguments += ["--output"]
    assert started([*arguments, tmp_path / "whole"], log).wait() == 0, log.read_text()

    killed = tmp_path / "killed"
    for _ in range(kills):
        process = started([*arguments, killed], log)
        # While it starts, or while it trains: shortly after one of its checkpoints.
        end = time.monotonic() + random.choice([random.uniform(0, 15), 600])
        target = last_step(killed) + 5 * random.randint(1, 2)
        while time.monotonic() < end and last_step(killed) < target:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL, log.read_text()
    assert started([*arguments, killed], log).wait() == 0, log.read_text()
    found, expected = (
        Checkpoints(tmp_path / name / "checkpoints").latest().arrays
        for name in ("killed", "whole")
    )
    assert_same(found, expected)


@pytest.mark.nightly
def test_two_hosts_fine_tune_as_one(pictures, start, tmp_path):
    """What the command writes at the end included."""
    assert finetune(pictures, start, tmp_path / "one") == 0
    log, ports = tmp_path / "log", free_ports(2)
    arguments = ["finetune", "--data", pictures, "--model", start]
    arguments += ["--steps", 6, "--batch-size", 8, "--save-every", 3]
    arguments += ["--learning-rate", 0.05, "--distribute", TWO_HOSTS]
    arguments += ["--output", tmp_path / "two"]
    hosts = [started(arguments, log, **environment(i, ports)) for i in (0, 1)]
    try:
        assert [host.wait(timeout=600) for host in hosts] == [0, 0], log.read_text()
    finally:
        for host in hosts:
            host.kill()
            host.wait()
    one, two = (
        keras.saving.load_model(tmp_path / name / "model.keras")
        for name in ("one", "two")
    )
    for mine, theirs in zip(two.weights, one.weights, strict=True):
        np.testing.assert_allclose(
            mine.numpy(), theirs.numpy(), atol=2e-5, err_msg=mine.path
        )
    assert (tmp_path / "two" / "curves.png").stat().st_size
    assert log.read_text().count("Written:") == 1


@pytest.mark.backend_free
def test_of_a_model_with_a_deep_head_the_body_goes_on():
    """And other commands take it, too: their Mixer is the one inside."""
    from keras_mixer.cli import training

    layers = keras.layers
    body = drawn_model(num_classes=0)
    deep = keras.Sequential(
        [keras.Input((32, 24, 3)), body, layers.Dense(4, "relu"), layers.Dense(2)]
    )
    options = argparse.Namespace(dtype=None, image_size=None)
    model = training._with_new_head(options, deep, ("a", "b", "c"))
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 24, 3)).astype("float32")
    np.testing.assert_allclose(
        model.features("pre_logits").predict(images, verbose=0),
        body.predict(images, verbose=0),
        atol=1e-6,
    )
    assert model.labels == ("a", "b", "c")
    assert not np.any(model.predict(images, verbose=0))
