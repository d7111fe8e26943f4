import json

import pytest

import keras_mixer
from keras_mixer.cli.main import main
from keras_mixer.variants import VARIANTS

pytestmark = pytest.mark.backend_free


def test_models_prints_one_line_per_size_and_checkpoint(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert [line for line in lines if "59,880,472" in line and "B/16" in line]
    rows = [tuple(line.split()) for line in lines]
    for checkpoint in keras_mixer.list_checkpoints():
        (row,) = [r for r in rows if r[:2] == (checkpoint.variant, checkpoint.name)]
        assert row[3] == checkpoint.licence
        assert row[4:6] == (str(checkpoint.num_classes), str(checkpoint.image_size))
        if checkpoint.size:
            assert row[2] == f"{checkpoint.size / 1e6:.1f}"
        assert checkpoint.accuracy.startswith(" ".join(row[6:]))
        assert f"{checkpoint.name}: {checkpoint.origin}" in lines


def test_models_of_one_variant(capsys):
    assert main(["models", "--variant", "L/32"]) == 0
    out = capsys.readouterr().out
    assert "206,939,264" in out and "B/16" not in out and "No weights" in out


def test_models_as_json(capsys):
    assert main(["models", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert [model["variant"] for model in known["models"]] == list(VARIANTS)
    assert known["models"][5]["parameters"] == 59_880_472
    for record, checkpoint in zip(
        known["weights"],
        [c for v in VARIANTS for c in keras_mixer.list_checkpoints(v)],
        strict=True,
    ):
        assert (record["variant"], record["weights"]) == (
            checkpoint.variant,
            checkpoint.name,
        )
        assert record["licence"] == checkpoint.licence
        assert record["accuracy"] == checkpoint.accuracy
        assert record["size"] > 4_000_000
