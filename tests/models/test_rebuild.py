import keras
import numpy as np
import pytest
from drawn import LABELS, drawn_model

from keras_mixer.models.rebuild import rebuilt


@pytest.fixture
def model():
    model = drawn_model(dropout_rate=0.2, approximate_gelu=False)
    model.labels = LABELS
    return model


def test_other_labels_give_a_zero_head_on_the_same_body(model, tiny_images):
    new = rebuilt(model, labels=("fox", "gnu", "hen"), classifier_activation=None)
    assert new.labels == ("fox", "gnu", "hen")
    assert new.output_shape == (None, 3)
    assert not new.predict(tiny_images, verbose=0).any()
    features = [
        each.features("pre_logits").predict(tiny_images, verbose=0)
        for each in (model, new)
    ]
    np.testing.assert_array_equal(*features)


def test_the_same_labels_keep_the_head(model, tiny_images):
    for labels in (LABELS, list(LABELS), None):
        new = rebuilt(model, labels=labels, dropout_rate=0.0)
        np.testing.assert_array_equal(
            new.predict(tiny_images, verbose=0), model.predict(tiny_images, verbose=0)
        )
        assert new.config == {**model.config, "dropout_rate": 0.0}
        assert new.labels == LABELS


def test_the_same_number_of_other_classes_is_another_head(model):
    new = rebuilt(model, labels=LABELS[::-1])
    for weight in new.get_layer("head").get_weights():
        assert not weight.any()


def test_adapters_are_merged_and_precision_is_full(tiny_images):
    model = drawn_model(dtype="mixed_bfloat16")
    layer = model.get_layer("block_1").channel_mixing.dense_0
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.full(layer.lora_kernel_b.shape, 0.1))
    new = rebuilt(model)
    assert all(
        keras.backend.standardize_dtype(w.dtype) == "float32" for w in new.weights
    )
    np.testing.assert_allclose(
        new.predict(tiny_images, verbose=0),
        model.predict(tiny_images, verbose=0),
        atol=0.03,
    )
    kernel = new.get_layer("block_1").channel_mixing.dense_0.kernel
    # NumPy 1 cannot compare bfloat16.
    expected = keras.ops.convert_to_numpy(layer.kernel).astype("float32")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(kernel), expected, atol=1e-6)
