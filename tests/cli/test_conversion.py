import numpy as np
import pytest
from drawn import drawn_model

from keras_mixer.checkpoints import read_weights
from keras_mixer.cli.main import main
from keras_mixer.hub import read_model, write_model

pytestmark = pytest.mark.backend_free

OVERRIDES = [
    "--input-shape",
    "32",
    "24",
    "3",
    "--exact-gelu",
    "--value-range",
    "0",
    "1",
]


@pytest.fixture
def official(tmp_path):
    """An official file, as somebody fine-tuned it in the official code."""
    path = tmp_path / "tuned.npz"
    write_model(drawn_model(), path)
    return path


@pytest.mark.parametrize("name", ["model.weights.h5", "model.keras", "folder"])
def test_convert_goes_both_ways(capsys, official, tmp_path, name):
    target, back = str(tmp_path / name), str(tmp_path / "back.npz")
    shape = ["--input-shape", "32", "24", "3"]
    assert main(["convert", str(official), target, *shape]) == 0
    overrides = shape if name.endswith(".h5") else []
    assert main(["convert", target, back, *overrides]) == 0
    assert f"Written: {back}" in capsys.readouterr().out
    (one, _), (other, _) = read_weights(official), read_weights(back)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)


def test_convert_takes_what_the_file_does_not_say(capsys, official, tmp_path):
    target = tmp_path / "model.keras"
    assert main(["convert", str(official), str(target), *OVERRIDES]) == 0
    model = read_model(target)
    assert model.config["approximate_gelu"] is False
    assert model.preprocessing.value_range == (0.0, 1.0)
    # And says what is lost on the way back.
    capsys.readouterr()
    assert main(["convert", str(target), str(tmp_path / "back.npz")]) == 0
    out = capsys.readouterr().out
    assert "--input-shape 32 24 3 --exact-gelu --value-range 0 1" in out


def test_convert_to_timm_and_back_with_a_range_for_each_channel(
    capsys, official, tmp_path
):
    target, shape = str(tmp_path / "model.safetensors"), OVERRIDES[:4]
    assert main(["convert", str(official), target, *shape]) == 1
    assert "must have the exact form of GELU" in capsys.readouterr().err
    ranges = "--value-range -2 1 --value-range 0 1.234567891 --value-range 0 2"
    overrides = [*shape, "--exact-gelu", *ranges.split()]
    assert main(["convert", str(official), target, *overrides]) == 0
    assert ranges in capsys.readouterr().out
    overrides = [*shape, *ranges.split()]
    assert main(["convert", target, str(tmp_path / "back.keras"), *overrides]) == 0
    model = read_model(tmp_path / "back.keras")
    assert model.preprocessing.value_range == ((-2, 1), (0, 1.234567891), (0, 2))
    assert model.config["approximate_gelu"] is False
    (one, _), (other, _) = read_weights(official), read_weights(target)
    assert all(np.array_equal(one[key], other[key]) for key in one)


def test_convert_and_publish_take_the_classes(capsys, official, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\nelk\n")
    overrides = [*OVERRIDES, "--labels", str(names)]
    assert (
        main(["convert", str(official), str(tmp_path / "model.keras"), *overrides]) == 0
    )
    dry = ["--dry-run", str(tmp_path / "folder")]
    assert main(["publish", str(official), "alice/pets", *overrides, *dry]) == 0
    for source in ("model.keras", "folder"):
        labels = read_model(tmp_path / source).labels
        assert labels == ("ant", "bee", "cat", "dog", "elk")
    names.write_text("ant\nbee\n")
    capsys.readouterr()
    assert main(["convert", str(official), str(tmp_path / "two"), *overrides]) == 1
    assert "2 names for 5 classes" in capsys.readouterr().err
    assert not (tmp_path / "two").exists()


def test_convert_replaces_nothing_unasked(capsys, official, tmp_path):
    shape = ["--input-shape", "32", "24", "3"]
    (tmp_path / "there.npz").write_text("precious")
    arguments = ["convert", str(official), str(tmp_path / "there.npz"), *shape]
    assert main(arguments) == 1
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "there.npz").read_text() == "precious"
    assert main([*arguments, "--force"]) == 0
    assert read_weights(tmp_path / "there.npz")


def test_verify_prints_what_it_found(capsys, official, tmp_path):
    write_model(drawn_model(), tmp_path / "folder")
    arguments = ["verify", str(tmp_path / "folder"), str(tmp_path / "folder")]
    assert main([*arguments, "--same-as", str(official)]) == 0
    out = capsys.readouterr().out
    assert out.count(f"{drawn_model().count_params():,}") == 2
    assert "plain logits" in out
    (tmp_path / "folder" / "README.md").write_text("edited")
    assert main(["verify", str(tmp_path / "folder")]) == 1
    assert "checksums.json does not match README.md" in capsys.readouterr().err


def test_publish_can_write_instead_of_sending(capsys, official, tmp_path):
    folder = tmp_path / "folder"
    arguments = [
        "publish",
        str(official),
        "alice/mixer",
        *OVERRIDES,
        "--licence",
        "mit",
    ]
    arguments += ["--dataset", "cifar10", "--dataset", "mnist"]
    assert main([*arguments, "--dry-run", str(folder)]) == 0
    assert "Written, nothing sent" in capsys.readouterr().out
    card = (folder / "README.md").read_text()
    for part in ("hf://alice/mixer", "license: mit", "- cifar10\n- mnist"):
        assert part in card
    assert main(["verify", str(folder), "--same-as", str(official)]) == 0


def test_publish_sends_what_was_verified(capsys, official, monkeypatch):
    sent = {}

    def push(model, repository, **facts):
        sent.update(facts, config=model.config, repository=repository)
        return "c" * 40

    monkeypatch.setattr("keras_mixer.hub.push_to_hub", push)
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    arguments = ["publish", str(official), "alice/mixer", *OVERRIDES]
    assert main([*arguments, "--private", "--tag", "v1", "--message", "First"]) == 0
    out = capsys.readouterr().out
    assert f"hf://alice/mixer@{'c' * 40}" in out and "logits" in out
    assert sent["repository"] == "alice/mixer"
    assert sent["config"]["approximate_gelu"] is False
    assert (sent["private"], sent["tag"]) == (True, "v1")
    assert sent["commit_message"] == "First"
    assert (sent["licence"], sent["datasets"]) == ("apache-2.0", [])
