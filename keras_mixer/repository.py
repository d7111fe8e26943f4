"""The files of a published model: written to a folder, read back with suspicion.

| file | what it is |
| --- | --- |
| `config.json` | graph of built-in layers for Keras, entry `keras_mixer` for us |
| `model.weights.h5` | float32 weights, the same for both |
| `metadata.json` | versions, number of parameters, provenance |
| `labels.json` | one name per class, if the model has them |
| `README.md` | the model card |
| `checksums.json` | sha256 and size of all the others |

What is read is data: neither a pickle nor code, and nothing is built before its sizes
and checksums are known to be right.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from keras_mixer.card import PROVENANCE, parameter_count, write_card
from keras_mixer.hub_files import NoSuchFileError, damage, sha256_of
from keras_mixer.model import MLPMixer, mlp_mixer
from keras_mixer.plain import ACTIVATIONS, plain_model
from keras_mixer.preprocessing import Preprocessing

CHECKSUMS = "checksums.json"
CONFIG = "config.json"
WEIGHTS = "model.weights.h5"
METADATA = "metadata.json"
LABELS = "labels.json"
CARD = "README.md"

MAX_CHECKSUMS_SIZE = 2**20
MAX_CONFIG_SIZE = 4 * 2**20
MAX_PARAMETERS = 2**31  # five times the largest Mixer; 8 GiB

_FORMAT = 1
_MAX_DIM = 2**20
_MAX_BLOCKS = 1024
_ARCHITECTURE = {
    "patch_size": int,
    "hidden_dim": int,
    "num_blocks": int,
    "tokens_mlp_dim": int,
    "channels_mlp_dim": int,
    "input_shape": list,
    "num_classes": int,
    "approximate_gelu": bool,
    "classifier_activation": (str, type(None)),
    "include_preprocessing": bool,
    "dropout_rate": float,
    "stochastic_depth_rate": float,
}
_ENTRY = {
    "format": int,
    "name": str,
    "architecture": dict,
    "preprocessing": dict,
    "labels": (list, type(None)),
}


class Entry(NamedTuple):
    """What `config.json` says of an `MLPMixer`."""

    name: str
    architecture: dict
    preprocessing: Preprocessing
    labels: tuple | None


def write_repository(model, folder, *, card=None, provenance=None, **facts):
    """Write the files of a published repository into an empty or new folder.

    Args:
        model: An `MLPMixer` that is not quantized. Its weights are written in float32.
        folder: Where to write.
        card: Text of `README.md`; `None` to write one.
        provenance: What is told of the origin of the weights, as text, under the keys
            `source` (an address), `sha256` (of the source), `conversion` and
            `verification`.
        **facts: What the card says beside: `repo_id`, `licence`, `datasets`, `metrics`,
            `base_model`, as in `push_to_hub`.

    Raises:
        ValueError: If the model cannot be published, the folder is not empty, or
            `provenance` has other keys.
    """
    check_publishable(model)
    provenance = dict(provenance or {})
    if unknown := sorted(provenance.keys() - PROVENANCE.keys()):
        raise ValueError(
            f"`provenance` may have the keys {', '.join(PROVENANCE)}. "
            f"Received: {', '.join(map(repr, unknown))}"
        )
    plain = plain_model(model)
    card = card or write_card(model, provenance=provenance, **facts)
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"`folder` must be empty. Received: {str(folder)!r}")
    plain.save(folder, zipped=False)
    (folder / "assets").rmdir()  # Keras makes it, always
    _add(folder / CONFIG, keras_mixer=_entry(model))
    _add(
        folder / METADATA,
        keras_mixer_version=version("keras-mixer"),
        parameter_count=parameter_count(model.config),
        provenance=provenance,
    )
    if model.labels:
        _write_json(folder / LABELS, [str(label) for label in model.labels])
    (folder / CARD).write_text(card, encoding="utf-8")
    write_checksums(folder)


def check_publishable(model):
    """Raise a `ValueError` unless the model is an `MLPMixer` with fitting labels."""
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


def write_checksums(folder):
    """Write `checksums.json`, the sha256 and size of every other file of `folder`."""
    paths = [path for path in sorted(folder.iterdir()) if path.name != CHECKSUMS]
    _write_json(
        folder / CHECKSUMS,
        {p.name: {"sha256": sha256_of(p), "size": p.stat().st_size} for p in paths},
    )


def read_repository(fetch, source):
    """Return the `MLPMixer` of a published repository.

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
        raise _not_ours(source, f"it has no {CHECKSUMS}") from error
    checksums = read_checksums(path, source)
    path = fetch(CONFIG, **checksums[CONFIG], max_size=MAX_CONFIG_SIZE)
    entry = read_config(path, source)
    # The file holds some layout, too, and the states of dropouts.
    max_size = 4 * parameter_count(entry.architecture) + 2**20
    max_size += 2**16 * entry.architecture["num_blocks"]
    path = fetch(WEIGHTS, **checksums[WEIGHTS], max_size=max_size)

    # The head is that of the file: another number would silently make a new one.
    arguments = {**entry.architecture, "num_classes": None}
    model = mlp_mixer(
        **arguments, weights=path, preprocessing=entry.preprocessing, name=entry.name
    )
    if model.config != entry.architecture:
        raise _unreadable(source, f"its weights make {model.config} of it")
    model.labels = entry.labels
    return model


def in_folder(folder):
    """Return the `fetch` of `read_repository` for a folder of this machine."""
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


def read_checksums(path, source):
    """Return filename -> `{"sha256": ..., "size": ...}` of a `checksums.json`."""
    checksums = _read_json(path, MAX_CHECKSUMS_SIZE, source)
    for name in (CONFIG, WEIGHTS):
        record = checksums.get(name)
        _check_types(
            record, {"sha256": str, "size": int}, f"{CHECKSUMS}: {name}", source
        )
    return checksums


def read_config(path, source):
    """Return the `Entry` of a `config.json`, strictly checked.

    Raises:
        ValueError: If it is not one that `write_repository` writes.
    """
    config = _read_json(path, MAX_CONFIG_SIZE, source)
    if "keras_mixer" not in config:
        raise _not_ours(source, f"its {CONFIG} has no entry `keras_mixer`")
    entry = config["keras_mixer"]
    if isinstance(entry, dict) and entry.get("format") != _FORMAT:
        raise _unreadable(
            source,
            f"it has the format {entry.get('format')!r}, this version of keras_mixer "
            f"reads {_FORMAT}",
        )
    _check_types(entry, _ENTRY, "keras_mixer", source)
    _check_name(entry["name"], source)
    return Entry(
        entry["name"],
        _architecture(entry["architecture"], source),
        _preprocessing(entry["preprocessing"], source),
        _labels(entry["labels"], entry["architecture"]["num_classes"], source),
    )


def _entry(model):
    return {
        "format": _FORMAT,
        "name": model.name,
        "architecture": model.config,
        "preprocessing": model.preprocessing.to_dict(),
        "labels": [str(label) for label in model.labels] if model.labels else None,
    }


def _check_name(name, source):
    if not 0 < len(name) <= 200 or "/" in name:
        raise _unreadable(source, f"the model is called {name[:200]!r}")


def _architecture(architecture, source):
    _check_types(architecture, _ARCHITECTURE, "architecture", source)
    shape = architecture["input_shape"]
    if len(shape) != 3 or any(type(size) is not int for size in shape):
        raise _unreadable(source, "its input_shape is not three integers")
    dims = [v for k, v in architecture.items() if _ARCHITECTURE[k] is int] + shape
    too_large = max(dims) > _MAX_DIM or architecture["num_blocks"] > _MAX_BLOCKS
    # Zero divides, and a negative size would make a product small.
    if too_large or min(*shape, architecture["patch_size"]) < 1 or min(dims) < 0:
        raise _unreadable(source, f"its sizes are out of range: {architecture}")
    architecture = {**architecture, "input_shape": tuple(shape)}
    if parameter_count(architecture) > MAX_PARAMETERS:
        raise _unreadable(source, f"it has more than {MAX_PARAMETERS} parameters")
    activation = architecture["classifier_activation"]
    if activation is not None and activation not in ACTIVATIONS:
        raise _unreadable(source, f"its head has the activation {activation!r}")
    return architecture


def _preprocessing(record, source):
    try:
        return Preprocessing.from_dict(record)
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        raise _unreadable(source, f"its preprocessing is wrong: {error}") from error


def _labels(labels, num_classes, source):
    if labels is None:
        return None
    if len(labels) != num_classes or any(type(label) is not str for label in labels):
        raise _unreadable(source, f"its labels are not {num_classes} names")
    return tuple(labels)


def _check_types(value, types, what, source):
    """Check that `value` is a dictionary of exactly these keys and types."""
    if not isinstance(value, dict) or value.keys() != types.keys():
        raise _unreadable(source, f"{what} must have the keys {', '.join(types)}")
    for key, expected in types.items():
        expected = expected if isinstance(expected, tuple) else (expected,)
        if type(value[key]) not in expected:  # True is no integer here
            received = type(value[key]).__name__
            raise _unreadable(source, f"{what}: {key} is of type {received}")


def _not_ours(source, reason):
    return ValueError(
        f"{source} was not published by keras_mixer: {reason}. A model that Keras "
        f'saved is loaded with `keras.saving.load_model("{source}")`.'
    )


def _unreadable(source, problem):
    return ValueError(
        f"{source} cannot be read: {problem[:500]}. Get it again, update keras_mixer, "
        "or tell the owner of the repository."
    )


def _read_json(path, max_size, source):
    """Return the dictionary in a JSON file of bounded size."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    if path.stat().st_size > max_size:
        raise _unreadable(source, f"{path.name} has more than {max_size} bytes")
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text, parse_constant=refuse)
    except (RecursionError, ValueError) as error:
        raise _unreadable(source, f"{path.name} is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise _unreadable(source, f"{path.name} is no JSON object")
    return value


def _add(path, **entries):
    """Add entries to an object that Keras wrote, as compact as it was."""
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**value, **entries}), encoding="utf-8")


def _write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
