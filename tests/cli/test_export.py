import csv

import numpy as np
import pytest

import keras_mixer
from keras_mixer.cli.main import main
from keras_mixer.export.runtimes import load_onnx


def pictures(folder, classes=2, count=3):
    Image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / str(label)).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (40, 36, 3), "uint8")
            Image.fromarray(pixels).save(folder / str(label) / f"{i}.png")
    return folder


@pytest.fixture
def written(tmp_path):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    return tmp_path / "model.onnx"


def test_export_writes_and_says_how_close_it_is(written, capsys):
    assert main(["export", str(written)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Written: {written} (relative difference from the model: ")
    assert float(out.split()[-1].rstrip(")")) < 1e-5
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    model = keras_mixer.MixerTi4(weights="cifar10")
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(load_onnx(written)(images), expected, atol=1e-4)


def test_export_int8_from_a_folder(written, tmp_path, capsys, monkeypatch):
    seen = []

    def export(model, path, *, format, calibration_images, overwrite):
        seen.append((calibration_images, overwrite))
        return 0.01

    monkeypatch.setattr("keras_mixer.export.export", export)
    folder = pictures(tmp_path / "pictures")
    arguments = ["export", str(written), "--int8", str(folder), "--force"]
    assert main([*arguments, "--count", "2"]) == 0
    ((images, overwrite),) = seen
    assert overwrite
    model = keras_mixer.MixerTi4(weights="cifar10")
    # Not the first two: those are of one class.
    files = [folder / "0" / "0.png", folder / "1" / "0.png"]
    np.testing.assert_array_equal(images, keras_mixer.preprocess(files, model))


def test_export_int8_from_a_data_set(written, capsys, monkeypatch):
    pytest.importorskip("tensorflow")
    images = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), "uint8")
    opened, seen = [], []

    def open_source(*arguments, **options):
        opened.append((arguments, options))
        return keras_mixer.data.from_arrays(images, np.arange(9))

    monkeypatch.setattr("keras_mixer.data.open_source", open_source)
    monkeypatch.setattr(
        "keras_mixer.export.export",
        lambda model, path, **options: seen.append(options) or 0.01,
    )
    arguments = ["--int8", "cifar10", "--split", "test", "--data-dir", "folder"]
    assert main(["export", str(written), *arguments, "--count", "4"]) == 0
    assert opened == [(("cifar10", "test"), {"data_dir": "folder"})]
    model = keras_mixer.MixerTi4(weights="cifar10")
    np.testing.assert_allclose(
        seen[0]["calibration_images"],
        keras_mixer.preprocess(images[:4], model),
        atol=1e-2,
    )


def test_export_says_what_is_wrong(tmp_path, capsys):
    assert main(["export", str(tmp_path / "model.pb")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("keras-mixer export: `path` must end in one of .onnx")
    assert main(["export", str(tmp_path / "model"), "--format", "onnx"]) == 1
    assert "must end in .onnx for the format 'onnx'" in capsys.readouterr().err
    arguments = ["--int8", str(tmp_path), "--count", "1"]
    assert main(["export", str(tmp_path / "model.onnx"), *arguments]) == 1
    assert "--count must be at least 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "picture, options",
    [("filters", ["--block", "1", "--count", "8"]), ("stem", ["--count", "5"])],
)
def test_plot_draws_a_model(picture, options, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    titles = []
    save = keras_mixer.visualize.save

    def recording_save(figure, path):
        titles.append(figure.axes[0].get_title())
        save(figure, path)

    monkeypatch.setattr(keras_mixer.visualize, "save", recording_save)
    path = tmp_path / "new" / "picture.png"
    assert main(["plot", picture, str(path), *options]) == 0
    assert capsys.readouterr().out == f"Written: {path}\n"
    assert path.read_bytes().startswith(b"\x89PNG")
    expected = {"filters": "of block_1: 8 of", "stem": "5 of"}[picture]
    assert expected in titles[0]


def test_plot_draws_the_logs_of_trainings(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    log, drawn = tmp_path / "log.csv", []
    with open(log, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["step", "loss", "val_loss"], [10, 2.5, ""], [20, 1.5, 2]])
    curves = keras_mixer.visualize.training_curves
    monkeypatch.setattr(
        keras_mixer.visualize,
        "training_curves",
        lambda histories: drawn.append(histories) or curves(histories),
    )
    path = tmp_path / "curves.png"
    assert main(["plot", "curves", str(path), str(log)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    (history,) = drawn[0].values()
    expected = {"step": [10, 20], "loss": [2.5, 1.5], "val_loss": [np.nan, 2]}
    assert history.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(history[name], values)


def test_plot_says_what_is_wrong(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    log, path = tmp_path / "log.csv", tmp_path / "curves.png"
    log.write_text("step,loss\n1,small\n")
    assert main(["plot", "curves", str(path), str(log)]) == 1
    assert f"'{log}' is not a log of numbers" in capsys.readouterr().err
    assert main(["plot", "curves", str(path), str(tmp_path / "none.csv")]) == 1
    assert "none.csv" in capsys.readouterr().err
    log.write_text("")
    assert main(["plot", "curves", str(path), str(log)]) == 1
    assert "with a 'loss'" in capsys.readouterr().err
    assert main(["plot", "filters", str(tmp_path / "picture.jpg")]) == 1
    assert "must end in `.png`" in capsys.readouterr().err
    assert not path.exists()
