"""Pixels and labels: values by hand, TensorFlow as the reference, and every error."""

import json
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from keras_mixer import preprocessing
from keras_mixer.layers import PatchEmbed
from keras_mixer.models import preprocess
from keras_mixer.preprocessing import Preprocessing, list_images, prepare_images

SIZES = [(37, 53), (301, 200), (20, 13), (64, 64), (5, 90), (1, 1), (256, 256)]


def checkpoint(image_size=4, **record):
    """Return what `preprocess` needs of a checkpoint's record."""
    return SimpleNamespace(preprocessing=Preprocessing(**record), image_size=image_size)


def plain(image_size=4, **record):
    """Return a checkpoint whose images are only resized."""
    return checkpoint(image_size, transform="resize", **record)


def model(input_shape, *, normalized=False, **record):
    """Return a Keras model with a stem, with or without a rescaling before it."""
    inputs = x = keras.Input(input_shape)
    if normalized:
        x = keras.layers.Rescaling(1 / 127.5, -1.0, name="normalization")(x)
    stem = PatchEmbed(3, 1)
    if record:
        stem.preprocessing = Preprocessing(**record)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(stem(x)))


def photo(height, width, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, channels), dtype="uint8")


# The record


def test_the_default_record_is_googles():
    record = Preprocessing()
    assert (record.scale, record.offset) == (1 / 127.5, -1.0)


def test_scale_and_offset_map_the_pixels_to_the_value_range():
    record = Preprocessing(value_range=(0, 1))
    assert (record.scale, record.offset) == (1 / 255, 0.0)
    record = Preprocessing(value_range=(-2.5, 4.0))
    assert 0 * record.scale + record.offset == -2.5
    assert 255 * record.scale + record.offset == pytest.approx(4.0)


def test_the_record_survives_json():
    record = Preprocessing((0, 1), "resize_crop", "area", 0.9)
    restored = Preprocessing.from_dict(json.loads(json.dumps(record.to_dict())))
    assert restored == record
    assert hash(restored) == hash(record)
    assert Preprocessing.from_dict({}) == Preprocessing()


def test_a_range_by_channel():
    record = Preprocessing(((-1, 1), (0, 1), (-0.5, 2)))
    pixels = np.array([0, 255, 51], "float32")
    assert_allclose(record.normalize(pixels), [-1, 1, 0], atol=1e-7)
    assert record.normalize(pixels).dtype == "float32"
    assert record.mean == (0.5, 0, 0.2) and record.std == (0.5, 1, 0.4)
    restored = Preprocessing.from_dict(json.loads(json.dumps(record.to_dict())))
    assert restored == record and hash(restored) == hash(record)
    assert Preprocessing([[0, 1], [0, 1]]) == Preprocessing((0, 1))
    takes = model((4, 4, 3), value_range=record.value_range)
    images = np.full((1, 2, 2, 3), [0, 255, 51], "uint8")
    assert_allclose(preprocess(images, takes)[0, 0, 0], [-1, 1, 0], atol=1e-7)


def test_records_of_before_are_written_as_they_were():
    assert Preprocessing().to_dict() == {
        "value_range": [-1.0, 1.0],
        "transform": "resmall_crop",
        "interpolation": "bilinear",
        "crop_fraction": 0.875,
    }


def test_from_dict_refuses_unknown_entries():
    with pytest.raises(ValueError, match=r"does not know: \['mean'\].*Received:"):
        Preprocessing.from_dict({"mean": 0.5})


@pytest.mark.parametrize(
    "name, value",
    [
        ("value_range", (1, 0)),
        ("value_range", (0, 0)),
        ("value_range", (0, float("inf"))),
        ("value_range", (float("nan"), 1)),
        ("value_range", (0, 1, 2)),
        ("value_range", ("0", "1")),
        ("value_range", 1.0),
        ("value_range", ((0, 1), (1, 0))),
        ("value_range", ()),
        ("library", "torch"),
        ("transform", "resize_pad"),
        ("transform", "crop"),
        ("transform", None),
        ("interpolation", "bicubic"),
        ("crop_fraction", 0),
        ("crop_fraction", 1.01),
        ("crop_fraction", float("nan")),
        ("crop_fraction", "0.875"),
        ("crop_fraction", True),
    ],
)
def test_the_record_refuses_bad_values(name, value):
    with pytest.raises(ValueError, match=f"`{name}` .* Received: {name}="):
        Preprocessing(**{name: value})


# Resizing, by hand


def test_bilinear_has_half_pixel_centres():
    image = np.array([[0, 100]], "uint8")  # upscaled: centres at -1/4, 1/4, 3/4, 5/4
    result = preprocess(image, plain())
    assert_array_equal(result[0, :, :, 0], np.tile([0.0, 25.0, 75.0, 100.0], (4, 1)))
    assert result.dtype == "float32"


def test_bilinear_does_not_smooth_when_it_shrinks():
    image = np.array([[0, 10, 20, 200, 40, 50, 60, 70]], "uint8")
    result = preprocess(image, plain(image_size=2))  # centres at 1.5 and 5.5
    assert_array_equal(result[0, 0, :, 0], [15.0, 55.0])


def test_pillow_smooths_what_it_shrinks_to_whole_grey_levels():
    image = np.array([[0, 10, 20, 201], [0, 10, 20, 201]], "uint8")
    takes = plain(image_size=2, library="pillow", interpolation="box")
    result = preprocess(image, takes)
    assert_array_equal(result[0, 0, :, 0], [5, 111])  # 110.5 is rounded up
    assert_array_equal(preprocess(image.astype("float64"), takes), result)
    # Between the levels, nothing is rounded.
    assert_allclose(preprocess(image + 0.25, takes)[0, 0, :, 0], [5.25, 110.75])


def test_pillow_pads_with_the_mean_or_crops_the_centre():
    image = np.full((4, 2, 3), 100, "uint8")
    record = {"library": "pillow", "transform": "resize_pad", "crop_fraction": 1}
    ranges = ((-1, 1), (0, 1), (-0.5, 2))
    result = preprocess(image, checkpoint(value_range=ranges, **record))[0]
    assert_array_equal(result[:, 1:3], np.full((4, 2, 3), 100))
    assert_array_equal(result[:, [0, 3]], np.full((4, 2, 3), [128, 0, 51]))
    record["crop_fraction"] = 0.5  # resized to 8 x 4
    result = preprocess(image, checkpoint(value_range=ranges, **record))[0]
    assert_array_equal(result, np.full((4, 4, 3), 100))


def test_pillow_takes_any_number_of_channels():
    image = photo(9, 13, 5)
    takes = model((4, 6, 5), normalized=True, library="pillow", interpolation="bicubic")
    whole = preprocess(image, takes)[0]
    for channel in range(5):
        one = model(
            (4, 6, 1), normalized=True, library="pillow", interpolation="bicubic"
        )
        assert_array_equal(
            preprocess(image[..., channel], one)[0, :, :, 0], whole[..., channel]
        )


def test_area_is_the_mean_of_what_a_pixel_covers():
    image = np.array([[0, 30, 60], [90, 120, 150]], "uint8")
    result = preprocess(image, plain(image_size=2, interpolation="area"))
    # Each result covers 1.5 columns of one row.
    assert_allclose(result[0, :, :, 0], [[10, 50], [100, 140]], rtol=1e-6)


def test_area_repeats_pixels_when_it_enlarges_by_a_whole_factor():
    image = photo(2, 2)
    result = preprocess(image, plain(interpolation="area"))
    assert_allclose(result[0], image.repeat(2, 0).repeat(2, 1), rtol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "area"])
def test_the_same_size_changes_nothing(interpolation):
    image = photo(32, 32)
    result = preprocess(image, plain(32, interpolation=interpolation))
    assert_array_equal(result[0], image)


def test_resmall_crop_keeps_the_aspect_ratio():
    # 224 of 256 px of the shorter side, which is not resized here: a plain crop.
    image = photo(256, 300)
    assert_array_equal(preprocess(image, checkpoint(224))[0], image[16:240, 38:262])


def test_resize_crop_loses_the_aspect_ratio():
    image = np.tile(np.arange(128, dtype="uint8"), (256, 1))  # to 256 x 256
    result = preprocess(image, checkpoint(224, transform="resize_crop"))
    columns = (np.arange(16, 240) + 0.5) / 2 - 0.5
    assert_allclose(result[0], np.tile(columns[:, None], (224, 1, 3)), rtol=1e-6)


def test_an_odd_crop_leaves_the_extra_pixel_at_the_end():
    image = photo(37, 37)  # round(32 / 0.875) = 37
    assert_array_equal(preprocess(image, checkpoint(32))[0], image[2:34, 2:34])


def test_rectangles_are_scaled_per_edge():
    takes = model((8, 16, 3), normalized=True, transform="resize_crop")
    image = photo(9, 18)  # 8 / 0.875 and 16 / 0.875
    assert_array_equal(preprocess(image, takes)[0], image[0:8, 1:17])


def test_resmall_crop_covers_a_rectangle():
    takes = model((8, 16, 3), normalized=True, transform="resmall_crop")
    # The width decides: 18 px wide, so 36 px high.
    image = np.repeat(np.arange(72, dtype="uint8"), 36).reshape(72, 36)
    result = preprocess(image, takes)
    assert_allclose(result[0, :, 0, 0], 2 * np.arange(14, 22) + 0.5)


def test_a_very_long_image_needs_little_memory():
    image = np.full((1, 20_000, 3), 7, "uint8")
    assert_array_equal(preprocess(image, checkpoint(32)), np.full((1, 32, 32, 3), 7.0))


# Resizing, against TensorFlow


def tensorflow_reference(image, size, record):
    """Return the evaluation pipeline of big_vision, without its cast to uint8."""
    tf = pytest.importorskip("tensorflow")
    height, width = size
    resized = [round(edge / record.crop_fraction) for edge in size]
    if record.transform == "resize":
        resized = size
    elif record.transform == "resmall_crop":
        edges = tf.cast(tf.shape(image)[:2], tf.float32)
        factor = tf.reduce_max(tf.cast(resized, tf.float32) / edges)
        resized = tf.cast(tf.round(edges * factor), tf.int32)
    image = tf.image.resize(image, resized, record.interpolation, antialias=False)
    dy, dx = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return tf.image.crop_to_bounding_box(image, dy, dx, height, width).numpy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "area"])
@pytest.mark.parametrize("transform", ["resize_crop", "resmall_crop", "resize"])
def test_pixels_equal_tensorflows(transform, interpolation, size):
    image = photo(*size)
    record = Preprocessing(transform=transform, interpolation=interpolation)
    for target in [(32, 32), (224, 224), (24, 56), (57, 23)]:
        expected = tensorflow_reference(image, target, record)
        # TensorFlow's own area weights only sum to 1 within float32, here 1 +- 5e-5.
        result = prepare_images(image, record, (*target, 3))[0]
        assert_allclose(result, expected, atol=2e-2)


@pytest.mark.parametrize("interpolation", ["bilinear", "area"])
def test_pixels_of_a_large_photo_equal_tensorflows(interpolation):
    image = photo(1201, 1999)
    record = Preprocessing(interpolation=interpolation)
    expected = tensorflow_reference(image, (224, 224), record)
    result = preprocess(image, checkpoint(224, interpolation=interpolation))
    assert_allclose(result[0], expected, atol=1e-2)


# Resizing, for any size

edges = st.integers(1, 300)


@settings(deadline=None)
@given(edges, edges)
def test_the_weights_of_every_result_sum_to_one(in_size, out_size):
    for matrix in (preprocessing._bilinear_matrix, preprocessing._area_matrix):
        weights = matrix(in_size, out_size)
        assert weights.shape == (out_size, in_size)
        assert weights.dtype == "float32"
        assert weights.min() >= 0
        assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)


@settings(deadline=None)
@given(edges, edges, st.data())
def test_some_rows_of_the_weights_are_those_of_all(in_size, out_size, data):
    start = data.draw(st.integers(0, out_size - 1))
    stop = data.draw(st.integers(start + 1, out_size))
    for matrix in (preprocessing._bilinear_matrix, preprocessing._area_matrix):
        rows = matrix(in_size, out_size, start, stop)
        assert_array_equal(rows, matrix(in_size, out_size)[start:stop])


@settings(deadline=None, max_examples=50)
@given(
    size=st.tuples(edges, edges),
    value=st.integers(0, 255),
    image_size=st.integers(1, 64),
    transform=st.sampled_from(preprocessing.TRANSFORMS),
    interpolation=st.sampled_from(preprocessing.INTERPOLATIONS),
    crop_fraction=st.floats(0.5, 1),
)
def test_a_constant_image_stays_constant(size, value, image_size, **record):
    result = preprocess(np.full(size, value, "uint8"), checkpoint(image_size, **record))
    assert result.shape == (1, image_size, image_size, 3)
    assert_allclose(result, value, rtol=1e-5)


# Models and checkpoints


def test_pixels_stay_pixels_where_the_model_normalises():
    images = np.array([0, 255, 51], "uint8").reshape(1, 1, 1, 3)
    takes = model((4, 4, 3), normalized=True, transform="resize")
    assert_array_equal(preprocess(images, takes)[0, 0, 0], [0, 255, 51])


def test_pixels_are_normalised_for_a_model_that_does_not():
    images = np.array([0, 255, 51], "uint8").reshape(1, 1, 1, 3)
    takes = model((4, 4, 3), value_range=(0, 1))
    assert_allclose(preprocess(images, takes)[0, 0, 0], [0, 1, 0.2], rtol=1e-6)
    result = preprocess(images, model((4, 4, 3)))  # without a record
    assert_allclose(result[0, 0, 0], [-1, 1, -0.6], rtol=1e-6)
    assert result.dtype == "float32"


def test_the_model_takes_the_result():
    takes = model((4, 4, 3), normalized=True)
    result = takes.predict(preprocess(photo(9, 7), takes), verbose=0)
    assert result.shape == (1, 3)


def test_other_numbers_of_channels_pass_through():
    image = photo(4, 4, channels=5)
    takes = model((4, 4, 5), normalized=True, transform="resize")
    assert_array_equal(preprocess(image, takes)[0], image)


def test_a_model_of_one_channel_takes_grey_images():
    image = photo(4, 4, channels=1)
    takes = model((4, 4, 1), normalized=True, transform="resize")
    assert_array_equal(preprocess(image[..., 0], takes)[0], image)


@pytest.mark.parametrize(
    "target",
    [
        "B/16",
        None,
        Preprocessing(),
        SimpleNamespace(layers=[], input_shape=(None, None, None, 3)),
        SimpleNamespace(layers=[], input_shape=(None, 3)),
    ],
)
def test_what_is_no_model_is_refused(target):
    with pytest.raises(ValueError, match=r"`model_or_checkpoint` .* Received: "):
        preprocess(photo(4, 4), target)


# Arrays


@pytest.mark.parametrize("count", [1, 3])
def test_arrays_may_come_alone_in_a_batch_or_in_a_list(count):
    image = photo(4, 4)
    for images in [np.stack([image] * count), [image] * count, (image,) * count]:
        assert_array_equal(preprocess(images, plain()), [image] * count)
    assert_array_equal(preprocess(image, plain()), [image])


def test_a_list_may_mix_sizes_dtypes_and_channels():
    images = [np.full((3, 5), 10.0), np.full((7, 2, 3), 20, "int64")]
    images.append(np.full((1, 1, 1), 30, "float16"))
    result = preprocess(images, checkpoint())
    assert_allclose(result[:, 0, 0], [[10] * 3, [20] * 3, [30] * 3], rtol=1e-6)


def test_tensors_of_the_backend_are_arrays():
    image = photo(4, 4)
    for images in [image, image[None]]:
        tensor = keras.ops.convert_to_tensor(images)
        assert_array_equal(preprocess(tensor, plain())[0], image)
    assert_array_equal(preprocess([tensor[0]], plain())[0], image)


def test_black_floats_and_dark_integers_are_pixels():
    assert preprocess(np.zeros((4, 4, 3)), plain()).max() == 0
    assert preprocess(np.ones((4, 4, 3), "uint8"), plain()).max() == 1
    batch = np.stack([np.full((4, 4, 3), 0.5), np.full((4, 4, 3), 200.0)])
    assert preprocess(batch, plain()).max() == 200


@pytest.mark.parametrize("scaled", [1.0, 0.3])
def test_floats_that_are_scaled_already_are_refused(scaled):
    for images in [np.full((4, 4, 3), scaled), [np.full((4, 4), scaled, "float32")]]:
        with pytest.raises(ValueError, match=r"floats in \[0, 1\].*255 \* images"):
            preprocess(images, plain())


@pytest.mark.parametrize("value", [-1.0, 255.5, 300, -1, float("inf"), float("nan")])
def test_values_that_are_no_pixels_are_refused(value):
    image = np.full((4, 4, 3), 100, np.asarray(value).dtype)
    image[1, 2, 0] = value
    with pytest.raises(ValueError, match=r"pixels in \[0, 255\]. Received: values"):
        preprocess([photo(4, 4), image], plain())


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_a_wrong_number_of_channels_is_refused(channels):
    with pytest.raises(ValueError, match=rf"3 channels .*\(4, 6, {channels}\)"):
        preprocess(photo(4, 6, channels), plain())


@pytest.mark.parametrize(
    "image",
    [
        np.zeros(3, "uint8"),
        np.zeros((0, 4, 3), "uint8"),
        np.zeros((4, 4, 3), bool),
        np.zeros((4, 4, 3), complex),
        np.full((4, 4, 3), "x"),
    ],
)
def test_arrays_that_are_no_images_are_refused(image):
    with pytest.raises(ValueError, match="`images` must be arrays of numbers.*dtype="):
        preprocess([image], plain())


def test_other_objects_are_refused():
    for images in [7, [[[1, 2, 3]]], {"image": 1}, None]:
        with pytest.raises(ValueError, match="`images` must be paths, .*Received: an "):
            preprocess(images, plain())


def test_no_image_is_refused():
    for images in [[], (), np.zeros((0, 4, 4, 3), "uint8")]:
        with pytest.raises(ValueError, match="at least one image"):
            preprocess(images, plain())


# Files


def save(path, image, **options):
    Image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def test_a_file_gives_its_pixels(tmp_path):
    image = photo(4, 4)
    path = save(tmp_path / "a.png", image)
    for images in [path, str(path), [path], [str(path), image]]:
        assert_array_equal(preprocess(images, plain())[-1], image)
        assert_array_equal(preprocess(images, plain())[0], image)


def test_a_folder_gives_all_images_below_it_in_order(tmp_path):
    for i, name in enumerate(["b.PNG", "a/z.png", "a/b/c.bmp", "c.tiff"]):
        save(tmp_path / name, np.full((4, 4, 3), i, "uint8"))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._b.png").write_text("what macOS leaves on other people's disks")
    (tmp_path / "folder.png").mkdir()
    names = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert names == ["a/b/c.bmp", "a/z.png", "b.PNG", "c.tiff"]
    assert_array_equal(preprocess(tmp_path, plain())[:, 0, 0, 0], [2, 1, 0, 3])
    assert list_images(str(tmp_path)) == list_images(tmp_path)


def test_pil_images_are_images():
    Image = pytest.importorskip("PIL.Image")
    image = photo(4, 4)
    for images in [Image.fromarray(image), [Image.fromarray(image), image]]:
        assert_array_equal(preprocess(images, plain())[0], image)


def test_grey_palette_and_alpha_files_become_rgb(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    grey, rgba = photo(4, 4)[..., 0], photo(4, 4, channels=4)
    path = save(tmp_path / "grey.png", grey)
    assert_array_equal(preprocess(path, plain())[0], np.stack([grey] * 3, -1))
    path = save(tmp_path / "rgba.png", rgba)
    assert_array_equal(preprocess(path, plain())[0], rgba[..., :3])

    palette = Image.fromarray(np.array([[0, 1], [1, 0]], "uint8"), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 128]))
    result = preprocess(tmp_path / "palette.png", plain(image_size=2))[0]
    assert_array_equal(result[0], [[10, 20, 30], [40, 50, 60]])


def test_a_model_of_one_channel_takes_files(tmp_path):
    image = photo(4, 4)[..., :1]
    path = save(tmp_path / "a.png", image[..., 0])
    takes = model((4, 4, 1), normalized=True, transform="resize")
    assert_array_equal(preprocess(path, takes)[0], image)


def test_files_are_turned_upright(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    image = photo(4, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = save(tmp_path / "a.png", image, exif=exif)
    assert_array_equal(preprocess(path, plain())[0], np.rot90(image, -1))
    with Image.open(path) as opened:
        assert_array_equal(preprocess(opened, plain())[0], np.rot90(image, -1))


def test_missing_files_are_named(tmp_path):
    for images in [tmp_path / "no.png", [str(tmp_path / "no.png")]]:
        with pytest.raises(FileNotFoundError, match=r"no file or folder .*no\.png"):
            preprocess(images, plain())
    with pytest.raises(FileNotFoundError, match=r"nowhere"):
        list_images(tmp_path / "nowhere")


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"`folder` has no images \(.*\.jpg.*Rec"):
        preprocess(tmp_path, plain())
    with pytest.raises(ValueError, match="`folder` must be a folder"):
        list_images(tmp_path / "notes.txt")


def test_files_that_are_no_images_are_named(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_text("no image")
    with pytest.raises(ValueError, match=r"must be image files. Received: .*a\.jpg"):
        preprocess(path, plain())
    path = save(tmp_path / "b.png", photo(64, 64))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"must be image files. Received: .*b\.png"):
        preprocess(path, plain())
    with pytest.raises(ValueError, match="must be image files"):
        preprocess([tmp_path], plain())  # a folder in a list


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_of_sixteen_bits_the_upper_eight_count(tmp_path, suffix):
    deep = np.arange(16, dtype="uint16").reshape(4, 4) * 4099
    path = save(tmp_path / f"a.{suffix}", deep)
    result = preprocess(path, plain())[0]
    assert_array_equal(result, np.stack([deep >> 8] * 3, -1))


def test_sixteen_bits_that_pillow_reads_as_thirty_two_are_the_same(tmp_path):
    """As Pillow 10 does with PNGs."""
    Image = pytest.importorskip("PIL.Image")
    deep = np.arange(16, dtype="int32").reshape(4, 4) * 4099
    image = Image.fromarray(deep)
    image.format = "PNG"
    assert image.mode == "I"
    assert_array_equal(preprocess(image, plain())[0, ..., 0], deep >> 8)


def test_more_than_sixteen_bits_are_refused(tmp_path):
    for dtype in ("int32", "float32"):
        path = save(tmp_path / "a.tif", np.full((4, 4), 40_000, dtype))
        with pytest.raises(ValueError, match=r"8 or 16 bits per channel.*a\.tif"):
            preprocess(path, plain())


def test_whatever_pillow_raises_names_the_file(tmp_path, monkeypatch):
    Image = pytest.importorskip("PIL.Image")
    path = save(tmp_path / "a.png", photo(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(ValueError, match=r"a\.png.*4096 pixels.*limit of 4000"):
        preprocess(path, plain())
    monkeypatch.undo()
    for error in (NotImplementedError("no such mode"), IndexError(), ValueError("?")):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(Image.Image, "convert", fail)
        with pytest.raises(
            ValueError, match=r"must be image files. Received: .*a\.png"
        ):
            preprocess(path, plain())


def test_what_a_person_may_miss_in_a_folder_is_counted(tmp_path):
    save(tmp_path / "a.png", photo(4, 4))
    (tmp_path / "IMG_0001").write_bytes(b"")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "linked.png").symlink_to(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="Not used as images in") as caught:
        names = [path.name for path in list_images(tmp_path)]
    assert names == ["a.png", "linked.png"]
    (message,) = [str(one.message) for one in caught]
    for part in ("suffix, IMG_0001", "broken link(s), gone.jpg", "folder(s), again"):
        assert f"{part}" in message


def test_files_are_refused_for_a_model_of_many_channels(tmp_path):
    path = save(tmp_path / "a.png", photo(4, 4))
    with pytest.raises(ValueError, match=r"arrays for a model of 5 channels.*a\.png"):
        preprocess(path, model((4, 4, 5)))


def test_a_missing_pillow_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", photo(4, 4))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'keras-mixer\[plot\]'"):
        preprocess(path, plain())
    preprocess(photo(4, 4), plain())  # arrays do not need it


def test_the_module_imports_no_backend():
    code = (
        "import runpy, sys\n"
        "runpy.run_path(sys.argv[1])\n"
        "print({'keras', 'jax', 'tensorflow', 'torch', 'PIL'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, preprocessing.__file__]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
