"""The model that another one learns from: what it takes, gives, and how it is known."""

import hashlib
import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np
from numpy.typing import NDArray

from keras_mixer.distribution import Devices
from keras_mixer.files import sha256_of
from keras_mixer.models import find_mixer, stems_of
from keras_mixer.training.frozen import frozen_function
from keras_mixer.training.run_settings import weights_text

Run = Callable[[NDArray[Any]], NDArray[Any]]

_SMALLEST = float(np.finfo("float32").tiny)


@runtime_checkable
class ExportedFile(Protocol):
    """What `export.load` returns: the function of a file that knows what it takes."""

    path: Path

    @property
    def image_shape(self) -> tuple[int | None, ...]:
        """`(height, width, channels)`, `None` for what may have any size."""

    @property
    def value_range(self) -> tuple[float, float]:
        """What the pixel values 0 and 255 become."""

    def __call__(self, images: Any) -> NDArray[Any]:
        """Return the outputs for a batch of images."""


@dataclass(frozen=True)
class Teacher:
    """A function from images to logits, and what it takes.

    Attributes:
        logits: Takes float32 images, `(batch, *image_shape)`, in any thread.
        image_shape: `(height, width, channels)`.
        scale: Factor in `pixels * scale + offset`, which is what it takes.
        offset: The summand.
        fingerprint: A digest that is the same for the same teacher.
    """

    logits: Run
    image_shape: tuple[int, int, int]
    scale: NDArray[np.float32]
    offset: NDArray[np.float32]
    fingerprint: str


@dataclass(frozen=True)
class _Opened:
    """A teacher before it is compared with its student."""

    run: Run
    image_shape: tuple[int | None, ...]
    value_range: Any
    labels: Sequence[str] | None
    activation: str | None
    digest: str


def open_teacher(
    teacher: Any,
    student: keras.Model,
    label_names: Sequence[str],
    *,
    devices: Devices,
    batch_size: int,
    deterministic: bool = True,
) -> Teacher:
    """Return the `Teacher` of a model or a file, after one batch of noise.

    Args:
        teacher: A Keras model, with logits, softmax or sigmoid; what `export.load`
            returns; or the path of an exported file. A Mixer, also one inside another
            model, gets images in its own range; an OpenVINO file in the one it names;
            everything else pixels in [0, 255].
        student: The model that learns.
        label_names: The classes of the training data.
        devices: What `distribution.start` returned.
        batch_size: Images of one batch of this process.
        deterministic: As in `RunOptions`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is none of these, its classes or its channels differ from the
            student's, it shares weights with the student, or it cannot compute there.
    """
    _check_place(devices)
    if isinstance(teacher, str | os.PathLike):
        teacher = _load(teacher)
    if isinstance(teacher, keras.Model):
        opened = _of_model(teacher, student, devices, deterministic)
    elif isinstance(teacher, ExportedFile):
        opened = _of_file(teacher)
    else:
        raise ValueError(
            "`teacher` must be a Keras model, or an exported file: its path or what "
            f"`export.load` returns. Received: {type(teacher).__name__}"
        )
    _check_labels(opened.labels, label_names)
    shape = _image_shape(opened.image_shape, student.input_shape[1:])
    low, high = np.asarray(opened.value_range, "float64").T
    scale, offset = ((high - low) / 255).astype("float32"), low.astype("float32")
    noise = np.random.default_rng(0).uniform(0, 255, (batch_size, *shape))
    outputs = opened.run((noise * scale + offset).astype("float32"))
    _check_outputs(outputs, student.output_shape[-1])
    to_logits = _to_logits(opened.activation or _guessed_activation(outputs))
    parts = (opened.digest, opened.activation, shape, scale.tolist(), offset.tolist())
    return Teacher(
        logits=lambda images: np.asarray(to_logits(opened.run(images)), "float32"),
        image_shape=shape,
        scale=scale,
        offset=offset,
        fingerprint=hashlib.sha256(repr(parts).encode()).hexdigest()[:16],
    )


def _check_place(devices: Devices) -> None:
    if keras.config.backend() != "tensorflow":
        return
    import tensorflow as tf

    if isinstance(getattr(devices, "strategy", None), tf.distribute.TPUStrategy):
        raise ValueError(
            "`teacher` cannot compute on the TPU with TensorFlow. Use the JAX backend "
            'and `distribution.start("data")`.'
        )


def _load(path: str | os.PathLike[str]) -> Any:
    # `export` lies on this floor, so it is called as a user calls it: by the package.
    import keras_mixer

    try:
        return keras_mixer.export.load(path)
    except (ValueError, FileNotFoundError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise (FileNotFoundError if missing else ValueError)(
            "`teacher` must be a Keras model or an exported file. Received: teacher="
            f"{os.fspath(path)!r}. Other files are read by `keras.saving.load_model`, "
            "repositories by `keras_mixer.from_pretrained`, named weights by the "
            f"constructors, such as `keras_mixer.MixerB16`. ({error})"
        ) from error


def _of_model(
    teacher: keras.Model, student: keras.Model, devices: Devices, deterministic: bool
) -> _Opened:
    own = {id(variable) for variable in student.variables}
    if any(id(variable) in own for variable in teacher.variables):
        raise ValueError(
            "`teacher` must be another model than the one that is trained. Received: "
            "two models that share weights. `keras.models.clone_model` and "
            "`set_weights` make a copy."
        )
    if not teacher.variables:
        raise ValueError(
            f"`teacher` must be built: it has no weights. Received: {teacher.name!r}"
        )
    image_shape: Any = getattr(teacher, "input_shape", None)
    value_range: Any = (0.0, 255.0)
    labels = getattr(teacher, "labels", None)
    if stems_of(teacher):
        found = find_mixer(teacher)
        image_shape, value_range = (None, *found.image_shape), found.value_range
        labels = found.labels
    if not isinstance(image_shape, tuple) or len(image_shape) != 4:
        raise ValueError(
            "`teacher` must take one image, (batch, height, width, channels). "
            f"Received: {teacher.name!r} with input_shape={image_shape}"
        )
    return _Opened(
        run=frozen_function(teacher, devices, deterministic=deterministic),
        image_shape=image_shape[1:],
        value_range=value_range,
        labels=labels,
        activation=_activation(teacher),
        digest=weights_text(teacher),
    )


def _of_file(teacher: ExportedFile) -> _Opened:
    return _Opened(
        run=teacher,
        image_shape=teacher.image_shape,
        value_range=teacher.value_range,
        labels=None,
        activation=None,
        digest=_digest(teacher.path),
    )


def _digest(path: Path) -> str:
    """Return the digest of a file, of a folder, or of an `.xml` and its `.bin`."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    else:
        beside = path.with_suffix(".bin")
        files = [path, beside] if path.suffix == ".xml" and beside.exists() else [path]
    names = (file.relative_to(path.parent).as_posix() for file in files)
    if not path.is_dir():  # a file may have another name when the run goes on
        names = (file.suffix for file in files)
    return repr([(name, sha256_of(f)) for name, f in zip(names, files, strict=True)])


def _image_shape(
    own: Sequence[int | None], of_student: Sequence[int]
) -> tuple[int, int, int]:
    if len(own) != 3 or own[2] not in (None, of_student[2]):
        raise ValueError(
            f"`teacher` must take images of {of_student[2]} channels, as the model "
            f"does. Received: images of {tuple(own)}"
        )
    height, width, channels = (
        edge or other for edge, other in zip(own, of_student, strict=True)
    )
    return height, width, channels


def _check_labels(labels: Sequence[str] | None, names: Sequence[str]) -> None:
    """Raise a `ValueError` unless class i has one name, where both have names."""
    numbers = [str(i) for i in range(len(names))]
    if not labels or list(names) == numbers or list(labels) == numbers:
        return
    own, wanted = (
        [unicodedata.normalize("NFC", str(name)) for name in all_names]
        for all_names in (labels, names)
    )
    if len(own) != len(wanted):
        raise _other_number(len(own), len(wanted))
    wrong = [i for i, name in enumerate(own) if name != wanted[i]]
    if not wrong:
        return
    order = " the same names in another order," if set(own) == set(wanted) else ""
    examples = ", ".join(
        f"class {i} is {own[i]!r} there and {wanted[i]!r} here" for i in wrong[:3]
    )
    raise ValueError(
        "`teacher` must have the classes of the training data. Received:"
        f"{order} {len(wrong)} of {len(own)} differ: {examples}. If they mean the "
        "same, set `teacher.labels` to the names of the data."
    )


def _check_outputs(outputs: NDArray[Any], num_classes: int) -> None:
    if outputs.ndim != 2:
        raise ValueError(
            "`teacher` must give one number per class, (batch, classes). Received: "
            f"outputs of shape {outputs.shape}"
        )
    if outputs.shape[1] != num_classes:
        raise _other_number(outputs.shape[1], num_classes)
    if not np.isfinite(outputs).all():
        raise ValueError(
            "`teacher` must give numbers. Received: NaN or infinity for noise"
        )


def _other_number(own: int, wanted: int) -> ValueError:
    return ValueError(
        "`teacher` and `model` must have the same number of classes. Received: "
        f"{own} and {wanted}."
    )


def _activation(model: keras.Model) -> str | None:
    """Return the activation of the last layer, `None` if that does not tell."""
    for layer in reversed(getattr(model, "layers", ())):
        if isinstance(layer, keras.Model):
            return _activation(layer)
        if isinstance(layer, keras.layers.Softmax):
            return "softmax"
        if isinstance(layer, keras.layers.Dropout):
            continue
        activation = getattr(layer, "activation", None)
        if not callable(activation):
            return None
        if activation is keras.activations.linear and isinstance(
            layer, keras.layers.Activation
        ):
            continue
        name = getattr(activation, "__name__", "")
        return name if name in _LOGITS else None
    return None


def _guessed_activation(outputs: NDArray[Any]) -> str:
    """Return what a function without layers ends with, by what it gives for noise."""
    if not outputs.any() or outputs.min() < 0 or outputs.max() > 1:
        return "linear"
    if np.allclose(outputs.sum(axis=-1), 1, atol=1e-2):
        return "softmax"
    raise ValueError(
        "`teacher` must give logits or the probabilities of a softmax. Received: "
        "numbers in [0, 1] that do not add up to 1. Export the model with "
        "`classifier_activation=None`."
    )


def _from_softmax(outputs: NDArray[Any]) -> NDArray[Any]:
    return np.log(np.maximum(outputs, _SMALLEST))


def _from_sigmoid(outputs: NDArray[Any]) -> NDArray[Any]:
    wide = np.clip(outputs.astype("float64"), _SMALLEST, 1 - 2.0**-25)
    return np.log(wide) - np.log1p(-wide)


def _unchanged(outputs: NDArray[Any]) -> NDArray[Any]:
    return outputs


# Logits up to a summand that is the same for all classes, which a softmax forgets.
_LOGITS: dict[str, Run] = {
    "linear": _unchanged,
    "log_softmax": _unchanged,
    "softmax": _from_softmax,
    "sigmoid": _from_sigmoid,
}


def _to_logits(activation: str) -> Run:
    return _LOGITS[activation]
