"""What a published repository says of itself, read with suspicion.

`checksums.json`, and the entry `keras_mixer` of `config.json`, beside the graph for
Keras. All of it is data; nothing is built or opened before its types are known to be
right and its sizes to be bounded.
"""

import contextlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from keras_mixer.files import read_bounded
from keras_mixer.preprocessing import Preprocessing
from keras_mixer.variants import parameter_count

if TYPE_CHECKING:  # Keras itself is slow to import, and only one function needs it
    import keras

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
_MAX_NAME = 200
_MAX_LABEL = 2000  # characters
# An image is resized to at most so many times the edge of what is cropped from it.
_MIN_CROP_FRACTION = 1 / 16
_ENTRY: dict[str, tuple[type, ...]] = {
    "format": (int,),
    "name": (str,),
    "architecture": (dict,),
    "preprocessing": (dict,),
    "labels": (list, type(None)),
}
_ARCHITECTURE: dict[str, tuple[type, ...]] = {
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
    architecture: dict[str, Any]
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None


def activations() -> tuple[str, ...]:
    """Return the names of the activations that Keras finds by their names alone."""
    import keras

    return tuple(
        name
        for name, value in vars(keras.activations).items()
        if inspect.isfunction(value) and name not in ("deserialize", "get", "serialize")
    )


def make_entry(model: "keras.Model") -> dict[str, Any]:
    """Return the entry `keras_mixer` for a model.

    Raises:
        ValueError: If it is one that `read_config` would refuse.
    """
    entry = {
        "format": _FORMAT,
        "name": model.name,
        "architecture": model.config,
        "preprocessing": model.preprocessing.to_dict(),
        "labels": [str(label) for label in model.labels] if model.labels else None,
    }
    # As it will be read, with lists for tuples.
    try:
        _check_entry(json.loads(json.dumps(entry)))
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"The model {str(model.name)[:80]!r} cannot be published, because nobody "
            f"could read it: {str(error)[:500]}. Change it first."
        ) from error
    return entry


def read_config(path: Path, source: str) -> Entry:
    """Return the `Entry` in a `config.json`.

    Args:
        path: Of the file.
        source: What to call the repository in messages.

    Raises:
        ValueError: If it is not one that this package writes.
    """
    with naming(source, path):
        config = read_json(path, MAX_CONFIG_SIZE)
    if "keras_mixer" not in config:
        raise not_ours(source, f"its {CONFIG} has no entry `keras_mixer`")
    with naming(source, path):
        return _check_entry(config["keras_mixer"])


def read_checksums(path: Path, source: str) -> dict[str, dict[str, Any]]:
    """Return filename -> `{"sha256": ..., "size": ...}` of a `checksums.json`.

    Raises:
        ValueError: If it is not one that this package writes.
    """
    with naming(source, path):
        checksums = read_json(path, MAX_CHECKSUMS_SIZE)
        for name in {CONFIG, WEIGHTS, *checksums}:
            _check_types(checksums.get(name), {"sha256": (str,), "size": (int,)})
        return checksums


def not_ours(source: str, reason: str) -> ValueError:
    """Return the error for a repository that is something else."""
    return ValueError(
        f"{source} was not published by keras_mixer: {reason}. A model that Keras "
        f'saved is loaded with `keras.saving.load_model("{source}")`.'
    )


def _check_entry(entry: Any) -> Entry:
    """Return the `Entry` in a value of JSON; raise whatever is wrong with it."""
    if isinstance(entry, dict) and entry.get("format") != _FORMAT:
        raise ValueError(f"it does not have the format {_FORMAT}")
    _check_types(entry, _ENTRY)
    name, architecture, labels = (
        entry[key] for key in ("name", "architecture", "labels")
    )
    if not 0 < len(name) <= _MAX_NAME or "/" in name:
        raise ValueError(
            f"its name cannot be that of a model: 1 to {_MAX_NAME} characters and no "
            f"slash are allowed. Received: {len(name)} characters, {name[:80]!r}"
        )
    check_architecture(architecture)
    _check_labels(labels, architecture["num_classes"])
    preprocessing = Preprocessing.from_dict(entry["preprocessing"])
    _check_preprocessing(preprocessing)
    architecture = {**architecture, "input_shape": tuple(architecture["input_shape"])}
    return Entry(name, architecture, preprocessing, tuple(labels) if labels else None)


def check_architecture(architecture: dict[str, Any]) -> None:
    """Raise a `ValueError` unless these are the arguments of a model of sane size."""
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
    if architecture["classifier_activation"] not in (None, *activations()):
        raise ValueError("the activation of its head is not one of Keras's own")


def _check_labels(labels: Any, num_classes: int) -> None:
    if labels is None:
        return
    if len(labels) != num_classes or any(type(label) is not str for label in labels):
        raise ValueError(f"its labels are not {num_classes} names")
    if (longest := max(map(len, labels))) > _MAX_LABEL:
        raise ValueError(
            f"a label has {longest} characters; at most {_MAX_LABEL} are allowed"
        )


def _check_preprocessing(record: Preprocessing) -> None:
    """Check what the record alone allows, but no image could be prepared with."""
    with np.errstate(over="ignore", invalid="ignore"):
        ranges = np.array(record.ranges, np.float32)
        scales = np.array(record.scale, np.float32)
    if not (np.isfinite(ranges).all() and np.isfinite(scales).all()) or not (
        scales.min() > 0
    ):
        raise ValueError(
            "its value range must be of two numbers that float32 holds and tells "
            f"apart. Received: {record.value_range}"
        )
    if not _MIN_CROP_FRACTION <= record.crop_fraction <= 1:
        raise ValueError(
            f"its crop_fraction must lie in [{_MIN_CROP_FRACTION}, 1]. Received: "
            f"{record.crop_fraction}"
        )


def _check_types(value: Any, types: Mapping[str, tuple[type, ...]]) -> None:
    """Check that `value` is a dictionary of exactly these keys and types."""
    if not isinstance(value, dict) or value.keys() != types.keys():
        raise ValueError(f"there must be an object with the keys {', '.join(types)}")
    for key, allowed in types.items():
        if type(value[key]) not in allowed:  # True is no integer here
            raise ValueError(f"{key} is of type {type(value[key]).__name__}")


def read_json(path: Path, max_size: int) -> dict[str, Any]:
    """Return the object in a JSON file of bounded size."""
    value = json.loads(
        read_bounded(path, max_size).decode(),
        parse_constant=_refuse_constant,
        parse_float=_finite,
    )
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


@contextlib.contextmanager
def naming(source: str, path: Path) -> Iterator[None]:
    """Turn whatever goes wrong inside into a `ValueError` that names the file."""
    try:
        yield
    except (OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path.name} of {source} cannot be read: {str(error)[:500]}. Get it "
            "again, update keras_mixer, or tell the owner of the repository."
        ) from error
