"""The demo as a Space: its files, published to a loopback Hub, and started from it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from app_process import request, running
from hub_server import Hub

from keras_mixer.cli.main import main
from keras_mixer.hub import space, write_space
from keras_mixer.hub.card import is_written

ROOT = Path(__file__).parents[2]
needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="needs the extra app"
)
pytestmark = pytest.mark.backend_free


@pytest.fixture
def versions(monkeypatch):
    known = {"gradio": "6.31.0", "keras-mixer": "0.2.0"}
    monkeypatch.setattr(space, "version", known.__getitem__)


def test_the_files_of_a_space(tmp_path, versions):
    write_space(tmp_path / "new", "alice/demo", "hf://bob/mixer@v1")
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"app.py", "requirements.txt", "README.md", "checksums.json"}
    card = (tmp_path / "new" / "README.md").read_text()
    facts = yaml.safe_load(card.split("---\n")[1])
    assert facts["sdk"] == "gradio" and facts["sdk_version"] == "6.31.0"
    assert facts["app_file"] == "app.py" and facts["models"] == ["bob/mixer"]
    assert facts["title"] == "demo" and is_written(card)
    requirements = (tmp_path / "new" / "requirements.txt").read_text()
    assert requirements == "keras-mixer[app,jax]==0.2.0\n"
    code = (tmp_path / "new" / "app.py").read_text()
    compile(code, "app.py", "exec")
    assert "'hf://bob/mixer@v1'" in code


def test_what_a_space_cannot_show_is_refused(tmp_path, versions):
    for name, source, match in (
        ("alice", "MixerTi4:cifar10", "hf://owner/name"),
        ("alice/demo", "run/model.keras", "`source` must be hf://owner/name or one of"),
        ("alice/demo", "hf://bob", "hf://owner/name"),
    ):
        with pytest.raises(ValueError, match=match):
            write_space(tmp_path / "new", name, source)
        assert not (tmp_path / "new").exists()
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="`folder` must be empty"):
        write_space(tmp_path, "alice/demo")


def test_wrong_commands(capsys):
    for words, match in {
        ("publish",): "SOURCE and OWNER/NAME are needed",
        ("publish", "run/model.keras", "--space", "a/b"): "SOURCE must be hf://",
        ("publish", "hf://a/b", "c/d", "--space", "a/b"): "is given by --space",
        ("publish", "--space", "a"): "OWNER/NAME must be two names",
    }.items():
        assert main(words) == 2
        assert match in capsys.readouterr().err


@needs_gradio
def test_a_space_is_published_and_starts(tmp_path):
    with Hub(tmp_path / "hub", {"hf_alice": "alice"}) as hub:
        environment = os.environ | hub.environment(tmp_path / "home", "hf_alice")
        environment["PYTHONPATH"] = str(ROOT)

        def publish():
            result = subprocess.run(
                [sys.executable, "-m", "keras_mixer", "publish"]
                + ["--space", "alice/demo"],
                capture_output=True,
                text=True,
                check=False,
                env=environment,
            )
            assert result.returncode == 0, result.stderr
            return result.stdout.split()[-1]

        first = publish()
        created = [r for r in hub.log if r["path"] == "/api/repos/create"]
        assert created and b'"space"' in created[0]["body"]
        assert hub.tree(hub.repositories["alice/demo"], "main")[0] == first
        assert publish() == first  # what is there and equal is not sent again
        files = hub.files("alice/demo")
        edited = files["README.md"] + b"My own words.\n"
        hub.commit("alice/demo", {"README.md": edited, "app.py": b"broken"})
        publish()
        assert hub.files("alice/demo")["README.md"] == edited
        assert hub.files("alice/demo")["app.py"] == files["app.py"]

    folder = tmp_path / "space"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with running(
        folder,
        command=[sys.executable, "app.py"],
        GRADIO_SERVER_PORT="0",
        GRADIO_SERVER_NAME="127.0.0.1",
    ) as demo:
        page = request(demo.port, "GET", "/")
        assert page.status == 200 and b"keras_mixer" in page.body
