"""The files of a published model: written to a folder, and made a model again.

| file | what it is |
| --- | --- |
| `config.json` | graph of built-in layers for Keras, entries for us and for timm |
| `model.weights.h5` | float32 weights, the same for both |
| `metadata.json` | versions, number of parameters, provenance |
| `labels.json` | one name per class, if the model has them |
| `model.safetensors` | the same weights for timm, if asked for |
| `README.md` | the model card |
| `checksums.json` | sha256 and size of all the others |
"""

import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Unpack

from keras_mixer.checkpoints import (
    CARD,
    CHECKSUMS,
    CONFIG,
    LABELS,
    MAX_PARAMETERS,
    METADATA,
    TIMM_WEIGHTS,
    WEIGHTS,
    Fetch,
    in_folder,
    make_entry,
    open_repository,
    read_weights,
    trust,
)
from keras_mixer.files import sha256_of
from keras_mixer.hub.card import PROVENANCE, Facts, without_paths, write_card
from keras_mixer.hub.timm_files import save_timm, timm_config
from keras_mixer.models import MLPMixer, as_mixer, mlp_mixer, plain_model
from keras_mixer.variants import parameter_count


def write_repository(
    model: MLPMixer,
    folder: str | os.PathLike[str],
    *,
    card: str | None = None,
    provenance: Mapping[str, str] | None = None,
    timm: bool = False,
    **facts: Unpack[Facts],
) -> None:
    """Write the files of a published repository into an empty or new folder.

    Args:
        model: An `MLPMixer` that is not quantized, or a Keras model around one that
            `models.as_mixer` takes. Its weights are written in float32.
        folder: Where to write.
        card: Text of `README.md`; `None` to write one.
        provenance: What is known of the origin of the weights, as text, under the keys
            `training`, `command`, `versions`, `source` (an address), `sha256` (of the
            source), `conversion` and `verification`. Of paths of this machine only the
            last name is kept.
        timm: Whether timm is to read it, too: see `push_to_hub`.
        **facts: What else the card says: `repo_id`, `licence`, `datasets`, `metrics`,
            `base_model`, as in `push_to_hub`.

    Raises:
        ValueError: If the model cannot be published, or not be read again: then the
            message says why. If the folder is not empty, or `provenance` has other
            keys.
    """
    model = as_mixer(model)
    _check_publishable(model)
    entries = timm_config(model) if timm else {}
    plain = plain_model(model)
    entry = make_entry(model)
    provenance = {key: without_paths(text) for key, text in (provenance or {}).items()}
    if unknown := sorted(provenance.keys() - PROVENANCE.keys()):
        raise ValueError(
            f"`provenance` may have the keys {', '.join(PROVENANCE)}. "
            f"Received: {', '.join(map(repr, unknown))}"
        )
    card = card or write_card(model, provenance=provenance, timm=timm, **facts)
    folder = Path(folder).absolute()  # Keras cannot save to a relative folder
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"`folder` must be empty. Received: {str(folder)!r}")
    plain.save(folder, zipped=False)
    (folder / "assets").rmdir()  # Keras always makes it
    _add(folder / CONFIG, keras_mixer=entry, **entries)
    if timm:
        save_timm(model, folder / TIMM_WEIGHTS)
    _add(
        folder / METADATA,
        keras_mixer_version=version("keras-mixer"),
        parameter_count=parameter_count(model.config),
        provenance=provenance,
    )
    if model.labels:
        _write_json(folder / LABELS, entry["labels"])
    (folder / CARD).write_bytes(card.encode())
    write_checksums(folder)
    _check_readable(folder)


def _check_readable(folder: Path) -> None:
    """Read what was written, as everybody will."""
    trust(folder / WEIGHTS)  # a moment ago it was ours alone
    try:
        _, path = open_repository(in_folder(folder), "the model")
        read_weights(path)
    except ValueError as error:
        raise ValueError(
            f"The model cannot be published, because nobody could read it: {error}"
        ) from error


def write_checksums(folder: Path) -> None:
    """Write `checksums.json`, the sha256 and size of every other file of `folder`."""
    paths = [path for path in sorted(folder.iterdir()) if path.name != CHECKSUMS]
    _write_json(
        folder / CHECKSUMS,
        {p.name: {"sha256": sha256_of(p), "size": p.stat().st_size} for p in paths},
    )


def read_repository(fetch: Fetch, source: str) -> MLPMixer:
    """Return the `MLPMixer` of a published model; arguments as `open_repository`."""
    entry, path = open_repository(fetch, source)
    # The head is that of the file: another number would silently make a new one.
    arguments = {**entry.architecture, "num_classes": None}
    model = mlp_mixer(
        **arguments, weights=path, preprocessing=entry.preprocessing, name=entry.name
    )
    if model.config != entry.architecture:
        raise ValueError(
            f"The files of {source} do not fit each other: its weights make a model of "
            f"{model.config}, its {CONFIG} says {entry.architecture}. Tell the owner "
            "of the repository."
        )
    model.labels = entry.labels
    return model


def _check_publishable(model: MLPMixer) -> None:
    num_classes = model.config["num_classes"]
    if model.labels and len(model.labels) != num_classes:
        raise ValueError(
            f"`model.labels` must have one name per class. Received: "
            f"{len(model.labels)} names for {num_classes} classes"
        )
    count = parameter_count(model.config)
    if count > MAX_PARAMETERS:
        raise ValueError(
            f"`model` must have at most {MAX_PARAMETERS} parameters. Received: {count}"
        )


def _add(path: Path, **entries: Any) -> None:
    """Add entries to an object that Keras wrote, as compact as it was."""
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**value, **entries}), encoding="utf-8")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
