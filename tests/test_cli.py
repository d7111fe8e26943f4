import numpy as np
import pytest

import keras_mixer
from keras_mixer.cli import main


@pytest.fixture
def picture(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), "uint8")
    Image.fromarray(pixels).save(path)
    return path


def test_models_lists_sizes_and_weights(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "59,880,472" in out and "432,350,952" in out
    assert "cifar10" in out


def test_models_of_one_variant(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["models", "--variant", "Ti/4"]) == 0
    out = capsys.readouterr().out
    assert "Mixer-Ti/4" in out and "Mixer-B/16" not in out


def test_predict_prints_the_models_own_classes(capsys, picture):
    assert main(["predict", str(picture), "--top", "2"]) == 0
    name, scores = capsys.readouterr().out.strip().split("  ")
    assert name == str(picture)
    model = keras_mixer.MixerTi4(weights="cifar10")
    scores_expected = model.predict(keras_mixer.preprocess(picture, model), verbose=0)
    first, second = keras_mixer.decode_predictions(scores_expected, "cifar10", top=2)[0]
    expected = f"{first.name} {first.score:.1%}, {second.name} {second.score:.1%}"
    assert scores == expected


def test_predict_takes_folders_saved_models_and_draws(capsys, picture, tmp_path):
    model = keras_mixer.MixerTi4(weights="cifar10")
    model.save(tmp_path / "model.keras")
    chart = tmp_path / "charts" / "chart.png"
    arguments = ["predict", str(tmp_path), "--model", str(tmp_path / "model.keras")]
    assert main([*arguments, "--plot", str(chart)]) == 0
    out = capsys.readouterr().out
    assert str(picture) in out and f"Written: {chart}" in out
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_predict_with_other_labels(capsys, picture, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"name{i}" for i in range(10)))
    assert main(["predict", str(picture), "--labels", str(names)]) == 0
    assert "name" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "absent.png"], "absent.png"),
        (["predict", ".", "--weights", "nonsense"], "nonsense"),
        (["predict", ".", "--variant", "B16"], "--variant must be one of Ti/4"),
        (["models", "--variant", "Z/9"], "Z/9"),
    ],
)
def test_bad_input_is_one_sentence_and_a_status(
    capsys, arguments, message, picture, monkeypatch
):
    monkeypatch.chdir(picture.parent)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("command", [[], ["models"], ["predict"], ["demo"]])
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "usage: keras-mixer" in capsys.readouterr().out
