"""The files of a published model: written to a folder, and made a model again.

| file | what it is |
| --- | --- |
| `config.json` | graph of built-in layers for Keras, entry `keras_mixer` for us |
| `model.weights.h5` | float32 weights, the same for both |
| `metadata.json` | versions, number of parameters, provenance |
| `labels.json` | one name per class, if the model has them |
| `README.md` | the model card |
| `checksums.json` | sha256 and size of all the others |
"""

import json
from importlib.metadata import version
from pathlib import Path

from keras_mixer.card import PROVENANCE, parameter_count, write_card
from keras_mixer.hub_files import NoSuchFileError, damage, sha256_of
from keras_mixer.manifest import (
    CHECKSUMS,
    CONFIG,
    MAX_CHECKSUMS_SIZE,
    MAX_CONFIG_SIZE,
    MAX_PARAMETERS,
    WEIGHTS,
    make_entry,
    not_ours,
    read_checksums,
    read_config,
)
from keras_mixer.model import MLPMixer, mlp_mixer
from keras_mixer.plain import plain_model

METADATA = "metadata.json"
LABELS = "labels.json"
CARD = "README.md"


def write_repository(model, folder, *, card=None, provenance=None, **facts):
    """Write the files of a published repository into an empty or new folder.

    Args:
        model: An `MLPMixer` that is not quantized. Its weights are written in float32.
        folder: Where to write.
        card: Text of `README.md`; `None` to write one.
        provenance: What is told of the origin of the weights, as text, under the keys
            `training`, `command`, `versions`, `source` (an address), `sha256` (of the
            source), `conversion` and `verification`.
        **facts: What the card says beside: `repo_id`, `licence`, `datasets`, `metrics`,
            `base_model`, as in `push_to_hub`.

    Raises:
        ValueError: If the model cannot be published, the folder is not empty, or
            `provenance` has other keys.
    """
    _check_publishable(model)
    provenance = dict(provenance or {})
    if unknown := sorted(provenance.keys() - PROVENANCE.keys()):
        raise ValueError(
            f"`provenance` may have the keys {', '.join(PROVENANCE)}. "
            f"Received: {', '.join(map(repr, unknown))}"
        )
    plain = plain_model(model)
    card = card or write_card(model, provenance=provenance, **facts)
    folder = Path(folder).absolute()  # Keras saves to no relative folder
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"`folder` must be empty. Received: {str(folder)!r}")
    plain.save(folder, zipped=False)
    (folder / "assets").rmdir()  # Keras always makes it
    _add(folder / CONFIG, keras_mixer=make_entry(model))
    _add(
        folder / METADATA,
        keras_mixer_version=version("keras-mixer"),
        parameter_count=parameter_count(model.config),
        provenance=provenance,
    )
    if model.labels:
        _write_json(folder / LABELS, make_entry(model)["labels"])
    (folder / CARD).write_bytes(card.encode())
    write_checksums(folder)


def write_checksums(folder):
    """Write `checksums.json`, the sha256 and size of every other file of `folder`."""
    paths = [path for path in sorted(folder.iterdir()) if path.name != CHECKSUMS]
    _write_json(
        folder / CHECKSUMS,
        {p.name: {"sha256": sha256_of(p), "size": p.stat().st_size} for p in paths},
    )


def open_repository(fetch, source):
    """Return the `Entry` of a published model and the path of its weights.

    Args:
        fetch: A function `(filename, *, sha256, size, max_size)` that returns the path
            of a file whose content is the expected one.
        source: What to call the repository in messages.

    Raises:
        ValueError: If the files are not those of an `MLPMixer`.
        OSError: As `fetch` does.
    """
    try:
        path = fetch(CHECKSUMS, max_size=MAX_CHECKSUMS_SIZE)
    except NoSuchFileError as error:
        raise not_ours(source, f"it has no {CHECKSUMS}") from error
    checksums = read_checksums(path, source)
    path = fetch(CONFIG, **checksums[CONFIG], max_size=MAX_CONFIG_SIZE)
    entry = read_config(path, source)
    # Beside its numbers the file holds groups of layers, and the states of dropouts.
    max_size = 4 * parameter_count(entry.architecture) + 2**20
    max_size += 2**16 * entry.architecture["num_blocks"]
    return entry, fetch(WEIGHTS, **checksums[WEIGHTS], max_size=max_size)


def read_repository(fetch, source):
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


def in_folder(folder):
    """Return the `fetch` of `read_repository` for a folder of this machine.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(folder)!r}. A repository on the Hub is "
            "hf://owner/name."
        )

    def fetch(filename, *, sha256=None, size=None, max_size=None):
        path = folder / filename
        if not path.is_file():
            raise NoSuchFileError(f"There is no {filename} in {str(folder)!r}")
        if problem := damage(path, sha256, size):
            raise OSError(f"{path} is damaged: {problem}. Get it again.")
        return path

    return fetch


def _check_publishable(model):
    if not isinstance(model, MLPMixer):
        raise ValueError(
            "`model` must be an `MLPMixer`, as `keras_mixer.mlp_mixer` and "
            f"`keras_mixer.MixerB16` return it. Received: {type(model).__name__}"
        )
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


def _add(path, **entries):
    """Add entries to an object that Keras wrote, as compact as it was."""
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**value, **entries}), encoding="utf-8")


def _write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
