"""The table of records, and the way from a name to a model that predicts."""

import importlib
import math
import multiprocessing
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import keras
import numpy as np
import oracle
import pytest
from hub_server import Hub
from official_storage import OfficialStorage

from keras_mixer.checkpoints import download
from keras_mixer.checkpoints import records as records_module
from keras_mixer.checkpoints.convert import OFFICIAL, TIMM
from keras_mixer.checkpoints.records import (
    NOT_PUBLISHED,
    HubFile,
    find_checkpoint,
    list_checkpoints,
    weights_path,
)
from keras_mixer.files import sha256_of
from keras_mixer.labels import CIFAR10_LABELS
from keras_mixer.models import family
from keras_mixer.preprocessing import Preprocessing
from keras_mixer.variants import parse_variant, weight_shapes

STORAGE = "https://storage.googleapis.com"
# `gsutil ls -lh gs://mixer_models/*`
LISTING = {
    ("imagenet1k", "B/16"): 228.47,
    ("imagenet1k", "L/16"): 794.29,
    ("imagenet21k", "B/16"): 289.61,
    ("imagenet21k", "L/16"): 875.78,
    ("sam", "B/16"): 228.47,
    ("sam", "B/32"): 230.04,
    ("gsam", "B/16"): 228.47,
    ("gsam", "B/32"): 230.04,
    ("gsam", "S/16"): 70.71,
    ("gsam", "S/32"): 72.91,
    ("gsam", "S/8"): 78.79,
}
LISTED_BYTES = 3_489_219_014
MIIL = ("miil_imagenet21k", "miil_imagenet1k")


def official(checkpoint):
    return (checkpoint.address or "").startswith(STORAGE)


def weight_sizes(checkpoint):
    """Our name -> shape of the arrays of a checkpoint."""
    variant = parse_variant(checkpoint.variant)
    return weight_shapes(
        **variant.sizes,
        num_patches=(checkpoint.image_size // variant.patch_size) ** 2,
        channels=3,
        num_classes=checkpoint.num_classes,
    )


def official_shapes(checkpoint):
    """Official name -> shape of the arrays of a checkpoint."""
    shapes = weight_sizes(checkpoint)
    return {official_name(name): shape for name, shape in shapes.items()}


def official_name(ours):
    return name_in(OFFICIAL, ours)


def timm_name(ours):
    return name_in(TIMM, ours)


def name_in(layout, ours):
    layer, _, leaf = ours.rpartition("/")
    number = re.match(r"block_(\d+)/", layer)
    if number:
        layer = layer.replace(number[0], "block_{i}/")
    return layout.layers[layer].format(
        block=layout.block.format(i=number and number[1]), leaf=layout.leaves[leaf]
    )


# --- the table --------------------------------------------------------------------


def test_every_public_mixer_is_in_the_table():
    names = [(c.name, c.variant) for c in list_checkpoints()]
    assert len(names) == len(set(names)) == 14
    assert set(names) == {
        *LISTING,
        *((name, "B/16") for name in MIIL),
        ("cifar10", "Ti/4"),
    }


def test_a_variant_has_its_own_records():
    names = [c.name for c in list_checkpoints("B/16")]
    assert names == ["imagenet1k", "imagenet21k", "sam", "gsam", *MIIL]
    assert list_checkpoints("H/14") == ()


def test_sizes_are_those_of_the_official_names_and_shapes():
    """The bytes of an uncompressed `np.savez`, for all eleven files of the listing."""
    total = 6  # a folder marker
    for checkpoint in filter(official, list_checkpoints()):
        # The two older sets have no zip64 fields.
        extra = 0 if checkpoint.name.startswith("imagenet") else 20
        size = 22 + sum(
            4 * math.prod(shape) + 128 + 30 + 46 + 2 * len(f"{name}.npy") + extra
            for name, shape in official_shapes(checkpoint).items()
        )
        assert checkpoint.size == size
        listed = LISTING[checkpoint.name, checkpoint.variant]
        assert round(size / 2**20, 2) == listed
        total += size
    assert total == LISTED_BYTES


@pytest.mark.parametrize("name, variant", LISTING)
def test_official_records(name, variant):
    record = find_checkpoint(variant, name)
    file = f"{name}/Mixer-{variant.replace('/', '_')}.npz"
    assert record.address == f"{STORAGE}/mixer_models/{file}"
    assert record.num_classes == (21843 if name == "imagenet21k" else 1000)
    assert record.image_size == parse_variant(variant).image_size == 224
    assert record.preprocessing == Preprocessing((-1, 1), "resmall_crop", "area", 0.875)
    assert record.approximate_gelu is True
    assert record.licence == "Apache-2.0"
    assert record.origin.startswith("Google, ")
    assert ("ImageNet-21k" in record.origin) == (name == "imagenet21k")
    assert record.labels is None and record.embedded is None


@pytest.mark.parametrize("name, num_classes", [(MIIL[0], 11221), (MIIL[1], 1000)])
def test_miil_records(name, num_classes):
    record = find_checkpoint("B/16", name)
    repository = {
        "miil_imagenet21k": "timm/mixer_b16_224.miil_in21k",
        "miil_imagenet1k": "timm/mixer_b16_224.miil_in21k_ft_in1k",
    }[name]
    assert record.address == f"hf://{repository}/model.safetensors"
    assert record.num_classes == num_classes
    assert record.preprocessing == Preprocessing(
        (0, 1), "resmall_crop", "bilinear", library="pillow"
    )
    assert record.approximate_gelu is False
    assert record.licence == "Apache-2.0"


def test_the_embedded_record():
    record = find_checkpoint("Ti/4", "cifar10")
    assert record.embedded == "mixer-ti4-cifar10"
    assert record.address is None
    assert (record.num_classes, record.image_size) == (10, 32)
    assert record.labels == CIFAR10_LABELS


def test_accuracies_belong_to_the_files():
    known = {
        ("imagenet1k", "B/16"): "76.44 ",
        ("imagenet1k", "L/16"): "71.76 ",
        ("sam", "B/16"): "77.4 ",
        ("miil_imagenet1k", "B/16"): "82.314 ",
        ("miil_imagenet21k", "B/16"): "76.3 semantic",
    }
    for checkpoint in list_checkpoints():
        # Of models fine-tuned from ImageNet-21k, which are not public.
        assert not re.search("80.6|82.89", checkpoint.accuracy)
        if checkpoint.name != "cifar10":
            expected = known.get((checkpoint.name, checkpoint.variant), NOT_PUBLISHED)
            assert checkpoint.accuracy.startswith(expected)


def test_records_are_frozen_and_complete():
    assert len(set(list_checkpoints())) == 14  # hashable
    for checkpoint in list_checkpoints():
        with pytest.raises(FrozenInstanceError):
            checkpoint.name = "other"
        published = bool(checkpoint.hub_repository)
        assert bool(checkpoint.hub_commit) == bool(checkpoint.hub_files) == published
        for file in checkpoint.hub_files:
            assert re.fullmatch("[0-9a-f]{64}", file.sha256)


def test_docstrings_name_the_checkpoints():
    for checkpoint in list_checkpoints():
        constructor = family.CONSTRUCTORS[checkpoint.variant]
        assert f'`"{checkpoint.name}"`' in constructor.__doc__


# --- from a record to a file ------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A folder for the storage, emptied at the end: the files are large."""
    folder = tmp_path_factory.mktemp("served")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def storage(served, tmp_path, monkeypatch):
    """Official storage on loopback, to which the official records point."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    with OfficialStorage(served) as storage:
        redirect(storage, monkeypatch)
        storage.cache = tmp_path / "keras" / "keras_mixer" / "weights"
        yield storage
    shutil.rmtree(tmp_path / "keras", ignore_errors=True)


@pytest.fixture
def unread(monkeypatch):
    """Take any bytes for a file of weights."""
    monkeypatch.setattr(records_module, "check_file", lambda *_: None)
    monkeypatch.setattr(records_module, "read_shapes", lambda _: None)


def redirect(storage, monkeypatch, **changes):
    records = tuple(
        replace(c, address=c.address.replace(STORAGE, storage.url), **changes)
        if c.address
        else c
        for c in list_checkpoints()
    )
    monkeypatch.setattr(records_module, "_CHECKPOINTS", records)


def serve(storage, name, content):
    path = storage.folder / "mixer_models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name, variant", LISTING)
@pytest.mark.usefixtures("unread")
def test_official_files_come_from_their_addresses(storage, name, variant, monkeypatch):
    file = f"{name}/Mixer-{variant.replace('/', '_')}.npz"
    content = file.encode() * 1000
    serve(storage, file, content)
    redirect(storage, monkeypatch, size=len(content))
    path = weights_path(find_checkpoint(variant, name))
    assert path == storage.cache / file
    assert path.read_bytes() == content

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert weights_path(find_checkpoint(variant, name)) == path
    assert [entry["path"] for entry in storage.log] == [f"/mixer_models/{file}"]


@pytest.mark.parametrize("difference", [-10_400, 0, 10_400])
@pytest.mark.usefixtures("unread")
def test_sizes_are_right_to_the_digits_of_the_listing(storage, difference, monkeypatch):
    serve(storage, "sam/Mixer-B_32.npz", bytes(50_000))
    redirect(storage, monkeypatch, size=50_000 + difference)
    assert weights_path(find_checkpoint("B/32", "sam")).stat().st_size == 50_000


@pytest.mark.parametrize("difference", [-10_600, 10_600])
def test_a_file_of_another_size_is_refused(storage, difference, monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    serve(storage, "sam/Mixer-B_32.npz", bytes(50_000))
    redirect(storage, monkeypatch, size=50_000 + difference)
    with pytest.raises(OSError, match="announces 50000 bytes"):
        weights_path(find_checkpoint("B/32", "sam"))


@pytest.mark.usefixtures("unread")
def test_files_are_kept_in_the_home_of_keras(storage, tmp_path, monkeypatch):
    serve(storage, "sam/Mixer-B_32.npz", bytes(1000))
    redirect(storage, monkeypatch, size=1000)
    record = find_checkpoint("B/32", "sam")
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / ".keras" / "keras_mixer" / "weights"
    assert weights_path(record) == folder / "sam" / "Mixer-B_32.npz"


def test_an_embedded_checkpoint_is_found(tmp_path, monkeypatch):
    record = find_checkpoint("Ti/4", "cifar10")
    monkeypatch.setattr(
        records_module, "__file__", str(tmp_path / "package" / "checkpoints" / "x.py")
    )
    with pytest.raises(FileNotFoundError, match="mixer-ti4-cifar10 is missing.*Instal"):
        weights_path(record)
    for folder in (tmp_path / "weights", tmp_path / "package" / "embedded"):
        path = folder / "mixer-ti4-cifar10" / "model.weights.h5"
        path.parent.mkdir(parents=True)
        path.touch()
        assert weights_path(record) == path


# --- from a record to a file on the Hub -------------------------------------------


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    with Hub(folder / "hub") as hub:
        hub.home = folder / "home"
        # The client reads its variables once: it needs a process of its own, in which
        # nothing is computed.
        environment = hub.environment(hub.home) | {
            "KERAS_BACKEND": "numpy",
            "KERAS_HOME": str(folder / "keras"),
        }
        hub.cache = folder / "keras" / "keras_mixer" / "weights"
        with ProcessPoolExecutor(
            1,
            multiprocessing.get_context("spawn"),
            initializer=exec,
            initargs=(f"import os; os.environ.update({environment!r})",),
        ) as executor:
            hub.weights_path = lambda record: executor.submit(
                weights_path, record
            ).result(timeout=120)
            yield hub


@pytest.mark.backend_free
@pytest.mark.parametrize("name", MIIL)
def test_a_file_of_the_hub_stays_what_it_was_at_first(hub, name):
    record = find_checkpoint("B/16", name)
    repository = "/".join(record.address.split("/")[2:4])
    content = name.encode() * 1000
    commit = hub.commit(repository, {"model.safetensors": content})
    hub.fault("/storage/", "corrupt")
    path = hub.weights_path(record)
    assert path.read_bytes() == content
    assert path.name == "model.safetensors"
    assert commit in path.parts
    assert path.is_relative_to(hub.home)

    hub.commit(repository, {"model.safetensors": b"moved"})
    requests = len(hub.log)
    assert hub.weights_path(record) == path
    assert len(hub.log) == requests

    # Fetched once more, at the same commit.
    path.resolve().write_bytes(content[::-1])
    assert hub.weights_path(record).read_bytes() == content
    assert len(hub.log) > requests

    # What is noted of it may be damaged, too: then the Hub is asked again.
    (note,) = (hub.cache / repository.split("/")[1]).iterdir()
    note.write_bytes(b"\xff")
    assert hub.weights_path(record).read_bytes() == b"moved"


def test_a_repository_that_is_not_there_is_named(hub):
    record = replace(
        find_checkpoint("B/16", "miil_imagenet1k"),
        address="hf://timm/none/model.safetensors",
    )
    with pytest.raises(FileNotFoundError, match="timm/none"):
        hub.weights_path(record)


def test_a_published_checkpoint_comes_from_its_pinned_commit(hub):
    content = b"weights" * 1000
    commit = hub.commit("us/mixer", {"model.weights.h5": content, "config.json": b"{}"})
    file = hub.store(content, "model.weights.h5")
    record = replace(
        find_checkpoint("B/16", "imagenet21k"),
        hub_repository="us/mixer",
        hub_commit=commit,
        hub_files=(
            HubFile("config.json", "0" * 64, 2),
            HubFile("model.weights.h5", file.sha256, file.size),
        ),
    )
    hub.commit("us/mixer", {"model.weights.h5": b"moved"})
    path = hub.weights_path(record)
    assert path.read_bytes() == content
    requests = len(hub.log)
    assert hub.weights_path(record) == path
    assert len(hub.log) == requests

    wrong = HubFile("model.weights.h5", "0" * 64, file.size)
    with pytest.raises(OSError, match="sha256 0{64} was expected"):
        hub.weights_path(replace(record, hub_files=(wrong,)))


# --- from a name to a model -------------------------------------------------------


@pytest.mark.parametrize(
    "variant, weights, arguments, message",
    [
        ("B/16", "imagenet22k", {}, "no checkpoint of that name.*'imagenet21k'"),
        ("B/16", 21, {}, "no checkpoint of that name"),
        ("S/16", "imagenet21k", {}, "'imagenet21k' exists for B/16, L/16"),
        ("H/14", "imagenet1k", {}, "It has none"),
        ("B/16", "sam", {"input_shape": (225, 224, 3)}, "height must be a multiple"),
        ("B/16", "sam", {"input_shape": (224, 224, 1)}, "must have 3 channels"),
        ("B/16", "sam", {"input_shape": (None, None, 3)}, "all known"),
        ("B/16", "sam", {"input_shape": (224, 224)}, "height, width, channels"),
        ("B/16", "sam", {"num_classes": -1}, "`num_classes` must be a positive"),
        ("B/16", "sam", {"num_classes": 2.5}, "`num_classes` must be a positive"),
        ("B/16", "sam", {"dropout_rate": 1.5}, "`dropout_rate` must lie in"),
        ("B/16", "sam", {"stochastic_depth_rate": -1}, "`stochastic_depth_rate` must"),
        ("B/16", "sam", {"classifier_activation": "soft"}, "Could not interpret.*soft"),
        ("B/16", "sam", {"dtype": "bfloat"}, "bfloat"),
    ],
)
def test_wrong_arguments_are_refused_before_any_request(
    storage, variant, weights, arguments, message
):
    with pytest.raises(ValueError, match=message):
        family.CONSTRUCTORS[variant](weights=weights, **arguments)
    assert not storage.log


@pytest.mark.parametrize(
    "checkpoint", list_checkpoints(), ids=lambda c: f"{c.variant} {c.name}"
)
def test_the_record_decides_how_the_model_computes(checkpoint, monkeypatch):
    # The door gives the function under the name of its module.
    create_module = importlib.import_module("keras_mixer.models.create")
    received = {}

    class Built(Exception):
        pass

    def build(**arguments):
        received.update(arguments)
        raise Built

    monkeypatch.setattr(create_module, "is_cached", lambda record: False)
    monkeypatch.setattr(create_module, "weights_path", lambda record: record)
    monkeypatch.setattr(create_module, "mlp_mixer", build)
    with pytest.raises(Built):
        family.CONSTRUCTORS[checkpoint.variant](weights=checkpoint.name)
    assert received["weights"] is checkpoint
    assert received["approximate_gelu"] is checkpoint.approximate_gelu
    assert received["preprocessing"] is checkpoint.preprocessing
    assert received["num_classes"] is None
    assert received["input_shape"][0] == checkpoint.image_size


@pytest.fixture(scope="module")
def drawn(served):
    """Draw a whole official file, once for each checkpoint; return its path."""

    def draw(name, variant):
        record = find_checkpoint(variant, name)
        path = served / "mixer_models" / name / Path(record.address).name
        if not path.exists() or path.stat().st_size < 10**6:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, **oracle.draw_official(5, official_shapes(record)))
            assert abs(path.stat().st_size - record.size) <= 20 * 294
        return path

    return draw


def test_a_name_is_the_file_of_that_name(storage, drawn, monkeypatch):
    path = drawn("gsam", "S/32")
    storage.md5(path)
    storage.fault("drop", 50_000_000)
    model = family.MixerS32(weights="gsam")
    assert [entry["status"] for entry in storage.log] == [200, 206]
    assert model.preprocessing == find_checkpoint("S/32", "gsam").preprocessing
    images = np.random.default_rng(2).integers(0, 256, (2, 224, 224, 3), "uint8")
    expected = numpy(family.MixerS32(weights=path)(images))
    assert np.ptp(expected, axis=0).max() > 1e-4
    np.testing.assert_array_equal(numpy(model(images)), expected)

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    features = family.MixerS32(weights="gsam", num_classes=0)
    pooled = numpy(model.features("pre_logits")(images))
    np.testing.assert_array_equal(numpy(features(images)), pooled)
    assert len(storage.log) == 2


@pytest.mark.backend_free
def test_a_full_size_file_is_read_to_the_last_number(storage, drawn):
    path = drawn("imagenet21k", "B/16")
    storage.md5(path)  # takes its time where the machine is busy
    model = family.MixerB16(weights="imagenet21k")
    assert len(storage.log) == 1
    with np.load(path) as arrays:
        assert len(arrays.files) == len(model.weights) == 150
        for weight in model.weights:
            array = arrays[official_name(weight.path)]
            np.testing.assert_array_equal(numpy(weight), array)
    scores = numpy(model(np.full((1, 224, 224, 3), 200, "uint8")))
    assert scores.shape == (1, 21843)
    np.testing.assert_allclose(scores.sum(), 1, rtol=1e-4)


def test_a_name_at_other_sizes_and_with_another_head(storage, drawn):
    drawn("gsam", "S/32")
    model = family.MixerS32(weights="gsam", num_classes=7)
    assert model.output_shape == (None, 7)
    assert not numpy(model.get_layer("head").kernel).any()
    # As many patches as the checkpoint has, in another order: resized all the same.
    resized = family.MixerS32(weights="gsam", input_shape=(32, 1568, 3))
    assert resized.input_shape == (None, 32, 1568, 3)
    one, other = (
        numpy(m.get_layer("block_0").token_mixing.dense_0.kernel)
        for m in (model, resized)
    )
    assert one.shape == other.shape
    assert not np.allclose(one, other)
    assert len(storage.log) == 1


@pytest.mark.backend_free
def test_a_damaged_file_never_becomes_a_model(storage, drawn, monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    drawn("gsam", "S/32")
    storage.fault("corrupt", 40_000_000, times=2)
    with pytest.raises(OSError, match="MD5"):
        family.MixerS32(weights="gsam")
    assert not list(storage.cache.rglob("*.npz"))
    # Storage without an MD5: the checksums inside the file are left.
    storage.fault("corrupt_unhashed", 40_000_000, times=2)
    with pytest.raises(OSError, match="cannot be read.*The file looks damaged"):
        family.MixerS32(weights="gsam")
    assert not list(storage.cache.rglob("*.npz"))
    storage.fault("corrupt_unhashed", 40_000_000)
    family.MixerS32(weights="gsam")


@pytest.mark.backend_free
@pytest.mark.parametrize("noted", [True, False], ids=["with a digest", "by hand"])
def test_a_cached_file_that_cannot_be_read_is_fetched_once_more(
    storage, drawn, noted, monkeypatch
):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    drawn("gsam", "S/32")
    record = find_checkpoint("S/32", "gsam")
    path = records_module._home_path(record.address)
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(record.size))
    if noted:
        download._write_digest(path, sha256_of(path))
    model = family.MixerS32(weights="gsam")
    assert model.output_shape == (None, 1000)
    assert len(storage.log) == 1
    family.MixerS32(weights="gsam")
    assert len(storage.log) == 1


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)
