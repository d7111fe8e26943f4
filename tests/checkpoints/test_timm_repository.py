"""timm's repositories in folders: the whole model against NumPy, and every refusal."""

import copy
import json

import keras
import numpy as np
import oracle
import pytest
import timm_folder
from safetensors.numpy import load_file, save_file
from timm_folder import CONFIG, draw, state_dict, write, write_sharded

import keras_mixer
from keras_mixer import from_pretrained
from keras_mixer.checkpoints.weight_files import read_shapes, read_weights
from keras_mixer.preprocessing import Preprocessing

pytestmark = pytest.mark.backend_free

MEAN = np.array(CONFIG["pretrained_cfg"]["mean"])
STD = np.array(CONFIG["pretrained_cfg"]["std"])


@pytest.fixture(scope="module")
def weights():
    return draw()


@pytest.fixture
def folder(tmp_path, weights):
    write(tmp_path / "repository", state_dict(weights))
    return tmp_path / "repository"


def change(folder, *path, **entries):
    """Change entries of the object at `path` in the config."""
    config = json.loads((folder / "config.json").read_text())
    item = config
    for key in path:
        item = item[key]
    for key, value in entries.items():
        item.pop(key, None)
        if value is not ...:
            item[key] = value
    (folder / "config.json").write_text(json.dumps(config))


def predict(model, shape=timm_folder.SHAPE, *, normalized=False):
    images = np.random.default_rng(1).uniform(0, 255, (2, *shape)).astype("float32")
    outputs = keras.ops.convert_to_numpy(model(images))
    return images, outputs


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def check(model, weights, *, mean=MEAN, std=STD, approximate_gelu=False, rtol=2e-5):
    images, outputs = predict(model, model.input_shape[1:])
    normalized = (images.astype("float64") / 255 - mean) / std
    expected = oracle.mixer(weights, normalized, approximate_gelu)
    expected = expected[0] if expected[1] is None else softmax(expected[1])
    np.testing.assert_allclose(outputs, expected, rtol=rtol, atol=1e-6)


def test_the_whole_model_is_read(folder, weights):
    model = from_pretrained(folder)
    check(model, weights)
    assert model.labels == ("ant", "bee", "cat", "dog", "elk")
    assert model.name == "mixer_s16_224"
    record = model.preprocessing
    assert record.mean == tuple(MEAN) and record.std == tuple(STD)
    assert (record.transform, record.interpolation) == ("resmall_crop", "bicubic")
    assert (record.crop_fraction, record.library) == (0.9, "pillow")
    # And once more, saved and loaded by Keras.
    model.save(folder.parent / "model.keras")
    again = keras.saving.load_model(folder.parent / "model.keras")
    np.testing.assert_array_equal(predict(again)[1], predict(model)[1])
    assert again.preprocessing == record


def test_normalization_by_channel_is_channels_last_under_every_setting(folder, weights):
    keras.config.set_image_data_format("channels_first")
    try:
        check(from_pretrained(folder), weights)
    finally:
        keras.config.set_image_data_format("channels_last")


def test_a_constructor_takes_the_folder_and_refuses_another_size(tmp_path):
    shape = (32, 32, 3)
    wide = draw(shape=shape) | {}
    for i in range(timm_folder.BLOCKS):
        rng = np.random.default_rng(i)
        for name, size in (
            ("token_mixing/dense_0/kernel", (4, 256)),
            ("token_mixing/dense_0/bias", (256,)),
            ("token_mixing/dense_1/kernel", (256, 4)),
            ("channel_mixing/dense_0/kernel", (512, 2048)),
            ("channel_mixing/dense_0/bias", (2048,)),
            ("channel_mixing/dense_1/kernel", (2048, 512)),
        ):
            array = rng.standard_normal(size) / np.sqrt(size[0])
            wide[f"block_{i}/{name}"] = array.astype("float32")
    config = copy.deepcopy(CONFIG)
    del config["model_args"]
    config["pretrained_cfg"]["input_size"] = [3, 32, 32]
    write(tmp_path, state_dict(wide), config)
    model = keras_mixer.MixerS16(weights=tmp_path, input_shape=shape)
    check(model, wide)
    assert model.preprocessing.std == tuple(STD)
    with pytest.raises(ValueError, match="another model: patch_size=16"):
        keras_mixer.MixerB16(weights=tmp_path, input_shape=shape)


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_other_precisions(dtype, folder, weights):
    arrays = state_dict(weights)
    if dtype == "bfloat16":
        ml_dtypes = pytest.importorskip("ml_dtypes")
        arrays = {k: a.astype(ml_dtypes.bfloat16) for k, a in arrays.items()}
    else:
        arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    save_file(arrays, folder / "model.safetensors")
    kept = {n: w.astype(next(iter(arrays.values())).dtype) for n, w in weights.items()}
    check(from_pretrained(folder), kept)


def test_several_files_and_their_index(folder, weights):
    (folder / "model.safetensors").unlink()
    write_sharded(folder, state_dict(weights))
    check(from_pretrained(folder), weights)
    arrays, layout = read_weights(folder / "model.safetensors.index.json")
    assert layout == "timm" and arrays.keys() == weights.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, weights[name])


def test_an_index_that_lies_is_refused(folder, weights):
    arrays = state_dict(weights)
    (folder / "model.safetensors").unlink()
    write_sharded(folder, arrays)
    index = folder / "model.safetensors.index.json"
    right = json.loads(index.read_text())

    def refused(match, error=ValueError, **changes):
        wrong = {**right, "weight_map": {**right["weight_map"], **changes}}
        index.write_text(json.dumps(wrong))
        with pytest.raises(error, match=match):
            from_pretrained(folder)

    refused("beside it", **{"head.bias": "../../secret.safetensors"})
    refused("beside it", **{"head.bias": "pytorch_model.bin"})
    refused("and the index differ", **{"more": "model-00001-of-00003.safetensors"})
    refused(
        "There is no other", FileNotFoundError, **{"head.bias": "other.safetensors"}
    )
    index.write_text("[]")
    with pytest.raises(ValueError, match="no object `weight_map`"):
        from_pretrained(folder)
    index.write_text(json.dumps(right))
    part = folder / "model-00002-of-00003.safetensors"
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(ValueError, match="model-00002-of-00003"):
        from_pretrained(folder)


def test_shapes_are_read_without_the_arrays(folder, weights):
    shapes, _ = read_shapes(folder / "model.safetensors")
    assert shapes == {name: array.shape for name, array in weights.items()}


def test_without_a_head_and_with_one_channel(tmp_path):
    shape = (32, 48, 1)
    weights = draw(shape=shape, classes=0)
    config = copy.deepcopy(CONFIG) | {"num_classes": 0}
    config["pretrained_cfg"] |= {"input_size": [1, 32, 48], "mean": [0.5], "std": [0.2]}
    write(tmp_path, state_dict(weights), config)
    model = from_pretrained(tmp_path)
    assert model.output_shape == (None, timm_folder.WIDTH) and model.labels is None
    check(model, weights, mean=0.5, std=0.2, rtol=1e-4)


def test_one_channel_has_the_mean_of_the_three_that_timm_keeps(tmp_path):
    """`create_model(..., in_chans=1)` changes no number of the config."""
    weights = draw(shape=(32, 48, 1))
    write(tmp_path / "grey", state_dict(weights))
    change(tmp_path / "grey", "model_args", in_chans=1)
    numbers = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.3]}
    change(tmp_path / "grey", "pretrained_cfg", **numbers)
    check(from_pretrained(tmp_path / "grey"), weights, mean=0.4, std=0.25)


def test_tanh_gelu_where_the_config_says_so(folder, weights):
    change(folder, "model_args", act_layer="gelu_tanh", drop_path_rate=0.1)
    model = from_pretrained(folder)
    check(model, weights, approximate_gelu=True)
    assert model.config["approximate_gelu"] is True


def test_what_a_config_may_leave_out(folder, weights):
    change(folder, pretrained_cfg={"input_size": [3, 32, 48]}, label_names=...)
    model = from_pretrained(folder)
    check(model, weights)  # timm's defaults are ImageNet's, bicubic and 0.875
    assert (model.preprocessing.crop_fraction, model.labels) == (0.875, None)


def test_configs_of_one_level(folder, weights):
    config = {**CONFIG["pretrained_cfg"], "architecture": "mixer_s16_224.mine"}
    config |= {"model_args": CONFIG["model_args"], "labels": list("abcde")}
    (folder / "config.json").write_text(json.dumps(config))
    model = from_pretrained(folder)
    check(model, weights)
    assert model.labels == tuple("abcde")


def test_equal_channels_are_one_range(folder):
    change(folder, "pretrained_cfg", mean=[0.5, 0.5, 0.5], std=[0.5])
    assert from_pretrained(folder).preprocessing.value_range == (-1.0, 1.0)


@pytest.mark.parametrize(
    "crop_mode, transform",
    [("squash", "resize_crop"), ("border", "resize_pad"), (None, "resmall_crop")],
)
def test_crop_modes(crop_mode, transform, folder):
    change(folder, "pretrained_cfg", crop_mode=crop_mode)
    assert from_pretrained(folder).preprocessing.transform == transform


def test_names_and_descriptions_of_classes(folder):
    def labels(**entries):
        change(folder, **entries)
        return from_pretrained(folder).labels

    assert labels(label_names={"0": "a", "4": "e"}) == ("a", "1", "2", "3", "e")
    texts = {"a": "ant", "b": "bee", "c": "crane", "d": "dog", "e": "elk"}
    names = list("abcde")
    described = ("ant", "bee", "crane", "dog", "elk")
    assert labels(label_names=names, label_descriptions=texts) == described
    assert labels(label_descriptions=texts | {"d": "crane"}) == tuple(names)
    assert labels(label_descriptions={"a": "ant"}) == tuple(names)
    change(folder, label_names=["a"])
    with pytest.raises(ValueError, match="one name for 5 classes"):
        from_pretrained(folder)
    change(folder, label_names={"7": "a"})
    with pytest.raises(ValueError, match="name class '7'; there are 5"):
        from_pretrained(folder)


OTHERS = {
    "gmixer_24_224": "a gMixer, whose MLPs have gates",
    "resmlp_12_224": "a ResMLP, which has affine",
    "resmlp_big_24_224": "a ResMLP",
    "gmlp_s16_224": "a gMLP, whose blocks",
    "vit_base_patch16_224": "no Mixer",
    "mixer_s8_224": "no Mixer",
}


@pytest.mark.parametrize("architecture, match", OTHERS.items(), ids=OTHERS)
def test_other_architectures_are_refused_by_name(architecture, match, folder):
    change(folder, architecture=architecture)
    (folder / "model.safetensors").unlink()  # it is not asked for
    with pytest.raises(ValueError, match=f"{architecture}'.*{match}"):
        from_pretrained(folder)


WRONG = {
    "std 0": (("pretrained_cfg",), {"std": [0.2, 0, 0.2]}, "std must be positive"),
    "std text": (("pretrained_cfg",), {"std": "0.5"}, "std must be 1 or 3 numbers"),
    "two means": (("pretrained_cfg",), {"mean": [0.5, 0.5]}, "mean must be 1 or 3"),
    "huge mean": (("pretrained_cfg",), {"mean": [10**400] * 3}, "mean must be"),
    "crop": (("pretrained_cfg",), {"crop_pct": 1.5}, "`crop_fraction` must"),
    "crop mode": (("pretrained_cfg",), {"crop_mode": "tile"}, "crop_mode must be"),
    "random": (("pretrained_cfg",), {"interpolation": "random"}, "`interpolation`"),
    "two sizes": (("pretrained_cfg",), {"input_size": [3, 32]}, "3 positive integers"),
    "no patches": (("pretrained_cfg",), {"input_size": [3, 40, 48]}, "no multiple of"),
    "other size": (("pretrained_cfg",), {"input_size": [3, 48, 48]}, "contradicts"),
    "channels": (
        ("pretrained_cfg",),
        {"input_size": [1, 32, 48], "mean": [0.5], "std": [0.5]},
        "contradicts itself.*\n.*stem/projection/kernel",
    ),
    "other head": ((), {"num_classes": 6, "label_names": ...}, "contradicts itself"),
    "no head": ((), {"num_classes": 0}, "contradicts itself"),
    "head of text": ((), {"num_classes": "5", "label_names": ...}, "num_classes is of"),
    "other width": ((), {"architecture": "mixer_b16_224"}, "contradicts itself"),
    "other ratio": (("model_args",), {"mlp_ratio": 4}, "contradicts itself"),
    "gate": (("model_args",), {"mlp_layer": "GluMlp"}, "mlp_layer='GluMlp', which"),
    "stem norm": (("model_args",), {"stem_norm": True}, "stem_norm='True', which"),
    "no pool": (("model_args",), {"global_pool": ""}, "global_pool=''"),
    "silu": (("model_args",), {"act_layer": "silu"}, "act_layer='silu'"),
    "no object": ((), {"pretrained_cfg": 3}, "pretrained_cfg is not an object"),
    "far too large": (("model_args",), {"mlp_ratio": [9000, 9000]}, "far too large"),
}


@pytest.mark.parametrize("path, entries, match", WRONG.values(), ids=WRONG)
def test_wrong_configs_are_refused(path, entries, match, folder):
    change(folder, *path, **entries)
    with pytest.raises(ValueError, match=match):
        from_pretrained(folder)


def test_files_that_do_not_belong_are_refused(folder, weights):
    arrays = state_dict(weights)

    def refused(match, changed):
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(ValueError, match=match):
            from_pretrained(folder)

    refused("norm1.weight", {k: a for k, a in arrays.items() if "norm1.w" not in k})
    refused("blocks.0.ls1", {**arrays, "blocks.0.ls1": np.ones(3, "float32")})
    refused("not of floats", {**arrays, "head.bias": np.ones(5, "int32")})
    wrong = np.full(5, np.nan, "float32")
    refused("'head.bias': 5 of its 5", {**arrays, "head.bias": wrong})
    (folder / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(ValueError, match="model.safetensors"):
        from_pretrained(folder)


def test_far_too_large_a_file_is_not_opened(folder):
    with open(folder / "model.safetensors", "ab") as file:
        file.truncate(2**30)
    with pytest.raises(ValueError, match="more than"):
        from_pretrained(folder)


def test_pickles_are_refused_and_the_advice_works(folder, weights, monkeypatch):
    torch = pytest.importorskip("torch")
    arrays = load_file(folder / "model.safetensors")
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no model.safetensors"):
        from_pretrained(folder)
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickle only") as caught:
        from_pretrained(folder)
    lines = [line for line in str(caught.value).splitlines() if line[:4] == "    "]
    assert len(lines) == 2
    monkeypatch.chdir(folder)
    exec("\n".join(line.strip() for line in lines))
    check(from_pretrained(folder), weights)


def test_a_record_by_channel_is_for_as_many_channels(tiny):
    record = Preprocessing(((0, 1), (0, 2), (0, 3)))
    tiny["input_shape"] = (32, 24, 1)
    with pytest.raises(ValueError, match="3 ranges for 1 channels"):
        keras_mixer.mlp_mixer(**tiny, preprocessing=record)
