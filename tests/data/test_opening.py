import numpy as np
import pytest

from keras_mixer import data
from keras_mixer.data import opening

# No backend computes here.
pytestmark = pytest.mark.backend_free

tf = pytest.importorskip("tensorflow")
tfds = pytest.importorskip("tensorflow_datasets")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(folder, *names, count=6):
    for k, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            image = np.full((4, 4, 3), 20 * k + i, "uint8")
            Image.fromarray(image).save(folder / name / f"{i}.png")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("./pets", True),
        ("../pets", True),
        ("~/pets", True),
        ("/data/pets", True),
        ("data/pets", True),
        ("pets.v2", True),
        ("cifar10", False),
        ("cifar10:3.0.2", False),
        ("cifar10_corrupted/fog_1", False),
        ("pets", False),
    ],
)
def test_what_looks_like_a_path_is_one(text, path):
    assert opening._looks_like_path(text) == path


def test_a_path_that_is_not_there_is_no_name(here):
    for text in ("./cifar10", "data/pets", here / "cifar10"):
        with pytest.raises(FileNotFoundError, match="There is no folder"):
            data.open_source(text, "train")
    with pytest.raises(ValueError, match="Received: ''"):
        data.open_source("", "train")


def test_a_folder_with_a_name_of_tfds_is_not_taken_without_a_word(here):
    pictures(here / "cifar10", "cat", "dog")
    with pytest.warns(UserWarning, match=r"not from TFDS. Write '\./cifar10'"):
        source = data.open_source("cifar10", "train")
    assert source.num_examples == 12
    assert data.open_source("./cifar10", "train").num_examples == 12


def test_a_data_set_in_data_dir_comes_before_a_folder(here):
    pictures(here / "tiny", "cat")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(2, 2, 3)),
                "label": tfds.features.ClassLabel(names=["x"]),
            }
        ),
        split_datasets={
            "train": tf.data.Dataset.from_tensor_slices(
                {"image": np.zeros((3, 2, 2, 3), "uint8"), "label": [0, 0, 0]}
            )
        },
        data_dir=str(here / "prepared"),
    )
    source = data.open_source("tiny", "train", data_dir=here / "prepared")
    assert source.label_names == ("x",)
    assert data.open_source("tiny", "train").label_names == ("cat",)


def test_no_server_is_asked_for_a_name_that_nobody_knows(here, monkeypatch):
    monkeypatch.setattr(tfds, "builder", None)
    with pytest.raises(ValueError, match="`name` must be a data set of TFDS.*petz"):
        data.open_source("petz", "train", data_dir=here / "none")


def test_a_part_is_held_out_where_there_is_nothing_to_measure_on(here):
    pictures(here / "flat", "cat", "dog", count=20)
    train, held, said = data.open_training_sources(here / "flat")
    assert (train.num_examples, held.num_examples) == (36, 4)
    assert said.startswith("Measured on 4 of 40 examples of train, which are held out")
    assert sorted(held.labels()) == [0, 0, 1, 1]
    names = [source.fingerprint() for source in (train, held)]
    again = data.open_training_sources(here / "flat")[:2]
    assert [source.fingerprint() for source in again] == names
    other = data.open_training_sources(here / "flat", seed=1)[1]
    assert other.fingerprint() != names[1]


def test_what_there_is_to_measure_on_is_taken(here):
    for split in ("Train", "Test"):
        pictures(here / "two" / split, "cat", "dog")
    assert data.open_training_sources(here / "two")[2] == (
        "Measured on 12 examples of test."
    )
    pictures(here / "two" / "valid", "cat", "dog", count=1)
    train, held, said = data.open_training_sources(here / "two")
    assert (train.num_examples, held.num_examples) == (12, 2)
    assert said == "Measured on 2 examples of validation."


def test_one_class_is_nothing_to_train_on(here):
    pictures(here / "flat", "only\x1b[2J")
    with pytest.raises(ValueError, match=r"two classes or more.*only.x1b\[2J$"):
        data.open_training_sources(here / "flat")
