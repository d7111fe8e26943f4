"""Files that would take for ever, all memory, or be taken for something else."""

import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import safetensors.numpy
from conftest import TINY
from drawn import drawn_model

from keras_mixer.checkpoints import hdf5_contents, hdf5_files
from keras_mixer.checkpoints.weight_files import read_shapes, read_weights
from keras_mixer.files import sha256_of
from keras_mixer.hub.model_files import read_model, write_model
from keras_mixer.hub.repository import write_checksums, write_repository
from keras_mixer.models.mixer import load_weights, mlp_mixer

pytestmark = pytest.mark.backend_free

ENDLESS = Path(__file__).parents[1] / "data" / "endless_attribute.weights.h5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model as a folder, as each kind of file, and with the endless weights."""
    folder = tmp_path_factory.mktemp("hostile")
    model = drawn_model()
    write_repository(model, folder / "whole")
    write_repository(model, folder / "endless")
    (folder / "endless" / "model.weights.h5").write_bytes(ENDLESS.read_bytes())
    write_checksums(folder / "endless")
    for ending in (".npz", ".weights.h5", ".keras"):
        write_model(model, folder / f"tiny{ending}")
    with (
        zipfile.ZipFile(folder / "tiny.keras") as source,
        zipfile.ZipFile(folder / "endless.keras", "w") as target,
    ):
        for name in ("config.json", "metadata.json"):
            target.writestr(name, source.read(name))
        target.write(ENDLESS, "model.weights.h5")
    return folder


WAYS = {
    "weights": lambda folder: mlp_mixer(**TINY, weights=ENDLESS),
    "load_weights": lambda folder: load_weights(mlp_mixer(**TINY), ENDLESS),
    "read_model of weights": lambda folder: read_model(ENDLESS),
    "read_model of a folder": lambda folder: read_model(folder / "endless"),
    "read_model of .keras": lambda folder: read_model(folder / "endless.keras"),
}


@pytest.mark.parametrize("read", WAYS.values(), ids=WAYS)
def test_an_endless_file_is_refused_within_seconds(folder, read):
    hdf5_files._known.clear()
    start = time.perf_counter()
    with pytest.raises(ValueError, match="HDF5 does not finish"):
        read(folder)
    assert time.perf_counter() - start < 60  # 2 s, where nothing else computes


# --- HDF5 ---


def contents(path, edit):
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/dense/vars")
        group.attrs["name"] = "head"
        group["0"] = np.arange(6, dtype="f4").reshape(2, 3)
        edit(file, group)
    return hdf5_files.look_at(path)


def test_what_a_file_holds_is_found_without_reading_it(tmp_path):
    path = tmp_path / "a.h5"
    found = contents(path, lambda file, group: None)
    assert found.names == {"layers/dense/vars": "head"}
    ((name, array),) = found.arrays.items()
    assert name == "layers/dense/vars/0"
    assert array.dtype == "<f4" and array.shape == (2, 3)
    data = path.read_bytes()[array.offset : array.offset + 24]
    np.testing.assert_array_equal(np.frombuffer(data, "<f4"), np.arange(6))


def nested(file, group):
    for _ in range(100):
        group = group.create_group("a")


def external(file, group):
    file.create_dataset("x", (4,), "f4", external=[("/dev/zero", 0, 16)])


STRANGE = {
    "compressed": (
        lambda file, group: group.create_dataset(
            "1", (10_000_000,), "f4", compression="gzip", fillvalue=1
        ),
        "not stored in one piece",
    ),
    "text": (lambda file, group: file.create_dataset("x", data="text"), "not of numb"),
    "link": (
        lambda file, group: file.update({"x": h5py.SoftLink("/layers")}),
        "a link to another place",
    ),
    "other file": (
        lambda file, group: file.update({"x": h5py.ExternalLink("/etc/x", "/")}),
        "a link to another place",
    ),
    "other bytes": (external, "not stored in one piece"),
    "nested": (nested, "nested deeper than 64"),
    "nothing": (
        lambda file, group: file.create_dataset("x", data=h5py.Empty("f4")),
        "has no shape",
    ),
    "never written": (
        lambda file, group: file.create_dataset("x", (10**9,), "f4"),
        "does not fit the bytes",
    ),
}


@pytest.mark.parametrize("edit, match", STRANGE.values(), ids=STRANGE)
def test_what_keras_does_not_write_is_refused(edit, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        contents(tmp_path / "a.h5", edit)


def test_a_file_is_looked_at_again_when_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    asked = []
    ask = hdf5_files._ask_child
    monkeypatch.setattr(
        hdf5_files, "_ask_child", lambda path: asked.append(path) or ask(path)
    )
    contents(path, lambda file, group: None)
    hdf5_files.look_at(path)
    assert len(asked) == 1
    contents(path, lambda file, group: file.create_group("more"))
    assert len(asked) == 2


def test_a_file_that_is_trusted_needs_no_child(folder, monkeypatch):
    monkeypatch.setattr(hdf5_files, "_ask_child", None)
    hdf5_files._known.clear()
    hdf5_files.trust(folder / "tiny.weights.h5")
    shapes, layout = read_shapes(folder / "tiny.weights.h5")
    assert layout == "keras" and shapes["head/kernel"] == (16, 5)


def test_a_child_that_cannot_start_is_no_damage(folder, monkeypatch):
    hdf5_files._known.clear()
    monkeypatch.setattr(hdf5_contents, "__file__", "/nowhere/file.py")
    with pytest.raises(OSError, match="The process that checks HDF5 files.* failed"):
        hdf5_files.look_at(folder / "tiny.weights.h5")


def test_claims_of_memory_are_bounded(folder, tmp_path):
    """What one of the loops that were found does: it grows until memory is gone."""
    script = (
        "import sys; sys.argv[1:] = [{path!r}]; exec(open({file!r}).read().replace("
        "'read_contents(path)}}', 'bytearray(10**9)}}'))"
    ).format(path=str(folder / "tiny.weights.h5"), file=hdf5_contents.__file__)
    child = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert b"claim more memory" in child.stdout, child.stderr


# --- the other formats ---


def test_shapes_are_those_of_the_arrays(folder):
    for ending in (".npz", ".weights.h5"):
        shapes, layout = read_shapes(folder / f"tiny{ending}")
        arrays, same = read_weights(folder / f"tiny{ending}")
        assert layout == same
        assert shapes == {name: array.shape for name, array in arrays.items()}
    some, _ = read_weights(folder / "tiny.npz", names={"head/bias"})
    assert list(some) == ["head/bias"]


def test_an_npz_that_does_not_fit_takes_no_memory(tmp_path):
    """A million times smaller than what it claims, and of another model."""
    sizes = {**TINY, "hidden_dim": 4096, "channels_mlp_dim": 16384, "num_blocks": 6}
    path = tmp_path / "zeros.npz"
    script = f"""
import resource, sys
import numpy as np
from keras_mixer.checkpoints import read_shapes
from keras_mixer.checkpoints.convert import to_official
from keras_mixer.variants import weight_shapes
sizes = {sizes!r}
height, width, channels = sizes.pop("input_shape")
shapes = weight_shapes(**sizes, num_patches=12, channels=channels)
weights = {{n: np.broadcast_to(np.float32(0), s) for n, s in shapes.items()}}
import zipfile, io
from keras_mixer.checkpoints.convert import OFFICIAL, names_of
names = names_of(OFFICIAL, 6, head=True)
with zipfile.ZipFile({str(path)!r}, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
    for ours, theirs in names.items():
        with z.open(theirs + ".npy", "w", force_zip64=True) as f:
            np.lib.format.write_array_header_1_0(f, {{"descr": "<f4",
                "fortran_order": False, "shape": shapes[ours]}})
            left = 4 * int(np.prod(shapes[ours]))
            while left:
                f.write(bytes(min(left, 2**20)))
                left -= min(left, 2**20)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert path.stat().st_size < 20e6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="The file is of another model"):
        mlp_mixer(**TINY, weights=path)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 256 * 1024  # KiB; the arrays claim 3 GB


def test_a_directory_of_a_million_entries_is_refused(folder, tmp_path):
    data = bytearray((folder / "tiny.npz").read_bytes())
    at = data.rindex(b"PK\x05\x06")
    struct.pack_into("<L", data, at + 12, 2**30)
    path = tmp_path / "a.npz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="list of entries takes 1073741824 bytes"):
        read_weights(path)


@pytest.mark.parametrize(
    "name, shape, match",
    [
        ("x" * 60_000, "3", "only in the file: x"),
        ("MixerBlock_" + "9" * 4000, "3", "only in the file: MixerBlock_9"),
        ("a\x1b[2J\n", "3", r"only in the file: a\\x1b\[2J\\n"),
        ("head/bias", "9" * 4000, "array 'head/bias': its header is not that"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_few_words(
    name, shape, match, folder, tmp_path
):
    path = tmp_path / "a.npz"
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape},), }}\n"
    with (
        zipfile.ZipFile(folder / "tiny.npz") as source,
        zipfile.ZipFile(path, "w") as target,
    ):
        for entry in source.namelist():
            data = source.read(entry)
            if entry == "head/bias.npy":
                entry = f"{name}.npy"
                data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header))
                data += header.encode() + bytes(12)
            target.writestr(entry, data)
    with pytest.raises(ValueError, match=match) as caught:
        read_weights(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000


def test_a_huge_header_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 10**8) + b"{" + b" " * 100)
    with pytest.raises(ValueError, match="header claims 100000000 bytes.*damaged"):
        read_weights(path)


@pytest.mark.parametrize("ending", [".npz", ".weights.h5", ".safetensors", ".keras"])
def test_what_is_no_regular_file_is_refused(ending, tmp_path):
    pipe, loop, device, broken, directory = (
        tmp_path / f"{name}{ending}"
        for name in ("pipe", "loop", "device", "broken", "directory")
    )
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    device.symlink_to("/dev/zero")
    broken.symlink_to("/nowhere")
    directory.mkdir()
    for path, match, kind in (
        (pipe, "must be a regular file", OSError),
        (device, "must be a regular file", OSError),
        (loop, "symbolic link", OSError),
        (broken, "There is no file.*it is a link to '/nowhere'", FileNotFoundError),
        (directory, "It is a folder", IsADirectoryError),
    ):
        with pytest.raises(kind, match=match) as caught:
            read_model(path)
        assert path.name in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "checksums.json", "model.weights.h5"])
def test_a_pipe_in_a_folder_is_refused(folder, name, tmp_path):
    for path in (folder / "whole").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(OSError, match=f"{name}' must be a regular file"):
        read_model(tmp_path)


def as_timm(weights):
    """Our arrays under the names and in the orientation of timm."""
    from keras_mixer.checkpoints.convert import TIMM, names_of

    return {
        theirs: np.ascontiguousarray(
            weights[ours].transpose(3, 2, 0, 1)
            if weights[ours].ndim == 4
            else weights[ours].T
        )
        for ours, theirs in names_of(TIMM, TINY["num_blocks"], head=True).items()
    }


@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod.", "a._orig_mod."])
def test_a_common_prefix_is_taken_off(folder, prefix, tmp_path):
    weights, _ = read_weights(folder / "tiny.npz")
    timm = {f"{prefix}{name}": array for name, array in as_timm(weights).items()}
    safetensors.numpy.save_file(timm, tmp_path / "a.safetensors")
    with np.load(folder / "tiny.npz") as file:
        slashes = prefix.replace(".", "/")
        np.savez(tmp_path / "a.npz", **{f"{slashes}{n}": file[n] for n in file.files})
        np.savez(
            tmp_path / "b.npz", **{f"params/{slashes}{n}": file[n] for n in file.files}
        )
    for name in ("a.safetensors", "a.npz", "b.npz"):
        found, _ = read_weights(tmp_path / name)
        assert found.keys() == weights.keys()
        for key, array in found.items():
            np.testing.assert_array_equal(array, weights[key])


def test_a_prefix_of_some_names_is_not_taken_off(folder, tmp_path):
    timm = as_timm(read_weights(folder / "tiny.npz")[0])
    timm = {n if n.startswith("head") else f"model.{n}": a for n, a in timm.items()}
    safetensors.numpy.save_file(timm, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="not a Mixer. Received: 30 arrays"):
        read_weights(tmp_path / "a.safetensors")


@pytest.mark.parametrize("ending", [".safetensors", ".weights.h5", ".npz"])
def test_a_pickle_of_torch_says_so(ending, tmp_path):
    path = tmp_path / f"a{ending}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
        archive.writestr("archive/data/0", bytes(64))
    with pytest.raises(ValueError, match="pickle of `torch.save`.*save_file"):
        read_weights(path)
    if ending != ".npz":
        path.write_bytes(pickle.dumps({"a": 1}, protocol=2))
        with pytest.raises(ValueError, match="pickle of `torch.save`"):
            read_weights(path)


@pytest.mark.parametrize(
    "data, match",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "pointer of Git LFS"),
        (b"<!doctype html><html>", "a web page"),
        (b"\n<html>", "a web page"),
    ],
)
@pytest.mark.parametrize("ending", [".npz", ".weights.h5"])
def test_what_is_no_weights_at_all_says_so(ending, data, match, tmp_path):
    path = tmp_path / f"a{ending}"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=match):
        read_weights(path)


def test_a_healthy_file_of_another_model_is_not_called_damaged(tmp_path):
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    other.save_weights(tmp_path / "a.weights.h5")
    with h5py.File(tmp_path / "b.weights.h5", "w") as file:  # of an older Keras
        file["dense/dense/kernel:0"] = np.zeros((4, 3))
        file["layers/dense/vars/0"] = np.zeros((4, 3))
    np.savez(tmp_path / "a.npz", x=np.zeros(3), y=np.zeros(3, int))
    vit = {"blocks.0.attn.qkv.weight": np.zeros((4, 4), np.float32)}
    safetensors.numpy.save_file(vit, tmp_path / "a.safetensors")
    for name in ("a.weights.h5", "b.weights.h5", "a.npz"):
        with pytest.raises(ValueError, match="of another model, not a Mixer") as caught:
            read_weights(tmp_path / name)
        assert "damaged" not in str(caught.value)
    with pytest.raises(ValueError, match="not those of one Mixer") as caught:
        read_weights(tmp_path / "a.safetensors")
    assert "damaged" not in str(caught.value)
    other.save(tmp_path / "a.keras")
    with pytest.raises(
        ValueError, match="must hold a Mixer of this package.*Sequential"
    ):
        read_model(tmp_path / "a.keras")


@pytest.mark.parametrize("ending", [".npz", ".weights.h5"])
def test_too_little_memory_is_no_damage(folder, ending, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(np, "empty", fail)
    with pytest.raises(MemoryError, match="there is not enough memory"):
        read_weights(folder / f"tiny{ending}")


# --- whole models ---


def changed_keras(folder, target, edit):
    """A copy of the `.keras` file with other entries."""
    with zipfile.ZipFile(folder / "tiny.keras") as source:
        entries = {name: source.read(name) for name in source.namelist()}
    edit(entries)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return target


def bigger(old, new):
    def edit(entries):
        entries["config.json"] = entries["config.json"].replace(old, new)

    return edit


@pytest.mark.parametrize(
    "edit, match",
    [
        (lambda e: e.pop("config.json"), "0 entries 'config.json'"),
        (lambda e: e.update({"config.json": b" " * 5 * 2**20}), "claims 5242880 bytes"),
        (
            lambda e: e.update({"model.weights.h5": bytes(200 * 2**20)}),
            "claims 209715200 bytes and takes",
        ),
        (lambda e: e.update({"config.json": b"[" * 100_000}), "cannot be read"),
        (bigger(b'"channels_mlp_dim": 20', b'"channels_mlp_dim": 9999999'), "makes"),
        (bigger(b'"channels_mlp_dim": 20', b'"channels_mlp_dim": 999999999'), "far to"),
        (bigger(b'"units": 5', b'"units": 9999999'), "makes a model of more than"),
        (bigger(b'"units": 5', b'"units": -5'), "cannot be read"),
        (bigger(b'"hidden_dim": 16', b'"hidden_dim": 1e99'), "cannot be read"),
        (bigger(b'"offset": -1.0', b'"offset": "x"'), "a.keras' must hold a Mixer"),
        (
            lambda e: e.update({"config.json": e["config.json"] + b"[" + b"0," * 9**6}),
            "cannot be read",
        ),
    ],
)
def test_a_keras_file_is_bounded_before_keras_opens_it(edit, match, folder, tmp_path):
    path = changed_keras(folder, tmp_path / "a.keras", edit)
    with pytest.raises(ValueError, match=match):
        read_model(path)


def wide():
    return [keras.layers.Dense(6000, use_bias=False) for _ in range(3)]


def many():
    return [keras.layers.Dropout(0.1)] * 9000


def filters():
    layers = keras.layers
    return [layers.Reshape((4, 4, 1)), layers.Conv2D(20000, 4), layers.Conv2D(2000, 1)]


@pytest.mark.parametrize(
    "head, match",
    [
        (wide, "a model of more than 16"),
        (filters, "a model of more than 16"),
        (many, "its config has more than 4"),
    ],
)
def test_layers_around_a_mixer_are_bounded(head, match, folder, tmp_path):
    """A healthy Mixer, and beside it layers that no weights come with."""
    body = drawn_model(num_classes=0)
    config = keras.saving.serialize_keras_object(
        keras.Sequential([keras.Input(TINY["input_shape"]), body])
    )
    config["config"]["layers"] += map(keras.saving.serialize_keras_object, head())
    config.pop("build_config", None)
    data = json.dumps(config).encode()
    path = changed_keras(
        folder, tmp_path / "a.keras", lambda e: e.update({"config.json": data})
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=match) as caught:
        read_model(path)
    assert "a.keras" in str(caught.value) and len(str(caught.value)) < 800
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 256 * 1024  # KiB
    assert keras.Layer.add_weight.__name__ == "add_weight"


def test_an_image_that_is_inflated_on_the_way_is_not_run(tmp_path):
    body = drawn_model()
    model = keras.Sequential(
        [
            keras.Input(TINY["input_shape"]),
            keras.layers.UpSampling2D(400),
            keras.layers.AveragePooling2D(400),
            body,
        ]
    )
    model.save(tmp_path / "a.keras")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert type(read_model(tmp_path / "a.keras")) is keras.Sequential
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 256 * 1024  # KiB; one image would take 1.5 GB


@pytest.mark.parametrize("part", ["a weight", "a layer"])
def test_weights_that_are_missing_in_a_keras_file_are_an_error(part, folder, tmp_path):
    weights = tmp_path / "model.weights.h5"
    with zipfile.ZipFile(folder / "tiny.keras") as archive:
        weights.write_bytes(archive.read(weights.name))
    with h5py.File(weights, "a") as file:
        found = []
        file.visititems(
            lambda n, item: found.append(n) if isinstance(item, h5py.Dataset) else None
        )
        del file[found[0] if part == "a weight" else found[0].rsplit("/", 2)[0]]
    path = changed_keras(
        folder,
        tmp_path / "a.keras",
        lambda e: e.update({"model.weights.h5": weights.read_bytes()}),
    )
    with pytest.raises(ValueError, match="a.keras' cannot be read"):
        read_model(path)


def test_a_keras_file_may_be_compressed_and_hold_more(folder, tmp_path):
    path = changed_keras(
        folder, tmp_path / "a.keras", lambda e: e.update({"note.txt": b"mine"})
    )
    images = np.zeros((1, *TINY["input_shape"]), "float32")
    expected = keras.ops.convert_to_numpy(drawn_model()(images))
    actual = keras.ops.convert_to_numpy(read_model(path)(images))
    np.testing.assert_array_equal(actual, expected)
    before = sha256_of(path)
    read_model(path)
    assert sha256_of(path) == before
