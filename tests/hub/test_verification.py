import json

import keras
import numpy as np
import oracle
import pytest
from drawn import LABELS, drawn_model

from keras_mixer.files import sha256_of
from keras_mixer.hub import verification
from keras_mixer.hub.model_files import reading_arguments, write_model
from keras_mixer.hub.numpy_mixer import mixer
from keras_mixer.hub.repository import write_checksums
from keras_mixer.hub.verification import verify
from keras_mixer.models.mixer import model_weights
from keras_mixer.preprocessing import Preprocessing

KINDS = {
    "tanh": {},
    "exact GELU": {"approximate_gelu": False},
    "headless": {"num_classes": 0},
    "logits": {"classifier_activation": None},
    "normalised images": {"include_preprocessing": False},
    "another range": {"preprocessing": Preprocessing((0.0, 1.0))},
    "one grey block": {"num_blocks": 1, "input_shape": (8, 16, 1)},
    "with dropout": {"dropout_rate": 0.2, "stochastic_depth_rate": 0.4},
}


@pytest.mark.backend_free
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("num_classes", [0, 5])
def test_the_packages_numpy_mixer_is_that_of_the_tests(exact, num_classes):
    weights = model_weights(drawn_model(num_classes=num_classes))
    images = oracle.draw_images(3, 2, (32, 24, 3))
    actual = mixer(weights, images, approximate_gelu=not exact)
    expected = oracle.mixer(weights, images, approximate_gelu=not exact)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-12, atol=1e-12)
    if num_classes:
        np.testing.assert_allclose(actual[1], expected[1], rtol=1e-12, atol=1e-12)
    else:
        assert actual[1] is None


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_right_models_pass(changes):
    model = drawn_model(**changes)
    report = verify(model)
    assert report.parameters == model.count_params()
    assert report.arrays == len(model.weights)
    assert report.sha256 is None
    names = ["pre_logits", "logits"] if model.config["num_classes"] else ["pre_logits"]
    assert list(report.differences) == names
    for largest, allowed in report.differences.values():
        assert 0 < largest < allowed / 3  # else the tolerance is a matter of luck
        assert allowed < 1e-3


@pytest.mark.parametrize("name", ["model.npz", "model.weights.h5", "model.keras"])
def test_right_files_pass(name, tmp_path):
    model, path = drawn_model(), tmp_path / name
    write_model(model, path)
    report = verify(path, **reading_arguments(model, path))
    assert report.sha256 == sha256_of(path)
    assert report.sizes["input_shape"] == (32, 24, 3)
    assert report.parameters == model.count_params()


@pytest.mark.backend_free
def test_the_report_is_a_table(tmp_path):
    write_model(drawn_model(), tmp_path / "folder")
    lines = str(verify(tmp_path / "folder")).splitlines()
    rows = dict(line.split("  ", 1) for line in lines)
    assert rows["verified"].strip() == str(tmp_path / "folder")
    assert rows["parameters"].strip() == f"{drawn_model().count_params():,}"
    assert "allowed" in rows["plain logits"]


# --- what is wrong is found -------------------------------------------------------


def set_epsilon(model):
    model.get_layer("pre_head_layer_norm").epsilon = 1e-3


def set_gelu(model):
    model.blocks[0].token_mixing.approximate_gelu = False


def set_one_nan(model):
    bias = model.get_layer("head").bias
    bias.assign(np.array([0, 0, np.nan, 0, 0], "float32"))


def change_activation(model):
    head = model.get_layer("head")
    head.call = lambda x: keras.ops.matmul(x, head.kernel) + head.bias


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (set_epsilon, "fails the check of its forward pass: pre_logits differ"),
        (set_gelu, "fails the check of its forward pass: pre_logits differ"),
        (set_one_nan, "check of its numbers in head/bias: 1 of its 5 numbers"),
        (change_activation, "forward pass: the outputs differ"),
    ],
)
def test_wrong_models_fail(change, match):
    model = drawn_model()
    change(model)
    with pytest.raises(ValueError, match=match):
        verify(model)


@pytest.mark.backend_free
def test_models_that_cannot_be_verified_are_refused():
    images = keras.Input((8,))
    other = keras.Model(images, keras.layers.Dense(2)(images))
    with pytest.raises(ValueError, match="its type: it must be an `MLPMixer`"):
        verify(other)
    with pytest.raises(ValueError, match="must compute in float32.*Received: bfloat16"):
        verify(drawn_model(dtype="mixed_bfloat16"))


@pytest.mark.backend_free
def test_a_count_that_is_wrong_fails(monkeypatch):
    monkeypatch.setattr(verification, "parameter_count", lambda config: 7)
    with pytest.raises(ValueError, match="check of its parameter count:.*must be 7"):
        verify(drawn_model())


@pytest.mark.backend_free
def test_the_shapes_of_the_sizes_are_asked_for(monkeypatch):
    shapes = verification._expected_shapes(drawn_model().config)
    del shapes["head/bias"]
    shapes["tail/bias"] = (5,)
    monkeypatch.setattr(verification, "_expected_shapes", lambda config: shapes)
    with pytest.raises(ValueError, match="names and shapes") as error:
        verify(drawn_model())
    assert "tail/bias" in str(error.value) and "head/bias" in str(error.value)


@pytest.mark.backend_free
def test_files_that_cannot_be_read_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        verify(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("no model")
    with pytest.raises(ValueError, match="text.npz"):
        verify(tmp_path / "text.npz")


@pytest.mark.backend_free
def test_one_changed_bit_is_not_the_same(tmp_path):
    model = drawn_model()
    write_model(model, tmp_path / "model.npz")
    assert verify(model, same_as=tmp_path / "model.npz")
    bias = model.get_layer("head").bias
    value = keras.ops.convert_to_numpy(bias).copy()
    value[3] = np.nextafter(value[3], np.float32(1))
    bias.assign(value)
    with pytest.raises(ValueError, match="equality with .*1 arrays differ, head/bias"):
        verify(model, same_as=tmp_path / "model.npz")
    with pytest.raises(ValueError, match="names and shapes must be"):
        verify(drawn_model(num_classes=0), same_as=tmp_path / "model.npz")


# --- folders ----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    model = drawn_model()
    model.labels = LABELS
    write_model(model, tmp_path / "folder")
    return tmp_path / "folder"


@pytest.mark.backend_free
@pytest.mark.parametrize("changes", [{}, *list(KINDS.values())[1:4]])
def test_right_folders_pass(changes, tmp_path):
    model, folder = drawn_model(**changes), tmp_path / "folder"
    write_model(model, folder)
    (folder / ".gitattributes").write_text("*.h5 filter=lfs\n")  # as from the Hub
    report = verify(folder)
    assert report.sha256 == sha256_of(folder / "model.weights.h5")
    names = ["pre_logits", "logits"] if model.config["num_classes"] else ["pre_logits"]
    assert list(report.differences) == names + [f"plain {name}" for name in names]


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "name",
    ["config.json", "model.weights.h5", "metadata.json", "labels.json", "README.md"],
)
def test_damage_in_any_file_is_found(folder, name):
    path = folder / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=f"checksums: checksums.json does not match {name}"
    ):
        verify(folder)


@pytest.mark.backend_free
def test_files_too_few_or_too_many_are_found(folder):
    (folder / "extra.txt").write_text("")
    with pytest.raises(ValueError, match="does not match extra.txt"):
        verify(folder)
    (folder / "extra.txt").unlink()
    (folder / "labels.json").unlink()
    with pytest.raises(ValueError, match="does not match labels.json"):
        verify(folder)
    (folder / "metadata.json").unlink()
    with pytest.raises(ValueError, match="checksums: there is no metadata.json"):
        verify(folder)


def change_plain_norm(config):
    for layer in config["config"]["layers"]:
        if layer["config"]["name"] == "pre_head_layer_norm":
            layer["config"]["epsilon"] = 1e-3


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("metadata.json", lambda m: m.update(parameter_count=1), "its metadata:"),
        ("metadata.json", lambda m: m.pop("parameter_count"), "its metadata:"),
        ("labels.json", lambda labels: labels.reverse(), "names in labels.json"),
        ("config.json", change_plain_norm, "its plain Keras model: pre_logits differ"),
        ("config.json", lambda c: c.pop("config"), "its plain Keras model"),
        ("config.json", lambda c: c.pop("keras_mixer"), "not published by keras_mixer"),
    ],
)
def test_wrong_content_with_right_checksums_is_found(folder, name, change, match):
    edit(folder / name, change)
    write_checksums(folder)
    with pytest.raises(ValueError, match=match):
        verify(folder)
