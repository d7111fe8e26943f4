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


@pytest.mark.backend_free
def test_export_in_half_precision(written, capsys):
    assert main(["export", str(written), "--precision", "float16"]) == 0
    assert 1e-5 < float(capsys.readouterr().out.split()[-1].rstrip(")")) < 5e-3
    assert keras_mixer.export.load(written).precision == "float16"


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "target, options, message",
    [
        ("m.onnx", [], "--precision must be float32 or float16 for onnx"),
        ("m.tflite", [], "--precision must be float32 for litert"),
        ("m.onnx", ["--precision", "float16", "--int8", "x"], "beside --int8"),
    ],
)
def test_a_precision_that_a_format_lacks(target, options, message, tmp_path, capsys):
    arguments = ["--precision", "bfloat16", *options]
    assert main(["export", str(tmp_path / target), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.backend_free
def test_export_int8_from_a_folder(written, tmp_path, capsys, monkeypatch):
    seen = []

    def export(model, path, *, calibration_images, overwrite, **options):
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


@pytest.mark.backend_free
def test_export_int8_from_a_data_set(written, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    images = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), "uint8")
    opened, seen = [], []

    def open_source(*arguments, **options):
        opened.append((arguments, options))
        return keras_mixer.data.from_arrays(images, np.arange(9))

    monkeypatch.setattr("keras_mixer.export.calibration.open_source", open_source)
    monkeypatch.setattr(
        "keras_mixer.export.export",
        lambda model, path, **options: seen.append(options) or 0.01,
    )
    arguments = ["--int8", "cifar10", "--split", "test", "--data-dir", str(tmp_path)]
    assert main(["export", str(written), *arguments, "--count", "4"]) == 0
    assert opened == [(("cifar10", "test"), {"data_dir": str(tmp_path)})]
    model = keras_mixer.MixerTi4(weights="cifar10")
    np.testing.assert_allclose(
        seen[0]["calibration_images"],
        keras_mixer.preprocess(images[:4], model),
        atol=1e-2,
    )


@pytest.mark.backend_free
def test_formats_are_those_of_the_wing():
    """The check before Keras is imported knows the same endings, packages, backends."""
    from keras_mixer.cli.formats import FORMATS
    from keras_mixer.export.formats import FORMATS as _FORMATS

    assert FORMATS.keys() == _FORMATS.keys()
    for name, known in FORMATS.items():
        entry = _FORMATS[name]
        assert (known.ending, set(known.backends)) == (
            entry.ending,
            set(entry.backends),
        )
        assert known.precisions == entry.precisions
        packages = tuple(package.replace("-", "_") for package in known.packages)
        assert packages == entry.packages


@pytest.mark.backend_free
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


def test_plot_draws_the_evidence_for_a_class(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    photo = pictures(tmp_path / "pictures", 1, 1) / "0" / "0.png"
    asked, figure = [], keras_mixer.visualize.evidence_figure
    monkeypatch.setattr(
        keras_mixer.visualize,
        "evidence_figure",
        lambda model, *others: asked.append(others) or figure(model, *others),
    )
    path = tmp_path / "evidence.png"
    call = ["plot", "evidence", str(path), str(photo)]
    assert main([*call, "--class", "frog", "--method", "occlusion"]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert main([*call, "--class", "3"]) == 0
    assert main(call) == 0
    frog = (photo, 6, "occlusion")
    assert asked == [frog, (photo, 3, "exact"), (photo, None, "exact")]
    assert main([*call, "--class", "frogs"]) == 2
    assert "Near names: frog" in capsys.readouterr().err
    assert main([*call, "--class", "10"]) == 1
    assert "--class must be an integer in [0, 10)" in capsys.readouterr().err


@pytest.mark.backend_free
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


@pytest.mark.backend_free
def test_plot_says_what_is_wrong(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    log, path = tmp_path / "log.csv", tmp_path / "curves.png"
    log.write_text("step,loss\n1,small\n")
    assert main(["plot", "curves", str(path), str(log)]) == 1
    assert f"'{log}' is not a log of numbers" in capsys.readouterr().err
    log.write_text("")
    assert main(["plot", "curves", str(path), str(log)]) == 1
    assert "with a 'loss'" in capsys.readouterr().err
    assert main(["plot", "filters", str(path), "--block", "99"]) == 1
    assert "--block must" in capsys.readouterr().err
    assert not path.exists()
