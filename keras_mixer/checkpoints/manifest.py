"""What a published repository says of itself, read with suspicion.

`checksums.json`, and the entry `keras_mixer` of `config.json`, beside the graph for
Keras. All of it is data; nothing is built or opened before its types are known to be
right and its sizes to be bounded.
"""

import contextlib
import inspect
import json
from typing import NamedTuple

import keras

from keras_mixer.preprocessing import Preprocessing
from keras_mixer.variants import parameter_count

CHECKSUMS = "checksums.json"
CONFIG = "config.json"
WEIGHTS = "model.weights.h5"
METADATA = "metadata.json"
LABELS = "labels.json"
CARD = "README.md"

# Those that Keras finds by their names alone.
ACTIVATIONS = tuple(
    name
    for name, value in vars(keras.activations).items()
    if inspect.isfunction(value) and name not in ("deserialize", "get", "serialize")
)

MAX_CHECKSUMS_SIZE = 2**20
MAX_CONFIG_SIZE = 4 * 2**20
MAX_PARAMETERS = 2**31  # five times the largest Mixer; 8 GiB

_FORMAT = 1
_MAX_DIM = 2**20
_MAX_BLOCKS = 1024
_MAX_NAME = 200
_ENTRY = {
    "format": (int,),
    "name": (str,),
    "architecture": (dict,),
    "preprocessing": (dict,),
    "labels": (list, type(None)),
}
_ARCHITECTURE = {
    "patch_size": (int,),
    "hidden_dim": (int,),
    "num_blocks": (int,),
    "tokens_mlp_dim": (int,),
    "channels_mlp_dim": (int,),
    "input_shape": (list,),
    "num_classes": (int,),
    "approximate_gelu": (bool,),
    "classifier_activation": (str, type(None)),
    "include_preprocessing": (bool,),
    "dropout_rate": (float,),
    "stochastic_depth_rate": (float,),
}


class Entry(NamedTuple):
    """An `MLPMixer` without its weights.

    Attributes:
        name: Of the model.
        architecture: As `MLPMixer.config`.
        preprocessing: The record of the weights.
        labels: One name per class, or `None`.
    """

    name: str
    architecture: dict
    preprocessing: Preprocessing
    labels: tuple | None


def make_entry(model):
    """Return the entry `keras_mixer` for a model."""
    return {
        "format": _FORMAT,
        "name": model.name,
        "architecture": model.config,
        "preprocessing": model.preprocessing.to_dict(),
        "labels": [str(label) for label in model.labels] if model.labels else None,
    }


def read_config(path, source):
    """Return the `Entry` in a `config.json`.

    Args:
        path: Of the file.
        source: What to call the repository in messages.

    Raises:
        ValueError: If it is not one that this package writes.
    """
    with _naming(source, path):
        config = _read_json(path, MAX_CONFIG_SIZE)
    if "keras_mixer" not in config:
        raise not_ours(source, f"its {CONFIG} has no entry `keras_mixer`")
    with _naming(source, path):
        entry = config["keras_mixer"]
        if isinstance(entry, dict) and entry.get("format") != _FORMAT:
            raise ValueError(f"it does not have the format {_FORMAT}")
        _check_types(entry, _ENTRY)
        name, architecture, labels = (
            entry[key] for key in ("name", "architecture", "labels")
        )
        if not 0 < len(name) <= _MAX_NAME or "/" in name:
            raise ValueError("its name cannot be that of a model")
        _check_architecture(architecture)
        _check_labels(labels, architecture["num_classes"])
        return Entry(
            name,
            {**architecture, "input_shape": tuple(architecture["input_shape"])},
            Preprocessing.from_dict(entry["preprocessing"]),
            tuple(labels) if labels else None,
        )


def read_checksums(path, source):
    """Return filename -> `{"sha256": ..., "size": ...}` of a `checksums.json`.

    Raises:
        ValueError: If it is not one that this package writes.
    """
    with _naming(source, path):
        checksums = _read_json(path, MAX_CHECKSUMS_SIZE)
        for name in (CONFIG, WEIGHTS):
            _check_types(checksums.get(name), {"sha256": (str,), "size": (int,)})
        return checksums


def not_ours(source, reason):
    """Return the error for a repository that is something else."""
    return ValueError(
        f"{source} was not published by keras_mixer: {reason}. A model that Keras "
        f'saved is loaded with `keras.saving.load_model("{source}")`.'
    )


def _check_architecture(architecture):
    _check_types(architecture, _ARCHITECTURE)
    shape = architecture["input_shape"]
    if len(shape) != 3 or any(type(size) is not int for size in shape):
        raise ValueError("its input_shape is not three integers")
    sizes = [size for size in architecture.values() if type(size) is int]
    # Only the number of classes may be 0.
    if min(sizes) < 0 or min(*shape, architecture["patch_size"]) < 1:
        raise ValueError("a size is not positive")
    if max(sizes + shape) > _MAX_DIM or architecture["num_blocks"] > _MAX_BLOCKS:
        raise ValueError("a size is far too large")
    if parameter_count(architecture) > MAX_PARAMETERS:
        raise ValueError(f"it has more than {MAX_PARAMETERS} parameters")
    if architecture["classifier_activation"] not in (None, *ACTIVATIONS):
        raise ValueError("the activation of its head is not one of Keras's own")


def _check_labels(labels, num_classes):
    if labels is None:
        return
    if len(labels) != num_classes or any(type(label) is not str for label in labels):
        raise ValueError(f"its labels are not {num_classes} names")


def _check_types(value, types):
    """Check that `value` is a dictionary of exactly these keys and types."""
    if not isinstance(value, dict) or value.keys() != types.keys():
        raise ValueError(f"there must be an object with the keys {', '.join(types)}")
    for key, allowed in types.items():
        if type(value[key]) not in allowed:  # True is no integer here
            raise ValueError(f"{key} is of type {type(value[key]).__name__}")


def _read_json(path, max_size):
    """Return the object in a JSON file of bounded size."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    if path.stat().st_size > max_size:
        raise ValueError(f"it has more than {max_size} bytes")
    value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value


@contextlib.contextmanager
def _naming(source, path):
    """Turn whatever goes wrong inside into a `ValueError` that names the file."""
    try:
        yield
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path.name} of {source} cannot be read: {str(error)[:500]}. Get it "
            "again, update keras_mixer, or tell the owner of the repository."
        ) from error
