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


def drawn(count=40, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 5, 4, 3), "uint8"), np.arange(count) % 3


def test_held_out_examples_are_stratified_and_complete():
    images, labels = drawn(40)
    images[:, 0, 0, 0] = np.arange(40)
    names = ["a", "b", "c", "none", "one"]
    labels[39] = 4
    source = data.from_arrays(images, labels, label_names=names)
    parts = data.hold_out(source, 0.25, seed=3)
    assert [np.bincount(part.labels()).tolist() for part in parts] == [
        [10, 10, 10, 0, 1],
        [3, 3, 3],
    ]
    assert [part.num_examples for part in parts] == [31, 9]
    seen = []
    for part in parts:
        batches = data.evaluation_batches(part, image_size=(5, 4), batch_size=50)
        for x, y in batches:
            numbers = x.numpy()[:, 0, 0, 0].astype(int)
            np.testing.assert_array_equal(y.numpy().argmax(1), labels[numbers])
            seen += list(numbers)
    assert sorted(seen) == list(range(40))
    for share in (0, 1, -0.1):
        with pytest.raises(ValueError, match=r"`share` must lie in \(0, 1\)"):
            data.hold_out(source, share)
    with pytest.raises(ValueError, match="two examples of some class"):
        data.hold_out(data.from_arrays(images[:2], [0, 1]))


def test_the_fingerprint_tells_data_sets_apart():
    images, labels = drawn()
    names = ["a", "b", "c"]
    source = data.from_arrays(images, labels, label_names=names)
    same = data.from_arrays(images.copy(), labels.copy(), label_names=names)
    assert source.fingerprint() == same.fingerprint()
    changed = images.copy()
    changed[7, 1, 2, 0] ^= 1
    swapped = labels.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    others = [
        data.from_arrays(changed, labels, label_names=names),
        data.from_arrays(images, swapped, label_names=names),
        data.from_arrays(images, labels, label_names=["a", "b", "d"]),
        data.from_arrays(images[:-1], labels[:-1], label_names=names),
        *data.hold_out(source),
    ]
    prints = {other.fingerprint() for other in [source, *others]}
    assert len(prints) == len(others) + 1


def test_the_fingerprint_of_files_is_of_their_names_sizes_and_bytes(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    image_module = pytest.importorskip("PIL.Image")

    def write(folder):
        for i in range(4):
            path = folder / "ab"[i % 2] / f"{i}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            image_module.fromarray(drawn()[0][i]).save(path)
        return folder

    first, second = (write(tmp_path / name) for name in "12")
    print_of = data.from_folder(first).fingerprint()
    assert data.from_folder(second).fingerprint() == print_of
    path = second / "a" / "0.bmp"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert data.from_folder(second).fingerprint() != print_of
    path = write(second) / "a" / "0.bmp"
    path.rename(second / "b" / "0.bmp")
    assert data.from_folder(second).fingerprint() != print_of


def test_the_fingerprint_of_a_split_is_not_that_of_another(tiny):
    splits = ("train", "train[:5]", "train[5:]")
    sources = [data.from_tfds("tiny", split, data_dir=tiny) for split in splits]
    prints = [source.fingerprint() for source in sources]
    assert len(set(prints)) == 3
    again = data.from_tfds("tiny", "train[5:]", data_dir=tiny)
    assert again.fingerprint() == prints[2]


@pytest.fixture
def large(tiny, monkeypatch):
    """The ten images, as if they did not fit into memory."""
    monkeypatch.setattr(sources, "CACHE_BYTES", 0)
    return data.from_tfds("tiny", "train", data_dir=tiny)


def stream(source, count, **arguments):
    batches = data.training_batches(
        source, image_size=6, batch_size=4, crop="none", flip=False, **arguments
    )
    return [x.numpy()[:, 0, 0, 0].tolist() for x, _ in batches.take(count)]


def test_each_host_reads_its_part_of_what_does_not_fit_into_memory(large):
    """Two hosts: every pass holds each example once, in an order of the seed."""
    hosts = [stream(large, 10, shard=(i, 2)) for i in range(2)]
    of = [[number for batch in host for number in batch] for host in hosts]
    for host, own in zip(of, ({0, 1, 2, 3, 4}, {5, 6, 7, 8, 9}), strict=True):
        for start in range(0, 20, 5):
            assert set(host[start : start + 5]) == own
        assert host[:5] != host[5:10] or host[:5] != host[10:15]
    for first in (1, 4):
        for i in range(2):
            rest = stream(large, 10 - first, shard=(i, 2), first_step=first)
            assert rest == hosts[i][first:]
    assert stream(large, 10, shard=(0, 2), seed=5) != hosts[0]


def test_alone_a_host_reads_everything(large):
    numbers = [number for batch in stream(large, 5) for number in batch]
    assert sorted(numbers) == sorted([*range(10)] * 2)


def test_the_buffer_that_shuffles_is_bounded_in_bytes(large):
    assert large.example_bytes > 50
    one = stream(large, 2, shuffle_bytes=1)
    assert [number for batch in one for number in batch] == list(range(8))
    numbers = stream(large, 2, shuffle_bytes=int(3 * large.example_bytes))
    numbers = [number for batch in numbers for number in batch]
    # The i-th comes from the first i + 3.
    assert all(number <= i + 2 for i, number in enumerate(numbers))
    assert numbers != sorted(numbers)
