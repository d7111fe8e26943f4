import csv
import io
import json
import os
import sys

import numpy as np
import pytest
from drawn import drawn_model

import keras_mixer
from keras_mixer.cli import predict
from keras_mixer.cli.main import main
from keras_mixer.hub import write_model

Image = pytest.importorskip("PIL.Image")


def draw(path, seed=0, size=(40, 50)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), "uint8")
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def picture(tmp_path):
    return draw(tmp_path / "picture.png")


@pytest.fixture(scope="module")
def model():
    return keras_mixer.MixerTi4(weights="cifar10")


def expected(model, path, top):
    scores = model.predict(keras_mixer.preprocess(path, model), verbose=0)
    return keras_mixer.decode_predictions(scores, "cifar10", top=top)[0]


def test_predict_prints_the_models_own_classes(capsys, picture, model):
    assert main(["predict", str(picture), "--top", "2"]) == 0
    name, scores = capsys.readouterr().out.strip().split("  ")
    assert name == str(picture)
    first, second = expected(model, picture, 2)
    assert scores == f"{first.name} {first.score:.1%}, {second.name} {second.score:.1%}"


def test_predict_takes_folders_saved_models_and_draws(capsys, picture, tmp_path, model):
    pytest.importorskip("matplotlib")
    model.save(tmp_path / "model.keras")
    chart = tmp_path / "charts" / "chart.png"
    arguments = ["predict", str(tmp_path), "--model", str(tmp_path / "model.keras")]
    assert main([*arguments, "--plot", str(chart)]) == 0
    out = capsys.readouterr().out
    assert str(picture) in out and f"Written: {chart}" in out
    assert chart.read_bytes().startswith(b"\x89PNG")


@pytest.mark.backend_free
def test_predict_with_other_labels(capsys, picture, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"name{i}" for i in range(10)))
    assert main(["predict", str(picture), "--labels", str(names)]) == 0
    assert "name" in capsys.readouterr().out
    names.write_text("one\n")
    assert main(["predict", str(picture), "--labels", str(names)]) == 1
    assert "--labels must have one name per class" in capsys.readouterr().err


@pytest.mark.backend_free
def test_predict_takes_a_published_folder(capsys, picture, tmp_path):
    model = drawn_model()
    model.labels = tuple("abcde")
    write_model(model, tmp_path / "folder")
    arguments = ["predict", str(picture), "--model", str(tmp_path / "folder")]
    assert main([*arguments, "--top", "5"]) == 0
    out = capsys.readouterr().out
    assert all(f" {label} " in out for label in "abcde")


# --- bad pictures -----------------------------------------------------------------


@pytest.mark.backend_free
def test_it_goes_on_after_a_bad_picture(capsys, picture, tmp_path):
    text, half = tmp_path / "a_text.jpg", tmp_path / "half.png"
    text.write_text("no picture")
    half.write_bytes(draw(tmp_path / "whole.png").read_bytes()[:2000])
    (tmp_path / "empty.png").touch()
    assert main(["predict", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == [
        str(tmp_path / name) for name in ("picture.png", "whole.png")
    ]
    *named, count = err.splitlines()
    for name in ("a_text.jpg", "empty.png", "half.png"):
        (line,) = [line for line in named if str(tmp_path / name) in line]
        assert line.startswith("keras-mixer predict: ")
    assert count == "keras-mixer predict: 3 of 5 pictures could not be read."


@pytest.mark.backend_free
def test_only_bad_pictures_give_no_record(capsys, tmp_path):
    (tmp_path / "empty.png").touch()
    assert main(["predict", str(tmp_path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.backend_free
def test_missing_files_are_reported_before_a_model_is_made(
    capsys, picture, monkeypatch
):
    monkeypatch.setattr(predict, "chosen_model", lambda options: pytest.fail("a model"))
    assert main(["predict", str(picture), "absent.png", "gone.png"]) == 1
    assert "'absent.png', 'gone.png'" in capsys.readouterr().err
    assert main(["predict", "--json", str(picture), "out.json"]) == 1
    assert "--json > out.json" in capsys.readouterr().err


# --- standard input ---------------------------------------------------------------


@pytest.mark.backend_free
def test_a_picture_on_standard_input(capsys, picture, monkeypatch, model):
    class Pipe:
        buffer = io.BytesIO(picture.read_bytes())

    monkeypatch.setattr(sys, "stdin", Pipe)
    assert main(["predict", "-", "--top", "1"]) == 0
    (first,) = expected(model, picture, 1)
    assert capsys.readouterr().out == f"-  {first.name} {first.score:.1%}\n"
    # Now it is empty.
    assert main(["predict", "-", str(picture)]) == 1
    out, err = capsys.readouterr()
    assert str(picture) in out and "'-' cannot be read" in err


@pytest.mark.backend_free
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_no_endless_input_is_read(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "_MAX_BYTES", 2**20)
    assert main(["predict", "/dev/zero"]) == 1
    assert "'/dev/zero' cannot be read: more than 1 MiB" in capsys.readouterr().err


# --- records ----------------------------------------------------------------------

ODD = 'two\nlines\x1b[31m, "quoted".png'


@pytest.mark.backend_free
def test_json_records(capsys, picture, tmp_path, model):
    draw(tmp_path / ODD, seed=1)
    assert main(["predict", str(tmp_path), "--json", "--top", "2"]) == 0
    out = capsys.readouterr().out
    records = json.loads(out)
    assert [record["path"] for record in records] == [
        str(tmp_path / name) for name in ("picture.png", ODD)
    ]
    assert "\x1b" not in out and len(out.splitlines()) == 2
    for record in records:
        classes = expected(model, record["path"], 2)
        assert record["classes"] == [c.name for c in classes]
        np.testing.assert_allclose(
            record["probabilities"], [c.score for c in classes], atol=1e-5
        )


@pytest.mark.backend_free
def test_csv_records(capsys, picture, tmp_path, model):
    draw(tmp_path / ODD, seed=1)
    assert main(["predict", str(tmp_path), "--csv", "--top", "2"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and len(out.splitlines()) == 3
    head, first, second = csv.reader(out.splitlines())
    assert head == ["path", "class_1", "probability_1", "class_2", "probability_2"]
    assert first[0] == str(picture)
    assert second[0] == f"{tmp_path}/" + r'two\nlines\x1b[31m, "quoted".png'
    classes = expected(model, picture, 2)
    assert first[1::2] == [c.name for c in classes]
    np.testing.assert_allclose(
        [float(cell) for cell in first[2::2]], [c.score for c in classes], atol=1e-5
    )


@pytest.mark.backend_free
def test_lines_hold_no_control_characters(capsys, tmp_path):
    draw(tmp_path / ODD)
    assert main(["predict", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1 and r"\n" in out and "\x1b" not in out


# --- plots ------------------------------------------------------------------------


@pytest.mark.backend_free
def test_many_pictures_make_pages_of_whole_pictures(
    capsys, tmp_path, monkeypatch, model
):
    pytest.importorskip("matplotlib")
    drawn = []
    monkeypatch.setattr(predict, "PAGE", 2)
    monkeypatch.setattr(
        keras_mixer.visualize,
        "predictions",
        lambda images, classes, **more: drawn.append((images, more)) or len(images),
    )
    saved = []
    monkeypatch.setattr(
        keras_mixer.visualize, "save", lambda figure, path: saved.append((figure, path))
    )
    for i in range(3):
        draw(tmp_path / f"{i}.png", seed=i, size=(64, 32))
    # Turned by its EXIF record, and larger than what is shown.
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (800, 400), "red").save(tmp_path / "3.jpg", exif=exif)
    (tmp_path / "4.png").touch()
    plot = tmp_path / "new" / "page.png"
    assert main(["predict", str(tmp_path), "--plot", str(plot), "--csv"]) == 1
    assert saved == [(2, plot.with_stem("page-1")), (2, plot.with_stem("page-2"))]
    out, err = capsys.readouterr()
    assert "Written" not in out and f"Written: {saved[0][1]}" in err
    shapes = [image.shape for images, _ in drawn for image in images]
    assert shapes == [(64, 32, 3)] * 3 + [(320, 160, 3)]
    titles = [title for _, more in drawn for title in more["titles"]]
    assert titles == [str(tmp_path / n) for n in ("0.png", "1.png", "2.png", "3.jpg")]
