"""TensorFlow's step of one replica, without TensorFlow, trains as one device does."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_mixer.benchmark import replica_program

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="TensorFlow's step"
)

# Two devices of JAX, each with half of the batch, and TensorFlow itself with all of it.
JOB = """
import jax
import keras
import numpy as np
import tensorflow as tf

from keras_mixer.benchmark import replica_program, tpu_compile
from keras_mixer.models.mixer import mlp_mixer
from keras_mixer.training.optimizers import finetune_optimizer

def compiled_model():
    keras.utils.set_random_seed(7)
    model = mlp_mixer(
        patch_size=4, hidden_dim=12, num_blocks=2, tokens_mlp_dim=8,
        channels_mlp_dim=16, input_shape=(8, 8, 3), num_classes=5,
        classifier_activation=None,
    )
    model.get_layer("head").kernel.assign(np.random.normal(size=(12, 5)))
    optimizer = finetune_optimizer(
        total_steps=9, warmup_steps=1, base_learning_rate=0.5, clip_norm=0.2,
        ema_momentum=0.5,
    )
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    tpu_compile.create_state(model)
    return model

def weights(model):
    return [*model.trainable_variables, *model.optimizer.variables]

def all_variables(model):
    return [*weights(model), *model.metrics_variables]

rng = np.random.default_rng(0)
images = rng.integers(0, 256, (8, 8, 8, 3)).astype("float32")
labels = np.eye(5, dtype="float32")[rng.integers(0, 5, 8)]

one = compiled_model()
before = [np.array(variable) for variable in one.trainable_variables]
for _ in range(3):
    one.train_step((images, labels))

functions = []
make = tf.function

def remembered(*args, **kwargs):
    made = make(*args, **kwargs)
    if args and kwargs.get("jit_compile"):
        functions.append(made)
    return made

tf.function = remembered
with replica_program.replicas(2).scope():
    model = compiled_model()
    program = replica_program.replica_program(model, 4)
specs = [tf.TensorSpec((4, *array.shape[1:])) for array in (images, labels)]
handles = functions[-1].get_concrete_function(*specs).captured_inputs
variables = {id(v.value.handle): v for v in all_variables(model)}
places = {id(variables[id(handle)]): i + 2 for i, handle in enumerate(handles)}

run = replica_program.lower(program, jax.devices()).compile()
state = [images, labels, *(np.array(variables[id(handle)]) for handle in handles)]
for _ in range(3):
    results = run(*state)
    for place, value in zip(program.assigned, results[-len(program.assigned):]):
        state[place] = np.array(value)

moved = [np.abs(np.array(v) - b).max() for v, b in zip(one.trainable_variables, before)]
assert np.median(moved) > 1e-2, moved
for ours, found in zip(weights(one), weights(model), strict=True):
    if id(found) in places:
        np.testing.assert_allclose(
            state[places[id(found)]], np.array(ours), atol=2e-6, err_msg=found.path
        )
assert len(places) >= len(weights(model))
"""


def test_replicas_on_other_devices_train_as_one_device():
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",  # the step's number is an argument, in int64
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", JOB],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


class Calculated(keras.layers.Layer):
    """A layer of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)

    def compute_output_shape(self, input_shape):
        return input_shape


def model_with(function):
    """A model of one kernel behind `function`, for two replicas."""
    with replica_program.replicas(2).scope():
        model = keras.Sequential(
            [keras.Input((4,)), Calculated(function), keras.layers.Dense(3)]
        )
        model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
        model.optimizer.build(model.trainable_variables)
        with keras.StatelessScope():
            model.compute_metrics(np.zeros((1, 4)), np.zeros((1, 3)), np.zeros((1, 3)))
    return model


def program_of(function, **arguments):
    model = model_with(function)
    with model.distribute_strategy.scope():
        return replica_program.replica_program(model, 2, **arguments)


def test_gradients_are_summed_over_all_replicas():
    program = program_of(lambda x: x)
    assert program.num_replicas == 2
    assert program.text.count("stablehlo.all_reduce") == 2  # kernel and bias
    assert program.text.count("dense<[[0, 1]]>") == 2
    assert "mhlo.copy" not in program.text
    assert "stablehlo.all_reduce" not in program_of(lambda x: x, training=False).text


def test_a_call_of_the_host_is_an_error():
    import tensorflow as tf

    def on_the_host(x):
        return tf.ensure_shape(tf.numpy_function(np.abs, [x], x.dtype), x.shape)

    with pytest.raises(ValueError, match="no TPU can run.*PyFunc"):
        program_of(on_the_host)


def test_a_shape_that_depends_on_values_is_an_error():
    import tensorflow as tf

    with pytest.raises(ValueError, match=r"no TPU can run.*dynamic shape, tensor<.*\?"):
        program_of(lambda x: x + tf.cast(tf.unique(x[:, 0])[0][-1], x.dtype))
