"""What must be known of the formats of exported files before Keras is imported."""

from pathlib import Path
from typing import NamedTuple

PRECISIONS = ("float32", "bfloat16", "float16")


class Format(NamedTuple):
    """One format of exported files; `export.formats` has what imports Keras.

    Attributes:
        ending: Of the file; empty for a folder.
        extra: The extra of this package that has `packages` and `readers`.
        packages: Those that write it and read it again, by their names on PyPI.
        readers: Those that read it.
        backends: Those that can write it.
        precisions: Those it can compute in.
    """

    ending: str
    extra: str
    packages: tuple[str, ...]
    readers: tuple[str, ...]
    backends: tuple[str, ...] = ("tensorflow", "jax", "torch")
    precisions: tuple[str, ...] = PRECISIONS


FORMATS = {
    "onnx": Format(
        ".onnx",
        "export",
        ("onnx", "onnxruntime"),
        ("onnxruntime",),
        precisions=("float32", "float16"),
    ),
    "openvino": Format(
        ".xml", "export", ("onnx", "onnxruntime", "openvino"), ("openvino",)
    ),
    "tf_saved_model": Format(
        "", "tensorflow", ("tensorflow",), ("tensorflow",), ("tensorflow", "jax")
    ),
    "litert": Format(
        ".tflite",
        "export",
        ("tensorflow", "ai-edge-litert"),
        ("ai-edge-litert",),
        ("tensorflow",),
        precisions=("float32",),
    ),
    "torch": Format(".pt2", "torch", ("torch",), ("torch",), ("torch",)),
}


def exported_format(name: str) -> Format | None:
    """Return the format of an exported file, or of a folder that is a SavedModel."""
    path = Path(name)
    if (path / "saved_model.pb").is_file():
        return FORMATS["tf_saved_model"]
    files = {entry.ending: entry for entry in FORMATS.values() if entry.ending}
    return files.get(path.suffix)
