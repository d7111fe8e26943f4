"""A model in a file for another runtime, compared with the model before it is kept.

| format | ending | from the backends | read by |
| --- | --- | --- | --- |
| `onnx` | `.onnx` | all | ONNX Runtime |
| `openvino` | `.xml`, and a `.bin` beside it | all | OpenVINO |
| `tf_saved_model` | none: a folder | TensorFlow, JAX | TensorFlow, its Serving |
| `litert` | `.tflite` | TensorFlow | LiteRT |
| `torch` | `.pt2` | torch | torch |

Every file takes float32 images `(batch, height, width, channels)`, batches of any size,
and computes in float32, whatever the policy of the model. The normalisation is in the
file if it is in the model: then the images are pixels in [0, 255].
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from keras_mixer.export.runtimes import (
    load_litert,
    load_onnx,
    load_openvino,
    load_saved_model,
    load_torch,
    write_litert,
    write_onnx,
    write_openvino,
    write_saved_model,
    write_torch,
)
from keras_mixer.files import atomic_replace
from keras_mixer.models import as_mixer, plain_model

_BACKENDS = ("jax", "tensorflow", "torch")

# Largest relative differences, `|file - model| / |model|` over all outputs. Float32 in
# another order of summation stays below 1e-5; int8 was seen at 0.04 on CIFAR-10.
FLOAT32_TOLERANCE = 1e-4
HALF_PRECISION_TOLERANCE = 0.05
INT8_TOLERANCE = 0.2

_NUM_COMPARED = 32  # calibration images; all of them could fill the memory


class _Format(NamedTuple):
    ending: str  # of the file; a folder has none
    backends: tuple[str, ...]
    packages: tuple[str, ...]
    write: Callable
    load: Callable
    int8: bool = False


_FORMATS = {
    "onnx": _Format(
        ".onnx", _BACKENDS, ("onnx", "onnxruntime"), write_onnx, load_onnx, int8=True
    ),
    "openvino": _Format(
        ".xml",
        _BACKENDS,
        ("onnx", "onnxruntime", "openvino"),
        write_openvino,
        load_openvino,
        int8=True,
    ),
    "tf_saved_model": _Format(
        "",
        ("tensorflow", "jax"),
        ("tensorflow",),
        write_saved_model,
        load_saved_model,
    ),
    "litert": _Format(
        ".tflite",
        ("tensorflow",),
        ("tensorflow", "ai_edge_litert"),
        write_litert,
        load_litert,
    ),
    "torch": _Format(".pt2", ("torch",), ("torch",), write_torch, load_torch),
}
FORMATS = tuple(_FORMATS)


def export(model, path, *, format=None, calibration_images=None, overwrite=False):
    """Write a model for another runtime; keep the file only if it computes the same.

    The file is loaded with its own runtime and gets images in batches of two sizes. It
    appears under its name, whole, if its outputs are those of the model in float32 to
    within `FLOAT32_TOLERANCE` (`|file - model| / |model|`, Euclidean norms), and those
    of the model itself, whatever its precision, to within `HALF_PRECISION_TOLERANCE`.
    An int8 file must be within `INT8_TOLERANCE` on the calibration images.

    Args:
        model: An `MLPMixer` of any dtype policy, or a Keras model around one that
            `models.as_mixer` takes: with augmentation and dropout, which are left out,
            and one dense layer as its head. LoRA adapters are merged.
        path: Where to write. OpenVINO writes two files, `.xml` and `.bin`.
        format: `"onnx"`, `"openvino"`, `"tf_saved_model"`, `"litert"` or `"torch"`;
            `None` for that of the ending: `.onnx`, `.xml`, none, `.tflite`, `.pt2`.
        calibration_images: `None` for a float32 file. For an int8 one, for `"onnx"` and
            `"openvino"`, the images that give the ranges of the activations: what the
            model takes, `(n, height, width, channels)`, a few hundred from the training
            data (see `preprocess`). Kernels get one scale per output. Norms, GELUs and
            residual sums stay in float32.
        overwrite: Whether to replace what is at `path`.

    Returns:
        The relative difference that was found.

    Raises:
        FileExistsError: If there is something at `path` that is not to be replaced.
        ImportError: If a package that writes or reads the format is not installed.
        ValueError: If an argument is out of its range, the backend or the model cannot
            be written in the format, or the file computes something else; then nothing
            is left of it.
    """
    mixer = as_mixer(model)
    path = Path(path)
    format = _chosen_format(path, format)
    _check_possible(format)
    _check_target(path, format, overwrite)
    chosen, arguments = _FORMATS[format], {}
    int8 = calibration_images is not None
    if int8:
        calibration_images = _check_images(mixer, calibration_images, format)
        arguments["calibration_images"] = calibration_images
        images = calibration_images[:_NUM_COMPARED]
    else:
        images = _noise(mixer)

    # A GPU may multiply float32 with fewer bits than the tolerance is made for.
    with keras.device("cpu"):
        plain = plain_model(mixer)
        expected = keras.ops.convert_to_numpy(plain(images))
    _check_close(
        keras.ops.convert_to_numpy(model(images)),
        expected,
        HALF_PRECISION_TOLERANCE,
        "`model` does not compute what it does in float32",
    )
    with contextlib.ExitStack() as stack:
        new = stack.enter_context(atomic_replace(path))
        if chosen.ending == ".xml":
            new_weights = stack.enter_context(atomic_replace(path.with_suffix(".bin")))
        chosen.write(mixer, plain, new, **arguments)
        difference = _check_close(
            _in_two_batches(chosen.load(new), images),
            expected,
            INT8_TOLERANCE if int8 else FLOAT32_TOLERANCE,
            f"{str(path)!r} was written, is not the model, and was deleted again",
        )
        if chosen.ending == ".xml":
            os.replace(new.with_suffix(".bin"), new_weights)
    return difference


def _chosen_format(path, format):
    """Return the name of the format, by the path's ending if it is not given."""
    if format is None:
        endings = {entry.ending: name for name, entry in _FORMATS.items()}
        if path.suffix not in endings:
            raise ValueError(
                "`path` must end in one of "
                f"{', '.join(filter(None, endings))}, or in nothing for the folder of "
                f"a SavedModel; or give `format`. Received: {str(path)!r}"
            )
        return endings[path.suffix]
    if format not in _FORMATS:
        raise ValueError(
            f"`format` must be one of {', '.join(_FORMATS)}. Received: {format!r}"
        )
    ending = _FORMATS[format].ending
    if ending and path.suffix != ending:
        raise ValueError(
            f"`path` must end in {ending} for the format {format!r}. "
            f"Received: {str(path)!r}"
        )
    return format


def _check_possible(format):
    """Raise unless the backend and the packages installed can write the format."""
    backend, entry = keras.backend.backend(), _FORMATS[format]
    if backend not in entry.backends:
        possible = [name for name, e in _FORMATS.items() if backend in e.backends]
        raise ValueError(
            f"The backend {backend} cannot write {format!r}, only "
            f"{', '.join(possible)}. Set KERAS_BACKEND={entry.backends[0]} to write "
            f"{format!r}."
        )
    missing = [p for p in entry.packages if importlib.util.find_spec(p) is None]
    if missing:
        raise ImportError(
            f"Writing {format!r} and checking it needs {' and '.join(missing)}: "
            "pip install 'keras-mixer[export]'"
        )


def _check_target(path, format, overwrite):
    """Raise unless `path` is free, or holds what may be replaced."""
    folder = not _FORMATS[format].ending
    if path.is_dir() != folder and path.exists():
        raise FileExistsError(
            f"{str(path)!r} is a {'file' if folder else 'folder'}. Choose another name."
        )
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if names and "saved_model.pb" not in names:
        raise FileExistsError(
            f"{str(path)!r} is not the folder of a SavedModel. Choose another name."
        )
    if (names or path.is_file()) and not overwrite:
        raise FileExistsError(
            f"{str(path)!r} exists. Choose another name, or replace it with "
            "`overwrite=True` (`--force` on the command line)."
        )


def _check_images(model, images, format):
    """Return the calibration images as a float32 array, if int8 can be written."""
    if not _FORMATS[format].int8:
        possible = [name for name, entry in _FORMATS.items() if entry.int8]
        raise ValueError(
            f"`calibration_images` are for {' and '.join(possible)}, the formats that "
            f"are written in int8. Received: format={format!r}"
        )
    images = np.asarray(images)
    if (
        images.ndim != 4
        or images.shape[1:] != model.input_shape[1:]
        or len(images) < 2
        or images.dtype.kind not in "uif"
        or not np.isfinite(images).all()
    ):
        raise ValueError(
            "`calibration_images` must be at least 2 images as the model takes them, "
            f"(n, {', '.join(map(str, model.input_shape[1:]))}), all finite. "
            f"Received: shape={images.shape}, dtype={images.dtype}"
        )
    return images.astype("float32")


def _noise(model):
    """Return images of every value that a pixel can have."""
    pixels = np.random.default_rng(0).uniform(0, 255, (4, *model.input_shape[1:]))
    if not model.config["include_preprocessing"]:
        pixels = pixels * model.preprocessing.scale + model.preprocessing.offset
    return pixels.astype("float32")


def _in_two_batches(run, images):
    """Return the outputs of `run`, from a batch of one image and one of the others."""
    return np.concatenate([run(images[:1]), run(images[1:])])


def _check_close(outputs, expected, tolerance, failure):
    """Return the relative difference, or raise `failure` if it is too large."""
    scale = np.linalg.norm(expected) or 1.0  # a new head gives zeros
    difference = float(np.linalg.norm(outputs - expected) / scale)
    if not difference <= tolerance:  # true for NaN, too
        raise ValueError(
            f"{failure}: the outputs differ by {difference:.1e} of their size. Allowed "
            f"are {tolerance:.0e}."
        )
    return difference
