"""What `--teacher` names: a whole model, a checkpoint, or an exported file."""

import argparse
from pathlib import Path
from typing import Any

from keras_mixer.cli.early_checks import (
    check_file,
    check_model_source,
    check_packages,
    check_variant,
    check_weights,
)
from keras_mixer.cli.messages import UsageError
from keras_mixer.variants import VARIANTS

_FLAG = "--teacher"
# Endings of exported files, and the packages that read them.
_PACKAGES = {
    ".onnx": ("onnxruntime",),
    ".xml": ("openvino",),
    ".tflite": ("ai-edge-litert",),
    ".pt2": ("torch",),
}


def check_teacher(name: str) -> None:
    """Raise unless there can be such a teacher.

    Raises:
        ImportError: If the package that reads an exported file is not installed.
        OSError: If there is no such file or folder.
        UsageError: If it names nothing that can teach.
    """
    variant, weights = _checkpoint(name)
    if weights:
        check_variant(variant, _FLAG)
        check_weights(variant, weights)
        if weights == "none":
            raise UsageError(f"{_FLAG} must have weights. Received: {name!r}")
    elif variant:
        raise UsageError(
            f"{_FLAG} must name the weights, too, such as {variant}:imagenet1k. "
            f"Received: {name!r}"
        )
    elif packages := _PACKAGES.get(Path(name).suffix):
        check_file(name, _FLAG)
        check_packages("Reading the teacher", "export", *packages)
    elif _is_saved_model(name):
        check_packages("Reading the teacher", "tensorflow", "tensorflow")
    else:
        check_model_source(name, _FLAG)


def teacher_argument(options: argparse.Namespace) -> dict[str, Any]:
    """Return the argument `teacher` of a recipe, nothing without `--teacher`."""
    name = options.teacher
    if name is None:
        return {}
    from keras_mixer import export, hub
    from keras_mixer.models import CONSTRUCTORS

    variant, weights = _checkpoint(name)
    if variant:
        return {"teacher": CONSTRUCTORS[variant](weights=weights)}
    if Path(name).suffix in _PACKAGES or _is_saved_model(name):
        return {"teacher": export.load(name)}
    return {"teacher": hub.read_model(name)}


def _checkpoint(name: str) -> tuple[str, str]:
    """Return the two parts of VARIANT:WEIGHTS; the first is empty for other names."""
    variant, _, weights = name.partition(":")
    if variant in VARIANTS and not Path(name).exists():
        return variant, weights
    return "", ""


def _is_saved_model(name: str) -> bool:
    return (Path(name) / "saved_model.pb").is_file()
