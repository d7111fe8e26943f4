import numpy as np
import pytest

from keras_mixer import data
from keras_mixer.data import sources

# No backend computes here.
pytestmark = pytest.mark.backend_free

tf = pytest.importorskip("tensorflow")


@pytest.fixture
def tfds():
    return pytest.importorskip("tensorflow_datasets")


def store(tfds, folder, features, examples, name="tiny"):
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": tf.data.Dataset.from_tensor_slices(examples)},
        data_dir=str(folder),
        disable_shuffling=True,
    )


@pytest.fixture
def tiny(tfds, tmp_path):
    """Ten grey PNGs that are their number everywhere."""
    pixels = np.arange(10, dtype="uint8")[:, None, None, None]
    examples = {
        "image": pixels * np.ones((1, 6, 6, 1), "uint8"),
        "label": np.arange(10) % 2,
        "weight": np.ones(10, "float32"),
    }
    features = {
        "image": tfds.features.Image(shape=(6, 6, 1), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=["even", "odd"]),
        "weight": tfds.features.Scalar(tf.float32),
    }
    store(tfds, tmp_path, features, examples)
    return tmp_path


def test_file_names_come_in_the_order_of_the_images(tfds, tmp_path):
    names = ["val_3.png", "val_1.png", "val_2.png"]
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(num_classes=2),
        "file_name": tfds.features.Text(),
    }
    images = np.zeros((3, 5, 4, 3), "uint8")
    examples = {"image": images, "label": [0, 1, 1], "file_name": names}
    store(tfds, tmp_path, features, examples, name="named")
    source = data.from_tfds("named", "train", data_dir=tmp_path)
    assert source.file_names() == names
    part = data.from_tfds("named", "train[1:]", data_dir=tmp_path)
    assert part.file_names() == names[1:]


def test_photos_stay_encoded(tfds, tmp_path):
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(num_classes=2),
    }
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), "uint8")
    examples = {"image": images, "label": [0, 1, 1]}
    store(tfds, tmp_path, features, examples, name="photos")
    source = data.from_tfds("photos", "train", data_dir=tmp_path)
    assert source.dataset.element_spec[0] == tf.TensorSpec((), tf.string)
    pixels = [tf.io.decode_png(image).numpy() for image, _ in source.dataset]
    np.testing.assert_array_equal(pixels, images)
    assert source.label_names == ("0", "1")


def test_small_images_are_decoded_once_to_rgb(tiny):
    source = data.from_tfds("tiny", "train[:50%]", data_dir=tiny)
    assert source.file_names is None
    assert source.label_names == ("even", "odd") and source.num_classes == 2
    assert source.num_examples == 5
    assert source.dataset.element_spec[0] == tf.TensorSpec((6, 6, 3), tf.uint8)
    ((images, labels),) = data.evaluation_batches(source, image_size=6, batch_size=9)
    assert images.shape == (5, 6, 6, 3)
    assert images[:, 0, 0, 2].numpy().tolist() == [0, 1, 2, 3, 4]
    assert labels.numpy().argmax(1).tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("split", ["nonsense", "train[", "train[90%:10%]", "train[:0]"])
def test_wrong_splits_are_answered_with_the_right_ones(tiny, split):
    with pytest.raises(ValueError, match="`split` must be one of train.*Received"):
        data.from_tfds("tiny", split, data_dir=tiny)


def test_unknown_names_are_answered_with_near_ones(tfds, tmp_path):
    with pytest.raises(ValueError, match="Received: name='cifar11'.*cifar10"):
        data.from_tfds("cifar11", "train", data_dir=tmp_path)
    with pytest.raises(ValueError, match="no_such_data_set"):
        data.from_tfds("no_such_data_set", "train", data_dir=tmp_path)


def test_data_sets_without_one_image_and_one_class_are_refused(tfds, tmp_path):
    features = {
        "image": tfds.features.Image(shape=(2, 2, 3)),
        "label": tfds.features.Scalar(tf.int64),
    }
    examples = {"image": np.zeros((2, 2, 2, 3), "uint8"), "label": np.arange(2)}
    store(tfds, tmp_path, features, examples, name="numbers")
    with pytest.raises(ValueError, match="features `image`.*name='numbers'"):
        data.from_tfds("numbers", "train", data_dir=tmp_path)


def test_arrays_keep_their_pixels_type_and_channels():
    images = np.random.default_rng(0).uniform(0, 255, (3, 4, 5, 2)).astype("float32")
    source = sources.from_arrays(images, [2, 0, 1])
    pairs = [(source.read(at).numpy(), int(label)) for at, label in source.dataset]
    np.testing.assert_array_equal(np.stack([image for image, _ in pairs]), images)
    assert [label for _, label in pairs] == [2, 0, 1]
    assert source.label_names == ("0", "1", "2")


GOOD = np.full((4, 8, 8, 3), 9, "uint8")


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (GOOD, [0, 1], None, "4 images, 2 labels"),
        (GOOD, [0, 1, 2, -1], None, "from -1 to 2"),
        (GOOD, [0, 1, 2, 3], ["a", "b"], r"\[0, 2\)"),
        (GOOD, [0.0, 1.0, 2.0, 3.0], None, "must be integers.*float64"),
        (GOOD[:, :, :, 0], [0] * 4, None, r"height, width, channels\).*\(4, 8, 8\)"),
        (GOOD[:0], np.zeros(0, int), None, r"shape=\(0, 8, 8, 3\)"),
        (GOOD / 255, [0] * 4, None, "scaled already"),
        (GOOD - 300.0, [0] * 4, None, "from -291.0 to -291.0"),
        (GOOD * np.nan, [0] * 4, None, "values from nan"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(images, labels, names, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays(images, labels, label_names=names)
