"""Every operation against Pillow, or against NumPy where Pillow has no such one."""

import numpy as np
import pytest

from keras_mixer.data import randaugment

# No backend computes here.
pytestmark = pytest.mark.backend_free

tf = pytest.importorskip("tensorflow")
Image = pytest.importorskip("PIL.Image")
ImageEnhance = pytest.importorskip("PIL.ImageEnhance")
ImageOps = pytest.importorskip("PIL.ImageOps")


@pytest.fixture(params=[(24, 31), (40, 17)], ids=str)
def image(request):
    """Smooth and noisy at once, no value range complete, every channel different."""
    height, width = request.param
    rng = np.random.default_rng(height)
    ramp = np.linspace(20, 160, height)[:, None, None] * np.array([1.0, 0.6, 0.3])
    return (ramp + rng.uniform(0, 60, (height, width, 3))).astype("uint8")


def equal_but_for_rounding(ours, other, levels=1):
    assert ours.dtype == np.uint8
    difference = np.abs(ours.astype(int) - np.asarray(other).astype(int))
    assert difference.max() <= levels


def test_autocontrast_and_equalize_are_pillows(image):
    pil = Image.fromarray(image)
    ours = randaugment.autocontrast(image).numpy()
    equal_but_for_rounding(ours, ImageOps.autocontrast(pil))
    assert ours.min() == 0 and ours.max() == 255
    ours = randaugment.equalize(image).numpy()
    np.testing.assert_array_equal(ours, ImageOps.equalize(pil))


def test_one_colour_stays_what_it_is():
    flat = np.full((9, 7, 3), (3, 200, 0), "uint8")
    for operation in (randaugment.autocontrast, randaugment.equalize):
        np.testing.assert_array_equal(operation(flat), flat)


@pytest.mark.parametrize("bits", [1, 4, 6, 8])
def test_posterize_is_pillows(image, bits):
    ours = randaugment.posterize(image, bits)
    np.testing.assert_array_equal(
        ours, ImageOps.posterize(Image.fromarray(image), bits)
    )


@pytest.mark.parametrize("threshold", [0, 90, 128])
def test_solarize_and_invert_are_pillows(image, threshold):
    pil = Image.fromarray(image)
    ours = randaugment.solarize(tf.constant(image), threshold)
    np.testing.assert_array_equal(ours, ImageOps.solarize(pil, threshold))
    np.testing.assert_array_equal(randaugment.invert(image), ImageOps.invert(pil))


def test_solarize_add_raises_the_dark_values_only(image):
    ours = randaugment.solarize_add(tf.constant(image), 165).numpy()
    expected = np.where(image < 128, np.minimum(image.astype(int) + 165, 255), image)
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("factor", [0.1, 1.0, 1.9, 2.8])
@pytest.mark.parametrize("name", ["color", "contrast", "brightness"])
def test_enhancements_are_pillows(image, name, factor):
    enhance = getattr(ImageEnhance, name.capitalize())
    ours = getattr(randaugment, name)(image, factor).numpy()
    # A grey level that Pillow rounds and TensorFlow truncates, times the factor.
    equal_but_for_rounding(
        ours, enhance(Image.fromarray(image)).enhance(factor), levels=4
    )
    grey = image @ np.array([0.2989, 0.587, 0.114])
    other = {"color": grey[..., None], "contrast": grey.mean(), "brightness": 0}[name]
    expected = np.clip(other + factor * (image - other), 0, 255)
    assert np.abs(ours - expected).max() < 1 + 2 * abs(1 - factor)


@pytest.mark.parametrize("factor", [0.1, 1.0, 2.8])
def test_sharpness_is_pillows(image, factor):
    ours = randaugment.sharpness(image, factor).numpy()
    enhance = ImageEnhance.Sharpness(Image.fromarray(image))
    equal_but_for_rounding(ours, enhance.enhance(factor), levels=3)
    np.testing.assert_array_equal(ours[0], image[0])
    np.testing.assert_array_equal(ours[:, -1], image[:, -1])


def moved(image, x, y):
    """Pixels from the places (x, y) of each pixel, by NumPy."""
    rows, columns = np.rint(y).astype(int), np.rint(x).astype(int)
    height, width, _ = image.shape
    known = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    result = np.full_like(image, 128)
    result[known] = image[rows[known], columns[known]]
    return result


def mostly_equal(ours, expected):
    """But for places just between two pixels, which float32 decides otherwise."""
    assert (ours.numpy() == expected).all(axis=-1).mean() > 0.98


@pytest.mark.parametrize("amount", [-7.0, 4.0, 150.0])
def test_translation(image, amount):
    y, x = np.indices(image.shape[:2])
    for name, places in {"x": (x + amount, y), "y": (x, y + amount)}.items():
        ours = randaugment.translate(image, **{name: amount})
        np.testing.assert_array_equal(ours, moved(image, *places))


@pytest.mark.parametrize("degrees", [-45.0, 0.0, 17.0])
def test_pixels_move_as_in_tensorflows_own_operation(image, degrees):
    """Bit for bit, halves between two pixels included."""
    matrices = [
        [1.0, degrees / 100, 0.0, 0.0, 1.0, 0.0],
        [1.0, 0.0, 0.0, degrees / 100, 1.0, 0.0],
        [0.5, 0.5, -1.5, -0.5, 0.5, 8.5],
    ]
    for matrix in matrices:
        expected = tf.raw_ops.ImageProjectiveTransformV3(
            images=image[None],
            transforms=[[*matrix, 0.0, 0.0]],
            output_shape=image.shape[:2],
            fill_value=128.0,
            interpolation="NEAREST",
            fill_mode="CONSTANT",
        )[0]
        ours = randaugment._transform(image, matrix)
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("amount", [-0.43, 0.31])
def test_shear(image, amount):
    y, x = np.indices(image.shape[:2])
    mostly_equal(randaugment.shear(image, x=amount), moved(image, x + amount * y, y))
    mostly_equal(randaugment.shear(image, y=amount), moved(image, x, y + amount * x))


@pytest.mark.parametrize("degrees", [-45.0, 17.0])
def test_rotation_about_the_centre(image, degrees):
    y, x = np.indices(image.shape[:2])
    middle_y, middle_x = (np.array(image.shape[:2]) - 1) / 2
    turn = np.exp(1j * np.deg2rad(degrees)) * ((x - middle_x) + 1j * (y - middle_y))
    expected = moved(image, turn.real + middle_x, turn.imag + middle_y)
    mostly_equal(randaugment.rotate(image, degrees), expected)
    pil = Image.fromarray(image).rotate(degrees, fillcolor=(128,) * 3)
    same = (randaugment.rotate(image, degrees).numpy() == np.asarray(pil)).all(-1)
    assert same.mean() > 0.9


@pytest.mark.parametrize("center", [(0, 0), (10, 12), (23, 5)])
def test_cutout_stops_at_the_borders(image, center):
    expected = image.copy()
    top, left = (max(0, place - 6) for place in center)
    expected[top : center[0] + 6, left : center[1] + 6] = 128
    np.testing.assert_array_equal(randaugment.cutout(image, center, 6), expected)


def test_the_strengths_of_magnitude_15_are_the_official_ones(monkeypatch):
    """The numbers of `autoaugment.py`, operation after operation."""
    seen = []
    for name in ("rotate", "posterize", "solarize", "color", "contrast", "brightness"):
        monkeypatch.setattr(randaugment, name, lambda _, x, n=name: seen.append((n, x)))
    for name in ("sharpness", "solarize_add"):
        monkeypatch.setattr(randaugment, name, lambda _, x, n=name: seen.append((n, x)))
    for name in ("shear", "translate"):
        monkeypatch.setattr(
            randaugment, name, lambda _, n=name, **x: seen.append((n, x))
        )
    monkeypatch.setattr(randaugment, "cutout", lambda _, c, x: seen.append((c, x)))
    image = np.zeros((4, 4, 3), "uint8")
    operations = randaugment._operations(image, 1.5, sign=-1.0, center="center")
    assert len(operations) == 16
    for operation in operations[3:]:
        operation()
    assert [name for name, _ in seen] == [
        *("rotate", "posterize", "solarize", "color", "contrast", "brightness"),
        *("sharpness", "shear", "shear", "translate", "translate", "center"),
        "solarize_add",
    ]
    factor = pytest.approx(2.8)
    assert [amount for _, amount in seen] == [
        *(-45.0, 6, 128, factor, factor, factor, factor),
        *({"x": pytest.approx(-0.45)}, {"y": pytest.approx(-0.45)}),
        *({"x": -150.0}, {"y": -150.0}, 60, 165),
    ]


def test_the_factor_of_pixels_shrinks_translations_and_cutout_only(image):
    """As large a part of 32 pixels as the official ones of 224."""

    def results(**scale):
        operations = randaugment._operations(
            image, 1.0, sign=1.0, center=(10, 12), **scale
        )
        return [np.asarray(operation()) for operation in operations]

    plain, shrunk = results(), results(pixel_scale=32 / 224)
    same = [np.array_equal(*pair) for pair in zip(plain, shrunk, strict=True)]
    assert [i for i, equal in enumerate(same) if not equal] == [12, 13, 14]
    y, x = np.indices(image.shape[:2])
    np.testing.assert_array_equal(shrunk[12], moved(image, x + 100 / 7, y))
    np.testing.assert_array_equal(shrunk[13], moved(image, x, y + 100 / 7))
    expected = image.copy()
    expected[5:15, 7:17] = 128  # 40 / 7: 5 pixels on each side of the centre
    np.testing.assert_array_equal(shrunk[14], expected)


def test_randaugment_hands_the_factor_on(image, monkeypatch):
    seen = []

    def operations(image, *_, pixel_scale, **__):
        seen.append(pixel_scale)
        return [lambda: image] * 16

    monkeypatch.setattr(randaugment, "_operations", operations)
    randaugment.randaugment(image, (0, 1), layers=1, magnitude=9)
    randaugment.randaugment(image, (0, 1), layers=1, magnitude=9, pixel_scale=0.2)
    assert list(dict.fromkeys(seen)) == [1.0, 0.2]


def test_every_operation_is_drawn_equally_often_and_by_the_seed(monkeypatch):
    names = [
        lambda i=i: tf.fill((2, 2, 3), tf.constant(i, tf.uint8)) for i in range(16)
    ]
    monkeypatch.setattr(randaugment, "_operations", lambda *_, **__: names)
    image = tf.zeros((2, 2, 3), tf.uint8)

    def draw(seed):
        return randaugment.randaugment(image, seed, layers=1, magnitude=10)[0, 0, 0]

    @tf.function
    def drawn(seeds):
        return tf.map_fn(draw, seeds, fn_output_signature=tf.uint8)

    seeds = tf.stack([tf.fill([1600], 5), tf.range(1600)], axis=1)
    draws = drawn(seeds).numpy()
    counts = np.bincount(draws, minlength=16)
    assert counts.size == 16
    # 100 each; the 99.9 % quantile of chi squared with 15 degrees of freedom is 37.7.
    assert ((counts - 100) ** 2 / 100).sum() < 37.7
    np.testing.assert_array_equal(draws[:50], drawn(seeds[:50]))


def test_layers_follow_one_another(image, monkeypatch):
    add_one = [lambda image: image + 1] * 16
    monkeypatch.setattr(
        randaugment,
        "_operations",
        lambda image, *_, **__: [lambda op=op: op(image) for op in add_one],
    )
    for layers in (1, 2, 3):
        ours = randaugment.randaugment(image, (0, 1), layers=layers, magnitude=15)
        np.testing.assert_array_equal(ours, image + layers)


@pytest.mark.parametrize("magnitude", [0, 20])
def test_images_of_unknown_size_keep_it(magnitude):
    image = np.full((9, 7, 3), 50, "uint8")

    @tf.function(input_signature=[tf.TensorSpec((None, None, 3), tf.uint8)])
    def augmented(image):
        seeds = tf.stack([tf.zeros(40, tf.int32), tf.range(40)], axis=1)
        return tf.map_fn(
            lambda seed: randaugment.randaugment(
                image, seed, layers=2, magnitude=magnitude
            ),
            seeds,
            fn_output_signature=tf.uint8,
        )

    assert augmented(image).shape == (40, 9, 7, 3)
