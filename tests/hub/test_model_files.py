import keras
import numpy as np
import pytest
from drawn import LABELS, drawn_model

from keras_mixer.checkpoints.weight_files import read_weights
from keras_mixer.hub import model_files
from keras_mixer.hub.model_files import read_model, reading_arguments, write_model
from keras_mixer.preprocessing import Preprocessing

TARGETS = (
    "model.npz",
    "model.safetensors",
    "model.weights.h5",
    "model.keras",
    "folder-v1.0",
)


def predictions(model):
    images = np.random.default_rng(1).uniform(0, 255, (2, *model.input_shape[1:]))
    return keras.ops.convert_to_numpy(model(images.astype("float32")))


@pytest.fixture(scope="module")
def model():
    model = drawn_model(
        approximate_gelu=False, preprocessing=Preprocessing((0.0, 1.0), "resize")
    )
    model.labels = LABELS
    return model


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_written_is_read_back(model, name, tmp_path):
    target = tmp_path / "new" / name
    write_model(model, target)
    assert [path.name for path in target.parent.iterdir()] == [name]
    again = read_model(target, **reading_arguments(model, target))
    assert again.config == model.config
    np.testing.assert_array_equal(predictions(again), predictions(model))
    if name in ("model.keras", "folder-v1.0"):
        assert again.labels == LABELS
        assert again.preprocessing == model.preprocessing


@pytest.mark.parametrize("source", TARGETS)
def test_every_kind_becomes_the_same_official_file(model, source, tmp_path):
    write_model(model, tmp_path / source)
    told = reading_arguments(model, tmp_path / source)
    write_model(read_model(tmp_path / source, **told), tmp_path / "again.npz")
    write_model(model, tmp_path / "direct.npz")
    one, other = (read_weights(tmp_path / f"{n}.npz")[0] for n in ("again", "direct"))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_only_what_a_file_does_not_tell_has_to_be_told(model, tmp_path):
    assert reading_arguments(model, "model.npz") == {
        "input_shape": (32, 24, 3),
        "approximate_gelu": False,
        "value_range": (0.0, 1.0),
    }
    assert reading_arguments(model, "model.keras") == {}
    assert reading_arguments(drawn_model(input_shape=(32, 32, 3)), "m.npz") == {}


def test_a_relative_path_and_an_empty_folder_will_do(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_model(model, "empty")
    assert read_model("empty").config == model.config


@pytest.mark.backend_free
@pytest.mark.parametrize("name", ["model.npz", "model.keras", "folder"])
def test_the_home_folder_may_be_a_tilde(model, name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_model(model, f"~/{name}")
    assert (tmp_path / name).exists()
    arguments = reading_arguments(model, name)
    assert read_model(f"~/{name}", **arguments).count_params() == model.count_params()


def test_square_images_and_the_head_come_from_the_file(tmp_path):
    model = drawn_model(input_shape=(32, 32, 4), num_classes=0)
    write_model(model, tmp_path / "model.npz")
    again = read_model(tmp_path / "model.npz")
    assert again.input_shape == (None, 32, 32, 4)
    assert again.config["num_classes"] == 0


def test_patches_that_make_no_square_need_the_shape(model, tmp_path):
    path = tmp_path / "model.npz"
    write_model(model, path)
    with pytest.raises(ValueError, match="`input_shape` must be given: the 12 patches"):
        read_model(path)
    with pytest.raises(ValueError, match="do not fit the model"):
        read_model(path, input_shape=(32, 32, 3))


def test_a_whole_model_takes_no_overrides(model, tmp_path):
    write_model(model, tmp_path / "model.keras")
    with pytest.raises(ValueError, match="says them itself. Received: value_range="):
        read_model(tmp_path / "model.keras", value_range=(0, 1))


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("absent.npz", FileNotFoundError, "absent.npz"),
        ("absent.keras", FileNotFoundError, "no file .*absent.keras"),
        ("absent", FileNotFoundError, "no folder .*absent"),
        ("text.keras", ValueError, "text.keras.* cannot be read"),
        ("text.npz", ValueError, "text.npz"),
        ("text.pt", ValueError, "`source` must be"),
        ("other.keras", ValueError, "must hold a Mixer.*Received: Functional"),
    ],
)
def test_what_is_no_model_is_refused(name, error, match, tmp_path):
    for ending in ("keras", "npz", "pt"):
        (tmp_path / f"text.{ending}").write_text("no model")
    if name == "other.keras":
        images = keras.Input((8,))
        keras.Model(images, keras.layers.Dense(2)(images)).save(tmp_path / name)
    with pytest.raises(error, match=match):
        read_model(tmp_path / name)


@pytest.mark.backend_free
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_replaced_unasked(model, name, tmp_path):
    write_model(model, tmp_path / name)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_model(model, tmp_path / name)
    # timm's files are those of the exact form of GELU, the others of the tanh form.
    exact = name.endswith(".safetensors")
    other = drawn_model(seed=1, input_shape=(32, 32, 3), approximate_gelu=not exact)
    write_model(other, tmp_path / name, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    again = read_model(tmp_path / name)
    np.testing.assert_array_equal(predictions(again), predictions(other))


def test_folders_and_files_of_others_are_never_replaced(model, tmp_path):
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "monday.txt").write_text("dear diary")
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder.npz").mkdir()
    for name, match in {
        "diary": "not of a published model: monday.txt",
        "file": "is a file",
        "folder.npz": "is a folder",
    }.items():
        with pytest.raises(FileExistsError, match=match):
            write_model(model, tmp_path / name, overwrite=True)
    for name in ("model.npy", "model.h5", "model.pt"):
        with pytest.raises(ValueError, match="`target` must end in"):
            write_model(model, tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.backend_free
@pytest.mark.parametrize("name", TARGETS)
def test_what_fails_leaves_the_old_one_and_nothing_else(
    model, name, tmp_path, monkeypatch
):
    target = tmp_path / name
    write_model(model, target)
    before = predictions(read_model(target, **reading_arguments(model, target)))

    def fail_half_way(model, path):
        assert path != target and path.name == name
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
        raise OSError(28, "No space left on device")

    ending = model_files._ending(target)
    if ending:
        monkeypatch.setitem(model_files._WRITERS, ending, fail_half_way)
    else:
        monkeypatch.setattr(model_files, "write_repository", fail_half_way)
    with pytest.raises(OSError, match="No space left"):
        write_model(drawn_model(seed=1), target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    again = read_model(target, **reading_arguments(model, target))
    np.testing.assert_array_equal(predictions(again), before)
