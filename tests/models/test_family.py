import inspect
import sys

import keras
import numpy as np
import oracle
import pytest
from golden import load_golden

import keras_mixer
from keras_mixer import models
from keras_mixer.checkpoints.convert import OFFICIAL, match_names
from keras_mixer.checkpoints.records import list_checkpoints
from keras_mixer.layers.mixer import zero_kernels
from keras_mixer.models import family
from keras_mixer.variants import VARIANTS, count_params

# float32 on a CPU; measured at most 2e-6 over the family.
TOLERANCE = 5e-6


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def official_names(model):
    """Our name -> official name for every weight of `model`."""
    num_blocks = len(model.blocks)
    blocks = [
        f"MixerBlock_{i}/{layer}"
        for i in range(num_blocks)
        for layer in (
            "LayerNorm_0/scale",
            "LayerNorm_0/bias",
            "LayerNorm_1/scale",
            "LayerNorm_1/bias",
            *(
                f"{mlp}/Dense_{dense}/{leaf}"
                for mlp in ("token_mixing", "channel_mixing")
                for dense in (0, 1)
                for leaf in ("kernel", "bias")
            ),
        )
    ]
    rest = [
        f"{layer}/{leaf}"
        for layer, leaves in {
            "stem": ("kernel", "bias"),
            "pre_head_layer_norm": ("scale", "bias"),
            "head": ("kernel", "bias"),
        }.items()
        for leaf in leaves
    ]
    return match_names(blocks + rest, OFFICIAL)


# L/16 has the blocks of L/32, and H/14 takes half a minute to draw.
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=[pytest.mark.nightly] * (name in {"L/32", "H/14"}))
        for name in VARIANTS
        if name != "Ti/4"
    ],
)
def test_outputs_equal_the_official_implementation(variant):
    golden = load_golden("family_224")
    with zero_kernels():
        model = family.CONSTRUCTORS[variant](
            classifier_activation=None, include_preprocessing=False
        )
    names = official_names(model)
    shapes = {names[w.path]: tuple(w.shape) for w in model.weights}
    weights = oracle.draw_official(int(golden["weights_seed"]), shapes)
    for variable in model.weights:
        variable.assign(weights.pop(names[variable.path]))
    images = oracle.draw_images(int(golden["images_seed"]), 2, (224, 224, 3))
    pre_logits = model.get_layer("pre_logits").output
    both = keras.Model(model.input, [pre_logits, model.output])
    key = variant.replace("/", "_")
    for name, value in zip(("pre_logits", "logits"), both(images), strict=True):
        assert np.abs(numpy(value) - golden[f"{key}/{name}"]).max() < TOLERANCE


def test_every_variant_has_its_constructor():
    assert tuple(family.CONSTRUCTORS) == VARIANTS
    for variant, constructor in family.CONSTRUCTORS.items():
        name = f"Mixer{variant.replace('/', '')}"
        assert constructor.__name__ == name
        assert getattr(keras_mixer, name) is constructor
        assert f"Mixer-{variant}" in constructor.__doc__


def test_all_constructors_share_the_public_signature():
    expected = (
        "(weights=None, *, input_shape=None, num_classes=None, "
        "classifier_activation='softmax', include_preprocessing=True, "
        "dropout_rate=0.0, stochastic_depth_rate=0.0, name=None, dtype=None, "
        "labels=None)"
    )
    for constructor in family.CONSTRUCTORS.values():
        signature = inspect.signature(constructor)
        untyped = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        assert str(inspect.Signature(untyped)) == expected
        assert constructor.__annotations__["return"] is keras_mixer.MLPMixer


def test_without_weights_there_are_1000_classes():
    model = keras_mixer.MixerTi4()
    assert model.output_shape == (None, 1000)
    assert model.input_shape == (None, 32, 32, 3)
    assert model.name == "mixer_ti4"
    assert model.count_params() == count_params(
        patch_size=4,
        hidden_dim=128,
        num_blocks=8,
        tokens_mlp_dim=64,
        channels_mlp_dim=512,
        input_shape=(32, 32, 3),
        num_classes=1000,
    )


def test_arguments_reach_the_model():
    model = keras_mixer.MixerTi4(
        input_shape=(16, 24, 4),
        num_classes=7,
        classifier_activation=None,
        include_preprocessing=False,
        dropout_rate=0.1,
        stochastic_depth_rate=0.2,
        name="mine",
        dtype="mixed_bfloat16",
    )
    assert model.name == "mine"
    assert model.blocks[0].compute_dtype == "bfloat16"
    config = model.config
    assert config["input_shape"] == (16, 24, 4)
    assert config["num_classes"] == 7
    assert config["classifier_activation"] == "linear"
    assert not config["include_preprocessing"]
    assert (config["dropout_rate"], config["stochastic_depth_rate"]) == (0.1, 0.2)


# --- the embedded checkpoint ------------------------------------------------------


def test_the_embedded_checkpoint_has_its_head_and_its_names():
    model = keras_mixer.MixerTi4(weights="cifar10")
    assert model.output_shape == (None, 10)
    assert model.labels[:3] == ("airplane", "automobile", "bird")
    assert model.preprocessing.transform == "resize"


def test_features_and_new_heads_keep_the_body():
    full = keras_mixer.MixerTi4(weights="cifar10")
    pooled = keras_mixer.MixerTi4(weights="cifar10", num_classes=0)
    new = keras_mixer.MixerTi4(weights="cifar10", num_classes=4)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), "uint8")
    expected = numpy(full.features("pre_logits")(images))
    np.testing.assert_allclose(numpy(pooled(images)), expected, rtol=1e-6)
    np.testing.assert_array_equal(numpy(new(images)), np.full((2, 4), 0.25))
    assert pooled.labels is None and new.labels is None


def test_another_image_size_adapts_the_token_mlps():
    full = keras_mixer.MixerTi4(weights="cifar10", num_classes=0)
    large = keras_mixer.MixerTi4(
        weights="cifar10", num_classes=0, input_shape=(64, 64, 3)
    )
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), "uint8")
    parts = np.concatenate(
        [images[:, i : i + 32, j : j + 32] for i in (0, 32) for j in (0, 32)]
    )
    expected = numpy(full(parts)).mean(0)
    np.testing.assert_allclose(numpy(large(images))[0], expected, atol=1e-5)


def test_resized_weights_load_by_path_at_their_own_size(tmp_path):
    model = keras_mixer.MixerTi4(weights="cifar10", input_shape=(48, 48, 3))
    path = tmp_path / "model.npz"
    keras_mixer.save_official(model, path)
    again = keras_mixer.MixerTi4(weights=path, input_shape=(48, 48, 3))
    for now, before in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(now, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "imagenet22k"}, "'cifar10'"),
        ({"weights": "model.h5"}, "Received: weights='model.h5'"),
        ({"weights": ""}, "Received: weights=''"),
        ({"weights": "cifar10", "input_shape": (30, 32, 3)}, "nearest heights"),
        ({"weights": "cifar10", "input_shape": (32, 32, 1)}, "channels"),
        ({"weights": "cifar10", "num_classes": -3}, "num_classes"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_mixer.MixerTi4(**arguments)


def test_a_checkpoint_of_another_variant_is_named():
    with pytest.raises(ValueError, match="'cifar10' exists for Ti/4"):
        keras_mixer.MixerS32(weights="cifar10")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.npz"):
        keras_mixer.MixerTi4(weights=tmp_path / "absent.npz")


def test_every_checkpoint_belongs_to_a_variant():
    for checkpoint in list_checkpoints():
        assert checkpoint.variant in VARIANTS


def test_create_builds_any_member_by_its_name():
    by_name = models.create("Ti/4", "cifar10", name="mine")
    expected = keras_mixer.MixerTi4("cifar10", name="mine")
    assert by_name.config == expected.config and by_name.labels == expected.labels
    for ours, theirs in zip(by_name.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="A variant is a size letter"):
        models.create("XL/16")


def test_labels_name_the_classes_of_a_new_head():
    names = [f"flower {i}" for i in range(10)]
    model = keras_mixer.MixerTi4("cifar10", labels=names)
    assert model.labels == tuple(names) and model.output_shape == (None, 10)
    old = keras_mixer.MixerTi4("cifar10")
    head = model.get_layer("head")
    assert not numpy(head.kernel).any() and not numpy(head.bias).any()
    assert numpy(old.get_layer("head").kernel).any()
    np.testing.assert_array_equal(
        numpy(model.get_layer("block_3").weights[0]),
        numpy(old.get_layer("block_3").weights[0]),
    )
    kept = keras_mixer.MixerTi4("cifar10", labels=old.labels)
    np.testing.assert_array_equal(
        numpy(kept.get_layer("head").kernel), numpy(old.get_layer("head").kernel)
    )
    assert keras_mixer.MixerTi4(labels=["a", "b"]).output_shape == (None, 2)


@pytest.mark.parametrize(
    "labels, num_classes, message",
    [
        (["a", "b"], 3, "2 names, num_classes=3"),
        (["a"], 0, "1 names, num_classes=0"),
        (["a", "b", "a"], None, "'a' more than once"),
        (["a", 3], None, "Received: 3 among them"),
        (["a", ""], None, "Received: '' among them"),
        ("abc", 3, "labels='abc'"),
        ([], None, r"labels=\[\]"),
    ],
)
def test_wrong_labels_are_refused_before_a_download(
    monkeypatch, labels, num_classes, message
):
    module = sys.modules["keras_mixer.models.create"]  # the door gives the function
    monkeypatch.setattr(module, "_find", lambda *_: pytest.fail("too late"))
    with pytest.raises(ValueError, match=message):
        keras_mixer.MixerB16("imagenet21k", labels=labels, num_classes=num_classes)


def test_models_are_listed():
    assert keras_mixer.list_models() == [
        f"Mixer{variant.replace('/', '')}" for variant in VARIANTS
    ]
    assert keras_mixer.list_models("*l*") == ["MixerL32", "MixerL16"]
    assert keras_mixer.list_models("none") == []
    pairs = keras_mixer.list_models(pretrained=True)
    assert "MixerB16:imagenet21k" in pairs and "MixerTi4:cifar10" in pairs
    assert len(pairs) == len(list_checkpoints())
    assert keras_mixer.list_models("MixerTi4", pretrained=True) == ["MixerTi4:cifar10"]
    assert "MixerL16:imagenet1k" in keras_mixer.list_models("*:imagenet1k", True)


def test_every_docstring_names_its_checkpoints():
    for variant, constructor in family.CONSTRUCTORS.items():
        for checkpoint in list_checkpoints(variant):
            assert f'"{checkpoint.name}"' in constructor.__doc__
