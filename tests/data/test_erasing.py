import numpy as np
import pytest

from keras_mixer.data import erasing

# No backend computes here.
pytestmark = pytest.mark.backend_free

tf = pytest.importorskip("tensorflow")


@pytest.fixture(params=[(24, 31), (40, 17)], ids=str)
def image(request):
    """Smooth and noisy at once, no value range complete, every channel different."""
    height, width = request.param
    rng = np.random.default_rng(height)
    ramp = np.linspace(20, 160, height)[:, None, None] * np.array([1.0, 0.6, 0.3])
    return (ramp + rng.uniform(0, 60, (height, width, 3))).astype("uint8")


def bounds(hole):
    """Return (top, bottom, left, right) of a rectangle that is full, or `None`."""
    rows, columns = np.nonzero(hole)
    if not rows.size:
        return None
    top, bottom = rows.min(), rows.max() + 1
    left, right = columns.min(), columns.max() + 1
    assert hole[top:bottom, left:right].all()
    return top, bottom, left, right


def erased(image, count, probability=1.0):
    """Results of as many seeds."""

    @tf.function
    def results(seeds):
        return tf.map_fn(
            lambda seed: erasing.random_erasing(image, seed, probability=probability),
            seeds,
            fn_output_signature=tf.uint8,
        )

    return results(tf.stack([tf.fill([count], 3), tf.range(count)], axis=1)).numpy()


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_random_erasing_happens_as_often_as_asked(image, probability):
    changed = (erased(image, 400, probability) != image).any(axis=(1, 2, 3)).mean()
    deviation = np.sqrt(probability * (1 - probability) / 400)
    assert abs(changed - probability) <= 4 * deviation


def test_erased_rectangles_have_the_areas_and_aspect_ratios_of_the_paper():
    height, width = 120, 150
    image = np.zeros((height, width, 3), "uint8")
    areas, ratios, corners, values = [], [], [], []
    for result in erased(image, 400):
        # All three channels 0 within noise: one pixel in 2**24.
        top, bottom, left, right = bounds(result.any(axis=-1))
        areas.append((bottom - top) * (right - left) / (height * width))
        ratios.append(np.log((bottom - top) / (right - left)))
        room = np.array([height - (bottom - top), width - (right - left)])
        if room.all():
            corners.append((top, left) / room)
        values.append(
            np.bincount(result[top:bottom, left:right].ravel(), minlength=256)
        )
    assert 0.018 < min(areas) < 0.035 and 0.31 < max(areas) < 0.336
    assert np.mean(areas) == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)
    end = np.log(1 / 0.3)
    assert (
        -end - 0.05 < min(ratios) < -end + 0.1 and end - 0.1 < max(ratios) < end + 0.05
    )
    assert np.mean(ratios) == pytest.approx(0, abs=4 * 2 * end / np.sqrt(12 * 400))
    # From one border to the other, the middle in the middle.
    corners = np.array(corners)
    assert (corners.min(axis=0) < 0.02).all() and (corners.max(axis=0) > 0.98).all()
    np.testing.assert_allclose(corners.mean(axis=0), 0.5, atol=4 / np.sqrt(12 * 380))
    share = np.sum(values, axis=0) / np.sum(values)
    np.testing.assert_allclose(share * 256, 1, atol=0.05)


def test_a_rectangle_longer_than_the_image_becomes_as_long():
    image = np.zeros((4, 60, 3), "uint8")
    edges = set()
    for result in erased(image, 60):
        top, bottom, *_ = bounds(result.any(axis=-1))
        edges.add((top, bottom))
    assert (0, 4) in edges


def test_the_seed_alone_decides(image):
    def run(seed):
        return erasing.random_erasing(image, seed, probability=1.0).numpy()

    np.testing.assert_array_equal(run((2, 3)), run((2, 3)))
    assert len({run((2, seed)).tobytes() for seed in range(8)}) > 6
