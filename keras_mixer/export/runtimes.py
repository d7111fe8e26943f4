"""Each runtime's own writer and reader, one pair per file format.

A writer takes a `Job` and writes under the path it is given. A reader returns a
function from images to outputs, both NumPy arrays, that runs on the CPU.
"""

import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_mixer.export.onnx_graph import INPUT, PRECISION_KEY, onnx_model
from keras_mixer.models import FoundMixer, MLPMixer
from keras_mixer.preprocessing import Preprocessing

Images = NDArray[np.float32]
Run = Callable[[Images], Images]

# Where OpenVINO keeps options of a model inside its file.
_HINT = ["runtime_options", "INFERENCE_PRECISION_HINT"]
_VALUE_RANGE = ["keras_mixer", "value_range"]
_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
# OpenVINO's names of what a processor has units for.
_CAPABILITIES = {"bfloat16": "BF16", "float16": "FP16"}


@dataclass(frozen=True)
class Job:
    """What is to be written.

    Attributes:
        found: The whole model and its images.
        mixer: The Mixer in it with its first dense layer as the head; `None` for a
            model that only Keras itself can write.
        graph: The same as a Keras model that computes in `precision`: for float32 a
            graph of built-in layers.
        precision: `"float32"`, `"bfloat16"` or `"float16"`.
        calibration_images: Images that give the ranges of an int8 file; `None` for
            none.
        more: Layers after the Mixer; they are part of `graph`.
    """

    found: FoundMixer
    mixer: MLPMixer | None
    graph: keras.Model
    precision: str = "float32"
    calibration_images: Images | None = None
    more: tuple[keras.layers.Layer, ...] = ()

    @property
    def value_range(self) -> tuple[float, float]:
        """What the pixel values 0 and 255 are for the file, in any channel."""
        ranges = Preprocessing(self.found.value_range).ranges
        lows, highs = zip(*ranges, strict=True)
        return min(lows), max(highs)


def write_onnx(job: Job, path: Path) -> None:
    """Write an `.onnx`, int8 if there are images to calibrate it with."""
    import onnx

    if job.mixer is None:
        raise ValueError("`job.mixer` must be a Mixer for this format.")
    model = onnx_model(job.mixer, job.more, half=job.precision == "float16")
    if job.calibration_images is None:
        onnx.save(model, path)
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        in_float = Path(folder) / "float.onnx"
        onnx.save(model, in_float)
        _quantize(in_float, path, job.calibration_images)


def load_onnx(path: Path) -> Run:
    """Return the function of an `.onnx` in ONNX Runtime."""
    return open_onnx(path)[0]


def open_onnx(path: Path) -> tuple[Run, str]:
    """Return the function of an `.onnx`, and the precision that it computes in."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map

    def run(images: Images) -> Images:
        return session.run(None, {INPUT: images})[0]

    return run, metadata.get(PRECISION_KEY, "float32")


def write_openvino(job: Job, path: Path) -> None:
    """Write an `.xml` and its `.bin`, int8 if there are images to calibrate it with.

    The precision is kept as a hint in the file. A float16 file stores its weights in
    float16, the others in float32.
    """
    openvino = _import_openvino()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        as_onnx = Path(folder) / "model.onnx"
        write_onnx(replace(job, precision="float32"), as_onnx)
        network = openvino.Core().read_model(as_onnx)
        network.set_rt_info(_HINTS[job.precision], _HINT)
        low, high = job.value_range
        network.set_rt_info(f"{low:g} {high:g}", _VALUE_RANGE)
        openvino.save_model(network, path, compress_to_fp16=job.precision == "float16")


def load_openvino(path: Path, precision: str | None = None) -> Run:
    """Return the function of an `.xml` in OpenVINO.

    Args:
        path: The file.
        precision: To compute in; `None` for that of the file, or float32 if it has
            none. OpenVINO's own default is bfloat16 where the processor has it.

    On a processor without float16, OpenVINO computes a float16 file in bfloat16 if it
    can, eight times as coarse. Here it computes in float32 instead.
    """
    core = _import_openvino().Core()
    network = core.read_model(path)
    hint = _HINTS.get(precision or "") or _rt_info(network, _HINT) or "f32"
    if hint == "f16" and "float16" not in _half_precisions(core):
        hint = "f32"
    settings = {"INFERENCE_PRECISION_HINT": hint}
    compiled = core.compile_model(network, "CPU", settings)
    return _one_at_a_time(lambda images: compiled(images)[0])


@dataclass(frozen=True)
class OpenvinoFile:
    """What an `.xml` says of itself, and what this processor has.

    Attributes:
        precision: The precision that it was written for.
        image_shape: `(height, width, channels)`.
        value_range: What the pixel values 0 and 255 are for it.
        half_precisions: Those of `"bfloat16"` and `"float16"` that the processor has.
    """

    precision: str
    image_shape: tuple[int, ...]
    value_range: tuple[float, float]
    half_precisions: tuple[str, ...]


def describe_openvino(path: Path) -> OpenvinoFile:
    """Return what an `.xml` says of itself, and what this processor has."""
    core = _import_openvino().Core()
    network = core.read_model(path)
    names = {hint: name for name, hint in _HINTS.items()}
    low, high = (_rt_info(network, _VALUE_RANGE) or "0 255").split()
    return OpenvinoFile(
        precision=names.get(_rt_info(network, _HINT), "float32"),
        image_shape=_image_shape(network),
        value_range=(float(low), float(high)),
        half_precisions=_half_precisions(core),
    )


def _half_precisions(core: Any) -> tuple[str, ...]:
    """Return those of `"bfloat16"` and `"float16"` that the processor has units for."""
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name, word in _CAPABILITIES.items() if word in capabilities)


def _rt_info(network: Any, path: list[str]) -> str:
    """Return an entry of the runtime information of an OpenVINO model, or ''."""
    return network.get_rt_info(path).astype(str) if network.has_rt_info(path) else ""


def _image_shape(network: Any) -> tuple[int, ...]:
    _, *sizes = network.input().get_partial_shape()
    return tuple(size.get_length() for size in sizes)


def write_saved_model(job: Job, path: Path) -> None:
    """Write the folder of a SavedModel with the endpoint `serve`."""
    arguments = {}
    if keras.backend.backend() == "jax":
        # JAX would write code for the kind of device it runs on alone.
        platforms = ("cpu", "cuda", "tpu")
        arguments = {"jax2tf_kwargs": {"native_serialization_platforms": platforms}}
    job.graph.export(path, format="tf_saved_model", verbose=False, **arguments)


def load_saved_model(path: Path) -> Run:
    """Return the function of a SavedModel in TensorFlow."""
    import tensorflow as tf

    with tf.device("CPU"):
        saved = tf.saved_model.load(path)

    def run(images: Images) -> Images:
        with tf.device("CPU"):
            return saved.serve(tf.constant(images)).numpy()

    return run


def write_litert(job: Job, path: Path) -> None:
    """Write a `.tflite`."""
    job.graph.export(path, format="litert", verbose=False)


def load_litert(path: Path) -> Run:
    """Return the function of a `.tflite` in LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    (images_in,) = interpreter.get_input_details()
    (outputs,) = interpreter.get_output_details()

    def run(images: Images) -> Images:
        interpreter.resize_tensor_input(images_in["index"], images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(images_in["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(outputs["index"])

    return _one_at_a_time(run)


def write_torch(job: Job, path: Path) -> None:
    """Write the `.pt2` of `torch.export`."""
    import torch

    batch = torch.export.Dim("batch", min=1)
    with keras.device("cpu"):
        job.graph.export(path, format="torch", verbose=False, dynamic_shapes={0: batch})


def load_torch(path: Path) -> Run:
    """Return the function of a `.pt2` in torch."""
    import torch

    module = torch.export.load(path).module()

    def run(images: Images) -> Images:
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()

    return run


def _one_at_a_time(run: Run) -> Run:
    """Let threads wait for each other: OpenVINO refuses them, LiteRT mixes them up."""
    lock = threading.Lock()

    def locked(images: Images) -> Images:
        with lock:
            return run(images)

    return locked


def _import_openvino() -> ModuleType:
    """Return OpenVINO, imported as it is in a CI job.

    Elsewhere it reports the import to its makers, from a fork, which can deadlock with
    the threads of JAX.
    """
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        import openvino
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before
    return openvino


def _quantize(source: Path, target: Path, images: Images) -> None:
    """Write the `.onnx` at `source` with int8 matrix products.

    Kernels have a scale per output and 7 bits, activations one scale per tensor, from
    the smallest to the largest value that the images give. With 8 bits the products
    would saturate on processors without VNNI, wherever the file was checked.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Calibration(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(images)

        def get_next(self) -> dict[str, Images] | None:
            image = next(self.images, None)
            return None if image is None else {INPUT: image[None]}

    prepared = source.with_name("prepared.onnx")
    quant_pre_process(
        source, prepared, skip_optimization=True, skip_symbolic_shape=True
    )
    quantize_static(
        os.fspath(prepared),
        os.fspath(target),
        Calibration(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=True,
    )
