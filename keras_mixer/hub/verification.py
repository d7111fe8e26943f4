"""Is a model what it says it is? Its arrays, its files, and the paper's equations."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt

from keras_mixer.checkpoints import (
    CARD,
    CHECKSUMS,
    CONFIG,
    LABELS,
    METADATA,
    TIMM_WEIGHTS,
    WEIGHTS,
    check_finite,
    check_shapes,
    read_weights,
    shapes_of,
)
from keras_mixer.files import sha256_of
from keras_mixer.hub.model_files import read_model
from keras_mixer.hub.numpy_mixer import mixer
from keras_mixer.models import MLPMixer, model_weights
from keras_mixer.preprocessing import Range
from keras_mixer.variants import num_patches, parameter_count, weight_shapes

# Of the largest number compared. Float32 is exact to 6e-8, and the sums and products
# of a Mixer lose one digit or two.
TOLERANCE = 1e-5

_SIZES = (
    "patch_size",
    "hidden_dim",
    "num_blocks",
    "tokens_mlp_dim",
    "channels_mlp_dim",
    "num_classes",
)


class Difference(NamedTuple):
    """The largest absolute difference between two arrays, and the one allowed."""

    largest: float
    allowed: float


@dataclass(frozen=True)
class Report:
    """What `verify` found; prints as a table.

    Attributes:
        source: What was verified.
        sha256: Of the file, or of the weights in a folder; `None` for neither.
        sizes: The sizes of the model, by the arguments of `mlp_mixer`.
        arrays: Number of arrays.
        parameters: Number of parameters.
        differences: What was compared with the NumPy Mixer -> `Difference`.
    """

    source: str
    sha256: str | None
    sizes: dict[str, Any]
    arrays: int
    parameters: int
    differences: dict[str, Difference]

    def __str__(self) -> str:
        rows: dict[str, Any] = {"verified": self.source}
        rows |= {"sha256": self.sha256 or "none"} | self.sizes
        rows["arrays"] = f"{self.arrays}, each expected, of the right shape and finite"
        rows["parameters"] = f"{self.parameters:,}"
        for name, (largest, allowed) in self.differences.items():
            rows[name] = f"within {largest:.1e} of NumPy, {allowed:.1e} allowed"
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def verify(
    source: keras.Model | str | os.PathLike[str],
    *,
    same_as: str | os.PathLike[str] | None = None,
    input_shape: tuple[int, int, int] | None = None,
    approximate_gelu: bool | None = None,
    value_range: Range | tuple[Range, ...] | None = None,
) -> Report:
    """Check all that can be checked of a model; return what was found.

    Every array has the name and shape that the sizes ask for, none is missing or left
    over, all numbers are finite, and the number of parameters is exact. On drawn
    images `pre_logits` and logits agree with a Mixer in NumPy and float64, within
    `TOLERANCE` times the largest of them. In a folder every file has its checksum, and
    the graph of built-in layers that Keras loads without this package agrees, too.

    Args:
        source: An `MLPMixer` in float32, or where one is, as in `read_model`.
        same_as: A weight file whose arrays the model must hold, bit for bit.
        input_shape: As in `read_model`, for a file of weights alone.
        approximate_gelu: The same.
        value_range: The same.

    Raises:
        OSError: If there is no such file, or it cannot be read.
        ValueError: If a check fails. The message names it.
    """
    if isinstance(source, keras.Model):
        return _verify(source, f"The model {source.name!r}", None, same_as)
    source = os.path.expanduser(source)
    path = Path(source)
    if os.path.isdir(source):  # `Path("")` is the working directory
        with _check("checksums", str(source)):
            _check_checksums(path)
    # A GPU may multiply float32 with fewer bits than the tolerance is made for.
    with keras.device("cpu"):
        model = read_model(
            source,
            input_shape=input_shape,
            approximate_gelu=approximate_gelu,
            value_range=value_range,
        )
        return _verify(model, str(source), path, same_as)


def _verify(
    model: keras.Model,
    name: str,
    path: Path | None,
    same_as: str | os.PathLike[str] | None,
) -> Report:
    with _check("type", name):
        _check_type(model)
        config, weights = model.config, model_weights(model)
    with _check("names and shapes", name):
        check_shapes(shapes_of(weights), _expected_shapes(config), source=name)
    parameters = sum(array.size for array in weights.values())
    with _check("parameter count", name):
        _check_equal("its parameters", parameters, parameter_count(config))
    for key, array in weights.items():
        with _check(f"numbers in {key}", name):
            check_finite(array)
    if same_as is not None:
        with _check(f"equality with {str(same_as)!r}", name):
            _check_same(weights, read_weights(same_as)[0])
    images, expected = _expect(model, weights)
    with _check("forward pass", name):
        differences = _compare(model, config, images, expected)
    sha256 = None
    if path and path.is_dir():
        with _check("metadata", name):
            _check_metadata(path, model, parameters)
        with _check("plain Keras model", name):
            plain = keras.saving.load_model(path, compile=False, safe_mode=True)
            plain = _compare(plain, config, images, expected)
        if (path / TIMM_WEIGHTS).is_file():
            with _check("weights for timm", name):
                _check_same(weights, read_weights(path / TIMM_WEIGHTS)[0])
        differences |= {f"plain {key}": plain[key] for key in plain}
        sha256 = sha256_of(path / WEIGHTS)
    elif path and path.is_file():
        sha256 = sha256_of(path)
    sizes = {"input_shape": config["input_shape"], **{k: config[k] for k in _SIZES}}
    return Report(name, sha256, sizes, len(weights), parameters, differences)


def _expect(
    model: MLPMixer, weights: dict[str, npt.NDArray[np.float32]]
) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], npt.NDArray[Any] | None]]:
    """Return drawn images as the model takes them, and what NumPy makes of them."""
    config, record = model.config, model.preprocessing
    shape = (2, *config["input_shape"])  # two: images must not mix
    images = np.random.default_rng(0).uniform(0, 255, shape).astype("float32")
    normalised = record.normalize(images.astype("float64"))
    if not config["include_preprocessing"]:
        images = normalised.astype("float32")
    expected = mixer(weights, normalised, approximate_gelu=config["approximate_gelu"])
    return images, expected


def _compare(
    model: keras.Model,
    config: dict[str, Any],
    images: npt.NDArray[Any],
    expected: tuple[npt.NDArray[Any], npt.NDArray[Any] | None],
) -> dict[str, Difference]:
    """Return output -> `Difference` of a model, ours or of built-in layers."""
    pre_logits, logits = expected
    nodes = [model.get_layer("pre_logits").output, model.output]
    own, outputs = keras.Model(model.input, nodes)(images)
    differences = {"pre_logits": _difference("pre_logits", own, pre_logits)}
    if logits is not None:
        head = model.get_layer("head")
        own = keras.ops.add(keras.ops.matmul(own, head.kernel), head.bias)
        differences["logits"] = _difference("logits", own, logits)
        # Of its own logits: an activation may magnify what is allowed of them.
        activation = keras.activations.get(config["classifier_activation"])
        activated = keras.ops.convert_to_numpy(activation(own))
        _difference("the outputs", outputs, activated)
    return differences


def _difference(
    name: str, actual: keras.KerasTensor, expected: npt.NDArray[Any]
) -> Difference:
    actual = keras.ops.convert_to_numpy(actual)
    _check_equal(f"the shape of {name}", actual.shape, expected.shape)
    largest = float(np.max(np.abs(actual - expected)))
    allowed = TOLERANCE * float(np.max(np.abs(expected)))
    if not largest <= allowed:  # nor is NaN
        raise ValueError(
            f"{name} differ by {largest:.3g} from what they must be, {allowed:.3g} is "
            "allowed. The model, the file or the installation is broken"
        )
    return Difference(largest, allowed)


def _check_type(model: object) -> None:
    if not isinstance(model, MLPMixer):
        raise ValueError(f"it must be an `MLPMixer`. Received: {type(model).__name__}")
    dtypes = {layer.compute_dtype for layer in model.layers}
    if dtypes - {"float32", "float64"}:
        raise ValueError(
            "it must compute in float32, for which the tolerance is made. Received: "
            f"{', '.join(sorted(dtypes))}. Write it to a folder, and verify that"
        )


def _expected_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    image_shape = config["input_shape"]
    return weight_shapes(
        **{name: config[name] for name in _SIZES},
        num_patches=num_patches(image_shape, config["patch_size"]),
        channels=image_shape[2],
    )


def _check_same(
    weights: dict[str, npt.NDArray[Any]], others: dict[str, npt.NDArray[Any]]
) -> None:
    _check_equal("the names and shapes", shapes_of(weights), shapes_of(others))
    different = [
        name
        for name in sorted(weights)
        if weights[name].tobytes() != others[name].tobytes()
    ]
    if different:
        raise ValueError(
            f"{len(different)} arrays differ, {', '.join(different[:5])} first"
        )


def _check_checksums(folder: Path) -> None:
    for name in (CHECKSUMS, CONFIG, WEIGHTS, METADATA, CARD):
        if not (folder / name).is_file():
            raise ValueError(f"there is no {name}; it is not a published model")
    # Tools of git and of the Hub add hidden ones.
    paths = [path for path in folder.iterdir() if not path.name.startswith(".")]
    actual = {
        path.name: {"sha256": sha256_of(path), "size": path.stat().st_size}
        for path in paths
        if path.name != CHECKSUMS
    }
    checksums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    checksums = {n: c for n, c in checksums.items() if not n.startswith(".")}
    names = actual.keys() | checksums.keys()
    wrong = sorted(n for n in names if actual.get(n) != checksums.get(n))
    if wrong:
        raise ValueError(
            f"{CHECKSUMS} does not match {', '.join(wrong)}. Get the files again"
        )


def _check_metadata(folder: Path, model: MLPMixer, parameters: int) -> None:
    metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    _check_equal("`parameter_count`", metadata.get("parameter_count"), parameters)
    path = folder / LABELS
    labels: tuple[str, ...] | None = None
    if path.is_file():
        labels = tuple(json.loads(path.read_text(encoding="utf-8")))
    _check_equal(f"the names in {LABELS}", labels, model.labels)


def _check_equal(what: str, actual: object, expected: object) -> None:
    if actual != expected:
        raise ValueError(f"{what} must be {expected}. Received: {actual}")


@contextmanager
def _check(check: str, name: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into a `ValueError` that names the check."""
    try:
        yield
    except MemoryError as error:
        raise MemoryError(f"{name}: there is not enough memory") from error
    except Exception as error:  # a damaged file can make the libraries raise anything
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name} fails the check of its {check}: {reason}") from error
