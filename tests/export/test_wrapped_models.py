"""Models around a Mixer in the files of every runtime."""

import keras
import numpy as np
import pytest
from drawn import drawn_model

from keras_mixer.export import load
from keras_mixer.export.formats import FORMATS
from keras_mixer.export.writer import export

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SHAPE = (32, 24, 3)
layers = keras.layers
HERE = [n for n, f in FORMATS.items() if keras.config.backend() in f.backends]


def target(folder, format):
    """The path of a file; skips where the format cannot be written."""
    for package in FORMATS[format].packages:
        pytest.importorskip(package)
    return folder / f"m{FORMATS[format].ending or ''}"


def drawn_images(count):
    rng = np.random.default_rng(5)
    return rng.uniform(0, 255, (count, *SHAPE)).astype("float32")


def drawn(layer, shape):
    """A built layer whose every weight matters, a batch norm's statistics, too."""
    layer.build(shape)
    rng = np.random.default_rng(3)
    layer.set_weights([rng.uniform(0.1, 1, w.shape) for w in layer.get_weights()])
    return layer


def finetuned(**body):
    """Augmentation, nested bodies, and two dense layers with a norm between them."""
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.RandomFlip(),
            layers.RandomRotation(0.1),
            keras.Sequential([keras.Sequential([drawn_model(num_classes=0, **body)])]),
            layers.Dropout(0.2),
            drawn(layers.Dense(7, "relu", name="hidden"), (None, 16)),
            drawn(layers.BatchNormalization(name="norm"), (None, 7)),
            layers.Dropout(0.2),
            drawn(layers.Dense(4, use_bias=False, name="classes"), (None, 7)),
            layers.Softmax(),
        ],
        name="flowers",
    )


class Held(keras.Model):
    """The same parts in a class of one's own."""

    def __init__(self):
        super().__init__()
        self.body = drawn_model(num_classes=0)
        self.hidden = layers.Dense(7, "tanh")
        self.classes = layers.Dense(4)

    def call(self, images):
        return self.classes(self.hidden(self.body(images)))


def held():
    model = Held()
    model(np.zeros((1, *SHAPE), "float32"))
    return model


def branched():
    inputs = keras.Input(SHAPE)
    augmentation = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1)])
    x = layers.RandomZoom(0.1)(augmentation(inputs))
    x = drawn_model(num_classes=0)(x)
    dense = drawn(layers.Dense(4), (None, 16))
    return keras.Model(inputs, dense(x + layers.UnitNormalization()(x)))


def check(model, path, tolerance=1e-5, **arguments):
    images = drawn_images(3)
    expected = model.predict(images, verbose=0)
    assert np.ptp(expected) > 1e-3
    assert export(model, path, **arguments) <= tolerance
    outputs = np.asarray(load(path, precision="auto")(images))
    np.testing.assert_allclose(outputs, expected, rtol=0.03, atol=0.01)
    return np.abs(outputs - expected).max()


@pytest.mark.parametrize("format", HERE)
def test_a_deep_head_is_written_in_every_format(format, tmp_path):
    model = finetuned()
    before = [w.copy() for w in model.get_weights()]
    error = check(model, target(tmp_path, format))
    assert error < 1e-5 or format == "openvino"  # which may choose bfloat16
    for weight, array in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, array)
    assert len(model.layers) == 9  # the model itself is left as it is


def test_a_class_of_ones_own_is_written(tmp_path):
    assert check(held(), target(tmp_path, "onnx")) < 1e-5


def test_it_is_written_in_half_precision(tmp_path):
    check(finetuned(), target(tmp_path, "onnx"), tolerance=0.01, precision="float16")


def test_normalised_images_are_what_a_file_takes(tmp_path):
    """The model does not normalise: the images compared are in its own range."""
    model = finetuned(include_preprocessing=False)
    path = target(tmp_path, "onnx")
    assert export(model, path) < 1e-5
    images = drawn_images(3) / 127.5 - 1
    outputs = np.asarray(load(path)(images))
    np.testing.assert_allclose(outputs, model.predict(images, verbose=0), atol=1e-5)


@pytest.mark.parametrize("format", [f for f in HERE if f not in ("onnx", "openvino")])
def test_any_graph_is_written_where_keras_does_it(format, tmp_path):
    assert check(branched(), target(tmp_path, format)) < 1e-5


@pytest.mark.parametrize("format", [f for f in HERE if f not in ("onnx", "openvino")])
def test_what_keras_cannot_write_says_what_to_do(format, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("unsupported operation\nmuch more")

    monkeypatch.setattr(keras.Model, "export", fail)
    with pytest.raises(ValueError, match="unsupported operation Give the Mixer a head"):
        export(branched(), target(tmp_path, format))
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_onnx_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="whose outputs differ"):
        export(branched(), target(tmp_path, "onnx"))
    model = keras.Sequential(
        [keras.Input(SHAPE), drawn_model(), layers.LayerNormalization(name="odd")]
    )
    with pytest.raises(ValueError, match="Received: 'odd' of the class LayerNormal"):
        export(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "format, error", [(HERE[0], KeyboardInterrupt), *((f, ValueError) for f in HERE)]
)
def test_a_failed_export_leaves_no_scope_behind(format, error, tmp_path, monkeypatch):
    """What is built afterwards has its usual paths, and gets its weights."""
    path = target(tmp_path, format)
    model = drawn_model()
    paths = [weight.path for weight in model.weights]

    class Failing:
        """A layer's `call` that fails while the file is written."""

        def __call__(self, *args, **kwargs):
            raise error("stopped")

    def write(*args, **kwargs):
        monkeypatch.setattr(layers.Dense, "call", Failing())
        return own(*args, **kwargs)

    own = keras.Model.export
    if format in ("onnx", "openvino"):  # no layer is called: the end of it fails
        import onnx

        monkeypatch.setattr(onnx, "save", Failing())
    monkeypatch.setattr(keras.Model, "export", write)
    with pytest.raises((error, RuntimeError), match="stopped"):
        export(model, path)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    again = drawn_model()
    assert [weight.path for weight in again.weights] == paths
    images = drawn_images(2)
    np.testing.assert_array_equal(
        again.predict(images, verbose=0), model.predict(images, verbose=0)
    )
    assert export(model, path) < 1e-5
