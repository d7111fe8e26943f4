import numpy as np
import pytest
from drawn import drawn_model

import keras_mixer
from keras_mixer.evaluation import features
from keras_mixer.evaluation.features import extract
from keras_mixer.preprocessing import Preprocessing

pytest.importorskip("tensorflow")


def photos(count=9):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 24, 3), "uint8")


def source_of(images):
    return keras_mixer.data.from_arrays(images, np.arange(len(images)) % 4)


@pytest.fixture
def passes(monkeypatch):
    """How many images each pass had, of a stand-in for the model: new numbers each."""
    seen = []

    def outputs(model, source, **arguments):
        seen.append(source.num_examples)
        yield np.random.default_rng(len(seen)).normal(size=(seen[-1], 4)), None

    monkeypatch.setattr(features, "outputs", outputs)
    return seen


def test_features_are_the_pre_logits():
    model, images = (
        drawn_model(preprocessing=Preprocessing(transform="resize")),
        photos(),
    )
    expected = model.features("pre_logits").predict(images, verbose=0)
    found = extract(model, source_of(images), batch_size=4)
    assert found.dtype == np.float32 and np.ptp(expected, axis=0).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_some_examples_are_those_rows_and_only_they_are_computed(monkeypatch):
    model, source, seen = drawn_model(), source_of(photos()), []

    def counted(model, source, **arguments):
        seen.append(source.num_examples)
        return outputs(model, source, **arguments)

    outputs = features.outputs
    monkeypatch.setattr(features, "outputs", counted)
    every = extract(model, source)
    some = extract(model, source, indices=np.array([1, 4, 8]))
    np.testing.assert_allclose(some, every[[1, 4, 8]], atol=1e-5)
    assert seen == [9, 3]


def test_cached_features_need_no_model(passes, tmp_path):
    model, source = drawn_model(), source_of(photos())
    first = extract(model, source, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(
        extract(model, source_of(photos()), cache_dir=tmp_path / "cache"), first
    )
    assert passes == [9]
    (file,) = (tmp_path / "cache").iterdir()
    assert file.suffix == ".npz"


def one_pixel_off(images):
    images = images.copy()
    images[-1, -1, -1, -1] ^= 1
    return images


@pytest.mark.parametrize(
    "change",
    [
        {"images": one_pixel_off},
        {"images": lambda images: images[::-1]},
        {"images": lambda images: images[:-1]},
        {"images": lambda images: images.astype("float32")},
        {"weight": "block_1/channel_mixing/dense_1/bias"},
        {"model": {"approximate_gelu": False}},
        {"model": {"dtype": "mixed_bfloat16"}},
        {"model": {"preprocessing": Preprocessing((0.0, 1.0))}},
        {"preprocessing": Preprocessing(interpolation="area")},
        {"indices": np.arange(8)},
    ],
    ids=[
        "pixel",
        "order",
        "fewer",
        "dtype",
        "weight",
        "gelu",
        "policy",
        "model-range",
        "interpolation",
        "indices",
    ],
)
def test_nothing_else_is_taken_from_the_cache(change, passes, tmp_path):
    first = extract(drawn_model(), source_of(photos()), cache_dir=tmp_path)
    model = drawn_model(**change.get("model", {}))
    for weight in model.weights:
        if weight.path == change.get("weight"):
            weight.assign(weight + 1e-3)
    source = source_of(change.get("images", lambda images: images)(photos()))
    arguments = {key: change.get(key) for key in ("indices", "preprocessing")}
    found = extract(model, source, cache_dir=tmp_path, **arguments)
    assert len(passes) == 2 and not np.array_equal(found, first)
    again = extract(model, source, cache_dir=tmp_path, **arguments)
    assert len(passes) == 2 and np.array_equal(found, again)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("keep", [0, 100, -30])
def test_a_damaged_file_is_written_again(keep, passes, tmp_path):
    model, source = drawn_model(), source_of(photos())
    extract(model, source, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:keep])
    found = [extract(model, source, cache_dir=tmp_path) for _ in range(2)]
    np.testing.assert_array_equal(*found)
    assert len(passes) == 2 and found[0].shape == (9, 4)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_flipped_byte_is_found(passes, tmp_path):
    model, source = drawn_model(), source_of(photos())
    first = extract(model, source, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    again = extract(model, source, cache_dir=tmp_path)
    assert len(passes) == 2 and not np.array_equal(again, first)


def test_a_failed_write_leaves_no_file(passes, monkeypatch, tmp_path):
    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="no space left"):
        extract(drawn_model(), source_of(photos()), cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_a_mixer_has_features():
    with pytest.raises(ValueError, match="`model` must be a Keras model"):
        extract(None, source_of(photos()))
