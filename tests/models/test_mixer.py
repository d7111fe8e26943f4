import json
import os
import subprocess
import sys

import keras
import numpy as np
import oracle
import pytest
from golden import golden_model, load_golden

from keras_mixer.models.mixer import MLPMixer, mlp_mixer
from keras_mixer.preprocessing import Preprocessing
from keras_mixer.training import MomentumSGD
from keras_mixer.variants import weight_shapes

# float32 on a CPU: a plain Keras model reaches 1.2e-6 on L/16.
TOLERANCE = 5e-6


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def randomized(**arguments):
    """A model whose every weight, the head's too, matters."""
    model = mlp_mixer(**arguments)
    values = oracle.random_weights({w.path: tuple(w.shape) for w in model.weights})
    for weight in model.weights:
        weight.assign(values[weight.path])
    return model, values


# --- numerics ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny_square", "tiny_rectangular", "tiny_equal_dims"])
def test_outputs_equal_the_official_implementation(name, tmp_path):
    golden = load_golden(name)
    model = golden_model(golden, tmp_path)
    assert _difference(model, golden["images"], golden["logits"]) < TOLERANCE
    pooled = model.features("pre_logits")
    assert _difference(pooled, golden["images"], golden["pre_logits"]) < TOLERANCE


def test_outputs_equal_timm(tmp_path):
    golden = load_golden("timm_tiny")
    model = golden_model(golden, tmp_path)
    assert not model.config["approximate_gelu"]
    assert _difference(model, golden["images"], golden["logits"]) < TOLERANCE
    pooled = model.features("pre_logits")
    assert _difference(pooled, golden["images"], golden["pre_logits"]) < TOLERANCE


def test_the_wrong_gelu_would_be_seen(tmp_path):
    golden = load_golden("tiny_square")
    model = golden_model(golden, tmp_path, approximate_gelu=False)
    assert _difference(model, golden["images"], golden["logits"]) > 10 * TOLERANCE


def _difference(model, images, expected):
    return np.abs(numpy(model(images)) - expected).max()


def test_equal_sizes_everywhere_equal_the_oracle():
    # Where patches == hidden_dim == MLP widths, a bias added along the wrong axis
    # would still have a valid shape.
    model, weights = randomized(
        patch_size=4,
        hidden_dim=16,
        num_blocks=2,
        tokens_mlp_dim=16,
        channels_mlp_dim=16,
        input_shape=(16, 16, 3),
        num_classes=16,
        classifier_activation=None,
        include_preprocessing=False,
    )
    images = oracle.draw_images(3, 2, (16, 16, 3))
    expected = oracle.mixer(weights, images)[1]
    np.testing.assert_allclose(numpy(model(images)), expected, atol=3e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_stays_close(tmp_path, policy):
    golden = load_golden("tiny_square")
    model = golden_model(golden, tmp_path, dtype=policy)
    logits = numpy(model(golden["images"]))
    assert logits.dtype == np.float32
    error = np.linalg.norm(logits - golden["logits"]) / np.linalg.norm(golden["logits"])
    assert 0 < error < 0.02


def test_pixels_of_any_dtype_are_normalised_in_the_graph(tiny):
    tiny |= {"classifier_activation": None}
    model, weights = randomized(**tiny)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 24, 3))
    expected = oracle.mixer(weights, (pixels - 127.5) / 127.5)[1]
    for dtype in ("uint8", "int32", "float32", "float64"):
        logits = numpy(model(pixels.astype(dtype)))
        np.testing.assert_allclose(logits, expected, atol=3e-5)
        logits = model.predict(pixels.astype(dtype), verbose=0)
        np.testing.assert_allclose(logits, expected, atol=3e-5)


def test_the_normalisation_is_that_of_the_record(tiny):
    record = Preprocessing(value_range=(0.0, 1.0))
    model, weights = randomized(
        **tiny, classifier_activation=None, preprocessing=record
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 24, 3))
    expected = oracle.mixer(weights, pixels / 255)[1]
    np.testing.assert_allclose(numpy(model(pixels)), expected, atol=3e-5)


def test_softmax_is_the_default(tiny, tiny_images):
    model, weights = randomized(**tiny)
    logits = oracle.mixer(weights, tiny_images / 127.5 - 1)[1]
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(numpy(model(tiny_images)), expected, atol=1e-5)


# --- architecture -----------------------------------------------------------------


def test_weights_are_those_of_the_table_of_shapes(tiny):
    model = mlp_mixer(**tiny)
    height, width, channels = tiny.pop("input_shape")
    num_patches = height * width // tiny["patch_size"] ** 2
    expected = weight_shapes(**tiny, num_patches=num_patches, channels=channels)
    assert {w.path: tuple(w.shape) for w in model.weights} == expected


def test_nodes_have_their_public_names(tiny):
    names = [layer.name for layer in mlp_mixer(**tiny).layers]
    assert names == [
        "images",
        "normalization",
        "stem",
        "block_0",
        "block_1",
        "pre_head_layer_norm",
        "pre_logits",
        "head",
    ]


def test_without_classes_the_output_is_pre_logits(tiny, tiny_images):
    model, weights = randomized(**tiny | {"num_classes": 0})
    expected = oracle.mixer(weights, tiny_images / 127.5 - 1)[0]
    np.testing.assert_allclose(numpy(model(tiny_images)), expected, atol=1e-5)
    assert model.layers[-1].name == "pre_logits"


def test_a_new_head_gives_equal_probabilities(tiny, tiny_images):
    np.testing.assert_allclose(numpy(mlp_mixer(**tiny)(tiny_images)), 1 / 5, rtol=1e-6)


def test_stochastic_depth_grows_linearly_over_the_blocks(tiny):
    model = mlp_mixer(**tiny | {"num_blocks": 3}, stochastic_depth_rate=0.3)
    rates = [block.stochastic_depth_rate for block in model.blocks]
    np.testing.assert_allclose(rates, [0, 0.15, 0.3])
    one = mlp_mixer(**tiny | {"num_blocks": 1}, stochastic_depth_rate=0.3)
    assert one.blocks[0].stochastic_depth_rate == 0


def test_config_builds_the_same_model_again(tiny, tiny_images):
    arguments = tiny | {
        "approximate_gelu": False,
        "classifier_activation": "sigmoid",
        "include_preprocessing": False,
        "dropout_rate": 0.1,
        "stochastic_depth_rate": 0.2,
    }
    model, _ = randomized(**arguments)
    assert model.config == arguments
    again = mlp_mixer(**model.config)
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(numpy(again(tiny_images)), numpy(model(tiny_images)))


def test_features_by_name(tiny, tiny_images):
    model, weights = randomized(**tiny)
    stem, pooled = model.features("stem", "pre_logits")(tiny_images)
    patches = oracle.patches(tiny_images / 127.5 - 1, 8)
    kernel = weights["stem/projection/kernel"].reshape(-1, 16)
    expected = patches @ kernel + weights["stem/projection/bias"]
    np.testing.assert_allclose(numpy(stem), expected, atol=2e-5)
    expected = oracle.mixer(weights, tiny_images / 127.5 - 1)[0]
    np.testing.assert_allclose(numpy(pooled), expected, atol=1e-5)
    with pytest.raises(ValueError, match="block_7"):
        model.features("block_7")


def test_channels_first_changes_nothing(tiny, tiny_images):
    model, _ = randomized(**tiny)
    keras.config.set_image_data_format("channels_first")
    try:
        other = mlp_mixer(**tiny)
        other.set_weights(model.get_weights())
        outputs = numpy(other(tiny_images))
    finally:
        keras.config.set_image_data_format("channels_last")
    np.testing.assert_array_equal(outputs, numpy(model(tiny_images)))


# --- plain Keras around it --------------------------------------------------------


def test_clone_keeps_class_and_architecture(tiny, tiny_images):
    model, _ = randomized(**tiny)
    clone = keras.models.clone_model(model)
    assert type(clone) is MLPMixer
    assert clone.config == model.config
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(numpy(clone(tiny_images)), numpy(model(tiny_images)))


@pytest.mark.backend_free
def test_saved_model_loads_in_a_fresh_process_after_one_import(tmp_path, tiny):
    model, _ = randomized(**tiny, stochastic_depth_rate=0.1, dtype="mixed_bfloat16")
    model.preprocessing = Preprocessing(value_range=(0.0, 1.0), transform="resize")
    model.labels = ("a", "b", "c", "d", "e")
    model.get_layer("block_1").trainable = False
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 24, 3), "uint8")
    np.save(tmp_path / "images.npy", images)
    model.save(tmp_path / "model.keras")
    code = """
import sys, json, numpy as np, keras, keras_mixer
folder = sys.argv[1]
model = keras.saving.load_model(f"{folder}/model.keras")
outputs = model.predict(np.load(f"{folder}/images.npy"), verbose=0)
np.save(f"{folder}/outputs.npy", outputs)
print(json.dumps({
    "class": type(model).__name__,
    "config": model.config,
    "range": model.preprocessing.value_range,
    "transform": model.preprocessing.transform,
    "labels": model.labels,
    "frozen": [b.name for b in model.blocks if not b.trainable],
    "policies": sorted({b.dtype_policy.name for b in model.blocks}),
}))
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert told == {
        "class": "MLPMixer",
        "config": model.config | {"input_shape": [32, 24, 3]},
        "range": [0.0, 1.0],
        "transform": "resize",
        "labels": ["a", "b", "c", "d", "e"],
        "frozen": ["block_1"],
        "policies": ["mixed_bfloat16"],
    }
    outputs = model.predict(images, verbose=0)
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npy"), outputs)


def test_weights_h5_round_trip(tmp_path, tiny, tiny_images):
    model, _ = randomized(**tiny)
    model.save_weights(tmp_path / "model.weights.h5")
    other = mlp_mixer(**tiny)
    other.load_weights(tmp_path / "model.weights.h5")
    built = mlp_mixer(**tiny, weights=tmp_path / "model.weights.h5")
    for each in (other, built):
        np.testing.assert_array_equal(
            numpy(each(tiny_images)), numpy(model(tiny_images))
        )


def test_new_head_on_pre_logits_trains_alone(tiny, tiny_images):
    model, _ = randomized(**tiny)
    for block in model.blocks:
        block.trainable = False
    outputs = keras.layers.Dense(2, name="new_head")(
        model.get_layer("pre_logits").output
    )
    new = MLPMixer(model.input, outputs)
    assert len(new.blocks) == 2
    new.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    frozen = [w.copy() for w in model.get_layer("block_1").get_weights()]
    stem = model.get_layer("stem").get_weights()[0].copy()
    new.fit(tiny_images, np.array([0, 1, 0, 1]), verbose=0)
    for now, before in zip(
        model.get_layer("block_1").get_weights(), frozen, strict=True
    ):
        np.testing.assert_array_equal(now, before)
    assert (model.get_layer("stem").get_weights()[0] != stem).any()


@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method")
@pytest.mark.filterwarnings("ignore:Layer .* quantize")
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantized_model_survives_saving(tmp_path, tiny, tiny_images, mode):
    tiny |= {"hidden_dim": 32, "channels_mlp_dim": 64, "tokens_mlp_dim": 32}
    model, _ = randomized(**tiny, classifier_activation=None)
    before = numpy(model(tiny_images))
    model.quantize(mode, filters=r".*(dense_\d|head)")
    quantized = numpy(model(tiny_images))
    relative = np.linalg.norm(quantized - before) / np.linalg.norm(before)
    assert 0 < relative < {"int8": 0.05, "int4": 0.5}[mode]
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(again(tiny_images)), quantized)
    # And once more: a reloaded model carries its policies in a map already.
    again.save(tmp_path / "again.keras")
    third = keras.saving.load_model(tmp_path / "again.keras")
    np.testing.assert_array_equal(numpy(third(tiny_images)), quantized)


def test_lora_trains_the_adapters_and_saves_the_merged_kernels(
    tmp_path, tiny, tiny_images
):
    model, _ = randomized(**tiny)
    for block in model.blocks:
        for mlp in (block.token_mixing, block.channel_mixing):
            mlp.dense_0.enable_lora(2)
            mlp.dense_1.enable_lora(2)
    kernel = numpy(model.blocks[0].token_mixing.dense_0._kernel).copy()
    adapter = numpy(model.blocks[0].token_mixing.dense_0.lora_kernel_b).copy()
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    model.fit(tiny_images, np.arange(4), verbose=0)
    dense = model.blocks[0].token_mixing.dense_0
    np.testing.assert_array_equal(numpy(dense._kernel), kernel)
    assert (numpy(dense.lora_kernel_b) != adapter).any()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        numpy(again(tiny_images)), numpy(model(tiny_images)), atol=1e-5
    )


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_one_training_step_gives_every_weight_its_gradient(tiny, tiny_images, policy):
    model, _ = randomized(**tiny, dtype=policy)
    optimizer = MomentumSGD(1e-3)  # its traces are the gradients after one step
    model.compile(optimizer, "sparse_categorical_crossentropy")
    model.fit(tiny_images, np.arange(4), verbose=0)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    for weight, trace in zip(model.trainable_weights, optimizer.traces, strict=True):
        size = np.abs(numpy(trace)).max()
        if weight.path.endswith("token_mixing/dense_1/bias"):
            # One number for all channels of a patch, which every LayerNorm that
            # reads it takes out again: zero but for epsilon and rounding.
            assert size < 1e-2
        else:
            assert size > 1e-5, weight.path


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="XLA by choice")
def test_xla_is_chosen_on_cpus_too_but_not_under_a_strategy(tiny):
    import tensorflow as tf

    model = mlp_mixer(**tiny)
    assert model.jit_compile
    model.compile("sgd", "mse")
    assert model.jit_compile
    model.compile("sgd", "mse", jit_compile=False)
    assert not model.jit_compile
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        model = mlp_mixer(**tiny)
    assert not model.jit_compile


def test_plot_model_draws_one_box_per_node(tiny):
    pydot = pytest.importorskip("pydot")
    graph = keras.utils.model_to_dot(mlp_mixer(**tiny), show_shapes=True)
    assert isinstance(graph, pydot.Dot)
    text = graph.to_string()
    assert all(name in text for name in ("stem", "block_1", "pre_logits", "head"))


# --- errors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patch_size": 0}, "`patch_size` must be a positive integer"),
        ({"num_blocks": 0}, "`num_blocks` must be a positive integer"),
        ({"num_classes": -1}, "`num_classes` must be a positive integer"),
        ({"input_shape": (30, 24, 3)}, "nearest heights are 24 and 32"),
        ({"input_shape": (None, None, 3)}, "all known"),
        ({"input_shape": (3, 32, 24)}, "height=3"),
        ({"dropout_rate": 1}, r"must lie in \[0, 1\)"),
        ({"stochastic_depth_rate": 1.5}, r"must lie in \[0, 1\)"),
        ({"weights": "imagenet21k"}, "imagenet21k"),
    ],
)
def test_wrong_arguments_are_named(tiny, wrong, message):
    with pytest.raises(ValueError, match=message):
        mlp_mixer(**tiny | wrong)
