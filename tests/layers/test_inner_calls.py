"""On torch inner layers are called past Keras only where nothing is lost by it."""

import keras
import numpy as np
import pytest

from keras_mixer.layers import MixerBlock, inner_calls, nested_layers

if keras.config.backend() != "torch":
    pytest.skip("torch's alone", allow_module_level=True)

import torch


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def built_block(dtype="float32", **arguments):
    return built(MixerBlock(8, 24, dtype=dtype, **arguments))


def built(block):
    block.build((None, 5, 12))
    for seed, weight in enumerate(block.weights):
        weight.assign(0.3 * drawn(*weight.shape, seed=seed))
    return block


@pytest.fixture
def by_keras(monkeypatch):
    """Names of the layers that Keras itself called."""
    names = []
    call = keras.layers.Layer.__call__

    def recorded(self, *args, **kwargs):
        names.append(self.name)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(keras.layers.Layer, "__call__", recorded)
    return names


def outputs_and_gradients(block, x, training):
    x = torch.tensor(x, requires_grad=True)
    y = block(x, training=training)
    weights = [weight.value for weight in block.trainable_weights]
    return [y, *torch.autograd.grad(y.float().square().sum(), [x, *weights])]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed_bfloat16"])
@pytest.mark.parametrize("arguments", [{}, {"remat": True}, {"autocast": False}])
@pytest.mark.parametrize("training", [False, True])
def test_numbers_and_dtypes_are_those_of_keras(
    dtype, arguments, training, by_keras, monkeypatch
):
    if dtype == "mixed_bfloat16" and "autocast" in arguments:
        pytest.skip("Keras itself refuses two dtypes in a product")
    block, x = built_block(dtype, **arguments), drawn(2, 5, 12)
    found = outputs_and_gradients(block, x, training)
    if not arguments:
        assert by_keras == [block.name]
    monkeypatch.setattr(inner_calls, "_is_plain", lambda *_: False)
    expected = outputs_and_gradients(block, x, training)
    assert len(by_keras) > 9
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_of_every_inner_layer_run(kind):
    block, seen = built_block(), []
    layers = [block.norm_0, block.token_mixing, block.channel_mixing.dense_1]
    for layer in layers:
        register = getattr(layer, f"register_{kind}_hook")
        register(lambda layer, *_: seen.append(layer.name))
    outputs_and_gradients(block, drawn(2, 5, 12), True)
    assert sorted(seen) == sorted(layer.name for layer in layers)


def test_hooks_of_all_modules_run(by_keras):
    block, seen = built_block(), set()
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda layer, *_: seen.add(layer.name)
    )
    try:
        block(drawn(2, 5, 12))
    finally:
        handle.remove()
    assert {"norm_0", "token_mixing", "dense_0", "dense_1"} <= seen


def test_losses_of_an_inner_layer_are_kept():
    block = built_block()
    block.channel_mixing.dense_0.activity_regularizer = keras.regularizers.L2(0.1)
    block(drawn(2, 5, 12))
    (loss,) = block.losses
    assert loss.item() > 0


def test_remat_of_keras_computes_in_the_same_dtypes():
    expected = outputs_and_gradients(
        built_block("mixed_bfloat16"), drawn(2, 5, 12), True
    )
    with keras.RematScope("full"):
        block = MixerBlock(8, 24, dtype="mixed_bfloat16")
    found = outputs_and_gradients(built(block), drawn(2, 5, 12), True)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_remat_of_an_inner_layer_is_kept(by_keras):
    with keras.RematScope("list_of_layers", layer_names=["dense_0"]):
        block = built_block()
    block(drawn(2, 5, 12))
    assert by_keras.count("dense_0") == 2


def test_an_inner_layer_of_another_policy_is_called_by_keras(by_keras):
    block = built_block()
    block.channel_mixing.dense_0.dtype_policy = "mixed_bfloat16"
    block(drawn(2, 5, 12))
    assert by_keras == [block.name, "dense_0"]


def test_a_quantized_layer_is_called_by_keras(by_keras):
    block, x = built_block(), drawn(2, 5, 12)
    expected = block(x)
    for layer in nested_layers(block):
        if layer.name.startswith("dense"):
            layer.quantize("int8")
    by_keras.clear()
    found = block(x)
    assert by_keras == [block.name, *["dense_0", "dense_1"] * 2]
    difference = (found - expected).abs().max().item()
    assert 0 < difference < 0.05 * expected.abs().max().item()
