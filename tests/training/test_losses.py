import keras
import numpy as np
import pytest

from keras_mixer.training.losses import SigmoidCrossentropy


def drawn(scale):
    rng = np.random.default_rng(2)
    return rng.uniform(0, 1, (6, 7)), scale * rng.normal(size=(6, 7))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_the_sum_over_classes_of_binary_crossentropies(label_smoothing):
    targets, logits = drawn(3.0)
    found = SigmoidCrossentropy(label_smoothing)(targets, logits)
    y = targets * (1 - label_smoothing) + label_smoothing / 2
    p = 1 / (1 + np.exp(-logits))
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(-1).mean()
    np.testing.assert_allclose(float(found), expected, rtol=1e-6)


def test_large_logits_stay_finite():
    found = SigmoidCrossentropy()(np.array([[1.0, 0.0]]), np.array([[-1e3, 1e3]]))
    assert float(found) == 2000.0


def test_keras_takes_the_mean_over_classes():
    targets, logits = drawn(1.0)
    keras_own = keras.losses.BinaryCrossentropy(from_logits=True)(targets, logits)
    found = SigmoidCrossentropy()(targets, logits)
    np.testing.assert_allclose(float(found), 7 * float(keras_own), rtol=1e-5)


def test_it_survives_serialization():
    loss = SigmoidCrossentropy(0.1)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert float(again(*drawn(1.0))) == float(loss(*drawn(1.0)))


def test_wrong_smoothing_is_named():
    with pytest.raises(ValueError, match="label_smoothing=1.0"):
        SigmoidCrossentropy(1.0)
