"""The sizes of the images that an exported file takes, as its own format says them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keras_mixer.export.runtimes import describe_openvino

Shape = tuple[int | None, ...]


def image_shape(path: Path, format: str) -> Shape:
    """Return `(height, width, channels)`, `None` for what may have any size.

    Args:
        path: The file, or the folder of a SavedModel.
        format: Its name in `formats.FORMATS`.

    Raises:
        ImportError: If the package that reads it is not installed.
    """
    return _READERS[format](path)


def _of_onnx(path: Path) -> Shape:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return _sizes(session.get_inputs()[0].shape)


def _of_openvino(path: Path) -> Shape:
    return describe_openvino(path).image_shape


def _of_saved_model(path: Path) -> Shape:
    import tensorflow as tf

    with tf.device("CPU"):
        saved = tf.saved_model.load(path)
    _, inputs = saved.signatures["serving_default"].structured_input_signature
    (images,) = inputs.values()
    return _sizes(images.shape)


def _of_litert(path: Path) -> Shape:
    from ai_edge_litert.interpreter import Interpreter

    (images,) = Interpreter(str(path)).get_input_details()
    return _sizes(images["shape_signature"])


def _of_torch(path: Path) -> Shape:
    import torch

    program = torch.export.load(path)
    (name,) = program.graph_signature.user_inputs
    (images,) = (node for node in program.graph.nodes if node.name == name)
    return _sizes(images.meta["val"].shape)


def _sizes(shape: Sequence[Any]) -> Shape:
    """Return the sizes behind the batch; names and -1 stand for any size."""
    sizes = (int(size) if str(size).isdigit() else 0 for size in shape[1:])
    return tuple(size or None for size in sizes)


_READERS: dict[str, Callable[[Path], Shape]] = {
    "onnx": _of_onnx,
    "openvino": _of_openvino,
    "tf_saved_model": _of_saved_model,
    "litert": _of_litert,
    "torch": _of_torch,
}
