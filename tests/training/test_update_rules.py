"""Against NumPy in float64 on every backend; at the end, TensorFlow's strategies."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from official_steps import (
    SHAPES,
    assert_same,
    drawn,
    numpy,
    official_adamw,
    official_sgd,
    trained,
)

from keras_mixer.training.schedules import per_real_step, warmup_schedule
from keras_mixer.training.update_rules import KernelAdamW, MomentumSGD

STEPS = 25


def schedule(total_steps=STEPS, warmup_steps=4, base=0.3):
    return warmup_schedule(
        total_steps=total_steps,
        base_learning_rate=base,
        warmup_steps=warmup_steps,
        schedule="linear",
    )


def official_rates(steps=STEPS, warmup_steps=4, base=0.3):
    step = np.arange(steps)
    down = np.minimum(1, (steps - step) / (steps - warmup_steps))
    return base * down * np.minimum(1, step / warmup_steps)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    "clip_norm", [None, 0.5, 1e3], ids=["no clip", "clipped", "not reached"]
)
def test_momentum_sgd_makes_the_official_steps(momentum, clip_norm):
    first, gradients = drawn(STEPS)
    found, _ = trained(
        MomentumSGD(schedule(), momentum, global_clipnorm=clip_norm), first, gradients
    )
    rates = official_rates()
    assert_same(found, official_sgd(first, gradients, rates, momentum, clip_norm)[-1])


def test_the_momentum_is_not_that_of_keras():
    """Under a changing learning rate the two forms differ; this is the official one."""
    first, gradients = drawn(STEPS)
    expected = official_sgd(first, gradients, official_rates(), 0.9, None)[-1]
    keras_own, _ = trained(
        keras.optimizers.SGD(schedule(), momentum=0.9), first, gradients
    )
    assert abs(keras_own["bias"] - expected["bias"]).max() > 0.01


@pytest.mark.parametrize(("scale", "clip_norm"), [(1.0, 1.0), (0.01, 1.0), (1e-7, 1.0)])
def test_kernel_adamw_makes_the_official_steps(scale, clip_norm):
    first, gradients = drawn(STEPS, scale)
    found, _ = trained(
        KernelAdamW(schedule(base=0.01), 0.2, global_clipnorm=clip_norm),
        first,
        gradients,
    )
    rates = official_rates(base=0.01)
    assert_same(found, official_adamw(first, gradients, rates, 0.2, clip_norm))


def test_the_epsilon_is_not_that_of_keras():
    """Small gradients tell the two apart."""
    first, gradients = drawn(STEPS, 1e-7)
    expected = official_adamw(first, gradients, official_rates(base=0.01), 0.0, None)
    keras_own, _ = trained(
        keras.optimizers.Adam(schedule(base=0.01), epsilon=1e-8), first, gradients
    )
    assert abs(keras_own["bias"] - expected["bias"]).max() > 0.01


@pytest.mark.parametrize("rule", [MomentumSGD, KernelAdamW])
def test_n_micro_steps_are_one_step_of_their_mean_gradient(rule):
    first, micro = drawn(3 * STEPS, scale=2.0)
    means = [
        {name: np.mean([g[name] for g in micro[i : i + 3]], 0) for name in SHAPES}
        for i in range(0, len(micro), 3)
    ]
    whole, _ = trained(rule(schedule(base=0.02), global_clipnorm=1.0), first, means)
    optimizer = rule(
        per_real_step(schedule(base=0.02), 3),
        global_clipnorm=1.0,
        gradient_accumulation_steps=3,
    )
    found, _ = trained(optimizer, first, micro)
    assert_same(found, whole)
    assert int(numpy(optimizer.iterations)) == STEPS


@pytest.mark.parametrize("accumulation_steps", [None, 3])
def test_the_mean_of_the_weights_counts_each_real_step_once(accumulation_steps):
    first, gradients = drawn(6)
    repeats = accumulation_steps or 1
    optimizer = MomentumSGD(
        per_real_step(schedule(), repeats),
        use_ema=True,
        ema_momentum=0.7,
        gradient_accumulation_steps=accumulation_steps,
    )
    _, variables = trained(
        optimizer, first, [g for g in gradients for _ in range(repeats)]
    )
    history = official_sgd(first, gradients, official_rates()[:6], 0.9, None)
    expected = history[0]
    for weights in history[1:]:
        expected = {n: 0.7 * expected[n] + 0.3 * weights[n] for n in weights}
    optimizer.finalize_variable_values(variables)
    assert_same({v.name: numpy(v) for v in variables}, expected)


def named(path):
    *scopes, name = path.split("/")
    if scopes:
        with keras.name_scope(scopes[0]):
            return named("/".join([*scopes[1:], name]))
    return keras.Variable(np.ones((2, 2), "float32"), name=name)


@pytest.mark.parametrize("rule", [MomentumSGD, KernelAdamW])
def test_rates_and_decay_shrink_with_depth(rule):
    depth = {
        "head/kernel": 0,
        "pre_head_layer_norm/gamma": 0,
        "outer/block_1/token_mixing/dense_0/kernel": 1,
        "block_0/norm_0/gamma": 2,
        "stem/projection/kernel": 3,
    }
    moved = []
    for layer_decay in (None, 0.5):
        variables = [named(path) for path in depth]
        assert [v.path for v in variables] == list(depth)
        optimizer = rule(0.1, layer_decay=layer_decay)
        optimizer.apply([keras.ops.ones((2, 2))] * len(variables), variables)
        moved.append([1 - numpy(v)[0, 0] for v in variables])
    expected = np.array(moved[0]) * 0.5 ** np.array(list(depth.values()))
    np.testing.assert_allclose(moved[1], expected, rtol=1e-5)
    config = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    assert keras.optimizers.deserialize(config).layer_decay == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MomentumSGD(momentum=1.0), "momentum=1.0"),
        (lambda: MomentumSGD(layer_decay=1.5), "layer_decay=1.5"),
        (lambda: KernelAdamW(kernel_decay=-0.1), "kernel_decay=-0.1"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


_STRATEGY = """
import json, sys, keras, numpy as np, tensorflow as tf
from keras_mixer import mlp_mixer
from keras_mixer.training import finetune_optimizer, pretrain_optimizer
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 4
)
drawn = np.random.default_rng(0)
images = drawn.uniform(0, 255, (32, 8, 8, 3)).astype("float32")
labels = drawn.integers(0, 3, 32)
head = drawn.normal(size=(8, 3))

def trained(strategy, rule="sgd", dtype=None, **extras):
    keras.utils.set_random_seed(0)
    make = pretrain_optimizer if rule == "adamw" else finetune_optimizer
    with strategy.scope():
        model = mlp_mixer(
            patch_size=4, hidden_dim=8, num_blocks=2, tokens_mlp_dim=6,
            channels_mlp_dim=10, input_shape=(8, 8, 3), num_classes=3,
            classifier_activation=None, dtype=dtype)
        model.get_layer("head").kernel.assign(head)
        model.compile(
            make(total_steps=8, warmup_steps=2, clip_norm=0.1, base_learning_rate=0.02,
                 **extras),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images, labels, batch_size=8, epochs=2, shuffle=False, verbose=0)
    # LayerNorm takes away what this bias adds: its gradient is rounding, and Adam
    # scales that up to whole steps.
    return [w.numpy() for w in model.weights
            if "token_mixing/dense_1/bias" not in w.path]

results = {}
# In one process a group of devices has one size.
devices = [f"CPU:{i}" for i in range(int(sys.argv[2]))]
for name, case in json.loads(sys.argv[1]).items():
    try:
        several = trained(tf.distribute.MirroredStrategy(devices), **case)
        one = trained(tf.distribute.OneDeviceStrategy("CPU:0"), **case)
        distance = max(abs(a - b).max() for a, b in zip(one, several))
        moved = max(abs(w - head).max() for w in one if w.shape == head.shape)
        results[name] = float(distance), float(moved)
    except ValueError as error:
        results[name] = str(error)
print(json.dumps(results))
"""
CASES = {
    "adamw": {"rule": "adamw"},
    "ema": {"ema_momentum": 0.9},  # of the weights that SGD makes
    "half": {"dtype": "mixed_float16"},
    "accumulation": {"accumulation_steps": 2},
}


tensorflow_only = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="strategies are TensorFlow's"
)


def on_replicas(cases, replicas):
    """Distance and size of the steps of each case, or its error, from one process."""
    result = subprocess.run(
        [sys.executable, "-c", _STRATEGY, json.dumps(cases), str(replicas)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def on_two_replicas():
    return on_replicas(CASES, 2)


@tensorflow_only
@pytest.mark.parametrize(
    ("case", "share"), [("adamw", 1e-4), ("ema", 1e-4), ("half", 0.01)]
)
def test_replicas_train_like_one_device(case, share, on_two_replicas):
    distance, moved = on_two_replicas[case]
    assert distance < share * moved and moved > 1e-4


@tensorflow_only
@pytest.mark.nightly
def test_four_replicas_train_like_one_device():
    distance, moved = on_replicas({"sgd": {}}, 4)["sgd"]
    assert distance < 1e-4 * moved and moved > 1e-4


@tensorflow_only
def test_accumulation_on_several_replicas_is_refused(on_two_replicas):
    assert "accumulation_steps=2 on 2 replicas" in on_two_replicas["accumulation"]


@pytest.mark.parametrize("rule", [MomentumSGD, KernelAdamW])
def test_gradients_of_two_dtypes_are_clipped_by_one_norm(rule):
    """A model under "bfloat16" has a head in float32."""
    values = {"bfloat16": [3.0, 0.0], "float32": [0.0, 4.0]}
    variables = [keras.Variable([0.0, 0.0], dtype=dtype) for dtype in values]
    clipped = []

    class Recording(rule):
        def update_step(self, gradient, variable, learning_rate):
            clipped.append(gradient)

    gradients = [keras.ops.convert_to_tensor(v, dtype) for dtype, v in values.items()]
    Recording(0.1, global_clipnorm=1.0).apply(gradients, variables)
    assert [keras.backend.standardize_dtype(g.dtype) for g in clipped] == list(values)
    first, second = (numpy(keras.ops.cast(g, "float32")) for g in clipped)
    np.testing.assert_allclose(first, [0.6, 0.0], rtol=2**-8)
    np.testing.assert_allclose(second, [0.0, 0.8], rtol=1e-6)


@pytest.mark.skipif(
    keras.config.backend() == "tensorflow", reason="Keras has no stateless step there"
)
@pytest.mark.parametrize("rule", [MomentumSGD, KernelAdamW])
def test_a_step_leaves_the_arrays_that_it_was_given(rule):
    weight = keras.Variable([1.0, 2.0], name="kernel")
    optimizer = rule(0.1, global_clipnorm=0.5, use_ema=True)
    optimizer.build([weight])
    values = [keras.ops.copy(v) for v in optimizer.variables]
    gradient = keras.ops.convert_to_tensor([3.0, -4.0])
    start = keras.ops.convert_to_tensor([1.0, 2.0])
    before = [numpy(value).copy() for value in (*values, gradient, start)]
    after, _ = optimizer.stateless_apply(values, [gradient], [start])
    for value, expected in zip((*values, gradient, start), before, strict=True):
        np.testing.assert_array_equal(numpy(value), expected)
    optimizer.apply([gradient], [weight])
    np.testing.assert_array_equal(numpy(gradient), before[-2])
    np.testing.assert_allclose(numpy(after[0]), numpy(weight), rtol=1e-6)
    assert abs(numpy(weight) - [1.0, 2.0]).min() > 0.01


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("rule", [MomentumSGD, KernelAdamW])
def test_a_gradient_that_is_not_finite_does_not_go_unnoticed(rule, value):
    weights = [keras.Variable([1.0, 2.0], name=name) for name in ("kernel", "bias")]
    gradients = [keras.ops.convert_to_tensor(g) for g in ([1.0, value], [1.0, 1.0])]
    rule(0.1, global_clipnorm=1.0).apply(gradients, weights)
    assert all(np.isnan(numpy(weight)).all() for weight in weights)


@pytest.mark.parametrize("rule", [MomentumSGD, KernelAdamW])
def test_weights_in_bfloat16_are_trained(rule):
    """The first step of AdamW has the length of the learning rate, in any dtype."""
    weight = keras.Variable([1.0, 2.0], dtype="bfloat16", name="bias")
    gradient = keras.ops.cast([1.0, -1.0], "bfloat16")
    rule(0.25).apply([gradient], [weight])
    found = numpy(keras.ops.cast(weight, "float32"))
    np.testing.assert_allclose(found, [0.75, 2.25], rtol=0.01)


def test_a_weight_without_gradient_is_its_own_average():
    optimizer = MomentumSGD(0.1, use_ema=True, ema_momentum=0.5)
    variables = [keras.Variable([1.0], name="a"), keras.Variable([7.0], name="b")]
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([keras.ops.ones(1), None], variables)
    optimizer.finalize_variable_values(variables)
    np.testing.assert_allclose([numpy(v)[0] for v in variables], [0.9, 7.0], rtol=1e-6)
