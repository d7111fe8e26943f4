"""torch's forms of the dense layers equal Keras's, with and without gradients."""

import keras
import numpy as np
import pytest

from keras_mixer.layers import Dense, for_compiler, operations, torch_products
from keras_mixer.layers.torch_products import can_fuse, compiled_gelu

if keras.config.backend() != "torch":
    pytest.skip("torch's alone", allow_module_level=True)

import torch

GELU = torch.nn.functional.gelu
# What one rounding to the dtype changes at values up to 8.
ROUNDING = {"float32": 4e-6, "bfloat16": 0.04, "float16": 0.006}
on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="oneDNN's alone")


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def dense(dtype="float32", rows=12, columns=24):
    layer = Dense(columns, dtype=dtype)
    layer.build((None, None, rows))
    layer.set_weights([drawn(rows, columns, seed=1) / 3, drawn(columns, seed=2)])
    return layer


def exact(layer, x, approximate):
    """Return the GELU of the layer in float64, of the weights in its own dtype."""
    kernel, bias = (w.value.to(x.dtype).double() for w in layer.weights)
    form = "tanh" if approximate else "none"
    return GELU(x.double() @ kernel + bias, approximate=form)


@on_cpu
@pytest.mark.parametrize("approximate", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("columns", [24, 32])
def test_gelu_is_a_part_of_the_product(approximate, dtype, swapped, columns):
    layer = dense(dtype, columns=columns)
    x = keras.ops.cast(drawn(2, 7, 12), layer.compute_dtype)
    if swapped:
        x = x.mT.contiguous().mT
    with torch.no_grad():
        found = operations.dense_gelu(layer, x, approximate, False)
        expected = exact(layer, x, approximate)
    assert found.dtype == x.dtype
    error = (found.double() - expected).abs().max()
    assert error < ROUNDING[layer.compute_dtype]


@on_cpu
def test_fusing_is_for_inference_alone():
    layer, x = dense(), torch.tensor(drawn(2, 7, 12))
    with torch.no_grad():
        assert can_fuse(layer, x)
        assert not can_fuse(layer, x.double())
        assert not can_fuse(layer, torch.empty(2, 7, 12, device="meta"))
        hook = layer.register_forward_hook(lambda *_: None)
        assert not can_fuse(layer, x)
        hook.remove()
        layer.quantize("int8")
        assert not can_fuse(layer, x)
    assert not can_fuse(dense(), x)


@on_cpu
def test_gradients_are_those_of_the_product_and_the_gelu():
    layer = dense()
    x = torch.tensor(drawn(2, 7, 12), requires_grad=True)
    operations.dense_gelu(layer, x, True, True).sum().backward()
    found, x.grad = x.grad, None
    exact(layer, x, True).sum().backward()
    np.testing.assert_allclose(found.numpy(), x.grad.numpy(), atol=2e-6)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_layer_norm_rounds_once_and_its_gradients_are_sums_in_float32(dtype, grad):
    layer = operations.LayerNorm(epsilon=1e-6, dtype=dtype)
    layer.build((None, 5, 16))
    layer.set_weights([drawn(16, seed=1), drawn(16, seed=2)])
    x = keras.ops.cast(3 * drawn(512, 5, 16) + 2, layer.compute_dtype)
    wide = [layer.gamma.value.detach().double(), layer.beta.value.detach().double()]
    wide = [weight.requires_grad_() for weight in wide]
    expected = torch.nn.functional.layer_norm(x.double(), (16,), *wide, 1e-6)
    with torch.set_grad_enabled(grad):
        found = layer(x)
    assert found.dtype == x.dtype
    error = (found.double() - expected).abs().max()
    assert error < ROUNDING[layer.compute_dtype]
    if not grad or dtype == "bfloat16":  # whose gradients are in bfloat16
        return
    found.backward(found.detach())
    expected.backward(found.detach().double())
    for weight, exact_weight in zip(layer.weights, wide, strict=True):
        difference = (weight.value.grad - exact_weight.grad).abs().max()
        assert difference < 1e-3 * exact_weight.grad.abs().max()


def test_layer_norm_of_another_dtype_than_its_input_is_that_of_keras():
    layer = operations.LayerNorm(epsilon=1e-6)
    x = torch.tensor(drawn(2, 5, 16)).bfloat16()
    with torch.no_grad():
        assert layer(x).dtype == torch.float32


def test_lora_is_added_to_the_kernel():
    layer = dense()
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(drawn(*layer.lora_kernel_b.shape, seed=3))
    x = torch.tensor(drawn(2, 7, 12))
    kernel, bias = (keras.ops.convert_to_tensor(w) for w in (layer.kernel, layer.bias))
    assert (kernel - layer.weights[0].value).abs().max() > 0.1
    expected = x.double() @ kernel.double() + bias.double()
    np.testing.assert_allclose(
        layer(x).detach().numpy(), expected.detach().numpy(), atol=1e-5
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_form_for_the_compiler_has_the_values_and_gradients_of_the_other(dtype):
    x = torch.linspace(-9, 9, 2001, dtype=getattr(torch, dtype), requires_grad=True)
    compiled_gelu(x).sum().backward()
    found, x.grad = x.grad, None
    GELU(x, approximate="tanh").sum().backward()
    error = (compiled_gelu(x) - GELU(x, approximate="tanh")).abs().max()
    assert error <= ROUNDING[dtype]
    assert (found - x.grad).abs().max() <= ROUNDING[dtype]


@on_cpu
def test_the_form_is_chosen_for_the_compiler_alone(monkeypatch):
    monkeypatch.setattr(torch_products, "compiled_gelu", lambda x: x + 100)
    x = torch.zeros(3)
    assert operations.gelu(x, True, False).max() == 0
    with for_compiler():
        assert operations.gelu(x, True, False).min() == 100
        assert operations.gelu(x, False, False).max() == 0  # the exact form
