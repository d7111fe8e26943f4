import importlib.util
import re
import subprocess
import sys

import keras
import numpy as np
import oracle
import pytest
from drawn import drawn_model

from keras_mixer.export import formats, onnx_graph
from keras_mixer.export.formats import FORMATS
from keras_mixer.export.runtimes import (
    describe_openvino,
    load_litert,
    load_onnx,
    load_openvino,
    load_saved_model,
    load_torch,
)
from keras_mixer.export.writer import export
from keras_mixer.models.mixer import MLPMixer, model_weights
from keras_mixer.preprocessing import Preprocessing

pytestmark = [
    # Of TensorFlow, when LiteRT's converter or a SavedModel of JAX is used.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

BACKEND = keras.config.backend()
# Format -> its file, its reader, the packages, the backends.
FILES = {
    "onnx": ("m.onnx", load_onnx, ["onnx", "onnxruntime"], "jax tensorflow torch"),
    "openvino": ("m.xml", load_openvino, ["onnx", "openvino"], "jax tensorflow torch"),
    "tf_saved_model": ("m", load_saved_model, ["tensorflow"], "jax tensorflow"),
    "litert": ("m.tflite", load_litert, ["ai_edge_litert"], "tensorflow"),
    "torch": ("m.pt2", load_torch, ["torch"], "torch"),
}
HERE = [name for name in FILES if BACKEND in FILES[name][3].split()]
IN_INT8 = ("onnx", "openvino")

every_format = pytest.mark.parametrize("format", HERE)


def target(folder, format):
    name, _, packages, _ = FILES[format]
    for package in packages:
        pytest.importorskip(package)
    return folder / name


def drawn_images(count):
    rng = np.random.default_rng(5)
    return rng.uniform(0, 255, (count, 32, 24, 3)).astype("float32")


def softmax(logits):
    logits = np.exp(logits - logits.max(1, keepdims=True))
    return logits / logits.sum(1, keepdims=True)


def truth(model, images):
    """`(pre_logits, logits)` in NumPy, for pixels."""
    record = model.preprocessing
    return oracle.mixer(
        model_weights(model),
        images * record.scale + record.offset,
        model.config["approximate_gelu"],
    )


def test_the_formats_are_those_tested():
    assert set(FORMATS) == set(FILES)


@every_format
@pytest.mark.parametrize("approximate_gelu", [True, False])
def test_a_file_computes_what_numpy_does_for_any_batch(
    format, approximate_gelu, tmp_path
):
    path = target(tmp_path, format)
    model = drawn_model(
        approximate_gelu=approximate_gelu,
        preprocessing=Preprocessing((-0.5, 1.5)),
        dropout_rate=0.3,
        stochastic_depth_rate=0.3,
    )
    difference = export(model, path)  # the ending says the format
    assert 0 <= difference < 1e-5
    names = {"m.xml", "m.bin"} if format == "openvino" else {path.name}
    assert {entry.name for entry in tmp_path.iterdir()} == names
    run = FILES[format][1](path)
    for count in (5, 1, 2):  # not the sizes that `export` tries
        images = drawn_images(count)
        expected = softmax(truth(model, images)[1])
        np.testing.assert_allclose(run(images), expected, rtol=2e-4, atol=1e-6)


@every_format
def test_a_model_in_half_precision_is_written_in_float32(format, tmp_path):
    path = target(tmp_path, format)
    model = drawn_model(dtype="mixed_bfloat16", classifier_activation=None)
    assert export(model, path) < 1e-5
    images = drawn_images(3)
    outputs, expected = FILES[format][1](path)(images), truth(model, images)[1]
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-4)
    # What the model itself computes is much further away.
    own = keras.ops.convert_to_numpy(model(images))
    assert np.abs(own - expected).max() > 10 * np.abs(outputs - expected).max()


HALF = [
    (format, precision)
    for format in HERE
    for precision in ("bfloat16", "float16")
    if precision in FORMATS[format].precisions
]


@pytest.mark.parametrize(("format", "precision"), HALF)
def test_half_precision_is_written_when_asked(format, precision, tmp_path):
    path = target(tmp_path, format)
    model = drawn_model(classifier_activation=None)
    difference = export(model, path, precision=precision)
    # Further away than float32 could be, as near as the precision allows.
    low, high = {"bfloat16": (5e-4, 2e-2), "float16": (5e-5, 2e-3)}[precision]
    if (format, precision) == ("openvino", "bfloat16"):
        if precision not in describe_openvino(path).half_precisions:
            low = 0  # only a hint in the file: float32 on this processor
    assert low < difference < high
    images = drawn_images(5)
    outputs, expected = FILES[format][1](path)(images), truth(model, images)[1]
    assert outputs.dtype == np.float32
    assert np.linalg.norm(outputs - expected) < 2 * high * np.linalg.norm(expected)


def test_a_half_precision_file_outside_its_tolerance_is_not_kept(tmp_path, monkeypatch):
    path = target(tmp_path, "onnx")
    monkeypatch.setitem(formats.TOLERANCES, "float16", 1e-5)
    with pytest.raises(
        ValueError, match="not compute what `model` does.*Allowed are 1e-05"
    ):
        export(drawn_model(), path, precision="float16")
    assert not list(tmp_path.iterdir())


@pytest.mark.backend_free
def test_onnx_in_float16_keeps_norms_and_head_in_float32():
    onnx = pytest.importorskip("onnx")
    model = onnx_graph.onnx_model(drawn_model(), half=True)
    onnx.checker.check_model(model, full_check=True)
    constants = {c.name: c.data_type for c in model.graph.initializer}
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for name, dtype in constants.items():
        if name.endswith(("/kernel", "/bias")):
            assert dtype == (full if name.startswith("head/") else half), name
        if name.endswith(("/gamma", "/beta")) or name.startswith("normalization/"):
            assert dtype == full, name
    (images,), (outputs,) = model.graph.input, model.graph.output
    assert images.type.tensor_type.elem_type == full
    assert outputs.type.tensor_type.elem_type == full


@pytest.mark.backend_free
def test_openvino_keeps_the_hint_in_the_file(tmp_path):
    path = target(tmp_path, "openvino")
    sizes = {}
    for precision, hint in (
        ("float32", "f32"),
        ("bfloat16", "bf16"),
        ("float16", "f16"),
    ):
        export(drawn_model(), path, precision=precision, overwrite=True)
        options = re.search(
            r"<runtime_options>(.*?)</runtime_options>", path.read_text(), re.S
        )
        assert f'<INFERENCE_PRECISION_HINT value="{hint}" />' in options[1]
        sizes[precision] = path.with_suffix(".bin").stat().st_size
    assert sizes["bfloat16"] == sizes["float32"] > 1.6 * sizes["float16"]


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 0},
        {"include_preprocessing": False},
        {"classifier_activation": "sigmoid"},
        {"classifier_activation": "log_softmax"},
        {"patch_size": 4, "input_shape": (8, 12, 1)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_onnx_of_other_architectures(changes, tmp_path):
    path = target(tmp_path, "onnx")
    model = drawn_model(**changes)
    export(model, path)
    images = np.random.default_rng(6).uniform(0, 1, (3, *model.input_shape[1:]))
    images = images.astype("float32")
    expected = keras.ops.convert_to_numpy(model(images))
    np.testing.assert_allclose(load_onnx(path)(images), expected, rtol=1e-4, atol=1e-5)


def test_lora_adapters_are_merged(tmp_path):
    path = target(tmp_path, "onnx")
    model = drawn_model()
    dense = model.blocks[1].channel_mixing.dense_0
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(np.ones(dense.lora_kernel_b.shape))
    assert export(model, path) < 1e-5


@pytest.mark.backend_free
def test_onnx_holds_each_norm_and_gelu_as_one_operator(tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx_graph.onnx_model(drawn_model())
    onnx.checker.check_model(model, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("LayerNormalization") == 5  # two a block, and the last
    assert operators.count("Gelu") == 4
    assert "Erf" not in operators and "Tanh" not in operators


@pytest.mark.backend_free
@pytest.mark.parametrize("format", IN_INT8)
def test_int8_is_close_and_small(format, tmp_path):
    path = target(tmp_path, format)
    model = drawn_model(hidden_dim=64, channels_mlp_dim=256, classifier_activation=None)
    images = drawn_images(24)
    export(model, tmp_path / f"float{path.suffix}")
    difference = export(model, path, calibration_images=images)
    assert 1e-4 < difference < 0.05
    expected = truth(model, images)[1]
    outputs = FILES[format][1](path)(images)
    assert np.linalg.norm(outputs - expected) < 0.05 * np.linalg.norm(expected)
    weights = path.with_suffix(".bin") if format == "openvino" else path
    in_float = (tmp_path / "float").with_suffix(weights.suffix)
    assert weights.stat().st_size < 0.5 * in_float.stat().st_size


@pytest.mark.backend_free
def test_int8_depends_on_the_images(tmp_path):
    path = target(tmp_path, "onnx")
    images, runs = drawn_images(8), []
    for scale in (1.0, 0.5):
        export(drawn_model(), path, calibration_images=scale * images, overwrite=True)
        runs.append(load_onnx(path)(images))
    assert np.abs(runs[0] - runs[1]).max() > 1e-3


@pytest.mark.backend_free
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_wrong_file_is_deleted_and_what_was_there_stays(
    format, tmp_path, monkeypatch
):
    path = target(tmp_path, format)
    export(drawn_model(), path)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(onnx_graph, "LAYER_NORM_EPSILON", 1.0)
    message = f"The file for {re.escape(repr(str(path)))} does not compute what"
    with pytest.raises(ValueError, match=message):
        export(drawn_model(), path, overwrite=True)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match="Allowed are 1e-04"):
        export(drawn_model(), path.with_name(f"new{path.suffix}"))
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("format", [name for name in FILES if name not in HERE])
def test_a_format_of_another_backend_is_named(format, tmp_path):
    name, *_, backends = FILES[format]
    with pytest.raises(ValueError, match=f"{BACKEND} cannot write '{format}'") as error:
        export(drawn_model(), tmp_path / name)
    assert f"only {', '.join(HERE)}" in str(error.value)
    assert re.search(f"KERAS_BACKEND=({backends.replace(' ', '|')}) ", str(error.value))
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnx and onnxruntime.*mixer\[export\]"):
        export(drawn_model(), tmp_path / "m.onnx")


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "path, arguments, message",
    [
        ("m.pb", {}, "`path` must end in one of .onnx, .xml"),
        ("m.onnx", {"format": "tensorrt"}, "`format` must be one of onnx, openvino"),
        ("m", {"format": "onnx"}, "must end in .onnx for the format 'onnx'"),
        ("m.onnx", {"precision": "int4"}, "one of float32, bfloat16, float16.*'int4'"),
        (
            "m.onnx",
            {"precision": "bfloat16"},
            "for the format 'onnx'.*openvino, tf_sav",
        ),
        (
            "m.onnx",
            {"precision": "float16", "calibration_images": np.zeros((2, 32, 24, 3))},
            "beside int8 must be float32, except for 'openvino'",
        ),
        ("m.onnx", {"calibration_images": np.zeros((3, 32, 32, 3))}, "32, 24, 3"),
        ("m.onnx", {"calibration_images": np.zeros((1, 32, 24, 3))}, "at least 2"),
        (
            "m.onnx",
            {"calibration_images": np.full((2, 32, 24, 3), np.nan)},
            "all finite",
        ),
    ],
)
def test_bad_arguments(path, arguments, message, tmp_path):
    target(tmp_path, "onnx")
    with pytest.raises(ValueError, match=message):
        export(drawn_model(), tmp_path / path, **arguments)
    assert not list(tmp_path.iterdir())


def test_int8_of_a_format_without(tmp_path):
    format = {"torch": "torch"}.get(BACKEND, "tf_saved_model")
    path = target(tmp_path, format)
    with pytest.raises(ValueError, match="are for onnx and openvino"):
        export(drawn_model(), path, calibration_images=drawn_images(2))


@pytest.mark.backend_free
def test_models_that_cannot_be_written(tmp_path):
    path = target(tmp_path, "onnx")
    with pytest.raises(ValueError, match="`model` must"):
        export(drawn_model().features("stem"), path)
    with pytest.raises(
        ValueError, match="one of elu, gelu, log_softmax, relu, sigmoid"
    ):
        export(drawn_model(classifier_activation="selu"), path)
    model = drawn_model()
    model.blocks[0].channel_mixing.dense_0.quantize("int8")
    with pytest.raises(ValueError, match="model from before `quantize`"):
        export(model, path)
    assert not list(tmp_path.iterdir())


@pytest.mark.backend_free
def test_what_exists_is_replaced_only_when_asked(tmp_path):
    path = target(tmp_path, "onnx")
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="`overwrite=True`"):
        export(drawn_model(), path)
    assert path.read_bytes() == b"mine"
    export(drawn_model(), path, overwrite=True)
    assert path.read_bytes() != b"mine"
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(FileExistsError, match="is a folder"):
        export(drawn_model(), tmp_path / "folder.onnx", overwrite=True)


@pytest.mark.skipif("tf_saved_model" not in HERE, reason="not from this backend")
def test_folders_that_are_not_a_saved_model_are_left_alone(tmp_path):
    pytest.importorskip("tensorflow")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(FileExistsError, match="not the folder of a SavedModel"):
        export(drawn_model(), tmp_path / "mine", overwrite=True)


@pytest.mark.nightly
@pytest.mark.backend_free
def test_openvino_is_imported_without_its_report():
    # It would be a request to a server outside, from a fork.
    pytest.importorskip("openvino")
    code = """
import multiprocessing, os
started = []
multiprocessing.Process.start = started.append
os.environ.pop("CI", None)
from keras_mixer.export.runtimes import _import_openvino
print(_import_openvino().__name__, len(started), os.environ.get("CI"))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["openvino", "0", "None"]


def test_exporting_leaves_the_model_as_it_was(tmp_path):
    path = target(tmp_path, "onnx")
    model = drawn_model()
    images = drawn_images(2)
    before = keras.ops.convert_to_numpy(model(images))
    export(model, path)
    assert type(model) is MLPMixer
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(images)), before)
