"""The demo as a Space of the Hugging Face Hub: its three files, written and published.

| file | what it is |
| --- | --- |
| `app.py` | starts `keras_mixer.app` with one model |
| `requirements.txt` | this version of the package, with the backend |
| `README.md` | front matter that makes it a Gradio Space, and what it shows |
"""

import os
import tempfile
from importlib.metadata import version
from pathlib import Path

from keras_mixer.checkpoints import CARD, parse_address
from keras_mixer.hub.card import marked
from keras_mixer.hub.publish import keep_card
from keras_mixer.hub.remote import RemoteRepository
from keras_mixer.hub.repository import write_checksums
from keras_mixer.models import list_models

_APP = '''\
"""The demo of keras_mixer, as a Space. The port is the one that Spaces expect."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

from keras_mixer.app import serve

serve(
    {source!r},
    host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0"),
    port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
    ready=print,
)
'''
_README = """\
---
title: {title}
colorFrom: blue
colorTo: red
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
license: apache-2.0
short_description: Classes, evidence maps and filters of an MLP-Mixer
{models}---

# {title}

A picture in, its class out, by an MLP-Mixer of
[keras_mixer](https://github.com/keras-mixer/keras_mixer): the classes with their
probabilities, which patches speak for them, and the token-mixing filters of any block.

The model at the start: `{source}`. On your own machine: `pip install
'keras-mixer[jax,app]'`, then `keras-mixer app`.
"""
EMBEDDED = "MixerTi4:cifar10"


def write_space(
    folder: str | os.PathLike[str], repo_id: str, source: str = EMBEDDED
) -> None:
    """Write the files of a Space into an empty or new folder.

    Args:
        folder: Where to write.
        repo_id: `"owner/name"` of the Space.
        source: The model at the start: a name of `list_models(pretrained=True)`, or
            `"hf://owner/name[@revision]"`.

    Raises:
        ImportError: If Gradio is not installed: the Space gets its version.
        ValueError: If `repo_id` is not owner/name, `source` is nothing that the Space
            could read, or the folder is not empty.
    """
    if parse_address(f"hf://{repo_id}")[0] != repo_id:
        raise ValueError(f"`repo_id` must be owner/name. Received: {repo_id!r}")
    models = ""
    if source.startswith("hf://"):
        models = f"models:\n- {parse_address(source)[0]}\n"
    elif source not in list_models(pretrained=True):
        raise ValueError(
            "`source` must be hf://owner/name or one of "
            f"{', '.join(list_models(pretrained=True))}: a Space has no other files. "
            f"Received: source={source!r}"
        )
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"`folder` must be empty. Received: {str(folder)!r}")
    try:
        gradio = version("gradio")
    except ImportError as error:
        raise ImportError(
            "A Space gets the version of Gradio that is installed: pip install "
            "'keras-mixer[app]'"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    text = _README.format(
        title=repo_id.split("/")[1], gradio=gradio, models=models, source=source
    )
    files = {
        "app.py": _APP.format(source=source),
        "requirements.txt": f"keras-mixer[app,jax]=={version('keras-mixer')}\n",
        CARD: marked(text),
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    write_checksums(folder)


def push_space(
    repo_id: str,
    source: str = EMBEDDED,
    *,
    private: bool | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """Publish the demo as a Space, in one commit; return the commit.

    As `push_to_hub`: what is there already and equal is not sent again, a page
    (`README.md`) that was edited by hand stays, and the Hub is asked afterwards whether
    it holds what was sent.

    Args:
        repo_id: `"owner/name"`. The Space is made if it is missing.
        source: As in `write_space`.
        private: Whether only its owner can see it; `None` leaves it as it is.
        commit_message: `None` for "Publish the demo of keras_mixer".
        token: Of the Hub; `None` for that of the environment.

    Raises:
        ConnectionError: If the Hub cannot be reached or fails.
        ImportError: If Gradio is not installed.
        PermissionError: If there is no token, or it may not write there.
        OSError: If somebody else changes the Space at the same time, or the Hub holds
            something else than was sent.
        ValueError: As in `write_space`, or if the Space exists with another visibility.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_space(folder, repo_id, source)
        hub = RemoteRepository(repo_id, private, token, kind="space")
        keep_card(hub, folder, None)
        changed = hub.changed(folder)
        if not changed:
            return hub.head
        message = commit_message or "Publish the demo of keras_mixer"
        commit = hub.commit(folder, changed, message)
        hub.verify(folder, commit)
        return commit
