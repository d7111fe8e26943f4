import inspect
import json

import keras
import numpy as np
import oracle
import pytest

from keras_mixer.layers.mixer import (
    ChannelMixing,
    MixerBlock,
    PatchEmbed,
    TokenMixing,
    zero_kernels,
)

# What an empty-handed Keras says for every layer it cannot quantize.
IGNORE_UNQUANTIZED = "ignore:Layer .* does not have a `quantize` method"

LAYERS = {
    "patch_embed": (PatchEmbed, {"hidden_dim": 5, "patch_size": 4}, (2, 8, 12, 3)),
    "token_mixing": (
        TokenMixing,
        {"mlp_dim": 7, "dropout_rate": 0.1, "approximate_gelu": False},
        (2, 6, 5),
    ),
    "channel_mixing": (
        ChannelMixing,
        {"mlp_dim": 7, "dropout_rate": 0.1, "approximate_gelu": False},
        (2, 6, 5),
    ),
    "mixer_block": (
        MixerBlock,
        {
            "tokens_mlp_dim": 7,
            "channels_mlp_dim": 9,
            "dropout_rate": 0.1,
            "stochastic_depth_rate": 0.2,
            "approximate_gelu": False,
            "remat": True,
        },
        (2, 6, 5),
    ),
}
each_layer = pytest.mark.parametrize(
    ("layer_class", "arguments", "shape"), LAYERS.values(), ids=LAYERS
)


def randomize(layer, seed=0):
    """Give every weight a value that matters; return them by path within the layer."""
    values = oracle.random_weights({w.path: tuple(w.shape) for w in layer.weights})
    for weight in layer.weights:
        weight.assign(values[weight.path])
    return {path.split("/", 1)[1]: value for path, value in values.items()}


def tokens(*shape, seed=2):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


# --- values -----------------------------------------------------------------------


@pytest.mark.parametrize("image_shape", [(16, 16, 3), (8, 24, 1), (24, 8, 5)])
@pytest.mark.parametrize("patch_size", [1, 4, 8])
def test_patch_embed_is_a_linear_map_of_each_patch(image_shape, patch_size):
    layer = PatchEmbed(6, patch_size)
    images = tokens(2, *image_shape)
    layer.build(images.shape)
    w = randomize(layer)
    kernel = w["projection/kernel"].reshape(-1, 6)
    expected = oracle.patches(images, patch_size) @ kernel + w["projection/bias"]
    np.testing.assert_allclose(numpy(layer(images)), expected, atol=2e-5)


# num_patches == hidden_dim == mlp_dim is where a bias can land on the wrong axis.
@pytest.mark.parametrize(
    ("num_patches", "hidden_dim", "mlp_dim"), [(6, 5, 7), (8, 8, 8), (8, 8, 5)]
)
@pytest.mark.parametrize("approximate_gelu", [True, False])
def test_mixing_layers_equal_the_oracle(
    num_patches, hidden_dim, mlp_dim, approximate_gelu
):
    x = tokens(2, num_patches, hidden_dim)
    for layer_class, axes in ((TokenMixing, (0, 2, 1)), (ChannelMixing, (0, 1, 2))):
        layer = layer_class(mlp_dim, approximate_gelu=approximate_gelu, name="mlp")
        layer.build(x.shape)
        weights = {f"mlp/{k}": v for k, v in randomize(layer).items()}
        y = oracle.mlp(x.transpose(axes), weights, "mlp", approximate_gelu)
        np.testing.assert_allclose(numpy(layer(x)), y.transpose(axes), atol=1e-5)


def test_the_two_gelu_forms_differ():
    x = np.full((1, 4, 4), 2.7, "float32")
    layer = ChannelMixing(4)
    exact = ChannelMixing(4, approximate_gelu=False)
    for each in (layer, exact):
        each.build(x.shape)
        each.set_weights([np.eye(4), np.zeros(4), np.eye(4), np.zeros(4)])
    difference = np.abs(numpy(layer(x)) - numpy(exact(x))).max()
    assert 1e-4 < difference < 5e-4


def test_mixer_block_adds_both_branches_to_its_input():
    x = tokens(3, 6, 5)
    block = MixerBlock(7, 9, name="block_0")
    block.build(x.shape)
    w = {f"block_0/{k}": v for k, v in randomize(block).items()}
    y = oracle.layer_norm(x, w["block_0/norm_0/gamma"], w["block_0/norm_0/beta"])
    y = oracle.mlp(y.swapaxes(1, 2), w, "block_0/token_mixing", True).swapaxes(1, 2)
    u = x + y
    y = oracle.layer_norm(u, w["block_0/norm_1/gamma"], w["block_0/norm_1/beta"])
    expected = u + oracle.mlp(y, w, "block_0/channel_mixing", True)
    np.testing.assert_allclose(numpy(block(x)), expected, atol=2e-5)


def test_layer_norm_epsilon_is_the_official_one():
    block = MixerBlock(2, 2)
    assert block.norm_0.epsilon == block.norm_1.epsilon == 1e-6


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_layer_norm_keeps_float32_statistics_in_half_precision(policy):
    # In float16 the mean of 3000 +- 1 loses the +- 1 and 3000**2 overflows.
    x = 2048 + tokens(1, 6, 64).round() * 16
    block = MixerBlock(7, 9, dtype=policy)
    block.build(x.shape)
    normed = numpy(keras.ops.cast(block.norm_0(x.astype("float16")), "float32"))
    gamma, beta = np.ones(64), np.zeros(64)
    np.testing.assert_allclose(normed, oracle.layer_norm(x, gamma, beta), atol=2e-2)


# --- training-time behaviour ------------------------------------------------------


def branch_only(rate):
    """A block whose branches add exactly 1 and 2 to every token."""
    block = MixerBlock(3, 3, stochastic_depth_rate=rate)
    block.build((None, 4, 5))
    block.set_weights([np.zeros(w.shape) for w in block.weights])
    block.token_mixing.dense_1.bias.assign(np.ones(4))
    block.channel_mixing.dense_1.bias.assign(np.full(5, 2.0))
    return block


def test_stochastic_depth_drops_whole_branches_of_a_sample_and_rescales():
    x = np.zeros((2000, 4, 5), "float32")
    y = numpy(branch_only(0.25)(x, training=True))
    assert (y == y[:, :1, :1]).all()  # one decision per sample
    values, counts = np.unique(y[:, 0, 0].round(4), return_counts=True)
    np.testing.assert_allclose(values, [0, 4 / 3, 8 / 3, 4], atol=1e-3)
    shares = counts / len(x)  # the branches are independent
    np.testing.assert_allclose(shares, [1 / 16, 3 / 16, 3 / 16, 9 / 16], atol=0.04)


def test_stochastic_depth_is_the_identity_at_inference():
    y = numpy(branch_only(0.25)(np.zeros((8, 4, 5), "float32")))
    np.testing.assert_allclose(y, 3.0)


def test_dropout_drops_single_activations_in_training_only():
    layer = ChannelMixing(4, dropout_rate=0.5)
    layer.build((None, 4, 400))
    layer.set_weights([np.zeros(w.shape) for w in layer.weights])
    layer.dense_1.bias.assign(np.ones(400))
    x = np.zeros((2, 4, 400), "float32")
    np.testing.assert_allclose(numpy(layer(x)), 1.0)
    y = numpy(layer(x, training=True))
    assert set(np.unique(y)) == {0.0, 2.0}
    assert abs((y == 0).mean() - 0.5) < 0.05


# --- what every Keras layer promises ----------------------------------------------


@each_layer
def test_config_holds_exactly_the_arguments(layer_class, arguments, shape):
    layer = layer_class(**arguments, name="layer")
    config = layer.get_config()
    own = {
        name
        for name in inspect.signature(layer_class.__init__).parameters
        if name not in ("self", "kwargs")
    }
    assert own == set(arguments)
    assert set(config) == own | {"name", "trainable", "dtype"}
    assert {name: config[name] for name in own} == arguments


@each_layer
def test_layer_survives_json(layer_class, arguments, shape):
    layer = layer_class(**arguments)
    text = json.dumps(keras.saving.serialize_keras_object(layer))
    again = keras.saving.deserialize_keras_object(json.loads(text))
    assert type(again) is layer_class
    x = tokens(*shape)
    for each in (layer, again):
        each.build(shape)
    randomize(layer)
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(numpy(again(x)), numpy(layer(x)))


@each_layer
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_shape_and_dtype_are_as_announced(layer_class, arguments, shape, policy):
    layer = layer_class(**arguments, dtype=policy)
    announced = layer.compute_output_shape((None, *shape[1:]))
    symbolic = layer(keras.KerasTensor((None, *shape[1:])))
    assert tuple(symbolic.shape) == tuple(announced)
    y = layer(tokens(*shape))
    assert tuple(y.shape) == (shape[0], *announced[1:])
    compute = keras.dtype_policies.get(policy).compute_dtype
    assert keras.backend.standardize_dtype(y.dtype) == compute == symbolic.dtype
    assert {keras.backend.standardize_dtype(w.dtype) for w in layer.weights} == {
        "float32"
    }


@each_layer
def test_one_training_step_moves_every_weight(layer_class, arguments, shape):
    inputs = keras.Input(shape[1:])
    layer = layer_class(**{**arguments, **_no_rates(arguments)})
    outputs = keras.layers.Flatten()(layer(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(outputs))
    randomize(layer)
    before = [w.copy() for w in layer.get_weights()]
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(tokens(*shape), np.ones((shape[0], 1)), verbose=0)
    for weight, old in zip(layer.weights, before, strict=True):
        # `dense_0/bias` of a token MLP and its like: every one gets a gradient.
        assert (numpy(weight) != old).any(), weight.path


def _no_rates(arguments):
    return {name: 0.0 for name in arguments if name.endswith("_rate")}


def test_fit_runs_with_dropout_and_stochastic_depth():
    inputs = keras.Input((6, 5))
    block = MixerBlock(7, 9, dropout_rate=0.1, stochastic_depth_rate=0.2)
    model = keras.Model(inputs, block(inputs))
    model.compile("sgd", "mse")
    history = model.fit(tokens(8, 6, 5), tokens(8, 6, 5, seed=3), verbose=0)
    assert np.isfinite(history.history["loss"][0])


@pytest.mark.parametrize("layer_class", [PatchEmbed, MixerBlock])
def test_what_is_frozen_stays_frozen_when_it_is_built_again(layer_class):
    arguments = {PatchEmbed: (6, 4), MixerBlock: (5, 7)}[layer_class]
    shape = {PatchEmbed: (2, 8, 8, 3), MixerBlock: (2, 4, 6)}[layer_class]
    layer = layer_class(*arguments)
    layer.build(shape)
    assert layer.trainable_variables
    layer.trainable = False
    again = layer_class.from_config(layer.get_config())
    images = keras.Input(shape[1:])
    # A model asks each weight, not the layer, whether it is trained.
    model = keras.Model(images, again(images))
    assert again.weights and not model.trainable_variables
    again.trainable = True
    assert len(model.trainable_variables) == len(again.weights)


def test_kernels_are_lecun_normal_and_biases_zero():
    layer = ChannelMixing(400)
    layer.build((None, 4, 300))
    for dense, fan_in in ((layer.dense_0, 300), (layer.dense_1, 400)):
        kernel = numpy(dense.kernel)
        assert abs(kernel.std() * np.sqrt(fan_in) - 1) < 0.02
        # A normal would go to four standard deviations; this one is cut.
        assert np.abs(kernel).max() * np.sqrt(fan_in) < 3
        assert not numpy(dense.bias).any()


def test_zero_kernels_leaves_no_trace():
    with zero_kernels():
        layer = ChannelMixing(4)
        layer.build((None, 4, 3))
    assert not numpy(layer.dense_0.kernel).any()
    clone = ChannelMixing.from_config(layer.get_config())
    clone.build((None, 4, 3))
    assert numpy(clone.dense_0.kernel).any()


def test_images_are_channels_last_whatever_keras_says():
    images = tokens(2, 8, 12, 3)
    layer = PatchEmbed(5, 4)
    layer.build(images.shape)
    keras.config.set_image_data_format("channels_first")
    try:
        other = PatchEmbed(5, 4)
        other.build(images.shape)
        other.set_weights(layer.get_weights())
        np.testing.assert_array_equal(numpy(other(images)), numpy(layer(images)))
    finally:
        keras.config.set_image_data_format("channels_last")


# --- errors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PatchEmbed(0, 4), "`hidden_dim` must be a positive integer"),
        (lambda: PatchEmbed(8, 4.0), "patch_size=4.0"),
        (lambda: TokenMixing(True), "mlp_dim=True"),
        (lambda: ChannelMixing(4, dropout_rate=1.0), r"`dropout_rate` must lie in"),
        (lambda: MixerBlock(-1, 4), "`tokens_mlp_dim` must be a positive integer"),
        (lambda: MixerBlock(4, None), "channels_mlp_dim=None"),
        (
            lambda: MixerBlock(4, 4, stochastic_depth_rate=-0.1),
            "stochastic_depth_rate=-0.1",
        ),
    ],
)
def test_arguments_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((None, 225, 224, 3), "height=225, patch_size=16. The nearest heights are 224"),
        ((None, 224, 10, 3), "nearest widths are 16"),
        ((None, None, 224, 3), "all known"),
        ((None, 224, 224), r"\(height, width, channels\)"),
    ],
)
def test_images_that_cannot_be_cut_into_patches(shape, message):
    with pytest.raises(ValueError, match=message):
        PatchEmbed(8, 16).build(shape)


def test_token_mixing_needs_the_number_of_patches():
    with pytest.raises(ValueError, match="number of patches"):
        MixerBlock(4, 4)(keras.KerasTensor((None, None, 8)))
