import keras
import numpy as np
import pytest
from drawn import drawn_model

from keras_mixer.models import mlp_mixer
from keras_mixer.training import add_lora

SHAPE = (32, 24, 3)
# Keras warns of every layer that it does not quantize.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method"),
    pytest.mark.filterwarnings("ignore:Layer .* quantize"),
]


def images(count=6):
    rng = np.random.default_rng(3)
    return rng.uniform(0, 255, (count, *SHAPE)).astype("float32")


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def own_quantizers():
    quantizer = keras.quantizers.AbsMaxQuantizer
    return keras.quantizers.Int8QuantizationConfig(
        weight_quantizer=quantizer(axis=0, value_range=(-60, 60)),
        activation_quantizer=quantizer(axis=-1, value_range=(-50, 50)),
    )


def test_quantizers_survive_saving_and_cloning(tmp_path):
    # One block has all kinds of layers, and is compiled in a third of the time.
    model, plain = (
        drawn_model(num_blocks=1, classifier_activation=None) for _ in range(2)
    )
    plain.quantize("int8", filters=r".*(dense_\d|head)")
    model.quantize(config=own_quantizers(), filters=r".*(dense_\d|head)")
    expected = numpy(model(images()))
    # The quantizers matter, so that their loss would show.
    assert np.abs(expected - numpy(plain(images()))).max() > 1e-3
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    loaded.save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras")
    for each in (loaded, clone, again):
        np.testing.assert_array_equal(numpy(each(images())), expected)


def test_a_quantized_model_of_another_scope_loads(tmp_path):
    with keras.name_scope("outer"):
        model = drawn_in_scope()
    model.quantize("int8", filters=r".*(dense_\d|head)")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(loaded(images())), numpy(model(images())))
    assert loaded.blocks[1].token_mixing.dense_1.quantization_mode == "int8"


def drawn_in_scope():
    outside = drawn_model()
    model = mlp_mixer(**outside.config)
    model.set_weights(outside.get_weights())
    return model


@pytest.mark.parametrize("mode", [None, "int8"])
def test_lora_and_its_optimizer_go_on_after_loading(tmp_path, mode):
    model = drawn_model(num_blocks=1)
    if mode:
        model.quantize(mode, filters=r".*dense_\d")
    add_lora(model, 2)
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    model.fit(images(), np.arange(6) % 5, epochs=2, verbose=0)
    expected = numpy(model(images()))
    model.save(tmp_path / "model.keras")

    loaded = keras.saving.load_model(tmp_path / "model.keras")
    tolerance = 0.05 if mode else 1e-5  # the sums are quantized anew
    np.testing.assert_allclose(numpy(loaded(images())), expected, atol=tolerance)
    assert [v.path for v in loaded.trainable_variables] == [
        v.path for v in model.trainable_variables
    ]
    assert int(loaded.optimizer.iterations) == 2
    for ours, theirs in zip(
        model.optimizer.variables, loaded.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(numpy(ours), numpy(theirs))
    before = [numpy(v).copy() for v in loaded.trainable_variables]
    loaded.fit(images(), np.arange(6) % 5, epochs=2, verbose=0)
    for variable, old in zip(loaded.trainable_variables, before, strict=True):
        assert (numpy(variable) != old).any(), variable.path


def test_what_is_frozen_inside_a_block_stays_frozen(tmp_path):
    model = drawn_model()
    model.blocks[0].norm_0.trainable = False
    model.blocks[0].channel_mixing.trainable = False
    model.blocks[1].token_mixing.dense_1.bias.trainable = False
    model.get_layer("stem").trainable = False
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = [v.path for v in model.trainable_variables]
    assert [v.path for v in loaded.trainable_variables] == expected
    assert len(expected) == len(model.weights) - 2 - 4 - 1 - 2


@pytest.mark.parametrize("default", ["float32", "mixed_bfloat16"])
def test_a_map_of_policies_reaches_the_head(tiny, default, tmp_path):
    policies = keras.dtype_policies.DTypePolicyMap(
        default,
        {
            "head": keras.dtype_policies.DTypePolicy("bfloat16"),
            "block_1/.*dense_0": keras.dtype_policies.DTypePolicy("float16"),
        },
    )
    model = mlp_mixer(**tiny, dtype=policies)
    assert model.get_layer("head").compute_dtype == "bfloat16"
    assert model.blocks[1].token_mixing.dense_0.compute_dtype == "float16"
    other = {"float32": "float32", "mixed_bfloat16": "bfloat16"}[default]
    assert model.blocks[0].token_mixing.dense_0.compute_dtype == other
    assert model.get_layer("pre_head_layer_norm").compute_dtype == "float32"
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("head").compute_dtype == "bfloat16"
    assert loaded.blocks[1].token_mixing.dense_0.compute_dtype == "float16"
