"""Formats of exported files: endings, backends, packages, precisions, tolerances."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from keras_mixer.export.runtimes import (
    Run,
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

FormatName = Literal["onnx", "openvino", "tf_saved_model", "litert", "torch"]
Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")

# Largest relative differences, `|file - model| / |model|` over all outputs. Float32 in
# another order of summation stays below 1e-5. On CIFAR-10 images bfloat16 was seen at
# 0.01, float16 at 0.001, int8 at 0.04.
FLOAT32_TOLERANCE = 1e-4
FLOAT16_TOLERANCE = 0.01
HALF_PRECISION_TOLERANCE = 0.05
INT8_TOLERANCE = 0.2
TOLERANCES: dict[str, float] = {
    "float32": FLOAT32_TOLERANCE,
    "bfloat16": HALF_PRECISION_TOLERANCE,
    "float16": FLOAT16_TOLERANCE,
}

_BACKENDS = ("jax", "tensorflow", "torch")


@dataclass(frozen=True)
class Format:
    """One format of exported files.

    Attributes:
        ending: Of the file; empty for a folder.
        backends: Those that can write it.
        packages: Modules that write it and read it again.
        write: Writes a `runtimes.Job` under a path.
        load: Returns the function of a file.
        precisions: Those it can compute in.
        int8: Whether it can be written in int8.
    """

    ending: str
    backends: tuple[str, ...]
    packages: tuple[str, ...]
    write: Callable[..., None]
    load: Callable[[Path], Run]
    precisions: tuple[Precision, ...] = ("float32",)
    int8: bool = False


FORMATS: dict[str, Format] = {
    "onnx": Format(
        ".onnx",
        _BACKENDS,
        ("onnx", "onnxruntime"),
        write_onnx,
        load_onnx,
        ("float32", "float16"),
        int8=True,
    ),
    "openvino": Format(
        ".xml",
        _BACKENDS,
        ("onnx", "onnxruntime", "openvino"),
        write_openvino,
        load_openvino,
        PRECISIONS,
        int8=True,
    ),
    "tf_saved_model": Format(
        "",
        ("tensorflow", "jax"),
        ("tensorflow",),
        write_saved_model,
        load_saved_model,
        PRECISIONS,
    ),
    "litert": Format(
        ".tflite",
        ("tensorflow",),
        ("tensorflow", "ai_edge_litert"),
        write_litert,
        load_litert,
    ),
    "torch": Format(
        ".pt2", ("torch",), ("torch",), write_torch, load_torch, PRECISIONS
    ),
}


def relative_difference(outputs: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return `|outputs - expected| / |expected|`, Euclidean norms over everything."""
    size = np.linalg.norm(expected) or 1.0  # a new head gives zeros
    return float(np.linalg.norm(outputs - expected) / size)


def format_of(path: Path) -> str | None:
    """Return the name of the format that a path's ending stands for, or `None`."""
    endings = {entry.ending: name for name, entry in FORMATS.items()}
    return endings.get(path.suffix)
