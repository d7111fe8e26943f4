import numpy as np
import pytest

from keras_mixer.data import decoding

# No backend computes here.
pytestmark = pytest.mark.backend_free

tf = pytest.importorskip("tensorflow")


@pytest.fixture
def photo():
    rng = np.random.default_rng(0)
    small = tf.constant(rng.integers(0, 256, (10, 13, 3), "uint8"))
    image = tf.image.resize(small, (100, 130), "bicubic")
    return tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8)


@pytest.mark.parametrize("encode", [tf.io.encode_png, tf.io.encode_jpeg])
@pytest.mark.parametrize("channels", [1, 3])
def test_files_become_rgb_and_pixels_stay_as_they_are(photo, encode, channels):
    image = photo[..., :channels].numpy()
    pixels = decoding.decoded(encode(image)).numpy()
    assert pixels.shape == (100, 130, 3)
    assert np.abs(pixels.astype(int) - image).mean() < 4
    np.testing.assert_array_equal(decoding.decoded(image), image)


def test_the_same_part_of_files_and_of_pixels(photo):
    png = tf.io.encode_png(photo)
    jpeg = tf.io.encode_jpeg(photo, quality=95)
    whole = decoding.decoded(jpeg)
    parts = set()
    for seed in range(30):
        arguments = ((0.1, 0.7), (1, seed))
        expected = decoding.random_area(photo, *arguments).numpy()
        parts.add(expected.shape)
        of_png = decoding.random_area(png, *arguments)
        np.testing.assert_array_equal(decoding.decoded(of_png), expected)
        of_jpeg = decoding.random_area(jpeg, *arguments).numpy().astype(int)
        expected = decoding.random_area(whole, *arguments)
        # Colours at the edges of a part lack the neighbours to interpolate from.
        inner = np.abs(of_jpeg - expected)[2:-2, 2:-2]
        assert inner.max() == 0
    assert len(parts) > 20
