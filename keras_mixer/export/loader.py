"""Exported files as functions again, in the fastest precision that is close enough."""

import os
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from keras_mixer.export.formats import (
    FORMATS,
    TOLERANCES,
    Precision,
    format_of,
    relative_difference,
)
from keras_mixer.export.image_shapes import image_shape
from keras_mixer.export.runtimes import (
    Images,
    Run,
    describe_openvino,
    load_openvino,
    open_onnx,
)

# How much faster a half precision must be than float32 to be taken.
_SPEEDUP = 1.1
_ROUNDS = 3


@dataclass(frozen=True)
class ExportedModel:
    """The function of an exported file: `outputs = model(images)`, in any thread.

    Attributes:
        path: The file, or the folder of a SavedModel.
        format: Its format, as in `export`.
        precision: What it computes in; `"as written"` for a SavedModel, a `.tflite` and
            a `.pt2`, which hold it in their operations. An int8 file computes what is
            not int8 in it.
    """

    path: Path
    format: str
    precision: str
    run: Run = field(repr=False)

    @cached_property
    def image_shape(self) -> tuple[int | None, ...]:
        """`(height, width, channels)`, `None` for what may have any size."""
        return image_shape(self.path, self.format)

    @cached_property
    def value_range(self) -> tuple[float, float]:
        """What the pixel values 0 and 255 are for it.

        Known of OpenVINO's files; (0, 255) for the others, which is right if the model
        normalises inside.
        """
        if self.format == "openvino":
            return describe_openvino(self.path).value_range
        return 0.0, 255.0

    def __call__(self, images: ArrayLike) -> Images:
        """Return the outputs, float32 `(batch, num_classes)`.

        Args:
            images: `(batch, height, width, channels)`, as `preprocess` returns them for
                the model that was exported.

        Raises:
            ValueError: If it is no batch of images.
        """
        array = np.asarray(images, "float32")
        if array.ndim != 4:
            raise ValueError(
                "`images` must be (batch, height, width, channels). Received: "
                f"shape={array.shape}. One image is `images[None]`."
            )
        return self.run(array)


def load(
    path: str | os.PathLike[str],
    precision: Literal["auto"] | Precision = "auto",
) -> ExportedModel:
    """Return the function of an exported file, on the CPU of this machine.

        model = keras_mixer.export.load("mixer.xml")
        probabilities = model(pixels)

    An OpenVINO file can compute in several precisions. `"auto"` takes bfloat16, or
    float16 for a file that was written for it, if the processor has units for it, the
    outputs for random images are within the tolerance of `export` from those in
    float32, and it is at least 1.1 times as fast for them; else float32. The other
    formats hold their precision in their operations, and `"auto"` takes it.

    Args:
        path: What `export` wrote: a file, or the folder of a SavedModel.
        precision: `"auto"`, `"float32"`, `"bfloat16"` or `"float16"`.

    Returns:
        An `ExportedModel`, which is called with images and says its precision.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ImportError: If the package that reads the format is not installed.
        ValueError: If the ending is unknown, or the file or the processor cannot
            compute in the precision that is asked for.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {str(path)!r}")
    name = format_of(path) if path.is_file() else "tf_saved_model"
    if name is None or path.is_file() != bool(FORMATS[name].ending):
        endings = filter(None, (entry.ending for entry in FORMATS.values()))
        raise ValueError(
            f"`path` must end in one of {', '.join(endings)}, or be the folder of a "
            f"SavedModel. Received: {str(path)!r}"
        )
    if precision not in ("auto", *TOLERANCES):
        raise ValueError(
            f"`precision` must be one of auto, {', '.join(TOLERANCES)}. Received: "
            f"precision={precision!r}"
        )
    try:
        return _load(path, name, precision)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Reading {name!r} needs {error.name}: pip install 'keras-mixer[export]', "
            "or the extra of TensorFlow or torch for their own formats"
        ) from error


def _load(path: Path, name: str, precision: str) -> ExportedModel:
    if name == "openvino":
        return _load_openvino(path, precision)
    if name == "onnx":
        run, own = open_onnx(path)
    else:
        run, own = FORMATS[name].load(path), "as written"
    if precision not in ("auto", own):
        raise ValueError(
            f'`precision` must be "auto": {str(path)!r} computes in the precision that '
            f"it was written in ({own}). Received: precision={precision!r}. Only an "
            "OpenVINO file can be loaded in another; write this one again with "
            "`export(..., precision=...)`."
        )
    return ExportedModel(path, name, own, run)


def _load_openvino(path: Path, precision: str) -> ExportedModel:
    file = describe_openvino(path)
    possible = ("auto", "float32", *file.half_precisions)
    if precision not in possible:
        raise ValueError(
            f"`precision` must be one of {', '.join(possible)} on this processor. "
            f"Received: precision={precision!r}"
        )
    if precision != "auto":
        run = load_openvino(path, precision)
        return ExportedModel(path, "openvino", precision, run)
    low, high = file.value_range
    shape = (4, *file.image_shape)
    images = np.random.default_rng(0).uniform(low, high, shape).astype("float32")
    in_float32 = load_openvino(path, "float32")
    candidates = {"float32": in_float32}
    for half in file.half_precisions:
        if half == "bfloat16" or half == file.precision:
            run = load_openvino(path, half)
            difference = relative_difference(run(images), in_float32(images))
            if difference <= TOLERANCES[half]:
                candidates[half] = run
    fastest = _fastest(candidates, images)
    return ExportedModel(path, "openvino", fastest, candidates[fastest])


def _fastest(candidates: dict[str, Run], images: Images) -> str:
    """Return the name of the fastest function; float32 unless another is faster."""
    seconds = dict.fromkeys(candidates, float("inf"))
    for _ in range(_ROUNDS if len(candidates) > 1 else 0):
        for name, run in candidates.items():  # in turns: a machine's speed drifts
            start = time.perf_counter()
            run(images)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[best] * _SPEEDUP <= seconds["float32"] else "float32"
