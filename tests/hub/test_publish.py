"""Publishing and loading whole models: in folders, and over HTTP on a loopback Hub.

The client reads its variables when it is imported, so it lives in a process of its own,
in which the functions `push`, `load` and so on are called. Its errors come back as they
were raised. Each test has its own repository, and so its own part of the cache.
"""

import errno
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import keras
import numpy as np
import oracle
import pytest
import yaml
from conftest import TINY
from hub_server import Hub
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_mixer import files
from keras_mixer.checkpoints import hub_files
from keras_mixer.checkpoints.weight_files import read_weights
from keras_mixer.files import sha256_of
from keras_mixer.hub.card import is_written, write_card
from keras_mixer.hub.publish import from_pretrained, push_to_hub
from keras_mixer.hub.repository import write_checksums, write_repository
from keras_mixer.models.mixer import mlp_mixer
from keras_mixer.preprocessing import Preprocessing

LABELS = ("ant", "bee", "cat", "dog", "elk")
TOKENS = {"hf_alice": "alice", "hf_bob": "bob"}
KILLS = int(os.environ.get("KERAS_MIXER_KILLS", "5"))
FUZZ_EXAMPLES = int(os.environ.get("KERAS_MIXER_FUZZ_EXAMPLES", "200"))


def make_model(seed=0, **changes):
    record = Preprocessing((0.0, 1.0), "resize_crop", "area", 0.75)
    arguments = {"name": "tiny", "preprocessing": record, **TINY, **changes}
    model = mlp_mixer(**arguments)
    shapes = {w.path: tuple(w.shape) for w in model.weights if "seed" not in w.path}
    values = oracle.random_weights(shapes, seed)
    for weight in model.weights:
        if weight.path in values:
            weight.assign(values[weight.path])
    if model.config["num_classes"] == 5:
        model.labels = LABELS
    return model


def predict(model):
    images = np.random.default_rng(1).uniform(0, 255, (4, *model.input_shape[1:]))
    return keras.ops.convert_to_numpy(model(images.astype("float32")))


def describe(model):
    """Everything that must come back, except the predictions."""
    return model.config, model.preprocessing, model.labels, model.name


def _doubled(x):
    return 2 * x


def flip(path, position=-100):
    data = bytearray(Path(path).read_bytes())
    data[position] ^= 0xFF
    Path(path).write_bytes(data)


# --- a folder ---------------------------------------------------------------------

KINDS = {
    "plain": {},
    "exact GELU": {"approximate_gelu": False},
    "headless": {"num_classes": 0, "classifier_activation": None},
    "logits": {"classifier_activation": None},
    "no normalization": {"include_preprocessing": False},
    "regularized": {"dropout_rate": 0.2, "stochastic_depth_rate": 0.4},
    "grey": {"input_shape": (8, 16, 1), "num_blocks": 1},
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_a_folder_holds_the_whole_model_twice(changes, tmp_path):
    model = make_model(**changes)
    write_repository(model, tmp_path)
    expected = predict(model)
    assert np.ptp(expected, axis=0).min() > 0

    ours = from_pretrained(tmp_path)
    np.testing.assert_array_equal(predict(ours), expected)
    assert describe(ours) == describe(model)

    plain = keras.saving.load_model(tmp_path)
    assert {type(layer).__module__.split(".")[0] for layer in plain.layers} == {"keras"}
    np.testing.assert_allclose(predict(plain), expected, rtol=1e-5, atol=1e-6)


def test_the_weights_are_a_file_that_any_model_takes(tmp_path):
    model = make_model()
    write_repository(model, tmp_path)
    arrays, layout = read_weights(tmp_path / "model.weights.h5")
    assert layout == "keras" and len(arrays) == len(model.weights)
    for weight in model.weights:
        value = keras.ops.convert_to_numpy(weight)
        np.testing.assert_array_equal(arrays[weight.path], value)


def test_the_plain_model_trains_as_ours_does(tmp_path):
    model = make_model(num_blocks=3, dropout_rate=0.2, stochastic_depth_rate=0.4)
    write_repository(model, tmp_path)
    plain = keras.saving.load_model(tmp_path)
    dropouts = {
        layer.name: (layer.rate, layer.noise_shape)
        for layer in plain.layers
        if isinstance(layer, keras.layers.Dropout)
    }
    assert dropouts.pop("block_2_stochastic_depth") == (0.4, (None, 1, 1))
    assert dropouts.pop("block_1_tokens_mixed_stochastic_depth") == (0.2, (None, 1, 1))
    assert dropouts["block_0_token_mixing_dropout_0"] == (0.2, None)
    images = np.full((4, *TINY["input_shape"]), 100.0, "float32")
    outputs = keras.ops.convert_to_numpy(plain(images, training=True))
    assert np.ptp(outputs, axis=0).max() > 0.01  # the images are equal


@pytest.mark.backend_free
def test_equal_models_give_equal_files(tmp_path):
    changes = {"dropout_rate": 0.2, "stochastic_depth_rate": 0.4}
    for folder in ("a", "b"):
        write_repository(make_model(**changes), tmp_path / folder)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {
        *("config.json", "model.weights.h5", "metadata.json", "labels.json"),
        *("README.md", "checksums.json"),
    }
    for name in names - {"metadata.json", "checksums.json"}:  # they hold the date
        one, other = (tmp_path / folder / name for folder in "ab")
        assert one.read_bytes() == other.read_bytes(), name


@pytest.mark.backend_free
def test_checksums_and_metadata(tmp_path):
    given = {"source": "https://example.org/a.npz", "sha256": "0" * 64}
    write_repository(make_model(), tmp_path, provenance=given)
    checksums = json.loads((tmp_path / "checksums.json").read_text())
    others = {path.name: path for path in tmp_path.iterdir()}
    del others["checksums.json"]
    assert checksums.keys() == others.keys()
    for name, path in others.items():
        assert checksums[name]["size"] == path.stat().st_size
        assert checksums[name]["sha256"] == files.sha256_of(path)
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    assert metadata["keras_version"] == keras.version()
    assert metadata["parameter_count"] == make_model().count_params() == 5309
    assert metadata["provenance"] == given
    assert json.loads((tmp_path / "labels.json").read_text()) == list(LABELS)


def test_half_precision_is_published_in_float32(tmp_path):
    model = make_model(dtype="mixed_bfloat16")
    write_repository(model, tmp_path)
    expected = predict(make_model())
    np.testing.assert_allclose(predict(from_pretrained(tmp_path)), expected, atol=1e-6)
    plain = keras.saving.load_model(tmp_path)
    assert {layer.compute_dtype for layer in plain.layers} == {"float32"}


@pytest.mark.backend_free
def test_models_that_cannot_be_published_are_refused(tmp_path):
    def refused(model, match, **arguments):
        with pytest.raises(ValueError, match=match):
            write_repository(model, tmp_path / "new", **arguments)
        assert not (tmp_path / "new").exists()

    refused(keras.Sequential(name="plain"), "must hold a Mixer.*Received: 'plain'")
    refused(
        make_model(), "keys training.*Received: 'author'", provenance={"author": ""}
    )
    refused(make_model(classifier_activation=_doubled), "activation of the head")
    model = make_model()
    model.labels = ("ant", "bee")
    refused(model, "2 names for 5 classes")
    model = make_model()
    model.get_layer("head").bias.assign([0.0, np.nan, 0.0, 0.0, 0.0])
    refused(model, "head/bias: 1 of its 5")
    model = make_model()
    model.quantize("int8", filters=r".*(dense_\d|head$)")
    refused(model, "quantized")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "mine.txt").touch()
    with pytest.raises(ValueError, match="must be empty"):
        write_repository(make_model(), tmp_path / "old")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A published folder."""
    folder = tmp_path_factory.mktemp("repository") / "tiny"
    write_repository(make_model(), folder)
    return folder


@pytest.fixture
def copy(repository, tmp_path):
    """A copy of it to spoil."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in repository.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.backend_free
@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
def test_damage_is_seen_before_the_file_is_opened(copy, name):
    flip(copy / name)
    with pytest.raises(OSError, match=f"{name} is damaged: the sha256 .* expected"):
        from_pretrained(copy)
    (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    with pytest.raises(OSError, match=f"{name} is damaged: .* bytes were expected"):
        from_pretrained(copy)
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {name} in"):
        from_pretrained(copy)


@pytest.mark.backend_free
def test_other_folders_are_refused_with_advice(copy, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*hf://owner/name"):
        from_pretrained("owner/name")
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    plain.save(tmp_path / "keras", zipped=False)
    with pytest.raises(ValueError, match=r"keras\.saving\.load_model"):
        from_pretrained(tmp_path / "keras")
    change(copy, lambda config: config.pop("keras_mixer"))
    with pytest.raises(ValueError, match=r"keras\.saving\.load_model"):
        from_pretrained(copy)


def change(folder, edit):
    """Edit the config of a folder, and its checksums with it."""
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    write_checksums(folder)


def _set(*keys):
    *path, last, value = keys

    def edit(config):
        item = config["keras_mixer"]
        for key in path:
            item = item[key]
        item[last] = value

    return edit


WRONG_CONFIGS = {
    "newer": (_set("format", 2), "not have the format 1"),
    "unknown key": (_set("code", "import os"), "object with the keys"),
    "bool for int": (_set("architecture", "num_blocks", True), "of type bool"),
    "too large": (_set("architecture", "hidden_dim", 2**30), "far too large"),
    "many blocks": (_set("architecture", "num_blocks", 10**9), "far too large"),
    "no pixels": (_set("architecture", "input_shape", [0, 24, 3]), "not positive"),
    "too wide": (_set("architecture", "channels_mlp_dim", 2**20), "fit the model"),
    "too many": (
        _set("architecture", "input_shape", [2**19, 2**19, 3]),
        "2147483648 p",
    ),
    "not patches": (_set("architecture", "input_shape", [33, 24, 3]), "multiple of"),
    "activation": (
        _set("architecture", "classifier_activation", "get"),
        "one of Keras's own",
    ),
    "other head": (_set("architecture", "num_classes", 6), "labels are not 6"),
    "other stem": (_set("architecture", "patch_size", 4), "fit the model"),
    "label": (_set("labels", [1, 2, 3, 4, 5]), "labels are not 5 names"),
    "range": (_set("preprocessing", "value_range", [1, 10**400]), "int too large"),
    "name": (_set("name", "a/b"), "cannot be that of a model"),
}


@pytest.mark.backend_free
@pytest.mark.parametrize("edit, match", WRONG_CONFIGS.values(), ids=WRONG_CONFIGS)
def test_wrong_configs_are_refused(copy, edit, match):
    change(copy, edit)
    with pytest.raises(ValueError, match=match):
        from_pretrained(copy)


@pytest.mark.backend_free
def test_another_head_than_the_weights_is_not_made_up(copy):
    change(copy, _set("labels", None))
    from_pretrained(copy)
    change(copy, _set("architecture", "num_classes", 6))
    with pytest.raises(ValueError, match="its weights make a model"):
        from_pretrained(copy)


@pytest.mark.backend_free
def test_files_beyond_every_bound_are_refused(copy):
    with open(copy / "config.json", "a") as file:
        file.write(" " * 5_000_000)
    write_checksums(copy)
    with pytest.raises(ValueError, match="more than 4194304 bytes"):
        from_pretrained(copy)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**301)
    | st.floats()
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def _places(value, path=()):
    """Yield the path of every value inside nested dictionaries and lists."""
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _places(item, (*path, key))


@pytest.mark.backend_free
@settings(
    max_examples=FUZZ_EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_fuzzed_configs_are_read_as_they_are_or_refused(copy, data):
    entry = json.loads((copy / "config.json").read_text())["keras_mixer"]
    root = {"keras_mixer": entry}
    if data.draw(st.booleans(), "valid JSON"):
        *parents, key = data.draw(st.sampled_from(list(_places(root))[1:]), "place")
        place = root
        for parent in parents:
            place = place[parent]
        place[key] = data.draw(JSON, "value")
        spoiled = json.dumps(root).encode()
    else:
        spoiled = bytearray(json.dumps(root).encode())
        for _ in range(data.draw(st.integers(1, 4), "times")):
            start = data.draw(st.integers(0, len(spoiled)), "start")
            length = data.draw(st.integers(0, 20), "length")
            spoiled[start : start + length] = data.draw(st.binary(max_size=8))
    folder = copy.parent / "fuzzed"
    folder.mkdir(exist_ok=True)
    (folder / "model.weights.h5").write_bytes((copy / "model.weights.h5").read_bytes())
    (folder / "config.json").write_bytes(spoiled)
    write_checksums(folder)
    try:
        model = from_pretrained(folder)
    except ValueError:
        return
    read = json.loads(spoiled)["keras_mixer"]
    assert json.loads(json.dumps(model.config)) == read["architecture"]
    assert model.name == read["name"]
    assert (list(model.labels) if model.labels else None) == (read["labels"] or None)
    assert model.preprocessing == Preprocessing.from_dict(read["preprocessing"])


@pytest.mark.backend_free
def test_deeply_nested_json_is_refused(copy):
    (copy / "config.json").write_text('{"keras_mixer":' + "[" * 1_000_000)
    write_checksums(copy)
    with pytest.raises(ValueError, match=r"config.json of .* cannot be read"):
        from_pretrained(copy)


# --- the Hub ----------------------------------------------------------------------


def push(seed, name, token=None, **arguments):
    """Publish `make_model(seed)`; called in the process of the client."""
    changes = arguments.pop("changes", {})
    return push_to_hub(make_model(seed, **changes), name, token=token, **arguments)


def load(source, token="hf_alice"):
    """Load a model and return what it predicts and is; called in the process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", token or "")
        model = from_pretrained(source)
    return predict(model), describe(model)


def load_with_little_room(source, size):
    """Load where no file can grow beyond `size`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        return load(source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _hurry():
    hub_files._WAITS = (0.01,) * len(hub_files._WAITS)


def _start_client(patch, **variables):
    for name, value in variables.items():
        patch.setenv(name, value)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=_hurry)
    pool.submit(int).result()  # now, with these variables
    return pool


def _calls(pool):
    return lambda function, *args, **named: pool.submit(
        function, *args, **named
    ).result(timeout=600)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with Hub(tmp_path_factory.mktemp("hub"), TOKENS) as hub:
        yield hub


@pytest.fixture
def hub(served):
    """The Hub, with an empty log, and without faults afterwards."""
    served.log.clear()
    yield served
    served.no_faults()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(served, home):
    """Calls functions in a process that is a client of the Hub."""
    with pytest.MonkeyPatch.context() as patch:
        variables = served.environment(home, "hf_alice")
        with _start_client(patch, **variables, HF_HUB_DOWNLOAD_TIMEOUT="3") as pool:
            yield _calls(pool)


@pytest.fixture(scope="module")
def offline_client(served, home):
    """Calls functions in a process with the same cache and HF_HUB_OFFLINE."""
    with pytest.MonkeyPatch.context() as patch:
        variables = served.environment(home, "hf_alice")
        with _start_client(patch, **variables, HF_HUB_OFFLINE="1") as pool:
            yield _calls(pool)


@pytest.fixture(scope="module")
def contents(repository):
    """Name -> content of the published files."""
    return {path.name: path.read_bytes() for path in repository.iterdir()}


@pytest.fixture(scope="module")
def expected():
    """What `load` returns of the published model."""
    return predict(make_model()), describe(make_model())


@pytest.fixture
def name(request, served, contents):
    """A repository with the published files in it."""
    name = f"alice/{abs(hash(request.node.nodeid))}"
    served.commit(name, contents)
    return name


def assert_equal(loaded, expected):
    np.testing.assert_array_equal(loaded[0], expected[0])
    assert loaded[1] == expected[1]


def requests_of(hub, method, part):
    paths = [r["path"] for r in hub.log if r["method"] == method]
    return [path for path in paths if part in path]


def parts_of(home, name):
    """What is left of downloads that broke; some clients keep it to resume it."""
    folder = f"models--{name.replace('/', '--')}"
    return list(home.rglob(f"{folder}/**/*.incomplete"))


def cached(home, name, filename):
    folder = home / "hub" / f"models--{name.replace('/', '--')}" / "snapshots"
    (path,) = folder.glob(f"*/{filename}")
    return path.resolve()


# --- publishing -------------------------------------------------------------------


@pytest.mark.backend_free
def test_what_was_published_loads_again(hub, client, expected):
    commit = client(push, 0, "alice/round", commit_message="First", tag="v1")
    repository = hub.repositories["alice/round"]
    assert repository.branches["main"] == repository.tags["v1"] == commit
    assert repository.titles[commit] == "First"
    for source in ("alice/round", "alice/round@v1", f"alice/round@{commit}"):
        assert_equal(client(load, f"hf://{source}"), expected)
    # The storage of the Hub is another host: it must not see the token.
    assert not any(r["token"] for r in hub.log if r["path"].startswith("/storage/"))


@pytest.mark.backend_free
def test_publishing_the_same_again_makes_no_commit(hub, client):
    commit = client(push, 0, "alice/same")
    hub.log.clear()
    assert client(push, 0, "alice/same") == commit
    assert not requests_of(hub, "POST", "/commit/") + requests_of(hub, "PUT", "")
    assert client(push, 1, "alice/same") != commit
    assert len(hub.repositories["alice/same"].commits) == 3  # with the empty one


@pytest.mark.backend_free
def test_only_what_changed_is_sent(hub, client):
    client(push, 0, "alice/part")
    hub.log.clear()
    client(push, 0, "alice/part", metrics={"accuracy": 0.5})
    assert not requests_of(hub, "PUT", "")
    assert b"| accuracy | 0.5 |" in hub.files("alice/part")["README.md"]


@pytest.mark.backend_free
def test_labels_that_are_gone_are_removed(hub, client):
    client(push, 0, "alice/labels")
    assert "labels.json" in hub.files("alice/labels")
    client(push, 0, "alice/labels", changes={"num_classes": 3})
    assert "labels.json" not in hub.files("alice/labels")
    assert client(load, "hf://alice/labels")[1][2] is None


@pytest.mark.backend_free
def test_a_concurrent_change_is_not_overwritten(hub, client, expected):
    client(push, 0, "alice/race")

    def meanwhile():
        hub.commit("alice/race", {"notes.txt": b"mine"})

    hub.fault("/preupload/", "call", meanwhile)
    with pytest.raises(OSError, match="somebody else changed the repository"):
        client(push, 1, "alice/race")
    assert hub.files("alice/race")["notes.txt"] == b"mine"
    assert_equal(client(load, "hf://alice/race"), expected)


@pytest.mark.backend_free
def test_another_content_than_was_sent_is_reported(hub, client):
    def spoil():
        repository = hub.repositories["alice/spoilt"]
        tree = repository.commits[repository.branches["main"]]
        tree["model.weights.h5"] = hub.store(b"other", "model.weights.h5")

    hub.fault("/revision/[0-9a-f]{40}", "call", spoil)
    with pytest.raises(OSError, match="does not hold what was sent: model.weights.h5"):
        client(push, 0, "alice/spoilt", tag="v1")
    assert not hub.repositories["alice/spoilt"].tags


@pytest.mark.backend_free
def test_a_commit_that_fails_is_tried_again(hub, client, expected):
    hub.fault("/commit/", "status", 503)
    client(push, 0, "alice/again")
    assert_equal(client(load, "hf://alice/again"), expected)
    assert len(hub.repositories["alice/again"].commits) == 2
    hub.fault("/commit/", "status", 503, times=99)
    with pytest.raises(ConnectionError, match="failed .status 503.*Try again later"):
        client(push, 1, "alice/again")


@pytest.mark.backend_free
def test_private_stays_private(hub, client):
    client(push, 0, "alice/private", private=True)
    assert hub.repositories["alice/private"].private
    for token in ("hf_bob", None):
        with pytest.raises(FileNotFoundError, match="no such repository.*or it is pri"):
            client(load, "hf://alice/private", token)
    client(push, 0, "alice/public")
    with pytest.raises(ValueError, match="exists and is public"):
        client(push, 1, "alice/public", private=True)
    assert len(hub.repositories["alice/public"].commits) == 2


@pytest.mark.backend_free
def test_a_tag_does_not_move(hub, client):
    commit = client(push, 0, "alice/tag", tag="v1")
    assert client(push, 0, "alice/tag", tag="v1") == commit
    with pytest.raises(ValueError, match="`tag` must be new.*Received: tag='v1'"):
        client(push, 1, "alice/tag", tag="v1")
    assert hub.repositories["alice/tag"].branches["main"] == commit


@pytest.mark.backend_free
def test_who_may_not_publish_is_told_so(hub, client):
    with pytest.raises(PermissionError, match="does not allow this .status 401"):
        client(push, 0, "alice/mine", token="hf_wrong")
    client(push, 0, "alice/mine")
    with pytest.raises(PermissionError, match="does not allow this .status 403"):
        client(push, 1, "alice/mine", token="hf_bob")
    hub.log.clear()
    with pytest.raises(PermissionError, match="needs a token.*HF_TOKEN"):
        client(push_without_token, "alice/mine")
    with pytest.raises(ValueError, match="`repo_id` must be owner/name"):
        client(push, 0, "alice/mine@v1")
    with pytest.raises(ValueError, match="2 names for 5 classes"):
        client(push_wrong_labels, "alice/mine")
    assert not hub.log


def push_without_token(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HF_TOKEN")
        push(0, name)


def push_wrong_labels(name):
    model = make_model()
    model.labels = ("ant", "bee")
    push_to_hub(model, name)


# --- the card ---------------------------------------------------------------------


@pytest.mark.backend_free
def test_the_card_says_what_is_known_and_nothing_else(hub, client):
    known = {
        "licence": "MIT",
        "datasets": ["cifar10"],
        "metrics": {"accuracy": 0.81},
        "base_model": "alice/base",
        "provenance": {"source": "https://example.org/a.npz", "sha256": "ab" * 32},
    }
    client(push, 0, "alice/card", **known)
    text = hub.files("alice/card")["README.md"].decode()
    assert text.startswith("---\n")
    front_matter = yaml.safe_load(text.split("---\n")[1])
    assert front_matter == {
        "library_name": "keras",
        "license": "mit",
        "pipeline_tag": "image-classification",
        "tags": ["mlp-mixer", "keras_mixer", "image-classification"],
        "datasets": ["cifar10"],
        "metrics": ["accuracy"],
        "base_model": "alice/base",
    }
    for fact in (
        'keras.saving.load_model("hf://alice/card")',
        "resized to 43 x 32, whatever their aspect ratio (area, without antialiasing)",
        "The model itself maps them to [0, 1]",
        "| accuracy | 0.81 |",
        "- Source: https://example.org/a.npz\n- sha256 of the source: abab",
        "| Parameters | 5,309 |",
    ):
        assert fact in text, fact
    text = write_card(make_model(num_classes=0, classifier_activation=None))
    for fact in ("Trained on: not stated.", "Not measured.", "Not stated.", "16 feat"):
        assert fact in text, fact
    assert "datasets:" not in text and "metrics:" not in text


@pytest.mark.backend_free
def test_a_card_by_hand_is_kept(hub, client):
    by_hand = b"---\nlicense: mit\n---\n# Mine\r\n"
    hub.commit("alice/hand", {"README.md": by_hand})
    client(push, 0, "alice/hand")
    files = hub.files("alice/hand")
    assert files["README.md"] == by_hand
    assert json.loads(files["checksums.json"])["README.md"]["size"] == len(by_hand)
    commits = len(hub.repositories["alice/hand"].commits)
    client(push, 0, "alice/hand")
    assert len(hub.repositories["alice/hand"].commits) == commits
    with pytest.raises(ValueError, match="`card` would replace .* `overwrite_card=T"):
        client(push, 0, "alice/hand", card="---\na: b\n---\n# Other")
    client(push, 0, "alice/hand", overwrite_card=True)
    assert is_written(hub.files("alice/hand")["README.md"].decode())


@pytest.mark.backend_free
def test_our_card_is_renewed_until_it_is_edited(hub, client):
    client(push, 0, "alice/edit")
    client(push, 0, "alice/edit", metrics={"accuracy": 0.5})
    text = hub.files("alice/edit")["README.md"]
    assert b"0.5" in text
    hub.commit("alice/edit", {"README.md": text.replace(b"0.5", b"0.6")})
    client(push, 0, "alice/edit", metrics={"accuracy": 0.7})
    assert hub.files("alice/edit")["README.md"] == text.replace(b"0.5", b"0.6")


@pytest.mark.backend_free
def test_a_given_card_is_published_as_it_is(hub, client):
    card = "---\nlibrary_name: keras\n---\n# Mine\n"
    commit = client(push, 0, "alice/given", card=card)
    assert hub.files("alice/given")["README.md"].decode() == card
    assert client(push, 0, "alice/given", card=card) == commit


# --- plain Keras ------------------------------------------------------------------

PLAIN = """\
import sys
sys.modules["keras_mixer"] = None
import keras, numpy as np
model = keras.saving.load_model(sys.argv[1])
outputs = model(np.load(sys.argv[2]))
np.save(sys.argv[3], keras.ops.convert_to_numpy(outputs))
try:
    import keras_mixer
except ImportError:
    print("without keras_mixer")
"""


@pytest.mark.backend_free
def test_the_repository_loads_with_keras_alone(hub, client, home, tmp_path, expected):
    client(push, 0, "alice/keras")
    images = np.random.default_rng(1).uniform(0, 255, (4, *TINY["input_shape"]))
    np.save(tmp_path / "images.npy", images.astype("float32"))
    paths = [str(tmp_path / name) for name in ("images.npy", "outputs.npy")]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, "hf://alice/keras", *paths],
        env={**os.environ, **hub.environment(home, "hf_alice")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout.strip().endswith("without keras_mixer"), done.stderr
    outputs = np.load(tmp_path / "outputs.npy")
    np.testing.assert_allclose(outputs, expected[0], rtol=1e-5, atol=1e-6)


# --- faults -----------------------------------------------------------------------

CONTENT = "/storage/"  # of the weights


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "fault",
    [
        (CONTENT, "corrupt"),
        (CONTENT, "truncate", 1_000),
        (CONTENT, "drop", 40_000),
        (CONTENT, "drop", 0),
        (CONTENT, "stall", 5),
        (CONTENT, "status", 503, 2),
        ("/resolve-cache/.*config.json", "corrupt"),
        ("/resolve/.*config.json", "status", 500),
        ("/api/models/", "status", 503),
        ("/api/models/", "drop", 0, 2),
    ],
    ids=lambda fault: "-".join(str(part) for part in fault[1:]),
)
def test_what_passes_does_no_harm(hub, client, name, expected, fault):
    hub.fault(*fault, method=None if "api/m" in fault[0] else "GET")
    assert_equal(client(load, f"hf://{name}"), expected)
    assert requests_of(hub, "GET", "/storage/")


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "fault, error, match",
    [
        ((CONTENT, "corrupt"), OSError, r"model\.weights\.h5.*damaged.*sha256"),
        (
            (CONTENT, "truncate", 1_000),
            ConnectionError,
            r"weights\.h5.*should be of size.*Try again",
        ),
        ((CONTENT, "status", 503), ConnectionError, "failed .status 503"),
        ((CONTENT, "status", 403), PermissionError, "does not allow this .status 403"),
        (("/api/models/", "drop", 0), ConnectionError, "the connection .* failed"),
        (("/api/models/", "status", 500), ConnectionError, "failed .status 500"),
        (("/api/models/", "status", 401), PermissionError, "status 401.*hf auth login"),
        (
            ("checksums.json", "corrupt"),
            OSError,
            "checksums.json .*damaged.*of git was expected",
        ),
    ],
    ids=lambda value: "-".join(map(str, value[1:])) if type(value) is tuple else "",
)
def test_what_does_not_pass_is_one_clear_error(
    hub, client, home, name, expected, fault, error, match
):
    hub.fault(*fault, times=99)
    with pytest.raises(error, match=match) as caught:
        client(load, f"hf://{name}")
    assert name in str(caught.value)
    hub.no_faults()
    assert_equal(client(load, f"hf://{name}"), expected)
    assert not parts_of(home, name)


@pytest.mark.backend_free
def test_a_failing_request_is_tried_a_few_times_only(hub, client, name):
    hub.fault(CONTENT, "status", 503, times=99)
    with pytest.raises(ConnectionError):
        client(load, f"hf://{name}")
    assert len(requests_of(hub, "GET", "/storage/")) == 1 + len(hub_files._WAITS)


@pytest.mark.backend_free
@pytest.mark.parametrize("filename", ["model.weights.h5", "config.json"])
def test_a_damaged_cached_file_is_fetched_again(
    hub, client, home, name, expected, filename
):
    client(load, f"hf://{name}")
    flip(cached(home, name, filename))
    hub.log.clear()
    assert_equal(client(load, f"hf://{name}"), expected)
    fetched = [r["path"] for r in hub.log if r["method"] == "GET" and r["sent"]]
    assert len(fetched) == 1 and ("/storage/" in fetched[0] or filename in fetched[0])
    assert_equal(client(load, f"hf://{name}"), expected)


@pytest.mark.backend_free
def test_a_damaged_cached_file_is_never_used(
    hub, client, offline_client, home, name, expected
):
    client(load, f"hf://{name}")
    flip(cached(home, name, "model.weights.h5"))
    with pytest.raises(ConnectionError, match="no intact copy.*HF_HUB_OFFLINE is set"):
        offline_client(load, f"hf://{name}")
    hub.fault(CONTENT, "corrupt", times=99)
    with pytest.raises(OSError, match="fetched twice and is damaged"):
        client(load, f"hf://{name}")
    hub.no_faults()
    assert_equal(client(load, f"hf://{name}"), expected)
    assert_equal(offline_client(load, f"hf://{name}"), expected)


@pytest.mark.backend_free
def test_a_full_disk_leaves_nothing_behind(hub, client, home, name, expected):
    with pytest.raises(
        OSError, match=r"model\.weights\.h5.*cannot be written.*HF_HOME"
    ) as e:
        client(load_with_little_room, f"hf://{name}", 50_000)
    assert e.value.errno == errno.EFBIG
    assert_equal(client(load, f"hf://{name}"), expected)
    assert not parts_of(home, name)


# --- who, what, when --------------------------------------------------------------


@pytest.mark.backend_free
def test_what_is_not_there_is_said(hub, client, name):
    with pytest.raises(FileNotFoundError, match="alice/none: there is no such repo"):
        client(load, "hf://alice/none")
    with pytest.raises(FileNotFoundError, match="no such branch, tag or commit"):
        client(load, f"hf://{name}@v9")
    with pytest.raises(FileNotFoundError, match="no such branch, tag or commit"):
        client(load, f"hf://{name}@{'0' * 40}")
    for source in ("hf://alice", "hf://alice/m/sub", "hf://../x", "hf://a/b@../c"):
        with pytest.raises(ValueError, match="hf://owner/name@revision"):
            client(load, source)
    hub.repositories[name].commits[hub.commit(name, {})].pop("model.weights.h5")
    with pytest.raises(FileNotFoundError, match="weights.h5 at .* no such file"):
        client(load, f"hf://{name}")


@pytest.mark.backend_free
def test_gated_repositories_say_so(hub, client, contents, expected):
    hub.commit("alice/gated", contents, gated=True)
    for token in ("hf_bob", None):
        with pytest.raises(PermissionError, match="gated. Accept its conditions"):
            client(load, "hf://alice/gated", token)
    assert_equal(client(load, "hf://alice/gated"), expected)
    with pytest.raises(PermissionError, match="status 401.*hf auth login"):
        client(load, "hf://alice/gated", "hf_wrong")


@pytest.mark.backend_free
def test_a_plain_keras_model_is_another_thing(hub, client, contents):
    files = {name: contents[name] for name in ("config.json", "model.weights.h5")}
    hub.commit("alice/plain", files)
    with pytest.raises(ValueError, match=r"keras\.saving\.load_model"):
        client(load, "hf://alice/plain")


@pytest.mark.backend_free
def test_a_huge_config_is_not_even_fetched(hub, client, contents):
    config = contents["config.json"] + b" " * 5_000_000
    checksums = json.loads(contents["checksums.json"])
    checksums["config.json"] = {"size": len(config), "sha256": "0" * 64}
    files = {"config.json": config, "checksums.json": json.dumps(checksums).encode()}
    hub.commit("alice/huge", contents | files)
    with pytest.raises(ValueError, match="config.json.* at most 4194304 bytes"):
        client(load, "hf://alice/huge")
    assert not requests_of(hub, "GET", "config.json")


@pytest.mark.backend_free
def test_a_cached_commit_needs_no_request(hub, client, offline_client, name, expected):
    commit = hub.repositories[name].branches["main"]
    assert_equal(client(load, f"hf://{name}@{commit}"), expected)
    hub.log.clear()
    assert_equal(client(load, f"hf://{name}@{commit}"), expected)
    assert_equal(offline_client(load, f"hf://{name}@{commit}"), expected)
    assert not hub.log


@pytest.mark.backend_free
def test_a_cached_branch_is_found_without_a_connection(
    hub, client, offline_client, name, contents, expected
):
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set. Connect once"):
        offline_client(load, f"hf://{name}")
    client(load, f"hf://{name}")
    hub.log.clear()
    assert_equal(offline_client(load, f"hf://{name}"), expected)
    assert not hub.log
    # A new commit that never arrived whole changes nothing.
    hub.commit(name, {"model.weights.h5": b"newer"})
    hub.fault(CONTENT, "status", 503, times=99)
    with pytest.raises(OSError):
        client(load, f"hf://{name}")
    assert_equal(offline_client(load, f"hf://{name}"), expected)
    hub.fault("/api/models/", "drop", 0, times=99)
    assert_equal(client(load, f"hf://{name}"), expected)


@pytest.mark.backend_free
def test_a_branch_that_moves_meanwhile_is_read_at_one_commit(
    hub, client, name, tmp_path, expected
):
    write_repository(make_model(1), tmp_path)
    newer = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    old = hub.repositories[name].branches["main"]

    hub.fault("config.json", "call", lambda: hub.commit(name, newer), method="GET")
    assert_equal(client(load, f"hf://{name}"), expected)
    assert hub.repositories[name].branches["main"] != old
    assert_equal(client(load, f"hf://{name}@{old}"), expected)
    np.testing.assert_array_equal(
        client(load, f"hf://{name}")[0], predict(make_model(1))
    )


# --- killed, and two at once ------------------------------------------------------

# The module alone: a process that imports a backend takes seconds. It reads the file
# as a loader would, at once.
DOWNLOAD = f"""
import hashlib, importlib.util, sys
spec = importlib.util.spec_from_file_location("hub_files", {hub_files.__file__!r})
hub_files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hub_files)
import huggingface_hub.file_download
name, commit, sha256 = sys.argv[1:]
print("ready", flush=True)
path = hub_files.download_file(name, "model.weights.h5", commit, sha256=sha256)
print(hashlib.sha256(path.read_bytes()).hexdigest() == sha256, flush=True)
"""


def start_download(hub, home, name, commit, sha256):
    process = subprocess.Popen(
        [sys.executable, "-c", DOWNLOAD, name, commit, sha256],
        env={**os.environ, **hub.environment(home, "hf_alice"), "HF_HUB_OFFLINE": "0"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def rest_said_by(process):
    """Return what the process says to its end.

    `communicate` would miss what was read together with the first line.
    """
    said = process.stdout.read()
    process.communicate(timeout=60)
    return said


@pytest.fixture
def large(hub):
    """A repository with a file of a megabyte: name, commit, sha256."""
    content = np.random.default_rng(0).bytes(2**20)
    commit = hub.commit("alice/large", {"model.weights.h5": content})
    return "alice/large", commit, hashlib.sha256(content).hexdigest()


@pytest.mark.backend_free
def test_a_killed_download_is_never_taken_for_a_file(hub, large, tmp_path):
    moments = random.Random(0)
    for _ in range(KILLS):
        hub.no_faults()
        hub.fault("/storage/", "slow", 4 * 2**20, times=9)  # 0.25 s for the whole
        process = start_download(hub, tmp_path, *large)
        time.sleep(moments.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        said = rest_said_by(process)
        assert said in ("", "True\n")
        for path in tmp_path.rglob("snapshots/*/model.weights.h5"):
            assert sha256_of(path) == large[-1]
        if said and moments.random() < 0.5:  # begin anew, or go on with a whole file
            shutil.rmtree(tmp_path / "hub")
    hub.no_faults()
    process = start_download(hub, tmp_path, *large)
    assert rest_said_by(process) == "True\n"


@pytest.mark.backend_free
def test_two_processes_may_download_at_once(hub, large, tmp_path):
    hub.fault("/storage/", "slow", 4 * 2**20, times=2)
    processes = [start_download(hub, tmp_path, *large) for _ in range(2)]
    for process in processes:
        assert rest_said_by(process) == "True\n"
        assert process.returncode == 0
    (path,) = tmp_path.rglob("snapshots/*/model.weights.h5")
    assert sha256_of(path) == large[-1]
