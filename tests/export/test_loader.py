from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import oracle
import pytest
from drawn import drawn_model

from keras_mixer import preprocess
from keras_mixer.export import export, load, loader
from keras_mixer.export.runtimes import OpenvinoFile, describe_openvino
from keras_mixer.models.mixer import model_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

BACKEND = keras.config.backend()
FILES = {
    "onnx": ("m.onnx", "onnxruntime", "float32"),
    "openvino": ("m.xml", "openvino", None),
}
FILES |= {
    "torch": {"torch": ("m.pt2", "torch", "as written")},
    "tensorflow": {
        "tf_saved_model": ("m", "tensorflow", "as written"),
        "litert": ("m.tflite", "ai_edge_litert", "as written"),
    },
    "jax": {"tf_saved_model": ("m", "tensorflow", "as written")},
}[BACKEND]


def photos(count=3):
    return np.random.default_rng(7).integers(0, 256, (count, 32, 24, 3), "uint8")


def logits(model, images):
    record = model.preprocessing
    return oracle.mixer(
        model_weights(model), images * record.scale + record.offset, True
    )[1]


def exported(format, folder):
    """A drawn model, and the function of its file."""
    name, package, _ = FILES[format]
    pytest.importorskip(package)
    model = drawn_model(classifier_activation=None)
    export(model, folder / name)
    return model, load(folder / name)


@pytest.mark.parametrize("format", FILES)
def test_a_file_is_a_function_again(format, tmp_path):
    model, loaded = exported(format, tmp_path)
    precision = FILES[format][2]
    assert loaded.format == format
    assert precision is None or loaded.precision == precision
    pixels = preprocess(list(photos()), model)
    expected = logits(model, pixels)
    tolerance = 2e-4 if loaded.precision != "bfloat16" else 0.02
    for images in (pixels, pixels[:1], pixels.astype("float64")):
        outputs = loaded(images)
        assert outputs.dtype == np.float32
        difference = np.linalg.norm(outputs - expected[: len(images)])
        assert difference < tolerance * np.linalg.norm(expected)
    with pytest.raises(ValueError, match=r"shape=\(32, 24, 3\).*`images\[None\]`"):
        loaded(pixels[0])


@pytest.mark.parametrize("format", FILES)
def test_threads_may_share_a_function(format, tmp_path):
    model, loaded = exported(format, tmp_path)
    pixels = preprocess(list(photos()), model)
    batches = [pixels[:1], pixels[1:], pixels] * 20
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(loaded, batches))
    for images, outputs in zip(batches, together, strict=True):
        np.testing.assert_allclose(outputs, loaded(images), rtol=1e-5, atol=1e-6)


@pytest.fixture
def openvino_file(tmp_path):
    pytest.importorskip("openvino")
    export(drawn_model(), tmp_path / "m.xml")
    return tmp_path / "m.xml"


def test_openvino_computes_in_the_precision_that_is_asked_for(openvino_file):
    model = drawn_model()
    pixels = preprocess(list(photos()), model)
    exact = load(openvino_file, precision="float32")
    assert exact.precision == "float32"
    expected = keras.ops.convert_to_numpy(model(pixels))
    np.testing.assert_allclose(exact(pixels), expected, rtol=1e-4, atol=1e-6)
    found = describe_openvino(openvino_file)
    assert found.image_shape == (32, 24, 3) and found.value_range == (0, 255)
    for precision in ("bfloat16", "float16"):
        if precision in found.half_precisions:
            half = load(openvino_file, precision=precision)
            difference = np.abs(half(pixels) - exact(pixels)).max()
            assert half.precision == precision and 1e-6 < difference < 0.02
        else:
            with pytest.raises(ValueError, match="on this processor.*" + precision):
                load(openvino_file, precision=precision)


class Runs:
    """Stands in for OpenVINO: a function per precision, with its own time and error."""

    def __init__(self, monkeypatch, *, file, has, errors, seconds):
        self.loaded = []

        def describe(path):
            return OpenvinoFile(file, (4, 4, 3), (-1.0, 1.0), has)

        def load_openvino(path, precision):
            self.loaded.append(precision)

            def run(images):
                assert images.shape == (4, 4, 4, 3) and abs(images).max() <= 1
                clock[0] += seconds[precision]
                return np.full((4, 2), 1 + errors.get(precision, 0.0))

            return run

        clock = [0.0]
        monkeypatch.setattr(loader, "describe_openvino", describe)
        monkeypatch.setattr(loader, "load_openvino", load_openvino)
        monkeypatch.setattr(loader.time, "perf_counter", lambda: clock[0])


FAST = {"float32": 1.0, "bfloat16": 0.3, "float16": 0.5}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "bfloat16"),
        ({"has": ()}, "float32"),
        ({"errors": {"bfloat16": 0.06}}, "float32"),
        ({"errors": {"bfloat16": float("nan")}}, "float32"),
        ({"seconds": FAST | {"bfloat16": 0.95}}, "float32"),
        ({"file": "float16", "errors": {"bfloat16": 0.06}}, "float16"),
        ({"file": "float16", "errors": {"bfloat16": 0.06, "float16": 0.02}}, "float32"),
    ],
)
def test_auto_is_the_fastest_that_is_there_and_close_enough(
    changes, expected, tmp_path, monkeypatch
):
    path = tmp_path / "m.xml"
    path.touch()
    runs = Runs(
        monkeypatch,
        **{
            "file": "float32",
            "has": ("bfloat16", "float16"),
            "errors": {},
            "seconds": FAST,
            **changes,
        },
    )
    assert load(path).precision == expected
    if changes.get("file") is None:
        assert "float16" not in runs.loaded  # only for files that were written for it


def test_the_range_of_normalised_images_is_in_the_file(tmp_path):
    pytest.importorskip("openvino")
    export(drawn_model(include_preprocessing=False), tmp_path / "m.xml")
    assert describe_openvino(tmp_path / "m.xml").value_range == (-1, 1)
    assert load(tmp_path / "m.xml").precision in ("float32", "bfloat16")


def test_the_precision_of_the_other_formats_is_fixed(tmp_path):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "m.onnx"
    export(drawn_model(), path, precision="float16")
    assert load(path).precision == load(path, precision="float16").precision
    assert load(path).precision == "float16"
    with pytest.raises(ValueError, match=r'must be "auto".*\(float16\).*=\'float32'):
        load(path, precision="float32")


def test_bad_paths_and_words(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.onnx"):
        load(tmp_path / "nothing.onnx")
    (tmp_path / "m.txt").touch()
    with pytest.raises(ValueError, match="`path` must end in one of .onnx, .xml"):
        load(tmp_path / "m.txt")
    (tmp_path / "plain").touch()
    with pytest.raises(ValueError, match="or be the folder of a SavedModel"):
        load(tmp_path / "plain")
    (tmp_path / "m.xml").touch()
    with pytest.raises(ValueError, match="one of auto, float32, bfloat16, float16"):
        load(tmp_path / "m.xml", precision="int8")
