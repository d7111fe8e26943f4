import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_mixer.data import mixing

# No backend computes here.
pytestmark = pytest.mark.backend_free

tf = pytest.importorskip("tensorflow")


def pasted_where(images, mixed):
    """Bool `(height, width)`: where the batch has pixels of its neighbours."""
    rolled = np.roll(images, 1, axis=0)
    hole = (mixed == rolled).all(axis=(0, 3))
    np.testing.assert_array_equal(
        mixed, np.where(hole[None, :, :, None], rolled, images)
    )
    return hole


def bounds(hole):
    """Return (top, bottom, left, right) of a rectangle that is full, or `None`."""
    rows, columns = np.nonzero(hole)
    if not rows.size:
        return None
    top, bottom = rows.min(), rows.max() + 1
    left, right = columns.min(), columns.max() + 1
    assert hole[top:bottom, left:right].all()
    return top, bottom, left, right


def numbered(count, height, width):
    """Images that no pixel of a neighbour fits into unseen."""
    values = np.arange(1, count + 1, dtype="uint8")[:, None, None, None]
    return np.broadcast_to(values, (count, height, width, 3)).copy()


def test_mixup_blends_images_and_labels_alike():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 4, 4, 3), "uint8")
    labels = np.eye(5, dtype="float32")
    shares = []
    for seed in range(40):
        x, y = mixing.mixup(images, labels, (1, seed), alpha=0.5)
        a = y.numpy()[0, 0]
        rolled = np.roll(images, 1, axis=0)
        np.testing.assert_allclose(x, a * images + (1 - a) * rolled, atol=1e-3)
        np.testing.assert_allclose(
            y, a * labels + (1 - a) * np.roll(labels, 1, axis=0), atol=1e-6
        )
        shares.append(a)
    assert 0.5 <= min(shares) and max(shares) <= 1
    assert np.std(shares) > 0.05


@settings(deadline=None, max_examples=50)
@given(
    seed=st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 2),
    alpha=st.floats(0.05, 20),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
)
def test_cutmix_labels_are_the_areas(seed, alpha, height, width):
    images = numbered(3, height, width)
    labels = np.eye(3, dtype="float32")
    mixed, shares = mixing.cutmix(images, labels, seed, alpha=alpha)
    assert mixed.dtype == tf.uint8
    hole = pasted_where(images, mixed.numpy())
    bounds(hole)
    area = hole.mean()
    expected = (1 - area) * labels + area * np.roll(labels, 1, axis=0)
    np.testing.assert_allclose(shares, expected, atol=1e-6)


def test_cutmix_rectangles_are_distributed_as_in_the_paper():
    """Against NumPy draws of the paper's algorithm, of 40 x 20 pixels."""
    height, width = 40, 20
    images, labels = numbered(2, height, width), np.eye(2, dtype="float32")

    @tf.function
    def drawn(seed):
        return mixing.cutmix(images, labels, (7, seed), alpha=1.0)[0]

    holes = [pasted_where(images, drawn(tf.constant(i)).numpy()) for i in range(1500)]
    rng = np.random.default_rng(0)
    side = np.sqrt(rng.uniform(size=(100_000, 1)))
    edges = np.array([height, width])
    center = np.floor(rng.uniform(size=(100_000, 2)) * edges)
    low = np.maximum(center - side * edges // 2, 0)
    high = np.minimum(center - side * edges // 2 + side * edges // 1, edges)
    areas = np.prod(high - low, axis=1) / edges.prod()
    ours = np.array([hole.mean() for hole in holes])
    # Four standard errors of the mean of 1500.
    assert abs(ours.mean() - areas.mean()) < 4 * areas.std() / np.sqrt(1500)
    assert abs(ours.std() - areas.std()) < 0.02
    assert ours.min() < 0.01 and ours.max() > 0.85
    # Both ways the same: no axis taken for the other.
    for axis, edge in ((1, height), (0, width)):
        lengths = np.array([hole.any(axis=axis).sum() for hole in holes]) / edge
        expected = (high - low)[:, 1 - axis] / edge
        assert abs(lengths.mean() - expected.mean()) < 4 * expected.std() / 38
    # All four corners alike.
    covered = np.mean(holes, axis=0)
    corners = covered[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.max() - corners.min() < 0.05 and corners.max() < covered.max()


def test_each_batch_goes_through_mixup_or_cutmix_alike_often():
    images, labels = numbered(4, 8, 8), np.eye(4, dtype="float32")
    blended = 0
    for seed in range(200):
        x, y = mixing.mixup_or_cutmix(
            images, labels, (seed, -5), mixup_alpha=0.5, cutmix_alpha=1.0
        )
        x, y = x.numpy(), y.numpy()
        assert x.dtype == y.dtype == np.float32
        a = y[0, 0]
        np.testing.assert_allclose(
            y, a * labels + (1 - a) * np.roll(labels, 1, axis=0), atol=1e-6
        )
        if (x == x[:, :1, :1]).all() and 0 < a < 1:
            blended += 1
            expected = a * images + (1 - a) * np.roll(images, 1, axis=0)
            np.testing.assert_allclose(x, expected, atol=1e-5)
        else:
            hole = pasted_where(images.astype("float32"), x)
            assert a == pytest.approx(1 - hole.mean(), abs=1e-6)
    # 100, with a standard deviation of 7.
    assert 72 <= blended <= 128


def test_the_seed_alone_decides():
    images, labels = numbered(2, 24, 31), np.eye(2, dtype="float32")

    def run(seed):
        return mixing.cutmix(images, labels, seed, alpha=1.0)[0].numpy()

    np.testing.assert_array_equal(run((2, 3)), run((2, 3)))
    assert len({run((2, seed)).tobytes() for seed in range(8)}) > 6
