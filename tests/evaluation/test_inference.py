import numpy as np
import pytest
from drawn import drawn_model

import keras_mixer
from keras_mixer.evaluation.inference import outputs, read_labels

pytest.importorskip("tensorflow")


def photos(count=7, size=(40, 28)):
    images = np.random.default_rng(0).integers(0, 256, (count, *size, 3), "uint8")
    return images, np.arange(count) % 5


def collected(model, source, **arguments):
    values, labels = zip(*outputs(model, source, **arguments), strict=True)
    return np.concatenate(values), np.concatenate(labels)


@pytest.mark.parametrize(
    ("batch_size", "include_preprocessing"),
    [(1, True), (3, False), (7, True), (9, True)],
)
def test_outputs_are_those_of_the_preprocessed_images(
    batch_size, include_preprocessing
):
    record = keras_mixer.preprocessing.Preprocessing((0.0, 1.0), "resize_crop")
    model = drawn_model(
        preprocessing=record, include_preprocessing=include_preprocessing
    )
    images, labels = photos()
    source = keras_mixer.data.from_arrays(images, labels)
    expected = model.predict(keras_mixer.preprocess(images, model), verbose=0)
    values, seen = collected(model, source, batch_size=batch_size)
    np.testing.assert_allclose(values, expected, atol=2e-5)
    np.testing.assert_array_equal(seen, labels)


def test_all_batches_have_one_shape_so_that_the_model_is_compiled_once():
    model, shapes = drawn_model(), []
    predict = model.predict_on_batch
    model.predict_on_batch = lambda x: shapes.append(x.shape) or predict(x)
    source = keras_mixer.data.from_arrays(*photos())
    assert [len(values) for values, _ in outputs(model, source, batch_size=3)] == [
        3,
        3,
        1,
    ]
    assert shapes == [(3, 32, 24, 3)] * 3


def test_a_node_and_another_transform_can_be_asked_for():
    model = drawn_model()
    images, labels = photos()
    source = keras_mixer.data.from_arrays(images, labels)
    record = keras_mixer.preprocessing.Preprocessing(transform="resize")
    values, _ = collected(model, source, node="pre_logits", preprocessing=record)
    resized = drawn_model(preprocessing=record)
    features = resized.features("pre_logits")
    expected = features.predict(keras_mixer.preprocess(images, resized), verbose=0)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)
    own, _ = collected(model, source, node="pre_logits")
    assert np.abs(values - own).max() > 1e-2


@pytest.mark.backend_free
def test_the_bar_is_not_on_the_standard_output(capsys):
    collected(drawn_model(), keras_mixer.data.from_arrays(*photos()), progress=True)
    assert capsys.readouterr().out == ""


def test_labels_are_read_without_the_images():
    images, labels = photos()
    source = keras_mixer.data.from_arrays(images, labels)
    np.testing.assert_array_equal(read_labels(source), labels)


def test_errors_name_the_argument():
    source = keras_mixer.data.from_arrays(*photos())
    with pytest.raises(ValueError, match="`model` must be a Keras model.*list"):
        next(outputs([], source))
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer"):
        next(outputs(drawn_model(), source, batch_size=0))
