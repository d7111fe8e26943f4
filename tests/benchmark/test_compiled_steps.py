import keras
import numpy as np
from drawn import drawn_model

from keras_mixer.benchmark.compiled_steps import ForwardPass, TrainingStep, compiled
from keras_mixer.training.optimizers import finetune_optimizer


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def compiled_model():
    model = drawn_model(classifier_activation=None)
    model.compile(
        finetune_optimizer(total_steps=9, warmup_steps=2, base_learning_rate=0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def moved(model):
    """The largest change of a weight since the model was drawn."""
    pairs = zip(model.get_weights(), drawn_model().get_weights(), strict=True)
    return max(abs(now - drawn).max() for now, drawn in pairs)


def test_a_compiled_function():
    x = np.arange(6, dtype="float32").reshape(2, 3)
    double = compiled(lambda x: 2 * x, jit_compile=False)
    np.testing.assert_array_equal(numpy(double(keras.ops.convert_to_tensor(x))), 2 * x)


def test_forward_is_predict(tiny_images):
    model = drawn_model()
    forward = ForwardPass(model)
    images = keras.ops.convert_to_tensor(tiny_images)
    expected = model.predict(tiny_images, verbose=0)
    np.testing.assert_allclose(numpy(forward(images)), expected, atol=1e-6)


def test_forward_takes_other_weights_once_released(tiny_images):
    model, other = drawn_model(), drawn_model(seed=1)
    forward = ForwardPass(model)
    images = keras.ops.convert_to_tensor(tiny_images)
    before = numpy(forward(images))
    model.set_weights(other.get_weights())
    model.predict(tiny_images, verbose=0)  # on JAX the old arrays are gone now
    forward.release()
    after = numpy(forward(images))
    np.testing.assert_allclose(after, other.predict(tiny_images, verbose=0), atol=1e-6)
    assert abs(after - before).max() > 1e-3


def test_forward_of_a_layer():
    model = drawn_model()
    layer = model.blocks[0].token_mixing
    x = keras.random.normal((2, 12, 16), seed=0)
    outputs = ForwardPass(layer, jit_compile=False)(x)
    np.testing.assert_allclose(numpy(outputs), numpy(layer(x)), atol=1e-6)


def test_steps_are_those_of_fit(tiny_images):
    labels = np.array([0, 1, 2, 3], "int32")
    by_fit, by_steps = compiled_model(), compiled_model()
    by_fit.fit(tiny_images, labels, batch_size=4, epochs=3, verbose=0)
    step = TrainingStep(by_steps)
    batch = [keras.ops.convert_to_tensor(x) for x in (tiny_images, labels)]
    for _ in range(2):
        changed = step(*batch)
    assert keras.tree.flatten(changed)
    step.release()
    by_steps.fit(tiny_images, labels, batch_size=4, verbose=0)
    for expected, value in zip(
        by_fit.get_weights(), by_steps.get_weights(), strict=True
    ):
        np.testing.assert_allclose(value, expected, atol=2e-6)
    assert moved(by_steps) > 1e-3


def test_steps_go_on_after_fit(tiny_images):
    labels = np.array([0, 1, 2, 3], "int32")
    model = compiled_model()
    step = TrainingStep(model)
    batch = [keras.ops.convert_to_tensor(x) for x in (tiny_images, labels)]
    step(*batch)
    step.release()
    step.release()
    model.fit(tiny_images, labels, batch_size=4, verbose=0)
    step(*batch)
    step.release()
    assert int(model.optimizer.iterations) == 3
    assert moved(model) > 1e-3
