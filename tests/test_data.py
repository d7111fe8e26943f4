import keras
import numpy as np
import pytest

from keras_mixer import data

pytest.importorskip("tensorflow")


def numbered(count=32, size=8):
    """Images that are their number everywhere, so that every pixel tells which."""
    images = np.arange(1, count + 1, dtype="uint8")[:, None, None, None]
    images = np.broadcast_to(images, (count, size, size, 3)).copy()
    return data.from_arrays(images, np.arange(count) % 4)


def batches(source, count, **arguments):
    arguments = {"image_size": 8, "batch_size": 8, "pad": 0} | arguments
    stream = data.training_batches(source, **arguments).take(count)
    return [(x.numpy(), y.numpy()) for x, y in stream]


def test_one_pass_holds_every_image_once_with_its_label():
    seen = {}
    for images, labels in batches(numbered(), 4):
        assert images.dtype == np.float32 and images.shape == (8, 8, 8, 3)
        for image, label in zip(images, labels, strict=True):
            seen[int(image[0, 0, 0])] = label.argmax()
            assert label.sum() == 1
    assert seen == {i + 1: i % 4 for i in range(32)}


def test_the_order_changes_with_the_pass_and_the_seed_and_nothing_else():
    def order(first, seed):
        stream = batches(numbered(), 8, seed=seed)
        return [int(x) for images, _ in stream for x in images[:, 0, 0, 0]][first:][:32]

    assert order(0, seed=1) == order(0, seed=1)
    assert order(0, seed=1) != order(32, seed=1)
    assert order(0, seed=1) != order(0, seed=2)


def test_a_stream_can_go_on_where_another_stopped():
    arguments = {"pad": 2, "mixup": 0.4, "seed": 3}
    whole = batches(numbered(), 9, **arguments)
    rest = batches(numbered(), 4, first_step=5, **arguments)
    for (images, labels), (again, labels_again) in zip(whole[5:], rest, strict=True):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, labels_again)


def test_padding_shifts_and_flips():
    image = np.zeros((1, 8, 8, 3), "uint8")
    image[0, 3, 2] = 200  # one bright pixel, to see where it goes
    source = data.from_arrays(np.repeat(image, 64, 0), np.zeros(64, int))
    places = set()
    for images, _ in batches(source, 16, pad=2, batch_size=16):
        for one in images:
            rows, columns, _ = np.nonzero(one)
            places.add((rows[0], columns[0]))
    rows, columns = (sorted({place[i] for place in places}) for i in (0, 1))
    assert rows == [1, 2, 3, 4, 5]
    # Column 2 moves by -2 ... 2; flipped it is 5 and does the same.
    assert columns == [0, 1, 2, 3, 4, 5, 6, 7]


def test_mixup_blends_neighbours_of_the_batch_and_their_labels():
    plain = batches(numbered(), 20, seed=5)
    mixed = batches(numbered(), 20, seed=5, mixup=0.5)
    shares = []
    for (x, y), (mixed_x, mixed_y) in zip(plain, mixed, strict=True):
        rolled_x, rolled_y = np.roll(x, 1, axis=0), np.roll(y, 1, axis=0)
        i = int(np.abs(x - rolled_x)[:, 0, 0, 0].argmax())
        a = (mixed_x - rolled_x)[i, 0, 0, 0] / (x - rolled_x)[i, 0, 0, 0]
        np.testing.assert_allclose(mixed_x, a * x + (1 - a) * rolled_x, atol=1e-4)
        np.testing.assert_allclose(mixed_y, a * y + (1 - a) * rolled_y, atol=1e-5)
        shares.append(a)
    assert 0.5 <= min(shares) and max(shares) <= 1
    assert np.std(shares) > 0.05  # drawn anew for every batch


def test_evaluation_is_one_pass_in_order():
    source = numbered(10)
    stream = data.evaluation_batches(source, image_size=8, batch_size=4)
    values = [x[:, 0, 0, 0].numpy().astype(int).tolist() for x, _ in stream]
    assert values == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_other_sizes_are_resized():
    source = data.from_arrays(np.full((4, 16, 12, 3), 7, "uint8"), np.arange(4))
    ((images, _),) = batches(source, 1, batch_size=4)
    assert images.shape == (4, 8, 8, 3) and (images == 7).all()
    (images, _) = next(
        iter(data.evaluation_batches(source, image_size=8, batch_size=4))
    )
    assert images.shape == (4, 8, 8, 3)


def test_tfds_sources_know_their_names_and_slices(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    import tensorflow as tf

    images = np.arange(10, dtype="uint8")[:, None, None, None] * np.ones(
        (1, 6, 6, 3), "uint8"
    )
    examples = {"image": images, "label": np.arange(10) % 2}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(6, 6, 3), encoding_format="png"),
                "label": tfds.features.ClassLabel(names=["even", "odd"]),
            }
        ),
        split_datasets={"train": tf.data.Dataset.from_tensor_slices(examples)},
        data_dir=str(tmp_path),
        disable_shuffling=True,
    )
    source = data.from_tfds("tiny", "train[:50%]", data_dir=tmp_path)
    assert source.label_names == ("even", "odd")
    assert source.num_examples == 5
    ((images, labels),) = data.evaluation_batches(source, image_size=6, batch_size=9)
    assert images[:, 0, 0, 0].numpy().tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="must be one of train"):
        data.from_tfds("tiny", "nonsense", data_dir=tmp_path)
    assert labels.numpy().argmax(1).tolist() == [0, 1, 0, 1, 0]


def test_unknown_data_sets_and_splits_are_named(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(ValueError, match="no_such_data_set"):
        data.from_tfds("no_such_data_set", "train", data_dir=tmp_path)


def test_fit_takes_the_batches():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(4, activation="softmax"))
    model.compile("sgd", "categorical_crossentropy")
    stream = data.training_batches(numbered(), image_size=8, batch_size=8)
    history = model.fit(stream, steps_per_epoch=2, verbose=0, shuffle=False)
    assert np.isfinite(history.history["loss"][0])


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1], None, "4 images, 2 labels"),
        ([0, 1, 2, -1], None, "from -1 to 2"),
        ([0, 1, 2, 3], ["a", "b"], r"\[0, 2\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(labels, names, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays(np.zeros((4, 8, 8, 3)), labels, label_names=names)
