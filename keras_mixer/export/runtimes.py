"""Each runtime's own writer and reader, one pair per file format.

A writer takes the Mixer and the same model as a float32 graph of built-in layers on the
CPU, and writes under the path it is given. A reader returns a function from images to
outputs, both NumPy arrays, that runs in float32 on the CPU.
"""

import os
import tempfile
from pathlib import Path

import keras

from keras_mixer.export.onnx_graph import INPUT, onnx_model


def write_onnx(mixer, plain, path, calibration_images=None):
    """Write an `.onnx`, int8 if there are images to calibrate it with."""
    import onnx

    if calibration_images is None:
        onnx.save(onnx_model(mixer), path)
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        in_float = Path(folder) / "float.onnx"
        onnx.save(onnx_model(mixer), in_float)
        _quantize(in_float, path, calibration_images)


def load_onnx(path):
    """Return the function of an `.onnx` in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {INPUT: images})[0]


def write_openvino(mixer, plain, path, calibration_images=None):
    """Write an `.xml` and its `.bin`, int8 if there are images to calibrate it with."""
    openvino = _import_openvino()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        as_onnx = Path(folder) / "model.onnx"
        write_onnx(mixer, plain, as_onnx, calibration_images)
        network = openvino.Core().read_model(as_onnx)
        # The default halves the precision of the weights.
        openvino.save_model(network, path, compress_to_fp16=False)


def load_openvino(path):
    """Return the function of an `.xml` in OpenVINO."""
    openvino = _import_openvino()
    # Where the processor has bfloat16, OpenVINO would compute in it.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    network = openvino.Core().compile_model(path, "CPU", settings)
    return lambda images: network(images)[0]


def write_saved_model(mixer, plain, path):
    """Write the folder of a SavedModel with the endpoint `serve`."""
    arguments = {}
    if keras.backend.backend() == "jax":
        # JAX would write code for the kind of device it runs on alone.
        platforms = ("cpu", "cuda", "tpu")
        arguments = {"jax2tf_kwargs": {"native_serialization_platforms": platforms}}
    plain.export(path, format="tf_saved_model", verbose=False, **arguments)


def load_saved_model(path):
    """Return the function of a SavedModel in TensorFlow."""
    import tensorflow as tf

    with tf.device("CPU"):
        saved = tf.saved_model.load(path)

    def run(images):
        with tf.device("CPU"):
            return saved.serve(tf.constant(images)).numpy()

    return run


def write_litert(mixer, plain, path):
    """Write a `.tflite`."""
    plain.export(path, format="litert", verbose=False)


def load_litert(path):
    """Return the function of a `.tflite` in LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    (images_in,) = interpreter.get_input_details()
    (outputs,) = interpreter.get_output_details()

    def run(images):
        interpreter.resize_tensor_input(images_in["index"], images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(images_in["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(outputs["index"])

    return run


def write_torch(mixer, plain, path):
    """Write the `.pt2` of `torch.export`."""
    import torch

    batch = torch.export.Dim("batch", min=1)
    with keras.device("cpu"):
        plain.export(path, format="torch", verbose=False, dynamic_shapes={0: batch})


def load_torch(path):
    """Return the function of a `.pt2` in torch."""
    import torch

    module = torch.export.load(path).module()

    def run(images):
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()

    return run


def _import_openvino():
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


def _quantize(source, target, images):
    """Write the `.onnx` at `source` with int8 matrix products.

    Kernels have a scale per output, activations one per tensor, from the smallest to
    the largest value that the images give.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self):
            self.images = iter(images)

        def get_next(self):
            image = next(self.images, None)
            return None if image is None else {INPUT: image[None]}

    prepared = source.with_name("prepared.onnx")
    quant_pre_process(
        source, prepared, skip_optimization=True, skip_symbolic_shape=True
    )
    quantize_static(
        os.fspath(prepared),
        os.fspath(target),
        Images(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
