"""The maintainers' commands in `weights/`, with small files on loopback servers."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest
from hub_server import Hub
from official_storage import OfficialStorage

from keras_mixer.checkpoints import published
from keras_mixer.checkpoints import records as records_module
from keras_mixer.checkpoints.convert import to_official
from keras_mixer.checkpoints.records import HubFile, find_checkpoint
from keras_mixer.checkpoints.weight_files import read_weights
from keras_mixer.files import sha256_of
from keras_mixer.hub.publish import from_pretrained
from keras_mixer.hub.verification import verify
from keras_mixer.variants import parse_variant, weight_shapes

pytestmark = pytest.mark.backend_free

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "weights"
NAME = "mixer-ti4-sam"
ONLY = ["--only", "Ti/4 sam"]


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def publish_checkpoints():
    return load(WEIGHTS / "publish_checkpoints.py", "publish_checkpoints")


@pytest.fixture(scope="module")
def record_commits():
    return load(WEIGHTS / "record_commits.py", "record_commits")


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """The official storage with one small file in it."""
    sizes = dataclasses.asdict(parse_variant("Ti/4"))
    del sizes["image_size"]
    shapes = weight_shapes(**sizes, num_patches=64, channels=3, num_classes=7)
    folder = tmp_path_factory.mktemp("storage")
    path = folder / "mixer_models" / "sam" / "Mixer-Ti_4.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, **to_official(oracle.random_weights(shapes)))
    with OfficialStorage(folder) as storage:
        storage.file = path
        yield storage


def small_record(storage_url, size):
    """The record of the small file: that of a true one, apart from the sizes."""
    return dataclasses.replace(
        find_checkpoint("B/32", "sam"),
        variant="Ti/4",
        address=f"{storage_url}/mixer_models/sam/Mixer-Ti_4.npz",
        size=size,
        num_classes=7,
        image_size=32,
        accuracy="77.4 (a paper)",
    )


@pytest.fixture
def record(storage, tmp_path, monkeypatch):
    record = small_record(storage.url, storage.file.stat().st_size)
    monkeypatch.setattr(records_module, "_CHECKPOINTS", (record,))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return record


# --- to folders -------------------------------------------------------------------


def test_a_dry_run_writes_verified_folders(
    publish_checkpoints, record, storage, tmp_path, capsys
):
    assert publish_checkpoints.main(["--dry-run", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == [NAME]
    assert "[1/1] Ti/4 sam" in capsys.readouterr().out
    folder = tmp_path / "out" / NAME
    assert verify(folder, same_as=storage.file).parameters == 1_131_783

    model = from_pretrained(folder)
    assert model.preprocessing == record.preprocessing
    assert model.name == "mixer_ti4"
    card = (folder / "README.md").read_text()
    for part in (
        f"hf://owner/{NAME}",
        "license: apache-2.0",
        "- imagenet-1k",
        "77.4 (a paper), top-1 in percent",
        record.address,
        sha256_of(storage.file),
        "bit for bit",
    ):
        assert part in card, part


def test_what_is_there_and_right_is_not_written_again(
    publish_checkpoints, record, tmp_path, capsys
):
    arguments = ["--dry-run", str(tmp_path), *ONLY]
    assert publish_checkpoints.main(arguments) == 0
    weights = tmp_path / NAME / "model.weights.h5"
    written = weights.stat().st_mtime_ns
    capsys.readouterr()
    assert publish_checkpoints.main(arguments) == 0
    assert f"is there: {weights.parent}" in capsys.readouterr().out
    assert weights.stat().st_mtime_ns == written

    weights.write_bytes(weights.read_bytes()[:-1])
    assert publish_checkpoints.main(arguments) == 0
    assert "written anew:" in capsys.readouterr().out
    assert verify(weights.parent)


def test_a_folder_of_another_record_is_written_anew(
    publish_checkpoints, record, tmp_path, monkeypatch, capsys
):
    arguments = ["--dry-run", str(tmp_path)]
    assert publish_checkpoints.main(arguments) == 0
    other = dataclasses.replace(record, approximate_gelu=False)
    monkeypatch.setattr(records_module, "_CHECKPOINTS", (other,))
    assert publish_checkpoints.main(arguments) == 0
    assert "another config than the record" in capsys.readouterr().out
    assert from_pretrained(tmp_path / NAME).config["approximate_gelu"] is False


def test_one_that_fails_does_not_keep_the_others(
    publish_checkpoints, record, storage, tmp_path, monkeypatch, capsys
):
    absent = f"{storage.url}/mixer_models/gsam/Mixer-Ti_4.npz"
    absent = dataclasses.replace(record, name="gsam", address=absent)
    wrong = dataclasses.replace(record, name="imagenet1k", num_classes=8)
    monkeypatch.setattr(records_module, "_CHECKPOINTS", (absent, wrong, record))
    assert publish_checkpoints.main(["--dry-run", str(tmp_path / "out")]) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == [NAME]
    error = capsys.readouterr().err
    assert "head of 7 classes, its record says 8" in error
    assert "Failed: Ti/4 gsam, Ti/4 imagenet1k. Run again for these." in error


def test_the_source_is_read_even_when_we_have_published_it(
    publish_checkpoints, record, storage
):
    ours = dataclasses.replace(
        record, hub_repository="owner/name", hub_commit="a" * 40, hub_files=()
    )
    path = publish_checkpoints.source_path(ours)
    assert path.read_bytes() == storage.file.read_bytes()


def test_the_embedded_one_keeps_its_own_card(
    publish_checkpoints, record, tmp_path, monkeypatch
):
    publish_checkpoints.main(["--dry-run", str(tmp_path)])
    path = tmp_path / NAME / "model.weights.h5"
    embedded = dataclasses.replace(record, embedded=NAME)
    model, facts = publish_checkpoints.build(embedded, path)
    assert model.config["num_classes"] == 7
    assert facts["card"] == (tmp_path / NAME / "README.md").read_text()
    assert facts["provenance"]["sha256"] in facts["card"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of --owner and --dry-run is needed"),
        (["--dry-run", "x", "--only", "B/16"], "Received: 'B/16'"),
        (["--dry-run", "x", "--only", "B/16 nonsense"], "no checkpoint of that name"),
    ],
)
def test_wrong_arguments_are_explained(publish_checkpoints, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        publish_checkpoints.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_every_checkpoint_can_be_asked_for(publish_checkpoints):
    assert publish_checkpoints.select() == records_module.list_checkpoints()
    (record,) = publish_checkpoints.select(["B/16 imagenet21k"])
    assert (record.variant, record.name) == ("B/16", "imagenet21k")
    official = {c.name for c in records_module.list_checkpoints() if not c.embedded}
    assert set(publish_checkpoints.DATASETS) == official


# --- to the Hub, and back into the package ----------------------------------------

# A process of its own: the client reads its address when it is imported.
_CLIENT = """
import json, sys
sys.path[:0] = {paths!r}
from test_weights_tools import small_record
from keras_mixer.checkpoints import records as records_module
import publish_checkpoints, record_commits

record = small_record({storage!r}, {size})
records_module._CHECKPOINTS = (record,)
noted = ["--published", {published!r}]
publish = ["--owner", "alice", *noted]
assert publish_checkpoints.main(publish) == 0
assert publish_checkpoints.main(publish) == 0
assert record_commits.main([*noted, "--module", {module!r}]) == 0
"""


def test_what_is_published_is_recorded(storage, tmp_path):
    module = tmp_path / "published_module.py"
    code = _CLIENT.format(
        paths=[
            str(Path(__file__).parent),
            str(Path(__file__).parents[1]),
            str(WEIGHTS),
        ],
        storage=storage.url,
        size=storage.file.stat().st_size,
        published=str(tmp_path / "published.json"),
        module=str(module),
    )
    with Hub(tmp_path / "hub", {"hf_alice": "alice"}) as hub:
        environment = {
            **os.environ,
            **hub.environment(tmp_path / "home", "hf_alice"),
            "KERAS_HOME": str(tmp_path / "keras"),
        }
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
        repository = hub.repositories[f"alice/{NAME}"]
        commits = [t for t in repository.titles.values() if t == "Mixer-Ti/4 sam"]
        assert len(commits) == 1  # the second time there was nothing to do
        commit, tree = hub.tree(repository, "main")

    noted = json.loads((tmp_path / "published.json").read_text())
    assert noted == {"Ti/4 sam": {"repository": f"alice/{NAME}", "commit": commit}}
    (record,) = load(module, "published_module").PUBLISHED.items()
    key, (name, recorded, files) = record
    assert (key, name, recorded) == (("Ti/4", "sam"), f"alice/{NAME}", commit)
    assert {file: (sha256, size) for file, sha256, size in files} == {
        path: (file.sha256, file.size) for path, file in tree.items()
    }
    weights = tmp_path / "again.weights.h5"
    weights.write_bytes(hub.files(name)["model.weights.h5"])
    ours, theirs = read_weights(weights)[0], read_weights(storage.file)[0]
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)


RECORDS = {
    ("B/16", "sam"): (
        "owner/mixer-b16-sam",
        "a" * 40,
        (("config.json", "b" * 64, 5), ("model.weights.h5", "c" * 64, 239_567_448)),
    ),
    ("B/16", "gsam"): ("owner/other", "d" * 40, (("README.md", "e" * 64, 1),)),
}


@pytest.mark.parametrize("records", [RECORDS, {}])
def test_the_module_is_written_as_ruff_would(record_commits, records, tmp_path):
    path = tmp_path / "published_again.py"
    path.write_text(record_commits.write_module(records))
    assert load(path, "published_again").PUBLISHED == records
    for command in (["format", "--check"], ["check"]):
        config = ["--config", str(ROOT / "pyproject.toml")]
        ruff = [sys.executable, "-m", "ruff", *command, *config, str(path)]
        subprocess.run(ruff, check=True, capture_output=True)


def test_the_module_in_the_package_is_one_of_those(record_commits):
    text = Path(published.__file__).read_text(encoding="utf-8")
    assert record_commits.write_module(published.PUBLISHED) == text


def test_the_records_know_what_is_published(monkeypatch):
    monkeypatch.setattr(published, "PUBLISHED", RECORDS)
    again = load(records_module.__file__, "checkpoints_again")
    record = again.find_checkpoint("B/16", "sam")
    assert record.hub_repository == "owner/mixer-b16-sam"
    assert record.hub_commit == "a" * 40
    assert record.hub_files == tuple(
        HubFile(*file) for file in RECORDS["B/16", "sam"][2]
    )
    assert again.find_checkpoint("B/32", "sam").hub_commit is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"B/16 sam": {"repository": "a/b", "commit": "main"}}', "is 'main'"),
        ('{"B/16 sam": {"repository": "a b", "commit": "x"}}', "a b"),
        ('{"B/16 nonsense": {}}', "no checkpoint of that name"),
        ("{", "Expecting"),
    ],
)
def test_wrong_notes_are_not_recorded(record_commits, text, message, tmp_path, capsys):
    path, module = tmp_path / "published.json", tmp_path / "module.py"
    path.write_text(text)
    arguments = ["--published", str(path), "--module", str(module)]
    assert record_commits.main(arguments) == 1
    assert message in capsys.readouterr().err
    assert not module.exists()


def test_nothing_from_the_hub_becomes_code(record_commits, tmp_path, monkeypatch):
    record = {"sha256": "a" * 64, "size": 1}
    checksums = {"config.json": record, "model.weights.h5": record}
    checksums['x", __import__("os"), "'] = record
    path = tmp_path / "checksums.json"
    path.write_text(json.dumps(checksums))
    monkeypatch.setattr(record_commits, "download_file", lambda *_: path)
    with pytest.raises(ValueError, match="has the entry"):
        record_commits.files_of("owner/name", "a" * 40)
