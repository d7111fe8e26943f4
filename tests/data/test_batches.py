import keras
import numpy as np
import pytest

from keras_mixer import data
from keras_mixer.preprocessing import (
    INTERPOLATIONS,
    TRANSFORMS,
    Preprocessing,
    prepare_images,
)

tf = pytest.importorskip("tensorflow")


def numbered(count=32, size=8):
    """Images that are their number everywhere, so that every pixel tells which."""
    images = np.arange(1, count + 1, dtype="uint8")[:, None, None, None]
    images = np.broadcast_to(images, (count, size, size, 3)).copy()
    return data.from_arrays(images, np.arange(count) % 4)


def batches(source, count, **arguments):
    arguments = {"image_size": 8, "batch_size": 8, "pad": 0} | arguments
    stream = data.training_batches(source, **arguments).take(count)
    return [(x.numpy(), y.numpy()) for x, y in stream]


@pytest.mark.backend_free
def test_one_pass_holds_every_image_once_with_its_label():
    seen = {}
    for images, labels in batches(numbered(), 4):
        assert images.dtype == np.uint8 and images.shape == (8, 8, 8, 3)
        for image, label in zip(images, labels, strict=True):
            seen[int(image[0, 0, 0])] = label.argmax()
            assert label.sum() == 1
    assert seen == {i + 1: i % 4 for i in range(32)}


@pytest.mark.backend_free
@pytest.mark.parametrize("crop", ["inception", "pad", "none"])
@pytest.mark.parametrize("randaugment", [None, (2, 15)])
def test_shapes_are_known_before_the_first_batch(crop, randaugment):
    """TPUs need it."""
    source = data.from_arrays(np.zeros((9, 20, 30, 3), "uint8"), np.arange(9) % 2)
    stream = data.training_batches(
        source, image_size=16, batch_size=4, crop=crop, randaugment=randaugment
    )
    images, labels = stream.element_spec
    assert images.shape == (4, 16, 16, 3)
    assert labels.shape == (4, 2)


@pytest.mark.backend_free
def test_fields_of_the_augmentation_may_be_given_alone():
    record = data.Augmentation(crop="none", flip=False, mixup=0.3)
    (whole,) = batches(numbered(), 1, augmentation=record, pad=4, mixup=0.0)
    (fields,) = batches(numbered(), 1, crop="none", flip=False)
    for array, same in zip(whole, fields, strict=True):
        np.testing.assert_array_equal(array, same)
    with pytest.raises(TypeError, match="crops"):
        batches(numbered(), 1, crops="none")


@pytest.mark.backend_free
def test_the_order_changes_with_the_pass_and_the_seed_and_nothing_else():
    def order(first, seed):
        stream = batches(numbered(), 8, seed=seed)
        return [int(x) for images, _ in stream for x in images[:, 0, 0, 0]][first:][:32]

    assert order(0, seed=1) == order(0, seed=1)
    assert order(0, seed=1) != order(32, seed=1)
    assert order(0, seed=1) != order(0, seed=2)


@pytest.mark.backend_free
def test_the_order_does_not_depend_on_the_global_seed():
    plain = batches(numbered(), 6, seed=0)
    keras.utils.set_random_seed(99)
    for (x, _), (again, _) in zip(plain, batches(numbered(), 6, seed=0), strict=True):
        np.testing.assert_array_equal(x, again)


KINDS = {
    "pad": {"crop": "pad", "pad": 2},
    "inception": {"crop": "inception", "mixup": 0.4},
    "none": {"crop": "none"},
    "strong": {
        "crop": "pad",
        "pad": 2,
        "randaugment": (1, 9, 8 / 224),
        "random_erasing": 0.5,
        "mixup": 0.4,
        "cutmix": 1.0,
    },
}


@pytest.fixture(params=["arrays", "folder", "encoded"])
def source(request, tmp_path):
    """Twenty different pictures of 12 x 10, from each kind of source."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 12, 10, 3), "uint8")
    labels = np.arange(20) % 3
    if request.param == "arrays":
        return data.from_arrays(images, labels)
    if request.param == "folder":
        pytest.importorskip("tensorflow_datasets")
        image_module = pytest.importorskip("PIL.Image")
        for i, image in enumerate(images):
            folder = tmp_path / "abc"[labels[i]]
            folder.mkdir(exist_ok=True)
            suffix = "jpg" if i % 2 else "png"
            image_module.fromarray(image).save(folder / f"{i}.{suffix}")
        return data.from_folder(tmp_path)
    files = [tf.io.encode_jpeg(image).numpy() for image in images]
    dataset = tf.data.Dataset.from_tensor_slices((files, labels))
    return data.Source(dataset, 20, ("a", "b", "c"))


@pytest.mark.backend_free
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_goes_on_where_another_stopped(source, kind):
    # Steps 2 and 5 hold the ends of the first and of the second pass.
    arguments = {"seed": 3} | KINDS[kind]
    whole = batches(source, 8, **arguments)
    for first in (1, 3, 5):
        rest = batches(source, 8 - first, first_step=first, **arguments)
        for (x, y), (again_x, again_y) in zip(whole[first:], rest, strict=True):
            np.testing.assert_array_equal(x, again_x)
            np.testing.assert_array_equal(y, again_y)


@pytest.mark.backend_free
def test_randaugment_is_drawn_for_every_image_from_its_place_in_the_stream():
    images = np.full((4, 8, 8, 3), 50, "uint8")
    images[:, 2:5, 1:4] = (200, 90, 10)
    source = data.from_arrays(images, np.arange(4))
    arguments = {"crop": "none", "flip": False, "randaugment": (1, 10), "seed": 1}
    whole = batches(source, 4, **arguments)
    assert len({image.tobytes() for x, _ in whole for image in x}) > 8
    ((x, _),) = batches(source, 1, first_step=2, shard=(1, 2), **arguments)
    np.testing.assert_array_equal(x, whole[2][0][4:])


@pytest.mark.backend_free
def test_the_third_number_of_randaugment_is_the_factor_of_pixels():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 32, 32, 3), "uint8")
    source = data.from_arrays(images, np.arange(64) % 4)
    arguments = {"image_size": 32, "batch_size": 64, "crop": "none", "flip": False}
    plain, same, shrunk = (
        batches(source, 8, randaugment=value, **arguments)
        for value in ((1, 9), (1, 9, 1.0), (1, 9, 1 / 7))
    )
    lost = {"plain": 0, "shrunk": 0}
    for (one, _), (other, _), (small, _) in zip(plain, same, shrunk, strict=True):
        np.testing.assert_array_equal(one, other)
        # Translations by 90 pixels and holes of 72 leave nothing of 32, or little.
        lost["plain"] += ((one == 128).all(-1).mean(axis=(1, 2)) > 0.5).sum()
        lost["shrunk"] += ((small == 128).all(-1).mean(axis=(1, 2)) > 0.5).sum()
    # Three of sixteen operations; 512 images.
    assert 60 < lost["plain"] < 140
    assert lost["shrunk"] == 0


@pytest.mark.backend_free
def test_random_erasing_is_drawn_for_every_image():
    source = data.from_arrays(np.full((64, 8, 8, 3), 50, "uint8"), np.zeros(64, int))
    images = [image for x, _ in batches(source, 64, random_erasing=0.25) for image in x]
    counts = np.array([(image != 50).any(-1).sum() for image in images])
    assert abs((counts > 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 512)
    # A fiftieth to a third of 64 pixels, edges rounded.
    assert len(set(counts)) > 6 and counts.max() <= 28
    again = batches(source, 1, first_step=5, random_erasing=0.25)[0][0]
    np.testing.assert_array_equal(again, images[40:48])


@pytest.mark.backend_free
def test_what_is_skipped_is_not_read():
    read = []

    def noted(index):
        read.append(int(index))
        return np.zeros((8, 8, 3), "uint8")

    def reader(index):
        image = tf.numpy_function(noted, [index], tf.uint8)
        return tf.ensure_shape(image, (8, 8, 3))

    dataset = tf.data.Dataset.range(1000).map(lambda i: (i, i % 2))
    source = data.Source(dataset, 1000, ("a", "b"), reader)
    batches(source, 1, first_step=10**9 + 100)  # behind 800 images of a pass
    assert len(read) < 500  # what was fetched ahead, not a pass


@pytest.mark.backend_free
@pytest.mark.parametrize("kind", ["pad", "inception", "strong"])
def test_the_parts_of_the_hosts_make_up_the_whole_batches(source, kind):
    arguments = {"seed": 3, "first_step": 2} | KINDS[kind]
    arguments |= {"mixup": 0.0, "cutmix": 0.0}
    whole = batches(source, 5, **arguments)
    parts = [batches(source, 5, shard=(i, 2), **arguments) for i in range(2)]
    for step, (x, y) in enumerate(whole):
        joined = [np.concatenate([part[step][at] for part in parts]) for at in (0, 1)]
        np.testing.assert_array_equal(joined[0], x)
        np.testing.assert_array_equal(joined[1], y)


@pytest.mark.backend_free
def test_inception_crops_have_the_areas_and_aspect_ratios_asked_for():
    # Pixels that tell where they are: the crop's edges are those of its values.
    rows, columns = np.indices((200, 240))
    image = np.stack([rows, columns, np.zeros_like(rows)], -1).astype("uint8")
    source = data.from_arrays(np.repeat(image[None], 8, 0), np.zeros(8, int))
    shares, ratios = [], []
    for images, _ in batches(
        source, 40, crop="inception", area_range=(0.2, 0.6), image_size=64, flip=False
    ):
        spread = images[:, -1, -1].astype(float) - images[:, 0, 0]
        # From the first to the last centre of 64 are 63 of 64 parts of the crop.
        height, width = (spread[:, axis] * 64 / 63 for axis in (0, 1))
        shares += list(height * width / (200 * 240))
        ratios += list(width / height)
    assert 0.19 < min(shares) < 0.25 and 0.55 < max(shares) < 0.62
    assert 0.72 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.37


@pytest.mark.backend_free
def test_without_crop_and_flip_images_are_only_resized():
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 12, 3), "uint8")
    source = data.from_arrays(images, np.arange(8))
    ((x, y),) = batches(source, 1, crop="none", flip=False, image_size=(6, 9))
    expected = np.round(tf.image.resize(images, (6, 9)).numpy())
    np.testing.assert_array_equal(x, expected[y.argmax(1)])
    assert x.dtype == np.uint8


@pytest.mark.backend_free
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


@pytest.mark.backend_free
def test_mixup_blends_neighbours_of_the_batch_and_their_labels():
    plain = batches(numbered(), 20, seed=5)
    mixed = batches(numbered(), 20, seed=5, mixup=0.5)
    shares = []
    for (x, y), (mixed_x, mixed_y) in zip(plain, mixed, strict=True):
        x = x.astype("float32")
        rolled_x, rolled_y = np.roll(x, 1, axis=0), np.roll(y, 1, axis=0)
        i = int(np.abs(x - rolled_x)[:, 0, 0, 0].argmax())
        a = (mixed_x - rolled_x)[i, 0, 0, 0] / (x - rolled_x)[i, 0, 0, 0]
        np.testing.assert_allclose(mixed_x, a * x + (1 - a) * rolled_x, atol=1e-4)
        np.testing.assert_allclose(mixed_y, a * y + (1 - a) * rolled_y, atol=1e-5)
        shares.append(a)
    assert 0.5 <= min(shares) and max(shares) <= 1
    assert np.std(shares) > 0.05  # drawn anew for every batch


@pytest.mark.backend_free
def test_cutmix_pastes_neighbours_of_the_batch_and_shares_their_labels():
    plain = batches(numbered(), 20, seed=5)
    mixed = batches(numbered(), 20, seed=5, cutmix=1.0)
    areas = []
    for (x, y), (mixed_x, mixed_y) in zip(plain, mixed, strict=True):
        rolled_x, rolled_y = np.roll(x, 1, axis=0), np.roll(y, 1, axis=0)
        hole = (mixed_x == rolled_x).all(axis=(0, 3))
        expected = np.where(hole[None, :, :, None], rolled_x, x)
        np.testing.assert_array_equal(mixed_x, expected)
        assert mixed_x.dtype == np.uint8
        areas.append(hole.mean())
        expected = (1 - areas[-1]) * y + areas[-1] * rolled_y
        np.testing.assert_allclose(mixed_y, expected, atol=1e-6)
    assert np.std(areas) > 0.1  # drawn anew for every batch


@pytest.mark.backend_free
def test_with_mixup_and_cutmix_each_batch_goes_through_one():
    mixed = batches(numbered(), 60, seed=5, mixup=0.5, cutmix=1.0)
    pasted = 0
    for x, y in mixed:
        assert x.dtype == np.float32
        np.testing.assert_allclose(y.sum(axis=1), 1, atol=1e-6)
        # Blended images are flat like those they come of.
        pasted += (x != x[:, :1, :1]).any()
    assert 15 <= pasted <= 45


RECORDS = [
    Preprocessing(transform=transform, interpolation=interpolation)
    for transform in TRANSFORMS
    for interpolation in INTERPOLATIONS
] + [
    Preprocessing(
        ((-1, 1), (0, 1), (-2, 1)), transform, "bicubic", 0.9, library="pillow"
    )
    for transform in ("resmall_crop", "resize_pad")
]


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "record", RECORDS, ids=lambda r: f"{r.transform}-{r.interpolation}"
)
@pytest.mark.parametrize("shape", [(400, 500), (231, 180), (60, 90)], ids=str)
def test_evaluation_prepares_images_as_preprocess_does(record, shape):
    """But for float32: the same sums in another order, edges of areas less exact."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3), "uint8")
    for size in ((96, 96), (64, 80)):
        ((ours, _),) = data.evaluation_batches(
            data.from_arrays(image[None], [0]),
            image_size=size,
            batch_size=1,
            preprocessing=record,
        )
        atol = {"bilinear": 1e-3, "area": 1e-2, "bicubic": 0}[record.interpolation]
        expected = prepare_images(image, record, (*size, 3))
        np.testing.assert_allclose(ours, expected, atol=atol)


@pytest.mark.backend_free
def test_padded_passes_have_full_batches_and_weights():
    stream = data.evaluation_batches(numbered(10), image_size=8, batch_size=4, pad=True)
    assert stream.element_spec[0].shape == (4, 8, 8, 3)
    values, weights = [], []
    for images, labels, weight in stream:
        assert labels.shape == (4, 4)
        values += list(images[:, 0, 0, 0].numpy())
        weights += list(weight.numpy())
    assert weights == [1] * 10 + [0] * 2
    assert values[:10] == list(range(1, 11))


@pytest.mark.backend_free
@pytest.mark.parametrize("pad", [True, False])
def test_the_evaluation_parts_of_the_hosts_make_up_the_pass(pad):
    def passes(shard):
        stream = data.evaluation_batches(
            numbered(13), image_size=8, batch_size=6, shard=shard, pad=pad
        )
        return [[part.numpy() for part in batch] for batch in stream]

    parts = [passes((i, 3)) for i in range(3)]
    if pad:
        assert [len(part) for part in parts] == [3, 3, 3]
    for step, whole in enumerate(passes((0, 1))):
        joined = [part[step] for part in parts if step < len(part)]
        for arrays in zip(whole, *joined, strict=True):
            np.testing.assert_array_equal(arrays[0], np.concatenate(arrays[1:]))


@pytest.mark.backend_free
def test_evaluation_is_one_pass_in_order():
    source = numbered(10)
    stream = data.evaluation_batches(source, image_size=8, batch_size=4)
    values = [x[:, 0, 0, 0].numpy().astype(int).tolist() for x, _ in stream]
    assert values == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


@pytest.mark.backend_free
def test_other_sizes_are_resized():
    source = data.from_arrays(np.full((4, 16, 12, 3), 7, "uint8"), np.arange(4))
    ((images, _),) = batches(source, 1, batch_size=4)
    assert images.shape == (4, 8, 8, 3) and (images == 7).all()
    (images, _) = next(
        iter(data.evaluation_batches(source, image_size=8, batch_size=4))
    )
    assert images.shape == (4, 8, 8, 3)


def test_fit_takes_the_batches():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(4, activation="softmax"))
    model.compile("sgd", "categorical_crossentropy")
    stream = data.training_batches(numbered(), image_size=8, batch_size=8)
    history = model.fit(stream, steps_per_epoch=2, verbose=0, shuffle=False)
    assert np.isfinite(history.history["loss"][0])


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": "random"}, "`crop` must be one of 'pad', 'inception', 'none'"),
        ({"shuffle_bytes": 0}, "`shuffle_bytes` must be an integer from 1"),
        ({"seed": -1}, "`seed` must be an integer from 0"),
        ({"first_step": 1.5}, "`first_step` must be an integer from 0"),
        ({"image_size": 0}, "`image_size` must be a positive integer"),
        ({"image_size": (8, 8, 3)}, r"\(height, width\)"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer"),
        ({"shard": (0, 3)}, "a multiple of their number, 3.*batch_size=8"),
        ({"shard": (2, 2)}, r"the index from 0.*shard=\(2, 2\)"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(numbered(), 1, **arguments)
