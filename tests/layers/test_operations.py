"""The operations equal NumPy's, in the forms for GPUs as in the others."""

import keras
import numpy as np
import oracle
import pytest
from drawn import drawn_model

from keras_mixer.layers import operations, tensorflow_products
from keras_mixer.layers.dense import Dense
from keras_mixer.layers.mixer import TokenMixing
from keras_mixer.training.adaptation import set_remat

BACKEND = keras.config.backend()


@pytest.fixture(params=["elsewhere", "gpu", "onednn"])
def on_gpu(request, monkeypatch):
    """All forms; they compute the same on any device."""
    if request.param == "onednn" and BACKEND != "tensorflow":
        pytest.skip("TensorFlow's alone")
    monkeypatch.setattr(operations, "_on_gpu", lambda: request.param == "gpu")
    monkeypatch.setattr(
        tensorflow_products, "multiplies", lambda _: request.param == "onednn"
    )
    return request.param == "gpu"


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def built_dense(rows, columns, dtype):
    layer = keras.layers.Dense(columns, dtype=dtype)
    layer.build((None, None, rows))
    layer.set_weights([drawn(rows, columns, seed=1), drawn(columns, seed=2)])
    return layer


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


@pytest.mark.parametrize(("rows", "columns"), [(49, 24), (24, 49), (5, 3), (16, 8)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dense_is_a_product_and_a_bias(rows, columns, dtype, on_gpu):
    layer = built_dense(rows, columns, dtype)
    x = keras.ops.cast(drawn(2, 7, rows), dtype)
    kernel, bias = (to_numpy(w.value).astype("float64") for w in layer.weights)
    expected = to_numpy(x).astype("float64") @ kernel + bias
    found = to_numpy(operations.dense(layer, x))
    atol = {"float32": 1e-5, "bfloat16": 0.15, "float16": 0.02}[dtype]
    np.testing.assert_allclose(found, expected, atol=atol)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_half_precision_products_on_gpus_have_sizes_in_multiples_of_8(
    dtype, on_gpu, monkeypatch
):
    shapes = []
    matmul = keras.ops.matmul
    monkeypatch.setattr(
        keras.ops,
        "matmul",
        lambda x, y: (shapes.extend([x.shape[-1], *y.shape]), matmul(x, y))[1],
    )
    layer = built_dense(49, 20, dtype)
    y = operations.dense(layer, keras.ops.cast(drawn(2, 7, 49), dtype))
    assert tuple(y.shape) == (2, 7, 20)
    padded = on_gpu and dtype == "bfloat16"
    assert shapes == ([56, 56, 24] if padded else []), "else Keras's layer computes"


def test_dense_of_quantized_and_adapted_layers_is_the_layer(on_gpu):
    x = keras.ops.cast(drawn(2, 7, 49), "bfloat16")
    adapted = built_dense(49, 20, "bfloat16")
    adapted.enable_lora(2)
    adapted.lora_kernel_b.assign(drawn(2, 20, seed=3))
    quantized = built_dense(49, 20, "bfloat16")
    quantized.quantize("int8")
    for layer in (adapted, quantized):
        found = to_numpy(operations.dense(layer, x))
        np.testing.assert_allclose(found, to_numpy(layer(x)), rtol=0.01, atol=0.15)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("approximate", [False, True])
def test_gelu_and_its_gradient(approximate, training, on_gpu):
    x = np.linspace(-3, 3, 101, dtype="float32")
    value, slope = gradient_of(lambda x: operations.gelu(x, approximate, training), x)
    expected = oracle.gelu(x.astype("float64"), approximate)
    np.testing.assert_allclose(value, expected, atol=1e-6)
    step = 1e-5
    below, above = (
        oracle.gelu(x.astype("float64") + h, approximate) for h in (-step, step)
    )
    np.testing.assert_allclose(slope, (above - below) / (2 * step), atol=2e-6)


def gradient_of(function, x):
    """The values of an elementwise function, and its derivative at `x`."""
    if BACKEND == "jax":
        import jax

        value = jax.jit(function)(x)
        slope = jax.jit(jax.grad(lambda x: function(x).sum()))(x)
        return np.asarray(value), np.asarray(slope)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def both(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = function(x)
            return value, tape.gradient(value, x)

        return [tensor.numpy() for tensor in both(tf.constant(x))]
    import torch

    tensor = torch.tensor(x, requires_grad=True)
    value = function(tensor)
    value.sum().backward()
    return value.detach().numpy(), tensor.grad.numpy()


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_dense_gelu_is_product_bias_and_gelu(dtype, approximate, training, on_gpu):
    layer = Dense(24, dtype=dtype)
    layer.build((None, 5, 16))
    layer.set_weights([0.3 * drawn(16, 24, seed=1), drawn(24, seed=2)])
    x = keras.ops.cast(drawn(2, 5, 16), layer.compute_dtype)
    kernel, bias = (
        to_numpy(keras.ops.cast(w, layer.compute_dtype)).astype("float64")
        for w in layer.weights
    )
    product = to_numpy(x).astype("float64") @ kernel + bias
    found = to_numpy(operations.dense_gelu(layer, x, approximate, training))
    atol = 2e-6 if dtype == "float32" else 0.03
    np.testing.assert_allclose(found, oracle.gelu(product, approximate), atol=atol)


def test_a_frozen_mlp_in_a_training_step_keeps_its_gelu(on_gpu):
    class Frozen(keras.layers.Layer):
        def call(self, x, training=None):
            return mixing(x, training=False)

    mixing = TokenMixing(12)
    mixing.build((None, 5, 16))
    x = drawn(2, 5, 16)
    expected = to_numpy(mixing(x, training=False))
    np.testing.assert_allclose(to_numpy(Frozen()(x, training=True)), expected, 1e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's graph optimizer")
def test_nothing_stands_between_product_bias_and_gelu():
    import tensorflow as tf

    layer = Dense(24)
    layer.build((None, 5, 16))

    @tf.function(input_signature=[tf.TensorSpec((None, 5, 16))])
    def compute(x):
        return operations.dense_gelu(layer, x, approximate=True, training=False)

    graph = compute.get_concrete_function().graph
    (product,) = (op for op in graph.get_operations() if op.type == "MatMul")
    (bias,) = product.outputs[0].consumers()
    assert bias.type == "BiasAdd"
    gelu = {op.type for op in bias.outputs[0].consumers()}
    assert gelu == {"Mul", "Pow", "AddV2"}, "the pattern that it looks for"


@pytest.mark.parametrize("scale", [1.0, 1e-4, 300.0])
def test_layer_norm_is_that_of_numpy(scale, on_gpu):
    x = scale * drawn(2, 5, 16) + scale
    gamma, beta = drawn(16, seed=1), drawn(16, seed=2)
    layer = operations.LayerNorm(epsilon=1e-6)
    layer.build(x.shape)
    layer.set_weights([gamma, beta])
    expected = oracle.layer_norm(x.astype("float64"), gamma, beta)
    np.testing.assert_allclose(to_numpy(layer(x)), expected, atol=2e-5)


def test_padding_and_gelu_see_no_other_tokens(on_gpu):
    """49 patches in bfloat16, against the same layer in float32."""
    layers = {}
    for dtype in ("float32", "mixed_bfloat16"):
        layers[dtype] = TokenMixing(12, dtype=dtype)
        layers[dtype].build((None, 49, 16))
    half, whole = layers["mixed_bfloat16"], layers["float32"]
    weights = [0.3 * drawn(*w.shape, seed=i) for i, w in enumerate(whole.weights)]
    half.set_weights(weights)
    whole.set_weights(weights)
    x = drawn(3, 49, 16)
    # Two units in the last place of bfloat16 for the largest outputs, of about 6.
    np.testing.assert_allclose(to_numpy(half(x)), to_numpy(whole(x)), 0.01, 0.06)


@pytest.mark.parametrize("remat", [False, True])
def test_training_in_the_forms_for_gpus_is_the_same_training(remat, monkeypatch):
    losses = []
    for on_gpu in (False, True):
        monkeypatch.setattr(operations, "_on_gpu", lambda value=on_gpu: value)
        model = drawn_model()
        set_remat(model, remat)
        model.compile("sgd", "sparse_categorical_crossentropy")
        images = 255 * np.abs(np.sin(drawn(8, *model.input_shape[1:])))
        labels = np.arange(8) % model.output_shape[-1]
        fit = model.fit(images, labels, 4, epochs=3, shuffle=False, verbose=0)
        losses.append(fit.history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert losses[0][-1] != losses[0][0]
