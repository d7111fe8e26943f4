"""Whole models from and to the Hugging Face Hub, by one call each way."""

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from keras_mixer.checkpoints import (
    CARD,
    parse_address,
    read_published,
)
from keras_mixer.hub.card import is_written
from keras_mixer.hub.remote import RemoteRepository
from keras_mixer.hub.repository import (
    read_repository,
    write_checksums,
    write_repository,
)
from keras_mixer.models import MLPMixer


def from_pretrained(source: str | os.PathLike[str]) -> MLPMixer:
    """Return a published model: architecture, weights, preprocessing and labels.

    Models of this package, and timm's Mixers: `config.json` and `model.safetensors`, or
    several of them and their index. Their images are prepared as timm does it.

    On the Hub all files are taken from one commit, compared with their checksums, and
    kept in the cache of `huggingface_hub`. A commit whose files are there needs no
    request; a branch or tag is found again without a connection.

    Args:
        source: `"hf://owner/name"`, `"hf://owner/name@revision"` (branch, tag or
            commit), or a folder of the same files.

    Returns:
        An `MLPMixer`, not compiled.

    Raises:
        ConnectionError: If the Hub cannot be reached and the files are not cached.
        FileNotFoundError: If there is no such folder, repository, revision or file.
        PermissionError: If the repository is gated or the token is not accepted.
        OSError: If a file is damaged or cannot be written.
        ValueError: If it is not a model that this package or timm published, or one
            of timm's other architectures; its files contradict each other; its weights
            are a pickle only.
    """
    return read_published(source, read_repository)


def push_to_hub(
    model: MLPMixer,
    repo_id: str,
    *,
    private: bool | None = None,
    tag: str | None = None,
    commit_message: str | None = None,
    card: str | None = None,
    overwrite_card: bool = False,
    licence: str = "apache-2.0",
    datasets: Iterable[str] = (),
    metrics: Mapping[str, object] | None = None,
    base_model: str | None = None,
    provenance: Mapping[str, str] | None = None,
    timm: bool = False,
    token: str | None = None,
) -> str:
    """Publish a model on the Hub, in one commit; return the commit.

    Anyone can load it with `keras.saving.load_model("hf://owner/name")`, without this
    package, and with `keras_mixer.from_pretrained`. What is there already and equal is
    not sent again; if all is, there is no new commit.

    Args:
        model: An `MLPMixer`, fine-tuned or not, or a Keras model around one that
            `models.as_mixer` takes. It is published in float32.
        repo_id: `"owner/name"`. The repository is made if it is missing.
        private: Whether only its owner can see it. `None` leaves it as it is, and makes
            a new one as the owner's settings say.
        tag: A tag for the commit, such as `"v1.0"`.
        commit_message: `None` for "Publish a model of keras_mixer".
        card: Text of the model card; `None` to write one.
        overwrite_card: Whether to replace a card that was written or edited by hand.
            Without it such a card stays.
        licence: Identifier of the licence of the weights.
        datasets: What it was trained on, by their names on the Hub.
        metrics: Name -> value of what was measured, such as `{"accuracy": 0.81}`.
        base_model: The repository on the Hub that it was fine-tuned from.
        provenance: What is known of the origin of the weights, as text, under the keys
            `training`, `command`, `versions`, `source` (an address), `sha256` (of the
            source), `conversion` and `verification`. Of paths of this machine only the
            last name is kept.
        timm: Whether timm is to read it, too, in PyTorch: adds `model.safetensors` and
            timm's entries to the config. For models with the exact form of GELU and the
            patches, width and blocks of S, B or L with patches of 16 or 32 pixels.
        token: Of the Hub; `None` for that of the environment.

    Raises:
        ConnectionError: If the Hub cannot be reached or fails.
        PermissionError: If there is no token, or it may not write there.
        OSError: If somebody else changes the repository at the same time, or the Hub
            holds something else than was sent.
        ValueError: If the model cannot be published, or nobody could read it (then
            nothing is sent); the repository exists with another
            visibility; the tag exists; there is a card by hand where `card` is given.
    """
    datasets = tuple(datasets)
    if parse_address(f"hf://{repo_id}")[0] != repo_id:
        raise ValueError(f"`repo_id` must be owner/name. Received: {repo_id!r}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_repository(
            model,
            folder,
            card=card,
            repo_id=repo_id,
            licence=licence,
            datasets=datasets,
            metrics=metrics,
            base_model=base_model,
            provenance=provenance,
            timm=timm,
        )
        hub = RemoteRepository(repo_id, private, token)
        if not overwrite_card:
            keep_card(hub, folder, card)
        changed = hub.changed(folder)
        tagged = hub.commit_of(tag) if tag else None
        if tagged and (changed or tagged != hub.head):
            raise ValueError(
                "`tag` must be new: what a tag means should not change. Received: "
                f"tag={tag!r}, which is {tagged} already"
            )
        commit = hub.head
        if changed:
            message = commit_message or "Publish a model of keras_mixer"
            commit = hub.commit(folder, changed, message)
            hub.verify(folder, commit)
    if tag:
        hub.tag(tag, commit)
    return commit


def keep_card(hub: RemoteRepository, folder: Path, card: str | None) -> None:
    """Put a card that was written by hand in place of ours, if the Hub has one."""
    if CARD not in hub.hashes:
        return
    published = hub.fetch(CARD).read_bytes()
    text = published.decode(errors="replace")
    if is_written(text) or text == card:
        return
    if card is not None:
        raise ValueError(
            "`card` would replace one that was written by hand. Pass "
            "`overwrite_card=True` to replace it, or leave `card` out to keep it."
        )
    (folder / CARD).write_bytes(published)
    write_checksums(folder)
