import time
import tracemalloc
import unicodedata

import pytest

from keras_mixer.data.class_folders import pictures_of, read_folder

# No backend computes here.
pytestmark = pytest.mark.backend_free

pytest.importorskip("tensorflow_datasets")


def pictures(folder, *names, count=3):
    """Empty files: no picture is opened here."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i}.png").touch()


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Train ", "train"),
        ("TRAINING", "train"),
        ("val", "validation"),
        ("Valid", "validation"),
        ("validation", "validation"),
        ("dev", "validation"),
        ("Test", "test"),
        ("testing", "test"),
    ],
)
def test_usual_names_are_splits_in_any_case(tmp_path, name, split):
    pictures(tmp_path / name, "ant", "bee")
    pictures(tmp_path / "__MACOSX" / name, "ant", "cow")
    pictures(tmp_path / "eval", "cat")
    with pytest.warns(UserWarning, match=r"1 folder\(s\) beside the splits, eval"):
        found = read_folder(tmp_path)
    assert list(found.splits) == [split]
    assert found.label_names == ("ant", "bee")
    for expression in (name.strip(), split, f"{name.strip()}[:100%]"):
        assert len(pictures_of(found, expression).labels) == 6


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (("train_set", "test_set"), "'test_set' seems to be a split.*ant, bee.*'test'"),
        (("Training data", "more"), "'Training data' seems .* Rename it to 'train'"),
        (("seg-val", "seg-pred"), "'seg-val' seems .* Rename it to 'validation'"),
    ],
)
def test_splits_under_other_names_are_no_classes(names, match, tmp_path):
    for name in names:
        pictures(tmp_path / name, "ant", "bee")
    with pytest.raises(ValueError, match=match):
        read_folder(tmp_path)


def test_splits_without_classes_are_no_classes(tmp_path):
    pictures(tmp_path, "train", "Test")
    with pytest.raises(ValueError, match="pictures in Test, train, but no folders of"):
        read_folder(tmp_path)


def test_a_split_has_one_folder(tmp_path):
    for name in ("val", "valid"):
        pictures(tmp_path / name, "ant")
    with pytest.raises(ValueError, match="the split 'validation'.*'val' and 'valid'"):
        read_folder(tmp_path)


def test_classes_may_have_names_of_splits(tmp_path):
    pictures(tmp_path, "bus", "train")
    assert read_folder(tmp_path).label_names == ("bus", "train")


def test_classes_may_have_folders_of_pictures(tmp_path):
    pictures(tmp_path / "cat", "monday", "tuesday")
    pictures(tmp_path / "dog", "monday")
    found = read_folder(tmp_path)
    assert found.label_names == ("cat", "dog")
    assert len(pictures_of(found, "train").labels) == 9


@pytest.mark.parametrize("inner", ["", "train", "Testing"])
def test_one_level_too_high_is_answered_with_the_right_path(tmp_path, inner):
    pictures(tmp_path / "animals" / inner, "cat", "dog")
    with pytest.raises(ValueError, match=r"give '.*/animals'") as error:
        read_folder(tmp_path)
    assert (inner or "cat, dog") in str(error.value)
    assert read_folder(tmp_path / "animals").label_names == ("cat", "dog")


def test_one_level_too_high_beside_another_folder(tmp_path):
    pictures(tmp_path / "set" / "train", "cat", "dog")
    pictures(tmp_path, "thumbnails")
    with pytest.raises(ValueError, match=r"train.*the splits, give '.*/set'"):
        read_folder(tmp_path)


def test_accents_are_one_name_in_either_form(tmp_path):
    for split, form in {"train": "NFD", "test": "NFC"}.items():
        pictures(tmp_path / split, unicodedata.normalize(form, "caf\u00e9"), "tea")
    pictures(tmp_path / "train", "caf\u00e9", count=1)
    found = read_folder(tmp_path)
    assert found.label_names == ("caf\u00e9", "tea")
    assert sorted(pictures_of(found, "train").labels) == [0] * 4 + [1] * 3
    assert sorted(pictures_of(found, "test").labels) == [0] * 3 + [1] * 3


def test_names_that_differ_by_case_are_shown(tmp_path):
    pictures(tmp_path / "train", "Cat", "dog")
    pictures(tmp_path / "test", "cat", "dog")
    with pytest.raises(ValueError, match="'Cat' and 'cat'"):
        read_folder(tmp_path)


def test_names_that_differ_by_spaces_are_shown(tmp_path):
    pictures(tmp_path, "cat ", "cat")
    with pytest.raises(ValueError, match="'cat' and 'cat '"):
        read_folder(tmp_path)


def test_what_a_person_may_miss_is_counted(tmp_path):
    pictures(tmp_path, "cat", "dog")
    for name in ("1", "2"):
        (tmp_path / "cat" / name).touch()
    (tmp_path / "dog" / "more").symlink_to(tmp_path / "cat")
    (tmp_path / "bird").symlink_to(tmp_path / "dog")  # a class may lie elsewhere
    with pytest.warns(UserWarning, match=r"2 file\(s\) without a suffix, cat/1"):
        found = pictures_of(read_folder(tmp_path), "train")
    assert len(found.labels) == 9


def test_opening_a_large_folder_takes_little_time_and_memory(tmp_path):
    """No object per file stays; a million files take 13 s and 0.9 GiB."""
    pictures(tmp_path, *"abcdefgh", count=500)
    found = read_folder(tmp_path)
    tracemalloc.start()
    start = time.process_time()
    files = pictures_of(found, "train")
    seconds = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(files.paths) == 4000
    assert seconds < 4000 * 250e-6  # traced, which is several times slower
    assert peak < 4000 * 500
