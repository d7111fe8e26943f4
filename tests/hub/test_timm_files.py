"""One repository for Keras, for this package and for timm: files, Hub and real timm.

timm itself is asked where it is installed (the extra `benchmark`).
"""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import keras
import numpy as np
import pytest
import timm_folder
from hub_server import Hub
from safetensors.numpy import load_file
from timm_folder import draw, state_dict

import keras_mixer
from keras_mixer import from_pretrained, mlp_mixer, push_to_hub, save_timm
from keras_mixer.hub import read_model, verify, write_folder, write_model
from keras_mixer.preprocessing import Preprocessing

SIZES = {
    "patch_size": timm_folder.PATCH,
    "hidden_dim": timm_folder.WIDTH,
    "num_blocks": timm_folder.BLOCKS,
    "tokens_mlp_dim": timm_folder.TOKENS,
    "channels_mlp_dim": timm_folder.CHANNELS,
}
RECORD = Preprocessing(
    tuple(
        (-m / s, (1 - m) / s)
        for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
    ),
    "resize_pad",
    "bicubic",
    0.9,
    "pillow",
)
LABELS = ("ant", "bee", "cat", "dog", "elk")
KINDS = {
    "headless": {"num_classes": 0, "classifier_activation": None},
    "grey": {
        "input_shape": (32, 48, 1),
        "preprocessing": Preprocessing((0, 1), "resize", "area"),
    },
    "five channels": {"input_shape": (32, 48, 5), "preprocessing": None},
    "normalized outside": {"include_preprocessing": False},
    "odd and regularized": {
        "tokens_mlp_dim": 61,
        "channels_mlp_dim": 99,
        "dropout_rate": 0.1,
        "stochastic_depth_rate": 0.2,
    },
}


def make_model(seed=0, **changes):
    arguments = {
        **SIZES,
        "input_shape": timm_folder.SHAPE,
        "num_classes": timm_folder.CLASSES,
        "approximate_gelu": False,
        "preprocessing": RECORD,
        "name": "tiny",
        **changes,
    }
    model = mlp_mixer(**arguments)
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "seed" in weight.path:
            continue
        scale = 0.1
        if weight.path.endswith("kernel"):
            scale = 1 / np.sqrt(np.prod(weight.shape[:-1]))
        value = scale * rng.standard_normal(weight.shape)
        weight.assign(value + weight.path.endswith("gamma"))
    if model.config["num_classes"] == len(LABELS):
        model.labels = LABELS
    return model


def logits_of(model):
    """Return images in [0, 255] and the logits, or features, of a model of ours."""
    shape = model.input_shape[1:]
    pixels = np.random.default_rng(1).uniform(0, 255, (3, *shape)).astype("float32")
    images = pixels
    if not model.config["include_preprocessing"]:
        images = model.preprocessing.normalize(pixels)
    if model.config["num_classes"]:
        head = model.get_layer("head")
        features = model.features("pre_logits")(images)
        outputs = keras.ops.matmul(features, head.kernel) + head.bias
    else:
        outputs = model(images)
    return pixels, keras.ops.convert_to_numpy(outputs)


@pytest.fixture(scope="module")
def timm():
    try:
        return __import__("timm")
    except Exception as error:  # torchvision for another torch raises RuntimeError
        pytest.skip(f"timm cannot be imported: {error}")


# Files


def test_the_weights_have_timms_names_and_orientation(tmp_path):
    weights = draw()
    timm_folder.write(tmp_path / "from", state_dict(weights))
    model = from_pretrained(tmp_path / "from")
    save_timm(model, tmp_path / "to.safetensors")
    arrays = load_file(tmp_path / "to.safetensors")
    expected = state_dict(weights)
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name])
        assert array.dtype == np.float32


@pytest.mark.backend_free
def test_the_config_is_timms(tmp_path):
    write_folder(make_model(), tmp_path / "new", timm=True)
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    own = {name: config[name] for name in timm_folder.CONFIG}
    expected = dict(timm_folder.CONFIG)
    expected["pretrained_cfg"] = {
        name: value
        for name, value in expected["pretrained_cfg"].items()
        if name not in ("tag", "custom_load", "pool_size")
    } | {"crop_mode": "border"}
    assert own == expected


@pytest.mark.backend_free
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_one_folder_for_keras_for_us_and_for_timm(changes, tmp_path):
    model, folder = make_model(**changes), tmp_path / "folder"
    write_folder(model, folder, timm=True)
    pixels, expected = logits_of(model)

    ours = from_pretrained(folder)
    assert (ours.config, ours.labels) == (model.config, model.labels)
    np.testing.assert_array_equal(logits_of(ours)[1], expected)
    plain = keras.saving.load_model(folder)
    images = pixels
    if not model.config["include_preprocessing"]:
        images = model.preprocessing.normalize(pixels)
    outputs = keras.ops.convert_to_numpy(plain(images))
    np.testing.assert_allclose(
        outputs, keras.ops.convert_to_numpy(ours(images)), rtol=1e-5, atol=1e-6
    )
    # As if timm alone had written it.
    for name in ("checksums.json", "model.weights.h5"):
        (folder / name).unlink()
    theirs = from_pretrained(folder)
    assert theirs.config["input_shape"] == model.config["input_shape"]
    assert theirs.labels == model.labels
    record = model.preprocessing
    if record.library == "pillow":
        assert theirs.preprocessing == record
    if model.config["include_preprocessing"]:
        np.testing.assert_allclose(logits_of(theirs)[1], expected, atol=1e-5)
    np.testing.assert_allclose(theirs.preprocessing.ranges, record.ranges)


def test_a_resized_model(tmp_path):
    model = keras_mixer.resize(make_model(), (64, 48, 3))
    write_folder(model, tmp_path / "folder", timm=True)
    (tmp_path / "folder" / "checksums.json").unlink()
    again = from_pretrained(tmp_path / "folder")
    assert again.config["tokens_mlp_dim"] == 2 * timm_folder.TOKENS
    np.testing.assert_allclose(logits_of(again)[1], logits_of(model)[1], atol=1e-5)


@pytest.mark.backend_free
def test_verify_compares_the_two_files_of_weights(tmp_path):
    write_folder(make_model(), tmp_path / "folder", timm=True)
    verify(tmp_path / "folder")
    save_timm(make_model(1), tmp_path / "folder" / "model.safetensors")
    from keras_mixer.hub.repository import write_checksums

    write_checksums(tmp_path / "folder")
    with pytest.raises(ValueError, match="weights for timm"):
        verify(tmp_path / "folder")


@pytest.mark.backend_free
def test_what_timm_cannot_build_is_refused_before_anything_is_written(tmp_path):
    def refused(match, write=write_folder, name="new", **changes):
        arguments = {"timm": True} if write is write_folder else {}
        with pytest.raises(ValueError, match=match):
            write(make_model(**changes), tmp_path / name, **arguments)
        assert not list(tmp_path.iterdir())

    tanh = {"approximate_gelu": True}
    refused("`act_layer` is a Python class.*Received: the tanh form", **tanh)
    refused("Received: the tanh form", save_timm, "a.safetensors", **tanh)
    refused("Received: the tanh form", write_model, "a.safetensors", **tanh)
    refused("patches, width and blocks.*patch_size=8", patch_size=8)
    refused("num_blocks=2", num_blocks=2)
    refused("ends in `.safetensors`", save_timm, "a.bin")
    with pytest.raises(ValueError, match="must hold a Mixer|must be built"):
        save_timm(keras.Sequential(), tmp_path / "a.safetensors")
    # The weights alone are of any size.
    save_timm(make_model(num_blocks=2), tmp_path / "a.safetensors")
    assert len(load_file(tmp_path / "a.safetensors")) == 2 + 2 * 12 + 2 + 2


def test_the_advice_for_the_tanh_form_works(tmp_path):
    model = make_model(approximate_gelu=True)
    with pytest.raises(ValueError) as caught:
        save_timm(model, tmp_path / "a.safetensors")
    lines = [line[4:] for line in str(caught.value).splitlines() if line[:4] == "    "]
    names = {"keras_mixer": keras_mixer, "model": model}
    exec("\n".join(lines), names)
    exact = names["exact"]
    assert exact.config == {**model.config, "approximate_gelu": False}
    assert (exact.labels, exact.preprocessing) == (LABELS, RECORD)
    difference = np.abs(logits_of(exact)[1] - logits_of(model)[1]).max()
    assert 1e-6 < difference < 0.02
    save_timm(exact, tmp_path / "a.safetensors")


@pytest.mark.backend_free
def test_convert_writes_and_reads_the_weights(tmp_path):
    model = make_model()
    write_model(model, tmp_path / "a.safetensors")
    again = read_model(
        tmp_path / "a.safetensors",
        input_shape=(32, 48, 3),
        value_range=RECORD.value_range,
    )
    np.testing.assert_array_equal(logits_of(again)[1], logits_of(model)[1])


@pytest.mark.backend_free
def test_the_card_shows_the_three_ways(tmp_path):
    write_folder(make_model(), tmp_path / "new", timm=True, repo_id="alice/ants")
    card = (tmp_path / "new" / "README.md").read_text()
    for line in (
        'keras.saving.load_model("hf://alice/ants")',
        'keras_mixer.from_pretrained("hf://alice/ants")',
        'timm.create_model("hf-hub:alice/ants", pretrained=True)',
        "timm returns logits, before the softmax.",
        "just fit in 35 x 53",
        "(bicubic, with antialiasing, by Pillow)",
        "grey levels 124, 116, 104",
        "to [-2.1179, 2.24891] and [-2.03571, 2.42857] and [-1.80444, 2.64]",
        "- timm",
    ):
        assert line in card
    write_folder(make_model(), tmp_path / "old")
    card = (tmp_path / "old" / "README.md").read_text()
    assert "timm" not in card and not (tmp_path / "old" / "model.safetensors").exists()


# The Hub, with the clients that people use, in a process of their own


def push(seed, repo_id, **arguments):
    return push_to_hub(make_model(seed), repo_id, **arguments)


def of_keras(repo_id, images):
    model = keras.saving.load_model(f"hf://{repo_id}")
    assert "keras_mixer" not in type(model).__module__
    return keras.ops.convert_to_numpy(model(images))


def of_ours(repo_id):
    return logits_of(from_pretrained(f"hf://{repo_id}"))


def of_constructor(repo_id):
    model = keras_mixer.MixerS16(weights=f"hf://{repo_id}", input_shape=(32, 32, 3))
    return model.preprocessing, model.labels, logits_of(model)


def of_timm(repo_id, pixels):
    import timm
    import torch

    model = timm.create_model(f"hf-hub:{repo_id}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    mean, std = np.array(config["mean"]), np.array(config["std"])
    images = ((pixels / 255 - mean) / std).astype("float32").transpose(0, 3, 1, 2)
    with torch.no_grad():
        return config, model(torch.from_numpy(np.ascontiguousarray(images))).numpy()


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with Hub(tmp_path_factory.mktemp("hub"), {"hf_alice": "alice"}) as hub:
        yield hub


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """Calls functions in a process that is a client of the Hub."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        for name, value in hub.environment(home, "hf_alice").items():
            patch.setenv(name, value)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            yield lambda f, *args, **named: pool.submit(f, *args, **named).result(600)


@pytest.mark.backend_free
def test_one_repository_for_keras_and_for_us(hub, client):
    client(push, 0, "alice/three", timm=True)
    assert "model.safetensors" in hub.files("alice/three")
    pixels, expected = logits_of(make_model())
    np.testing.assert_allclose(client(of_ours, "alice/three")[1], expected, atol=2e-6)
    outputs = client(of_keras, "alice/three", pixels)
    powers = np.exp(expected - expected.max(-1, keepdims=True))
    np.testing.assert_allclose(
        outputs, powers / powers.sum(-1, keepdims=True), rtol=1e-4, atol=2e-6
    )


@pytest.mark.backend_free
def test_and_for_timm(hub, client, timm):
    client(push, 0, "alice/timm", timm=True)
    pixels, expected = logits_of(make_model())
    config, logits = client(of_timm, "alice/timm", pixels)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(logits, expected, atol=2e-6 * scale)
    assert {name: config[name] for name in ("interpolation", "crop_mode")} == {
        "interpolation": "bicubic",
        "crop_mode": "border",
    }


@pytest.mark.backend_free
def test_weights_for_timm_that_are_gone_are_removed(hub, client):
    client(push, 0, "alice/gone", timm=True)
    client(push, 0, "alice/gone")
    assert "model.safetensors" not in hub.files("alice/gone")
    # Not those of somebody else.
    hub.commit("alice/kept", {"model.safetensors": b"other"})
    client(push, 0, "alice/kept")
    assert hub.files("alice/kept")["model.safetensors"] == b"other"


@pytest.mark.backend_free
def test_a_repository_of_timm_by_its_name(hub, client, tmp_path):
    timm_folder.write(tmp_path, state_dict(draw()))
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    hub.commit("alice/theirs", files)
    hub.log.clear()
    pixels, logits = client(of_ours, "alice/theirs")
    np.testing.assert_array_equal(logits, logits_of(from_pretrained(tmp_path))[1])
    assert not any("model.weights.h5" in request["path"] for request in hub.log)


@pytest.mark.backend_free
def test_a_pickle_on_the_hub_is_not_downloaded(hub, client):
    config = json.dumps(timm_folder.CONFIG).encode()
    files = {"config.json": config, "pytorch_model.bin": b"0" * 5000}
    hub.commit("alice/pickle", files)
    hub.log.clear()
    with pytest.raises(ValueError, match="pickle only.*pytorch_model.bin"):
        client(of_ours, "alice/pickle")
    got = [r for r in hub.log if r["method"] == "GET" and "pytorch" in r["path"]]
    assert not got


# timm itself, in both directions

NAMES = [f"mixer_{size}{patch}_224" for size in "sbl" for patch in (32, 16)]


def drawn_timm(timm, name, **arguments):
    import torch

    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1 or parameter.shape[0] == model.num_classes:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def timm_logits(model, pixels):
    import torch

    config = __import__("timm").data.resolve_model_data_config(model)
    images = (pixels / 255 - np.array(config["mean"])) / np.array(config["std"])
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2), "float32")
    with torch.no_grad():
        return model(torch.from_numpy(images)).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_every_mixer_of_timm_in_both_directions(name, timm, tmp_path):
    model = drawn_timm(
        timm, name, img_size=(64, 32), mlp_ratio=(0.13, 0.125), num_classes=7
    )
    timm.models.save_for_hf(
        model,
        tmp_path / "theirs",
        model_config={"label_names": list("abcdefg")},
        safe_serialization=True,
        data_config={"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)},
    )
    ours = from_pretrained(tmp_path / "theirs")
    assert ours.labels == tuple("abcdefg")
    pixels, logits = logits_of(ours)
    # With the config they wrote, not with what the model was made for.
    again = timm.create_model(f"local-dir:{tmp_path / 'theirs'}", pretrained=True)
    expected = timm_logits(again.eval(), pixels)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(logits, expected, atol=2e-6 * scale)

    write_folder(ours, tmp_path / "ours", timm=True)
    back = timm.create_model(f"local-dir:{tmp_path / 'ours'}", pretrained=True).eval()
    np.testing.assert_array_equal(timm_logits(back, pixels), expected)
    configs = [timm.data.resolve_model_data_config(m) for m in (again, back)]
    assert json.dumps(configs[1]) == json.dumps(configs[0])


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_timm_computes_what_every_kind_computes(changes, timm, tmp_path):
    model = make_model(**changes)
    write_folder(model, tmp_path / "folder", timm=True)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True)
    pixels, expected = logits_of(model)
    scale = max(1.0, float(np.abs(expected).max()))
    logits = timm_logits(theirs.eval(), pixels)
    np.testing.assert_allclose(logits, expected, atol=2e-6 * scale)


@pytest.mark.backend_free
@pytest.mark.parametrize("name", ["gmixer_12_224", "resmlp_12_224", "gmlp_ti16_224"])
def test_what_timm_writes_of_other_architectures_is_refused(name, timm, tmp_path):
    model = timm.create_model(name, img_size=32)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    with pytest.raises(ValueError, match=f"{name}', a g?(Mixer|ResMLP|MLP)"):
        from_pretrained(tmp_path)


@pytest.mark.backend_free
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_images_are_prepared_as_timm_does(crop_mode, interpolation, size, timm):
    from PIL import Image

    record = Preprocessing(
        RECORD.value_range,
        {"center": "resmall_crop", "squash": "resize_crop", "border": "resize_pad"}[
            crop_mode
        ],
        interpolation,
        0.9,
        "pillow",
    )
    transform = timm.data.create_transform(
        input_size=(3, *size),
        crop_mode=crop_mode,
        interpolation=interpolation,
        crop_pct=0.9,
        mean=record.mean,
        std=record.std,
    )
    model = mlp_mixer(
        **SIZES, input_shape=(*size, 3), num_classes=0, preprocessing=record
    )
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = rng.integers(10, 300, 2)
        picture = rng.integers(0, 256, (height, width, 3), dtype="uint8")
        theirs = transform(Image.fromarray(picture)).numpy().transpose(1, 2, 0)
        ours = keras_mixer.preprocess(picture, model)[0]
        theirs = (theirs * np.array(record.std) + np.array(record.mean)) * 255
        assert np.abs(ours - theirs).max() < 0.01
