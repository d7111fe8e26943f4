"""The two weight transforms in float64, then whole models through `resize`."""

import keras
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from keras_mixer.hub.model_files import read_model, reading_arguments, write_model
from keras_mixer.models.family import MixerTi4
from keras_mixer.models.mixer import mlp_mixer
from keras_mixer.models.resize import block_diagonal, interpolate, resize
from keras_mixer.preprocessing import Preprocessing

MIXING_WEIGHTS = ("dense_0/kernel", "dense_0/bias", "dense_1/kernel", "dense_1/bias")
EDGES = st.integers(1, 6)


def mixing_weights(grid, width, seed=0):
    rng = np.random.default_rng(seed)
    num_patches = grid[0] * grid[1]
    shapes = (num_patches, width), (width,), (width, num_patches), (num_patches,)
    return [rng.normal(size=shape) for shape in shapes]


def mix(tokens, weights):
    """The token-mixing MLP of one channel, `(S,)`."""
    weights = dict(
        zip((f"mlp/{name}" for name in MIXING_WEIGHTS), weights, strict=True)
    )
    return oracle.mlp(tokens, weights, "mlp", approximate=True)


def parts_of(image, factors):
    """Cut `(height, width, ...)` into `factors` parts, row by row."""
    down, across = factors
    return [
        part
        for row in np.split(image, down, axis=0)
        for part in np.split(row, across, axis=1)
    ]


def random_model(**sizes):
    """A model whose every weight matters, head and biases included."""
    model = mlp_mixer(**sizes)
    weights = oracle.random_weights({w.path: tuple(w.shape) for w in model.weights})
    for weight in model.weights:
        weight.assign(weights[weight.path])
    return model


def weights_of(model):
    return {
        w.path: np.asarray(keras.ops.convert_to_numpy(w.value), "float32")
        for w in model.weights
    }


def outputs(model, images):
    return keras.ops.convert_to_numpy(model(images))


# The transforms


@pytest.mark.parametrize("factor", [2, 3])
def test_block_diagonal_is_the_formula_of_the_paper(factor):
    edge, width = 3, 2
    old = mixing_weights((edge, edge), width)
    new = [
        np.zeros((factor**2 * edge**2, factor**2 * width)),
        np.zeros(factor**2 * width),
        np.zeros((factor**2 * width, factor**2 * edge**2)),
        np.zeros(factor**2 * edge**2),
    ]
    for a, e, i, j, d in np.ndindex(factor, factor, edge, edge, width):
        q, s = a * factor + e, i * edge + j
        r = (a * edge + i) * (factor * edge) + (e * edge + j)
        new[0][r, q * width + d] = old[0][s, d]
        new[1][q * width + d] = old[1][d]
        new[2][q * width + d, r] = old[2][d, s]
        new[3][r] = old[3][s]
    for array, expected in zip(
        block_diagonal(*old, (edge, edge), (factor, factor)), new, strict=True
    ):
        assert_array_equal(array, expected)


@settings(max_examples=25, deadline=None)
@given(grid=st.tuples(EDGES, EDGES), factors=st.tuples(EDGES, EDGES))
def test_block_diagonal_mixes_every_part_as_a_whole_image_was(grid, factors):
    weights = mixing_weights(grid, width=3)
    shape = grid[0] * factors[0], grid[1] * factors[1]
    tokens = np.random.default_rng(1).normal(size=shape)
    mixed = mix(tokens.ravel(), block_diagonal(*weights, grid, factors)).reshape(shape)
    for part, mixed_part in zip(
        parts_of(tokens, factors), parts_of(mixed, factors), strict=True
    ):
        assert_allclose(mixed_part.ravel(), mix(part.ravel(), weights), atol=1e-12)


def test_one_part_changes_nothing():
    weights = mixing_weights((2, 3), width=4)
    for old, new in zip(weights, block_diagonal(*weights, (2, 3), (1, 1)), strict=True):
        assert_array_equal(old, new)


@settings(max_examples=25, deadline=None)
@given(grid=st.tuples(EDGES, EDGES))
def test_interpolating_to_the_same_grid_changes_nothing(grid):
    weights = mixing_weights(grid, width=3)
    for old, new in zip(weights, interpolate(*weights, grid, grid), strict=True):
        assert_array_equal(old, new)


@settings(max_examples=25, deadline=None)
@given(grid=st.tuples(EDGES, EDGES), new_grid=st.tuples(EDGES, EDGES))
def test_interpolation_keeps_what_is_the_same_for_all_patches(grid, new_grid):
    bias_0 = np.array([0.3, -0.2])
    constants = np.array([2.0, -1.5]), np.array([0.7, 0.4]), 0.9
    size, new_size = np.prod(grid), np.prod(new_grid)

    def constant(size, scale=1.0):
        kernel_0 = np.tile(constants[0] * scale, (size, 1))
        kernel_1 = np.tile(constants[1][:, None], (1, size))
        return kernel_0, bias_0, kernel_1, np.full(size, constants[2])

    new = interpolate(*constant(size), grid, new_grid)
    for array, expected in zip(
        new, constant(new_size, scale=size / new_size), strict=True
    ):
        assert_allclose(array, expected, rtol=1e-12)
    # The same constant image leads to the same token everywhere.
    mixed = mix(np.full(new_size, 1.1), new)
    assert_allclose(mixed, mix(np.full(size, 1.1), constant(size))[0], rtol=1e-12)


def test_interpolated_rows_by_hand():
    weights = mixing_weights((1, 2), width=1)
    a, b = weights[3]
    larger = interpolate(*weights, (1, 2), (1, 4))
    assert_allclose(larger[3], [a, 0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b, b])
    assert_allclose(larger[2][0], interpolate(*weights, (1, 2), (1, 4))[2].ravel())
    a, b = weights[0][:, 0]
    by_hand = np.array([a, 0.75 * a + 0.25 * b, 0.25 * a + 0.75 * b, b])
    assert_allclose(larger[0][:, 0], by_hand * 2 / 4)


def test_shrinking_uses_every_old_patch():
    weights = mixing_weights((4, 1), width=1)
    a, b, c, d = weights[3]
    smaller = interpolate(*weights, (4, 1), (2, 1))
    # Triangles of half-width 2 around 0.5 and 2.5.
    expected = [
        (0.75 * a + 0.75 * b + 0.25 * c) / 1.75,
        (0.25 * b + 0.75 * c + 0.75 * d) / 1.75,
    ]
    assert_allclose(smaller[3], expected)


def test_interpolation_runs_over_rows_and_columns_of_the_grid():
    rows, columns = np.mgrid[:4, :6].astype(float)
    weights = mixing_weights((4, 6), width=1)
    weights[3] = (10 * rows + columns).ravel()
    new = interpolate(*weights, (4, 6), (8, 12))[3].reshape(8, 12)
    new_rows, new_columns = (np.mgrid[:8, :12] + 0.5) / 2 - 0.5
    # A plane stays a plane, but for the outermost half patch.
    inside = slice(1, -1), slice(1, -1)
    assert_allclose(new[inside], (10 * new_rows + new_columns)[inside], rtol=1e-12)


# Models


@pytest.mark.parametrize("factors", [(2, 2), (3, 3), (2, 1), (1, 3)])
def test_pre_logits_of_a_larger_image_are_the_mean_of_its_parts(tiny, factors):
    model = random_model(**{**tiny, "num_classes": 0})
    height, width, channels = tiny["input_shape"]
    shape = height * factors[0], width * factors[1], channels
    image = np.random.default_rng(0).uniform(0, 255, shape).astype("float32")
    parts = outputs(model, np.stack(parts_of(image, factors)))
    large = resize(model, shape, "block_diagonal")
    assert np.ptp(parts, axis=0).max() > 0.05
    assert_allclose(outputs(large, image[None])[0], parts.mean(axis=0), atol=1e-5)


def test_a_plain_kronecker_product_is_not_the_mean_of_the_parts(tiny):
    model = random_model(**{**tiny, "num_classes": 0})
    image = np.random.default_rng(0).uniform(0, 255, (64, 48, 3)).astype("float32")
    parts = outputs(model, np.stack(parts_of(image, (2, 2))))
    large = resize(model, image.shape)
    old = weights_of(model)
    for weight in large.weights:
        if "token_mixing" in weight.path:
            value = old[weight.path]
            parts_first = np.eye(4) if value.ndim == 2 else np.ones(4)
            weight.assign(np.kron(parts_first, value))
    difference = outputs(large, image[None])[0] - parts.mean(axis=0)
    assert np.abs(difference).max() > 0.01


def test_an_interpolated_model_computes_with_the_interpolated_weights(tiny):
    model = random_model(**tiny, include_preprocessing=False)
    resized = resize(model, (40, 56, 3), "interpolate")
    weights = weights_of(model)
    for block in range(tiny["num_blocks"]):
        names = [f"block_{block}/token_mixing/{name}" for name in MIXING_WEIGHTS]
        old = [weights[name] for name in names]
        weights |= zip(names, interpolate(*old, (4, 3), (5, 7)), strict=True)
    images = oracle.draw_images(0, 2, (40, 56, 3))
    logits = oracle.mixer(weights, images)[1]
    logits -= logits.max(axis=1, keepdims=True)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert_allclose(outputs(resized, images), expected, atol=1e-5)
    assert resized.config["tokens_mlp_dim"] == tiny["tokens_mlp_dim"]


@pytest.mark.parametrize("method", ["auto", "block_diagonal", "interpolate"])
def test_the_same_size_gives_an_equal_copy(tiny, tiny_images, method):
    model = random_model(**tiny)
    copy = resize(model, tiny["input_shape"], method)
    assert copy is not model
    assert copy.config == model.config
    assert_array_equal(outputs(copy, tiny_images), outputs(model, tiny_images))
    copy.get_layer("head").bias.assign(np.ones(5))
    assert not np.array_equal(outputs(copy, tiny_images), outputs(model, tiny_images))


@pytest.mark.parametrize(
    ("edges", "widening"),
    [((64, 48), 4), ((32, 48), 2), ((64, 40), 1), ((16, 24), 1), ((32, 24), 1)],
)
def test_auto_is_block_diagonal_where_that_is_possible(tiny, edges, widening):
    resized = resize(random_model(**tiny), (*edges, 3))
    assert resized.config["tokens_mlp_dim"] == widening * tiny["tokens_mlp_dim"]
    assert resized.input_shape == (None, *edges, 3)


@pytest.mark.parametrize("shape", [(64, 48, 3), (40, 40, 3)])
def test_everything_else_is_kept(tiny, shape):
    settings = {
        **tiny,
        "num_blocks": 3,
        "approximate_gelu": False,
        "include_preprocessing": False,
        "classifier_activation": None,
        "dropout_rate": 0.1,
        "stochastic_depth_rate": 0.2,
    }
    model = random_model(
        **settings,
        preprocessing=Preprocessing(value_range=(0.0, 1.0)),
        name="mine",
        dtype="mixed_bfloat16",
    )
    model.labels = ("a", "b", "c", "d", "e")
    model.get_layer("stem").trainable = False
    model.blocks[1].token_mixing.trainable = False
    before = weights_of(model)

    resized = resize(model, shape)

    changing = {"input_shape", "tokens_mlp_dim"}
    assert {k: v for k, v in resized.config.items() if k not in changing} == {
        k: v for k, v in model.config.items() if k not in changing
    }
    assert resized.config["stochastic_depth_rate"] == 0.2
    assert [b.stochastic_depth_rate for b in resized.blocks] == [0.0, 0.1, 0.2]
    assert resized.preprocessing == model.preprocessing
    assert resized.labels == model.labels
    assert resized.name == "mine"
    assert [layer.dtype_policy.name for layer in resized.layers] == [
        layer.dtype_policy.name for layer in model.layers
    ]
    assert {w.path for w in resized.trainable_weights} == {
        w.path for w in model.trainable_weights
    }
    assert not resized.get_layer("stem").trainable
    assert not resized.blocks[1].token_mixing.trainable
    assert resized.blocks[1].channel_mixing.trainable
    for path, value in weights_of(resized).items():
        if "token_mixing" not in path:
            assert_array_equal(value, before[path])

    assert model.input_shape == (None, 32, 24, 3)
    for path, value in weights_of(model).items():
        assert_array_equal(value, before[path])


def test_a_frozen_model_stays_frozen(tiny):
    model = random_model(**tiny)
    model.trainable = False
    assert resize(model, (64, 48, 3)).trainable_weights == []


def test_bfloat16_weights_are_resized_in_their_own_type(tiny):
    model = random_model(**{**tiny, "num_classes": 0}, dtype="bfloat16")
    for shape in ((64, 48, 3), (40, 40, 3)):
        resized = resize(model, shape)
        kernel = resized.blocks[0].token_mixing.dense_0.kernel
        assert kernel.dtype == "bfloat16"
        assert np.isfinite(weights_of(resized)[kernel.path]).all()


def test_a_resized_model_is_saved_loaded_and_resized_again(tiny, tmp_path):
    resized = resize(random_model(**tiny), (64, 48, 3))
    resized.get_layer("stem").trainable = False
    resized.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.config == resized.config
    assert loaded.config["tokens_mlp_dim"] == 48
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 48, 3)).astype("float32")
    assert_array_equal(outputs(loaded, images), outputs(resized, images))
    again = resize(loaded, (64, 48, 3))
    assert_array_equal(outputs(again, images), outputs(resized, images))
    assert {w.path for w in again.trainable_weights} == {
        w.path for w in loaded.trainable_weights
    }


@pytest.mark.backend_free
@pytest.mark.parametrize("name", ["m.keras", "folder", "m.npz", "m.weights.h5"])
@pytest.mark.parametrize("shape", [(64, 72, 3), (40, 56, 3)])
def test_every_kind_of_file_keeps_the_new_token_mlps(tiny, shape, name, tmp_path):
    resized = resize(random_model(**tiny), shape)
    write_model(resized, tmp_path / name)
    told = reading_arguments(resized, tmp_path / name)
    loaded = read_model(tmp_path / name, **told)
    assert loaded.config == resized.config
    images = np.random.default_rng(0).uniform(0, 255, (1, *shape)).astype("float32")
    assert_array_equal(outputs(loaded, images), outputs(resized, images))


@pytest.mark.parametrize("shape", [(64, 96, 3), (48, 40, 3)])
def test_constructors_resize_weights_of_another_size(shape):
    model = MixerTi4(weights="cifar10", input_shape=shape)
    expected = resize(MixerTi4(weights="cifar10"), shape)
    assert model.config == expected.config
    assert model.labels == expected.labels
    images = np.random.default_rng(0).uniform(0, 255, (1, *shape)).astype("float32")
    assert_array_equal(outputs(model, images), outputs(expected, images))


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("shape", "method", "message"),
    [
        ((64, 48, 3), "bilinear", "`method` must be one of 'auto', .*'bilinear'"),
        ((64, 48, 1), "auto", r"keep the 3 channels.*Received: input_shape=\(64, 48"),
        (
            (65, 48, 3),
            "auto",
            "multiple of `patch_size`.*nearest heights are 64 and 72",
        ),
        ((None, 48, 3), "auto", "all known and positive"),
        ((64, 48), "auto", r"must be \(height, width, channels\)"),
        (
            (64, 40, 3),
            "block_diagonal",
            r"height that is a multiple of 32 and a width that is a multiple of 24, "
            r"for example \(64, 48, 3\)\. Received: input_shape=\(64, 40, 3\)",
        ),
        ((16, 24, 3), "block_diagonal", "`method='interpolate'` takes any size"),
    ],
)
def test_errors_say_what_fits(tiny, shape, method, message):
    with pytest.raises(ValueError, match=message):
        resize(mlp_mixer(**tiny), shape, method)


def test_only_a_mixer_can_be_resized():
    model = keras.Sequential([keras.Input((32, 24, 3)), keras.layers.Flatten()])
    with pytest.raises(ValueError, match="must be an `MLPMixer`.*Received: Sequential"):
        resize(model, (64, 48, 3))


@pytest.mark.backend_free
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
def test_a_quantized_model_is_refused(tiny):
    model = mlp_mixer(**tiny)
    model.quantize("int8")
    with pytest.raises(ValueError, match="before it is quantized"):
        resize(model, (64, 48, 3))


def test_a_model_with_lora_weights_is_refused(tiny):
    model = mlp_mixer(**tiny)
    model.blocks[0].token_mixing.dense_0.enable_lora(2)
    with pytest.raises(ValueError, match="lora_kernel"):
        resize(model, (64, 48, 3))
