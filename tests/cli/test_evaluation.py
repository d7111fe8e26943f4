import json

import numpy as np
import pytest
from drawn import LABELS, drawn_model

import keras_mixer
from keras_mixer.cli import evaluation
from keras_mixer.cli.main import main
from keras_mixer.hub.model_files import read_model

pytest.importorskip("tensorflow_datasets")

pytestmark = pytest.mark.backend_free

TRUE = np.random.default_rng(0).integers(0, 5, 30)


def birds():
    images = np.random.default_rng(1).integers(0, 256, (30, 32, 24, 3), "uint8")
    return keras_mixer.data.from_arrays(images, TRUE, label_names=LABELS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model on disk."""
    model = drawn_model()
    model.labels = LABELS
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    model.save(path)
    return path


@pytest.fixture
def opened(monkeypatch):
    """The splits that were asked for; the data are arrays."""
    splits = []

    def opened_source(options, split):
        assert options.data == "birds"
        splits.append(split)
        return birds()

    monkeypatch.setattr(evaluation, "opened_source", opened_source)
    monkeypatch.setenv("COLUMNS", "120")
    return splits


def run(command, saved, *arguments):
    return main(
        [command, "--model", str(saved), "--data", "birds", *map(str, arguments)]
    )


def test_evaluate_prints_accuracies_and_classes(saved, opened, capsys, tmp_path):
    real, numbers = tmp_path / "real.json", tmp_path / "numbers.json"
    real.write_text(json.dumps([[int(label)] for label in TRUE]))
    assert run("evaluate", saved, "--real", real, "--json", numbers) == 0
    out = capsys.readouterr().out
    evaluation = keras_mixer.evaluation.evaluate(read_model(saved), birds())
    written = json.loads(numbers.read_text())
    assert written == evaluation.to_dict() | {"real": evaluation.top_1}
    assert f"30 images: top-1 {evaluation.top_1:.2%}, top-5 100.00%, ReaL" in out
    lines = [line for line in out.splitlines() if line.startswith("│")]
    order = sorted(evaluation.classes, key=lambda result: result.recall)
    shown = [line.split("│")[1].strip() for line in lines]
    assert shown == [result.name for result in order]
    assert f"{order[0].recall:.1%}" in lines[0]
    assert opened[0] == "test"


def test_evaluate_lists_the_worst_and_draws(saved, opened, capsys, tmp_path):
    plot = tmp_path / "plots" / "confusion.png"
    assert run("evaluate", saved, "--worst", 2, "--plot", plot, "--split", "val") == 0
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if line.startswith("│")]) == 2
    assert "The worst 2 of 5 classes" in out and f"Written: {plot}" in out
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert opened == ["val"]


def test_fewshot_prints_every_seed_and_the_mean(saved, opened, capsys, tmp_path):
    numbers, cache = tmp_path / "numbers.json", tmp_path / "cache"
    arguments = ["--shots", 1, 2, "--seeds", 4, 7, "--l2", 8, "--cache-dir", cache]
    assert run("fewshot", saved, *arguments, "--json", numbers) == 0
    written = json.loads(numbers.read_text())
    assert written["l2"] == 8 and written["seeds"] == [4, 7]
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
    for row, (shots, values) in zip(rows, written["accuracies"].items(), strict=True):
        cells = [shots, *(f"{value:.2%}" for value in (*values, np.mean(values)))]
        assert [cell.strip() for cell in row] == cells
    assert list(written["accuracies"]) == ["1", "2"]
    assert opened == ["train", "test"]
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_file_of_real_labels_is_named(saved, opened, capsys, tmp_path):
    path = tmp_path / "real.json"
    path.write_text("[[1], [2")
    assert run("evaluate", saved, "--real", path) == 1
    assert str(path) in capsys.readouterr().err
    assert not opened


def test_classes_are_matched_by_position_only_when_asked(
    saved, capsys, monkeypatch, tmp_path
):
    images = np.random.default_rng(1).integers(0, 256, (30, 32, 24, 3), "uint8")
    others = keras_mixer.data.from_arrays(images, TRUE, label_names=tuple("vwxyz"))
    monkeypatch.setattr(evaluation, "opened_source", lambda *arguments: others)
    assert run("evaluate", saved) == 1
    assert "--match position" in capsys.readouterr().err
    assert run("evaluate", saved, "--match", "position") == 0
    right = keras_mixer.evaluation.evaluate(read_model(saved), birds()).top_1
    assert f"top-1 {right:.2%}" in capsys.readouterr().out
