import numpy as np
import pytest
from drawn import drawn_model

import keras_mixer
from keras_mixer.checkpoints.weight_files import read_weights
from keras_mixer.cli.main import main
from keras_mixer.hub.model_files import read_model, write_model


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


def test_predict_takes_a_published_folder(capsys, picture, tmp_path):
    model = drawn_model()
    model.labels = tuple("abcde")
    write_model(model, tmp_path / "folder")
    arguments = ["predict", str(picture), "--model", str(tmp_path / "folder")]
    assert main([*arguments, "--top", "5"]) == 0
    out = capsys.readouterr().out
    assert all(f" {label} " in out for label in "abcde")


# --- convert, verify, publish -----------------------------------------------------

TOLD = ["--input-shape", "32", "24", "3", "--exact-gelu", "--value-range", "0", "1"]


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
    told = shape if name.endswith(".h5") else []
    assert main(["convert", target, back, *told]) == 0
    assert f"Written: {back}" in capsys.readouterr().out
    (one, _), (other, _) = read_weights(official), read_weights(back)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)


def test_convert_is_told_what_the_file_does_not_tell(capsys, official, tmp_path):
    target = tmp_path / "model.keras"
    assert main(["convert", str(official), str(target), *TOLD]) == 0
    model = read_model(target)
    assert model.config["approximate_gelu"] is False
    assert model.preprocessing.value_range == (0.0, 1.0)
    # And says what is lost on the way back.
    capsys.readouterr()
    assert main(["convert", str(target), str(tmp_path / "back.npz")]) == 0
    out = capsys.readouterr().out
    assert "--input-shape 32 24 3 --exact-gelu --value-range 0 1" in out


def test_convert_and_publish_are_told_the_classes(capsys, official, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\nelk\n")
    told = [*TOLD, "--labels", str(names)]
    assert main(["convert", str(official), str(tmp_path / "model.keras"), *told]) == 0
    dry = ["--dry-run", str(tmp_path / "folder")]
    assert main(["publish", str(official), "alice/pets", *told, *dry]) == 0
    for source in ("model.keras", "folder"):
        labels = read_model(tmp_path / source).labels
        assert labels == ("ant", "bee", "cat", "dog", "elk")
    names.write_text("ant\nbee\n")
    capsys.readouterr()
    assert main(["convert", str(official), str(tmp_path / "two"), *told]) == 1
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
    assert "checksums.json is wrong of README.md" in capsys.readouterr().err


def test_publish_can_write_instead_of_sending(capsys, official, tmp_path):
    folder = tmp_path / "folder"
    arguments = ["publish", str(official), "alice/mixer", *TOLD, "--licence", "mit"]
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
    arguments = ["publish", str(official), "alice/mixer", *TOLD]
    assert main([*arguments, "--private", "--tag", "v1", "--message", "First"]) == 0
    out = capsys.readouterr().out
    assert f"hf://alice/mixer@{'c' * 40}" in out and "logits" in out
    assert sent["repository"] == "alice/mixer"
    assert sent["config"]["approximate_gelu"] is False
    assert (sent["private"], sent["tag"]) == (True, "v1")
    assert sent["commit_message"] == "First"
    assert (sent["licence"], sent["datasets"]) == ("apache-2.0", [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "absent.png"], "absent.png"),
        (["predict", ".", "--weights", "nonsense"], "nonsense"),
        (["predict", ".", "--variant", "B16"], "--variant must be one of Ti/4"),
        (["models", "--variant", "Z/9"], "Z/9"),
        (["predict", ".", "--model", "absent.keras"], "absent.keras"),
        (["convert", "absent.npz", "new.keras"], "absent.npz"),
        (["convert", "picture.png", "new.keras"], "`source` must be"),
        (["convert", "absent.npz", "new.safetensors"], "`target` must end in"),
        (["verify", "absent"], "absent"),
        (["publish", "absent.npz", "owner/name"], "absent.npz"),
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


@pytest.mark.parametrize(
    "command",
    [[], *([name] for name in ("models", "predict", "convert", "verify", "publish"))],
)
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "usage: keras-mixer" in capsys.readouterr().out
