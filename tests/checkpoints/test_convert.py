import io
import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_mixer.checkpoints import convert, weight_files

# No backend computes here.
pytestmark = pytest.mark.backend_free

DATA = Path(__file__).parents[1] / "data"
GOLDEN = ["tiny_square", "tiny_rectangular", "tiny_equal_dims"]
FUZZ = settings(
    max_examples=int(os.environ.get("KERAS_MIXER_FUZZ_EXAMPLES", 200)),
    derandomize=True,
    deadline=None,
    database=None,
)
SIZES = {
    "patch_size": 2,
    "hidden_dim": 3,
    "num_blocks": 2,
    "tokens_mlp_dim": 5,
    "channels_mlp_dim": 7,
    "num_patches": 4,
    "channels": 3,
    "num_classes": 2,
}


def golden(name, prefix):
    with np.load(DATA / f"{name}.npz") as file:
        arrays = {
            key.removeprefix(prefix): file[key]
            for key in file.files
            if key.startswith(prefix)
        }
        return arrays, json.loads(str(file["config"]))


def official_shapes(sizes):
    """The published names, written out independently of the code."""
    hidden, classes = sizes["hidden_dim"], sizes["num_classes"]
    patch = (sizes["patch_size"], sizes["patch_size"])
    shapes = {
        "stem/kernel": (*patch, sizes["channels"], hidden),
        "stem/bias": (hidden,),
        "pre_head_layer_norm/scale": (hidden,),
        "pre_head_layer_norm/bias": (hidden,),
    }
    if classes:
        shapes |= {"head/kernel": (hidden, classes), "head/bias": (classes,)}
    for i in range(sizes["num_blocks"]):
        for norm in ("LayerNorm_0", "LayerNorm_1"):
            shapes[f"MixerBlock_{i}/{norm}/scale"] = (hidden,)
            shapes[f"MixerBlock_{i}/{norm}/bias"] = (hidden,)
        for mlp, outer, inner in (
            ("token_mixing", sizes["num_patches"], sizes["tokens_mlp_dim"]),
            ("channel_mixing", hidden, sizes["channels_mlp_dim"]),
        ):
            dense = f"MixerBlock_{i}/{mlp}/Dense_"
            shapes |= {f"{dense}0/kernel": (outer, inner), f"{dense}0/bias": (inner,)}
            shapes |= {f"{dense}1/kernel": (inner, outer), f"{dense}1/bias": (outer,)}
    return shapes


def draw(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal(s, dtype=np.float32) for n, s in shapes.items()}


def our_name(official):
    """The published name's counterpart, by replacement instead of by table."""
    name = official.replace("stem/", "stem/projection/").replace("Dense_", "dense_")
    name = name.replace("MixerBlock_", "block_").replace("LayerNorm_", "norm_")
    if "norm" in name:
        name = name.replace("scale", "gamma").replace("bias", "beta")
    return name


def timm_to_official(state_dict):
    """Official arrays, copied element by element: no transpose is taken on trust."""
    names = {
        "norm1.weight": "LayerNorm_0/scale",
        "norm1.bias": "LayerNorm_0/bias",
        "norm2.weight": "LayerNorm_1/scale",
        "norm2.bias": "LayerNorm_1/bias",
    }
    for theirs, ours in (("tokens", "token"), ("channels", "channel")):
        for i in (0, 1):
            for leaf, official in (("weight", "kernel"), ("bias", "bias")):
                names[f"mlp_{theirs}.fc{i + 1}.{leaf}"] = (
                    f"{ours}_mixing/Dense_{i}/{official}"
                )
    names = {
        f"blocks.{i}.{timm}": f"MixerBlock_{i}/{official}"
        for i in range(2)
        for timm, official in names.items()
    } | {
        "stem.proj.weight": "stem/kernel",
        "stem.proj.bias": "stem/bias",
        "norm.weight": "pre_head_layer_norm/scale",
        "norm.bias": "pre_head_layer_norm/bias",
        "head.weight": "head/kernel",
        "head.bias": "head/bias",
    }
    arrays = {}
    for name, array in state_dict.items():
        if array.ndim == 4:
            out, channels, height, width = array.shape
            value = np.empty((height, width, channels, out), np.float32)
            for o, c, h, w in np.ndindex(array.shape):
                value[h, w, c, o] = array[o, c, h, w]
        elif array.ndim == 2:
            value = np.empty(array.shape[::-1], np.float32)
            for o, i in np.ndindex(array.shape):
                value[i, o] = array[o, i]
        else:
            value = array
        arrays[names[name]] = value
    return arrays


def as_older(params):
    """The older layout, with extra axes of size 1 in various places."""
    older = {}
    for number, (name, array) in enumerate(params.items()):
        name = name.replace("MixerBlock_", "Mixer/encoderblock_")
        name = name.replace("pre_head_layer_norm", "Mixer/encoder_norm")
        name = name.replace("_mixing/", "_mixing_phase_0/")
        name = name.replace("stem/", "embedding/")
        if "_mixing_" in name:
            block, dense, leaf = name.rsplit("/", 2)
            name = f"{block}/{leaf}{int(dense[-1]) + 1}"
            array = np.expand_dims(array, (number % (array.ndim + 1), array.ndim + 1))
        older[name] = array
    return older


def savez(path, arrays):
    np.savez(path, **arrays)
    return path


def npz_of(path, members, compression=zipfile.ZIP_STORED):
    """An archive of exactly these (name, bytes), duplicates and nonsense included."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return path


def npy(array, **kwargs):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **kwargs)
    return buffer.getvalue()


def assert_same(weights, official):
    """Same names, shapes and bits."""
    expected = {our_name(name): array for name, array in official.items()}
    assert set(weights) == set(expected)
    for name, array in weights.items():
        assert array.dtype == np.float32 and array.flags.c_contiguous, name
        assert array.shape == expected[name].shape, name
        assert array.tobytes() == expected[name].tobytes(), name


@pytest.fixture
def params():
    return draw(official_shapes(SIZES))


@pytest.fixture
def timm():
    return golden("timm_tiny", "state_dict/")[0]


# Names and layouts


@pytest.mark.parametrize("name", GOLDEN)
def test_official_files_have_the_published_names(name, tmp_path):
    params, config = golden(name, "params/")
    weights, layout = weight_files.read_weights(savez(tmp_path / "a.npz", params))
    assert layout == "official"
    assert_same(weights, params)

    height, width, channels = config.pop("image_shape")
    patches = (height // config["patch_size"]) * (width // config["patch_size"])
    sizes = {**config, "num_patches": patches, "channels": channels}
    assert convert.describe(weights) == sizes
    shapes = {key: value.shape for key, value in params.items()}
    assert shapes == official_shapes(sizes)


@pytest.mark.parametrize("name", GOLDEN)
def test_writing_gives_back_the_same_names_and_bits(name, tmp_path):
    params, _ = golden(name, "params/")
    weights = {our_name(key): value for key, value in params.items()}
    official = convert.to_official(weights)
    assert list(official) == sorted(params)

    path = tmp_path / "b.npz"
    weight_files.write_official(path, weights)
    with np.load(path) as file:
        assert file.files == sorted(params)
        for key in file.files:
            assert file[key].dtype == np.float32
            assert file[key].tobytes() == params[key].tobytes()
    with zipfile.ZipFile(path) as archive:
        assert {m.compress_type for m in archive.infolist()} == {zipfile.ZIP_STORED}
    assert_same(weight_files.read_weights(path)[0], params)
    again = path.read_bytes()
    weight_files.write_official(path, weights)
    assert path.read_bytes() == again


def test_special_values_keep_their_bits(params, tmp_path):
    numbers = [-0.0, 1e-45, np.finfo(np.float32).max]
    params["stem/bias"] = np.array(numbers, np.float32)
    weights, _ = weight_files.read_weights(savez(tmp_path / "a.npz", params))
    assert_same(weights, params)


def test_numbers_in_blocks_beyond_nine(tmp_path):
    params = draw(official_shapes({**SIZES, "num_blocks": 12}))
    weights, _ = weight_files.read_weights(savez(tmp_path / "a.npz", params))
    assert convert.describe(weights)["num_blocks"] == 12
    assert_same(weights, params)


def test_headless_files(tmp_path):
    params = draw(official_shapes({**SIZES, "num_classes": 0}))
    weights, _ = weight_files.read_weights(savez(tmp_path / "a.npz", params))
    assert convert.describe(weights)["num_classes"] == 0
    weight_files.write_official(tmp_path / "b.npz", weights)
    assert_same(weight_files.read_weights(tmp_path / "b.npz")[0], params)


@pytest.mark.parametrize(
    "sizes",
    [SIZES, {**SIZES, "tokens_mlp_dim": 1}, {**SIZES, "num_patches": 1}],
    ids=["no_ones", "one_wide", "one_patch"],
)
def test_older_layout(sizes, tmp_path):
    params = draw(official_shapes(sizes))
    older = as_older(params)
    assert "Mixer/encoderblock_0/token_mixing_phase_0/kernel1" in older
    weights, layout = weight_files.read_weights(savez(tmp_path / "a.npz", older))
    assert layout == "official"
    assert_same(weights, params)


@pytest.mark.parametrize("older", [False, True], ids=["official", "older"])
@pytest.mark.parametrize("root", ["params/", "opt/target/"])
def test_roots_of_training_checkpoints(root, older, params, tmp_path):
    arrays = as_older(params) if older else params
    arrays = {root + name: array for name, array in arrays.items()}
    arrays["opt/state/step"] = np.array(7)
    arrays["opt/0/mu/stem/kernel"] = np.full((3, 3), np.nan)
    weights, _ = weight_files.read_weights(savez(tmp_path / "a.npz", arrays))
    assert_same(weights, params)


def test_timm_names_and_transposes(timm, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(timm, path, metadata={"format": "pt"})
    weights, layout = weight_files.read_weights(path)
    assert layout == "timm"
    assert_same(weights, timm_to_official(timm))

    del timm["head.weight"], timm["head.bias"]
    safetensors.numpy.save_file(timm, path)
    assert_same(weight_files.read_weights(path)[0], timm_to_official(timm))


# Number formats


@pytest.mark.parametrize("dtype", ["<f2", "<f8", ">f2", ">f4", ">f8"])
def test_other_floats_become_float32(dtype, params, tmp_path):
    stored = {name: array.astype(dtype) for name, array in params.items()}
    weights, _ = weight_files.read_weights(savez(tmp_path / "a.npz", stored))
    assert_same(weights, {n: array.astype("<f4") for n, array in stored.items()})


def bfloat16_bits(array):
    return (array.view(np.uint32) >> 16).astype("<u2")


def test_bfloat16_is_exact(params, timm, tmp_path):
    cut = {
        name: (array.view(np.uint32) & 0xFFFF0000).view(np.float32)
        for name, array in params.items()
    }
    stored = {name: bfloat16_bits(array).view("V2") for name, array in cut.items()}
    assert_same(weight_files.read_weights(savez(tmp_path / "a.npz", stored))[0], cut)

    cut = {
        name: (array.view(np.uint32) & 0xFFFF0000).view(np.float32)
        for name, array in timm.items()
    }
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        safetensors_bytes({n: ("BF16", bfloat16_bits(a)) for n, a in cut.items()})
    )
    assert_same(weight_files.read_weights(path)[0], timm_to_official(cut))


def safetensors_bytes(arrays):
    """A file of name -> (dtype, array), also where NumPy has no such dtype."""
    header, data = {}, b""
    for name, (dtype, array) in arrays.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": offsets}
        data += array.tobytes()
    header = json.dumps(header).encode()
    return len(header).to_bytes(8, "little") + header + data


def test_safetensors_in_any_order_of_names(timm, tmp_path):
    path = tmp_path / "a.safetensors"
    arrays = {name: ("F32", timm[name]) for name in sorted(timm, reverse=True)}
    path.write_bytes(safetensors_bytes(arrays))
    assert_same(weight_files.read_weights(path)[0], timm_to_official(timm))


def test_compressed_and_fortran_ordered_files(params, tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **params)
    assert_same(weight_files.read_weights(tmp_path / "a.npz")[0], params)
    fortran = {name: np.asfortranarray(array) for name, array in params.items()}
    savez(tmp_path / "b.npz", fortran)
    assert_same(weight_files.read_weights(tmp_path / "b.npz")[0], params)


def test_arrays_larger_than_one_chunk(params, tmp_path, monkeypatch):
    for module in (convert, weight_files):
        monkeypatch.setattr(module, "_CHUNK", 5)
    assert_same(weight_files.read_weights(savez(tmp_path / "a.npz", params))[0], params)
    params["stem/kernel"][1, 1, 1] = np.nan
    with pytest.raises(ValueError, match="3 of its 36 numbers are not finite"):
        weight_files.read_weights(savez(tmp_path / "a.npz", params))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3, np.int32),
        np.zeros(3, bool),
        np.zeros(3, np.complex64),
        np.array(["a", "b", "c"]),
        np.zeros(3, "V4"),
        np.zeros(3, [("a", "<f4")]),
        np.zeros(3, "V1"),
        np.zeros(3, "M8[s]"),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_that_are_not_floats_are_refused(array, params, tmp_path):
    path = savez(tmp_path / "a.npz", {**params, "stem/bias": array})
    with pytest.raises(ValueError, match=r"a\.npz.*array 'stem/bias'.* float"):
        weight_files.read_weights(path)


def test_integers_in_safetensors_are_refused(timm, tmp_path):
    path = tmp_path / "a.safetensors"
    timm["norm.bias"] = timm["norm.bias"].astype(np.int32)
    safetensors.numpy.save_file(timm, path)
    with pytest.raises(ValueError, match=r"a\.safe.*array 'norm.bias'.*floats.*'I32'"):
        weight_files.read_weights(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_values_that_are_not_finite_are_refused(value, params, tmp_path):
    params["head/bias"] = np.array([0.0, value])
    with pytest.raises(ValueError, match=r"'head/bias': 1 of its 2 numbers are not"):
        weight_files.read_weights(savez(tmp_path / "a.npz", params))


# Files that are not what they should be


def test_missing_files_and_other_endings(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        weight_files.read_weights(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"`\.npz`.*`\.safetensors`.*a\.bin"):
        weight_files.read_weights(tmp_path / "a.bin")


def set_array(name, array):
    def damage(arrays):
        arrays[name] = array

    return damage


def rename(old, new):
    def damage(arrays):
        for name in list(arrays):
            arrays[name.replace(old, new)] = arrays.pop(name)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rename("head/bias", "head/b"), r"(?s)- .*: head/bias.*\+ .*: head/b"),
        (set_array("cls", np.zeros(3)), r"\+ only in the file: cls"),
        (set_array("blocks.0.norm1.bias", np.zeros(3)), r"\+ .*blocks\.0"),
        (set_array("Mixer/encoder_norm/bias", np.zeros(3)), r"\+ .*: Mixer/enc"),
        (set_array("params/stem/bias", np.zeros(3)), "not under 'params/'"),
        (rename("MixerBlock_0", "MixerBlock_7"), "block 0 is missing, block 7"),
        (rename("MixerBlock_1", "MixerBlock_01"), r"\+ only .*MixerBlock_01"),
        (rename("MixerBlock_", "Transformer_"), "not a Mixer. Received: 30 arrays"),
        (rename("MixerBlock_1/LayerNorm_0/bias", "x"), r"- .*1/LayerNorm_0/bias"),
        (set_array("stem/kernel", np.zeros((2, 2, 3))), "must have 4 axes"),
        (set_array("stem/kernel", np.zeros((2, 1, 3, 3))), r"! stem/proj.*\(2, 1, 3"),
        (set_array("stem/bias", np.zeros(())), r"! stem/projection/bias: \(\) in"),
        (set_array("stem/bias", np.zeros((0,))), r"stem/bias': it is empty.*\(0,\)"),
        (
            set_array("MixerBlock_1/token_mixing/Dense_1/kernel", np.zeros((4, 5))),
            r"! block_1/token_mixing/dense_1/kernel: \(4, 5\) in the file, \(5, 4\) in",
        ),
    ],
)
def test_files_that_do_not_hold_one_mixer(damage, message, params, tmp_path):
    damage(params)
    path = savez(tmp_path / "a.npz", params)
    with pytest.raises(ValueError, match=message) as error:
        weight_files.read_weights(path)
    assert str(path) in str(error.value)


def test_gated_mixers_of_timm_are_named_in_the_message(timm, tmp_path):
    for i in range(2):
        timm[f"blocks.{i}.mlp_tokens.fc2.weight"] = np.zeros((16, 6), np.float32)
    path = tmp_path / "gmixer.safetensors"
    safetensors.numpy.save_file(timm, path)
    with pytest.raises(ValueError, match="gmixer"):
        weight_files.read_weights(path)


class Executed:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was executed')",))


def refused(path, match):
    with pytest.raises(ValueError, match=match) as error:
        weight_files.read_weights(path)
    assert type(error.value) is ValueError
    assert str(path) in str(error.value)


def test_pickles_are_not_executed(params, tmp_path):
    pickled = np.array([Executed()] * 3, dtype=object)
    path = savez(tmp_path / "a.npz", {**params, "stem/bias": pickled})
    refused(path, r"array 'stem/bias'.*not of floats.*'\|O'")


def test_damaged_archives(params, tmp_path):
    path = savez(tmp_path / "a.npz", params)
    whole = path.read_bytes()
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path, "damaged")
    position = whole.index(params["head/kernel"].tobytes())
    path.write_bytes(whole[:position] + b"\xff" + whole[position + 1 :])
    refused(path, "array 'head/kernel': Bad CRC-32.*damaged: get it again")
    path.write_bytes(whole[position:])
    refused(path, r"Bad magic number|damaged")


def test_damaged_compression(params, tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **params)
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("stem/kernel.npy")
    start = member.header_offset + 30 + len(member.filename) + 20
    whole[start : start + 40] = b"\x07" * 40
    path.write_bytes(whole)
    refused(path, "array 'stem/kernel'")


def test_unusual_members(params, tmp_path):
    path = tmp_path / "a.npz"
    members = [(f"{name}.npy", npy(array)) for name, array in params.items()]
    assert_same(weight_files.read_weights(npz_of(path, members))[0], params)

    with pytest.warns(UserWarning, match="Duplicate name"):
        npz_of(path, [*members, members[0]])
    refused(path, "two arrays 'stem/kernel'")
    refused(npz_of(path, [*members, ("stem/bias", b"")]), "two arrays 'stem/bias'")
    refused(npz_of(path, [*members, ("README", b"")]), "README")
    refused(npz_of(path, []), "no array is called")
    refused(npz_of(path, members, zipfile.ZIP_LZMA), "neither stored nor deflated")

    bias = npy(params["stem/bias"])
    for data, message in (
        (b"", r"version 1.0. Received: b''"),
        (npy(params["stem/bias"], version=(2, 0)), "version 1.0. Received"),
        (bias[:-1], r"shape \(3,\) does not fit its 11 bytes"),
        (bias + b"\0", r"shape \(3,\) does not fit its 13 bytes"),
        (bias[:40], "header"),
        (bias.replace(b"(3,)", b"(-3)"), "header"),
        (bias.replace(b"(3,)", b"(9" + b"9" * 4400 + b",)"), "header"),
        (bias.replace(b"(3,), }" + b" " * 30, b"(9" + b"9" * 30 + b",), }"), "fit its"),
        (bias.replace(b"'<f4'", b"1/0  "), "header"),
        (bias.replace(b"'<f4'", b"'\xff4'"), "array 'stem/bias'"),
    ):
        changed = [(n, data if n == "stem/bias.npy" else d) for n, d in members]
        refused(npz_of(path, changed), message)


def test_archives_that_claim_to_be_huge(params, tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", **params)
    monkeypatch.setattr(weight_files, "_MAX_BYTES", 1000)
    refused(tmp_path / "a.npz", "bytes, more than the 1000 allowed")


def test_huge_shapes_are_refused_before_memory_is_taken(params, tmp_path):
    params["stem/bias"] = np.zeros(0, np.float32)
    members = [(f"{name}.npy", npy(array)) for name, array in params.items()]
    huge = npy(params["stem/bias"]).replace(
        b"(0,), }" + b" " * 18, b"(%d,), }" % 10**18
    )
    assert len(huge) == 128
    members = [(n, huge if n == "stem/bias.npy" else d) for n, d in members]
    refused(npz_of(tmp_path / "a.npz", members), "does not fit its 0 bytes")


def test_damaged_safetensors(timm, tmp_path):
    path = tmp_path / "a.safetensors"
    whole = safetensors.numpy.save(timm)
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path, "damaged")
    path.write_bytes(whole + b"\0")
    refused(path, "damaged")
    path.write_bytes(b"\xff" * 8 + whole[8:])
    refused(path, "damaged")
    safetensors.numpy.save_file({**timm, "blocks.0.extra": np.zeros(3)}, path)
    refused(path, r"\+ only in the file: blocks\.0\.extra")
    path.write_bytes(safetensors_bytes({n: ("U8", a) for n, a in timm.items()}))
    refused(path, "damaged")


def test_reading_leaves_the_file_closed_and_its_cause_known(params, tmp_path):
    path = savez(tmp_path / "a.npz", params)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="damaged") as error:
        weight_files.read_weights(path)
    assert isinstance(error.value.__cause__, zipfile.BadZipFile)


# Writing


def test_writing_is_all_or_nothing(params, tmp_path, monkeypatch):
    weights = {our_name(name): array for name, array in params.items()}
    path = tmp_path / "a.npz"
    weight_files.write_official(path, weights)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        weight_files.write_official(path, {**weights, "head/bias": np.ones(2)})
    assert os.listdir(tmp_path) == ["a.npz"]
    assert path.read_bytes() == before


def test_only_what_can_be_read_back_is_written(params, tmp_path):
    weights = {our_name(name): array for name, array in params.items()}
    path = tmp_path / "a.npz"
    for changes, message in (
        ({"head/bias": np.array([0, np.nan])}, "'head/bias': 1 of its 2 numbers"),
        ({"head/bias": np.zeros((2, 1))}, r"! head/bias: \(2, 1\)"),
        ({"extra": np.zeros(3)}, r"\+ only in the file: extra"),
    ):
        with pytest.raises(ValueError, match=message):
            weight_files.write_official(path, {**weights, **changes})
    with pytest.raises(ValueError, match=r"ends in `\.npz`.*model\.bin"):
        weight_files.write_official(tmp_path / "model.bin", weights)
    del weights["stem/projection/kernel"]
    with pytest.raises(ValueError, match="'stem/projection/kernel' is missing"):
        weight_files.write_official(path, weights)
    assert os.listdir(tmp_path) == []


def test_writing_makes_plain_arrays(params, tmp_path):
    weights = {our_name(name): array for name, array in params.items()}
    weights["head/kernel"] = np.asfortranarray(weights["head/kernel"]).astype("<f8")
    weight_files.write_official(tmp_path / "a.npz", weights)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        for name in archive.namelist():
            assert b"'<f4', 'fortran_order': False" in archive.read(name)
    assert_same(weight_files.read_weights(tmp_path / "a.npz")[0], params)


# Weights against a model


def shapes_of(sizes):
    return {our_name(name): shape for name, shape in official_shapes(sizes).items()}


def check(file, model):
    convert.check_shapes(shapes_of(file), shapes_of(model), source="w.npz")


def test_weights_that_fit_pass():
    check(SIZES, SIZES)
    check({**SIZES, "num_classes": 0}, {**SIZES, "num_classes": 0})


def test_another_model_is_recognised():
    with pytest.raises(ValueError) as error:
        check({**SIZES, "hidden_dim": 6, "num_blocks": 9}, SIZES)
    sentence, *lines = str(error.value).splitlines()
    assert "'w.npz'" in sentence
    assert "patch_size=2, hidden_dim=6, num_blocks=9, tokens_mlp_dim=5" in sentence
    assert "This one has hidden_dim=3, num_blocks=2." in sentence
    assert len(lines) == 21
    assert lines[0].startswith("+ only in the file: block_2/")
    assert lines[-1].startswith("... and ")


def test_another_image_size_is_recognised():
    with pytest.raises(ValueError) as error:
        check({**SIZES, "num_patches": 16}, SIZES)
    sentence, *lines = str(error.value).splitlines()
    assert "images of 16 patches (8 x 8 with patch 2); the model has 4 p" in sentence
    assert "`keras_mixer.resize`" in sentence
    name = "block_0/token_mixing/dense_0/kernel"
    assert lines[0] == f"! {name}: (16, 5) in the file, (4, 5) in the model"
    with pytest.raises(ValueError, match="of 15 patches; the model has 4 patches"):
        check({**SIZES, "num_patches": 15}, SIZES)


@pytest.mark.parametrize(
    ("file", "model", "advice"),
    [(9, 2, "num_classes=9 or None"), (9, 0, "=9 or None"), (0, 2, "num_classes=0 to")],
)
def test_another_head_is_recognised(file, model, advice):
    with pytest.raises(ValueError, match=advice) as error:
        check({**SIZES, "num_classes": file}, {**SIZES, "num_classes": model})
    assert len(str(error.value).splitlines()) == 3


def test_both_sides_are_listed():
    weights = draw(shapes_of(SIZES))
    weights["Stem"] = weights.pop("stem/projection/bias")
    weights["head/bias"] = weights["head/bias"][:, None]
    with pytest.raises(ValueError) as error:
        convert.check_shapes(
            convert.shapes_of(weights), shapes_of(SIZES), source="w.npz"
        )
    assert str(error.value).splitlines() == [
        "The weights in 'w.npz' do not fit the model.",
        "- only in the model: stem/projection/bias",
        "+ only in the file: Stem",
        "! head/bias: (2, 1) in the file, (2,) in the model",
    ]
    with pytest.raises(ValueError, match="do not fit the model.\n- only"):
        convert.check_shapes({}, shapes_of(SIZES), source="w.npz")


def test_describe_names_what_is_missing():
    with pytest.raises(ValueError, match="'stem/projection/kernel' is missing"):
        convert.describe({})


# Any damage at all: the right arrays or a `ValueError`

TINIEST = {**SIZES, "num_blocks": 1, "channels": 1, "patch_size": 1}


@st.composite
def edits(draw):
    """A function that damages bytes: one to three overwrites, cuts and splices."""
    kind = st.sampled_from(["flip", "overwrite", "cut", "insert", "copy", "truncate"])
    place = st.floats(0, 1, exclude_max=True)
    steps = draw(
        st.lists(
            st.tuples(kind, place, place, st.binary(min_size=1, max_size=12)),
            min_size=1,
            max_size=3,
        )
    )

    def damage(data):
        for kind, place, other, new in steps:
            i, j = int(place * len(data)), int(other * len(data))
            if kind == "flip" and data:
                data = data[:i] + bytes([data[i] ^ (1 << new[0] % 8)]) + data[i + 1 :]
            elif kind == "overwrite":
                data = data[:i] + new + data[i + len(new) :]
            elif kind == "cut":
                data = data[:i] + data[i + 1 + j % 64 :]
            elif kind == "insert":
                data = data[:i] + new + data[i:]
            elif kind == "copy":
                piece = data[j : j + 1 + new[0]]
                data = data[:i] + piece + data[i + len(piece) :]
            elif kind == "truncate":
                data = data[:i]
        return data

    return damage


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def read_or_refuse(path, data):
    path.write_bytes(data)
    try:
        return weight_files.read_weights(path)[0]
    except ValueError as error:
        assert type(error) is ValueError and str(path) in str(error)
        return None


@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "deflated"])
def test_fuzz_npz(compressed, folder):
    params = draw(official_shapes(TINIEST))
    path = folder / "a.npz"
    (np.savez_compressed if compressed else np.savez)(path, **params)
    whole = path.read_bytes()

    @FUZZ
    @given(edits())
    def run(damage):
        weights = read_or_refuse(path, damage(whole))
        if weights is not None:
            assert_same(weights, params)

    run()


def test_fuzz_arrays_with_a_valid_checksum(folder):
    params = draw(official_shapes(TINIEST))
    path = folder / "b.npz"

    @FUZZ
    @given(st.sampled_from(sorted(params)), edits())
    def run(name, damage):
        members = [
            (f"{n}.npy", damage(npy(a)) if n == name else npy(a))
            for n, a in params.items()
        ]
        weights = read_or_refuse(path, npz_of(path, members).read_bytes())
        if weights is not None:  # numbers changed inside the one array, and no more
            changed = weights[our_name(name)]
            assert changed.shape == params[name].shape
            assert np.isfinite(changed).all()
            assert_same(weights, {**params, name: changed})

    run()


def test_fuzz_safetensors(folder):
    official = draw(official_shapes({**TINIEST, "num_blocks": 2}))
    timm, _ = golden("timm_tiny", "state_dict/")
    names = {n: next(iter(timm_to_official({n: timm[n]}))) for n in timm}
    timm = {
        n: np.ascontiguousarray(
            official[o].transpose(3, 2, 0, 1) if "stem.proj.w" in n else official[o].T
        )
        for n, o in names.items()
    }
    whole = safetensors.numpy.save(timm)
    path = folder / "a.safetensors"

    @FUZZ
    @given(edits())
    def run(damage):
        data = damage(whole)
        weights = read_or_refuse(path, data)
        if weights is not None:  # the format has no checksum: the file is the truth
            assert_same(weights, timm_to_official(safetensors.numpy.load(data)))

    run()


@FUZZ
@given(
    st.builds(
        dict,
        patch_size=st.integers(1, 3),
        hidden_dim=st.integers(1, 5),
        num_blocks=st.integers(1, 3),
        tokens_mlp_dim=st.integers(1, 5),
        channels_mlp_dim=st.integers(1, 5),
        num_patches=st.integers(1, 9),
        channels=st.integers(1, 4),
        num_classes=st.integers(0, 4),
    ),
    st.booleans(),
)
def test_any_mixer_makes_the_round_trip(tmp_path_factory, sizes, older):
    path = tmp_path_factory.mktemp("any") / "a.npz"
    params = draw(official_shapes(sizes), seed=math.prod(sizes.values()))
    savez(path, as_older(params) if older else params)
    weights, _ = weight_files.read_weights(path)
    assert convert.describe(weights) == sizes
    weight_files.write_official(path, weights)
    assert_same(weight_files.read_weights(path)[0], params)
