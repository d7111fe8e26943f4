"""A model in a file for another runtime, compared with the model before it is kept.

| format | ending | from the backends | read by | precision |
| --- | --- | --- | --- | --- |
| `onnx` | `.onnx` | all | ONNX Runtime | float32, float16, int8 |
| `openvino` | `.xml`, and a `.bin` beside it | all | OpenVINO | all, int8 |
| `tf_saved_model` | none: a folder | TensorFlow, JAX | TensorFlow, its Serving | all |
| `litert` | `.tflite` | TensorFlow | LiteRT | float32 |
| `torch` | `.pt2` | torch | torch | all |

Every file takes float32 images `(batch, height, width, channels)`, batches of any size,
and gives float32 outputs. It computes in the precision that is asked for, whatever the
dtype policy of the model. The normalisation is in the file if it is in the model: then
the images are pixels in [0, 255].
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray

from keras_mixer.export.formats import (
    FORMATS,
    HALF_PRECISION_TOLERANCE,
    INT8_TOLERANCE,
    PRECISIONS,
    TOLERANCES,
    FormatName,
    Precision,
    format_of,
    relative_difference,
)
from keras_mixer.export.runtimes import Images, Job
from keras_mixer.files import atomic_replace
from keras_mixer.layers import nested_layers
from keras_mixer.models import (
    FoundMixer,
    find_mixer,
    plain_model,
    rebuilt,
    split_head,
    without_augmentation,
)

# Formats that Keras writes itself, of any graph.
_BY_KERAS = ("tf_saved_model", "litert", "torch")
_NUM_COMPARED = 32  # calibration images; all of them could fill the memory


def export(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    format: FormatName | None = None,
    precision: Precision = "float32",
    calibration_images: ArrayLike | None = None,
    overwrite: bool = False,
) -> float:
    """Write a model for another runtime; keep the file only if it computes the same.

    The file is loaded with its own runtime and gets images in batches of two sizes. It
    appears under its name, whole, if its outputs differ from those of the model in
    float32 by no more than the tolerance of its precision (`|file - model| / |model|`,
    Euclidean norms): `FLOAT32_TOLERANCE`, `FLOAT16_TOLERANCE`, for bfloat16
    `HALF_PRECISION_TOLERANCE`, for int8 `INT8_TOLERANCE` on the calibration images. The
    model itself must be within `HALF_PRECISION_TOLERANCE`, whatever its dtype policy.

    Args:
        model: An `MLPMixer` of any dtype policy, or a Keras model around one. Layers
            that act in training only are left out, LoRA adapters are merged. ONNX and
            OpenVINO files hold dense layers, batch norms and activations, one after
            another, behind the Mixer; in the other formats a float32 model may have
            any graph that Keras can export.
        path: Where to write. OpenVINO writes two files, `.xml` and `.bin`.
        format: `"onnx"`, `"openvino"`, `"tf_saved_model"`, `"litert"` or `"torch"`;
            `None` for that of the ending: `.onnx`, `.xml`, none, `.tflite`, `.pt2`.
        precision: What the file computes in: `"float32"`; `"bfloat16"`, not for ONNX
            and LiteRT; `"float16"`, not for LiteRT. Norms and the head stay in float32,
            except in OpenVINO, which gets the precision as a hint in the file
            (`runtime_options`, `INFERENCE_PRECISION_HINT`) and decides by operation;
            `load` follows the hint. A processor without units for it computes in
            float32, and then that is what is compared. The SavedModel and `.pt2` are
            the model under the policy `mixed_bfloat16` or `mixed_float16`.
        calibration_images: `None` for a file in float. For an int8 one, for `"onnx"`
            and `"openvino"`, the images that give the ranges of the activations: what
            the model takes, `(n, height, width, channels)`, a few hundred from the
            training data (see `preprocess`). Kernels get one scale per output. Norms,
            GELUs and residual sums stay in `precision`, float32 for ONNX.
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
    path = Path(path).expanduser()
    name = _chosen_format(path, format)
    _check_possible(name)
    _check_precision(name, precision, int8=calibration_images is not None)
    _check_target(path, name, overwrite)
    found = find_mixer(model)
    calibration = None
    if calibration_images is not None:
        calibration = _check_images(found, calibration_images, name)
    images = _noise(found) if calibration is None else calibration[:_NUM_COMPARED]

    # A GPU may multiply float32 with fewer bits than the tolerance is made for.
    with keras.device("cpu"):
        job = _float32_job(found, name, precision, calibration)
        expected = keras.ops.convert_to_numpy(job.graph(images, training=False))
    _check_close(
        keras.ops.convert_to_numpy(model(images, training=False)),
        expected,
        HALF_PRECISION_TOLERANCE,
        "`model` does not give the outputs that its weights give in float32",
    )
    if precision != "float32" and job.mixer is not None:
        half = rebuilt(job.mixer, dtype=f"mixed_{precision}")
        job = replace(job, graph=_with_more(half, job.more), precision=precision)
    tolerance = TOLERANCES[precision] if calibration is None else INT8_TOLERANCE
    return _write_checked(name, job, path, images, expected, tolerance)


def _write(name: str, job: Job, path: Path) -> None:
    """Write a file; say what to do where Keras cannot write what it was given."""
    try:
        FORMATS[name].write(job, path)
    except Exception as error:
        if job.mixer is not None or isinstance(error, OSError | MemoryError):
            raise
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ValueError(
            f"Keras cannot write {job.graph.name!r} as {name!r}: {reason[:300]} Give "
            "the Mixer a head of dense layers, batch norms and activations, one after "
            "another, which every format can hold."
        ) from error


def _float32_job(
    found: FoundMixer, format: str, precision: str, calibration: Images | None
) -> Job:
    """Return what is to be written, in float32: built-in layers, or the model as it is.

    Raises:
        ValueError: If the format, or the precision, needs a chain of layers, and the
            model is none.
    """
    try:
        mixer, more = split_head(found.model)
    except ValueError:
        floats = {layer.compute_dtype for layer in nested_layers(found.model)}
        half = floats & {"float16", "bfloat16"}
        if format in _BY_KERAS and precision == "float32" and not half:
            return Job(found, None, without_augmentation(found.model))
        raise
    more = tuple(map(_in_float32, more))
    return Job(
        found, mixer, _with_more(plain_model(mixer), more), "float32", calibration, more
    )


def _in_float32(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Return a copy of a layer, which belongs to no model."""
    copy = type(layer).from_config({**layer.get_config(), "dtype": "float32"})
    copy.build_from_config(layer.get_build_config())
    copy.set_weights(layer.get_weights())
    return copy


def _with_more(
    model: keras.Model, layers: tuple[keras.layers.Layer, ...]
) -> keras.Model:
    """Return the model with more layers behind it; itself if there are none."""
    outputs = model.output
    for layer in layers:
        outputs = layer(outputs)
    return keras.Model(model.input, outputs, name=model.name) if layers else model


def _write_checked(
    name: str,
    job: Job,
    path: Path,
    images: Images,
    expected: NDArray[Any],
    tolerance: float,
) -> float:
    """Write a file, and give it its name if its runtime computes what is expected."""
    chosen = FORMATS[name]
    with contextlib.ExitStack() as stack:
        new = stack.enter_context(atomic_replace(path))
        if chosen.ending == ".xml":
            new_weights = stack.enter_context(atomic_replace(path.with_suffix(".bin")))
        _write(name, job, new)
        difference = _check_close(
            _in_two_batches(chosen.load(new), images),
            expected,
            tolerance,
            f"The file for {str(path)!r} does not compute what `model` does. It was "
            "deleted",
        )
        if chosen.ending == ".xml":
            os.replace(new.with_suffix(".bin"), new_weights)
    return difference


def _chosen_format(path: Path, format: str | None) -> str:
    """Return the name of the format, by the path's ending if it is not given."""
    if format is None:
        name = format_of(path)
        if name is None:
            endings = filter(None, (entry.ending for entry in FORMATS.values()))
            raise ValueError(
                f"`path` must end in one of {', '.join(endings)}, or in nothing for "
                f"the folder of a SavedModel; or give `format`. Received: {str(path)!r}"
            )
        return name
    if format not in FORMATS:
        raise ValueError(
            f"`format` must be one of {', '.join(FORMATS)}. Received: {format!r}"
        )
    ending = FORMATS[format].ending
    if ending and path.suffix != ending:
        raise ValueError(
            f"`path` must end in {ending} for the format {format!r}. Received: "
            f"{str(path)!r}"
        )
    return format


def _check_possible(format: str) -> None:
    """Raise unless the backend and the packages installed can write the format."""
    backend, entry = keras.backend.backend(), FORMATS[format]
    if backend not in entry.backends:
        possible = [name for name, e in FORMATS.items() if backend in e.backends]
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


def _check_precision(format: str, precision: str, *, int8: bool) -> None:
    """Raise unless the format can be written in the precision."""
    if precision not in PRECISIONS:
        raise ValueError(
            f"`precision` must be one of {', '.join(PRECISIONS)}. Received: "
            f"precision={precision!r}"
        )
    if precision not in FORMATS[format].precisions:
        possible = [n for n, entry in FORMATS.items() if precision in entry.precisions]
        raise ValueError(
            f"`precision` must be one of {', '.join(FORMATS[format].precisions)} for "
            f"the format {format!r}. Received: precision={precision!r}, which "
            f"{', '.join(possible)} can be written in."
        )
    if int8 and precision != "float32" and format != "openvino":
        raise ValueError(
            "`precision` beside int8 must be float32, except for 'openvino'. Received: "
            f"precision={precision!r} with `calibration_images`"
        )


def _check_target(path: Path, format: str, overwrite: bool) -> None:
    """Raise unless `path` is free, or holds what may be replaced."""
    folder = not FORMATS[format].ending
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
            "`overwrite=True`."
        )


def _check_images(found: FoundMixer, given: ArrayLike, format: str) -> Images:
    """Return the calibration images as a float32 array, if int8 can be written."""
    if not FORMATS[format].int8:
        possible = [name for name, entry in FORMATS.items() if entry.int8]
        raise ValueError(
            f"`calibration_images` are for {' and '.join(possible)}, the formats that "
            f"are written in int8. Received: format={format!r}"
        )
    images = np.asarray(given)
    if (
        images.ndim != 4
        or images.shape[1:] != found.image_shape
        or len(images) < 2
        or images.dtype.kind not in "uif"
        or not np.isfinite(images).all()
    ):
        raise ValueError(
            "`calibration_images` must be at least 2 images as the model takes them, "
            f"(n, {', '.join(map(str, found.image_shape))}), all finite. "
            f"Received: shape={images.shape}, dtype={images.dtype}"
        )
    return images.astype("float32")


def _noise(found: FoundMixer) -> Images:
    """Return images of every value that a pixel can have."""
    pixels = np.random.default_rng(0).uniform(0, 255, (4, *found.image_shape))
    return (pixels * found.scale + found.offset).astype("float32")


def _in_two_batches(run: Callable[[Images], Images], images: Images) -> NDArray[Any]:
    """Return the outputs of `run`, from a batch of one image and one of the others."""
    return np.concatenate([run(images[:1]), run(images[1:])])


def _check_close(
    outputs: NDArray[Any], expected: NDArray[Any], tolerance: float, failure: str
) -> float:
    """Return the relative difference, or raise `failure` if it is too large."""
    difference = relative_difference(outputs, expected)
    if not difference <= tolerance:  # true for NaN, too
        raise ValueError(
            f"{failure}: the relative difference of the outputs is {difference:.1e}. "
            f"Allowed are {tolerance:.0e}."
        )
    return difference
