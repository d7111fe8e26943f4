import keras
import numpy as np
import pytest
from drawn import drawn_model

import keras_mixer
from keras_mixer import data, evaluation, export, hub
from keras_mixer.models import (
    MLPMixer,
    as_mixer,
    decode_predictions,
    find_mixer,
    mlp_mixer,
    preprocess,
)
from keras_mixer.preprocessing import Preprocessing

RECORD = Preprocessing((0.0, 1.0), "resize", "area")
SHAPE = (32, 24, 3)
LABELS = ("a", "b", "c", "d", "e")
layers = keras.layers


def mixer(**changes):
    return drawn_model(**{"preprocessing": RECORD, **changes})


def labelled():
    model = mixer()
    model.labels = LABELS
    return model


def on_pre_logits(model_class, name):
    model = labelled()
    outputs = layers.Dense(5, name=name)(model.get_layer("pre_logits").output)
    return model_class(model.input, outputs)


def finetuned(head=3, **changes):
    """The usual form of fine-tuning."""
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.RandomFlip(),
            layers.RandomContrast(0.1),
            mixer(num_classes=0, **changes),
            layers.Dropout(0.1),
            layers.Dense(head, "softmax", bias_initializer="random_normal"),
        ],
        name="flowers",
    )


def functional():
    inputs = keras.Input(SHAPE)
    x = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1)])(inputs)
    x = mixer(num_classes=0)(x, training=False)
    x = layers.Dense(3)(layers.Dropout(0.2)(x))
    return keras.Model(inputs, layers.Softmax()(x))


class Subclass(keras.Model):
    def __init__(self, inner, head=None):
        super().__init__()
        self.parts = {"inner": inner}
        self.head = head

    def call(self, images):
        x = self.parts["inner"](images)
        return self.head(x) if self.head else x


def called(model):
    model(np.zeros((1, *SHAPE), "float32"))
    return model


class Inside(layers.Layer):
    def __init__(self, inner):
        super().__init__()
        self.inner = [inner]

    def call(self, images):
        return self.inner[0](images)


def in_a_layer():
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, layers.Dense(2)(Inside(mixer(num_classes=0))(inputs)))


def deep_head():
    return keras.Sequential(
        [mixer(num_classes=0), layers.Dense(7, "relu"), layers.Dense(3)]
    )


WITH_LABELS = {
    "itself": labelled,
    "clone": lambda: keras.models.clone_model(labelled()),
    "same nodes": lambda: (lambda m: MLPMixer(m.input, m.output))(labelled()),
    "plain Keras": lambda: (lambda m: keras.Model(m.input, m.output))(labelled()),
    "features": lambda: labelled().features("head"),
    "sequential": lambda: keras.Sequential([keras.Input(SHAPE), labelled()]),
    "subclass": lambda: called(Subclass(labelled())),
}
WITHOUT = {
    "features": (lambda: labelled().features("pre_logits"), 0),
    "tokens": (lambda: labelled().features("block_1"), 0),
    "new head": (lambda: on_pre_logits(keras.Model, "head"), 5),
    "new Mixer": (lambda: on_pre_logits(MLPMixer, "other"), 5),
    "sequential": (finetuned, 3),
    "functional": (functional, 3),
    "nested": (lambda: keras.Sequential([keras.Input(SHAPE), functional()]), 3),
    "subclass": (
        lambda: called(Subclass(mixer(num_classes=0), layers.Dense(4))),
        4,
    ),
    "layer": (in_a_layer, 2),
    "deep head": (deep_head, 3),
}


@pytest.mark.parametrize("name", WITH_LABELS)
def test_the_record_and_the_labels_come_along(name):
    found = find_mixer(WITH_LABELS[name]())
    assert found.preprocessing == RECORD and found.labels == LABELS
    assert found.num_classes == 5
    assert found.image_shape == SHAPE and found.normalizes


@pytest.mark.parametrize("name", WITHOUT)
def test_labels_stay_with_their_head(name):
    make, num_classes = WITHOUT[name]
    model = make()
    found = find_mixer(model)
    assert found.preprocessing == RECORD and found.labels is None
    assert found.num_classes == num_classes
    assert found.image_shape == SHAPE and found.normalizes
    if num_classes:
        model.labels = [*"vwxyz"[:num_classes]]
        assert find_mixer(model).labels == tuple("vwxyz"[:num_classes])


@pytest.mark.parametrize("make", [finetuned, functional, deep_head])
def test_the_record_survives_saving(make, tmp_path):
    model = make()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert find_mixer(loaded).preprocessing == RECORD
    pixels = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), "uint8")
    np.testing.assert_array_equal(preprocess(pixels, loaded), pixels)


def test_labels_of_a_plain_model_survive_saving(tmp_path):
    model = labelled()
    keras.Model(model.input, model.output).save(tmp_path / "model.keras")
    assert find_mixer(keras.saving.load_model(tmp_path / "model.keras")).labels == (
        LABELS
    )


@pytest.mark.parametrize(
    "before, inside, record, expected",
    [
        ([], True, RECORD, (0, 255)),
        ([], False, RECORD, (0, 1)),
        ([], False, Preprocessing(), (-1, 1)),
        ([layers.Rescaling(1 / 255)], False, RECORD, (0, 255)),
        ([layers.Rescaling(1 / 127.5, -1)], False, Preprocessing(), (0, 255)),
        ([layers.Rescaling(1 / 255)], False, Preprocessing(), (0, 255)),
        ([layers.Rescaling(255.0)], True, Preprocessing(), (0, 1)),
        ([layers.Rescaling(2.0, -1)], False, Preprocessing(), (0, 1)),
        ([layers.Rescaling(127.5, 127.5)], True, Preprocessing(), (-1, 1)),
    ],
)
def test_no_image_is_normalised_twice(before, inside, record, expected):
    body = mixer(num_classes=0, preprocessing=record, include_preprocessing=inside)
    model = keras.Sequential([keras.Input(SHAPE), *before, body, layers.Dense(2)])
    assert find_mixer(model).value_range == expected
    pixels = np.repeat(np.array([0, 255], "uint8"), 16).reshape(1, 32, 1, 1)
    pixels = np.broadcast_to(pixels, (1, *SHAPE))
    result = preprocess(pixels, model)
    np.testing.assert_allclose([result.min(), result.max()], expected, atol=1e-6)


def test_the_images_have_the_size_of_the_outer_model():
    for size, expected in (((40, 48, 3), (40, 48, 3)), ((None, None, 3), SHAPE)):
        inputs = keras.Input(size)
        outputs = mixer()(layers.Resizing(*SHAPE[:2])(inputs))
        assert find_mixer(keras.Model(inputs, outputs)).image_shape == expected


def test_two_mixers_must_agree_on_their_images():
    inputs = keras.Input(SHAPE)
    same = keras.Model(inputs, mixer()(inputs) + mixer(name="second")(inputs))
    assert find_mixer(same).preprocessing == RECORD
    different = keras.Model(inputs, mixer()(inputs) + drawn_model(name="third")(inputs))
    with pytest.raises(ValueError, match="different records"):
        find_mixer(different)


@pytest.mark.parametrize("model", [None, "B/16", 3])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(ValueError, match="must be a Keras model"):
        find_mixer(model)


def test_a_model_without_a_mixer_is_refused():
    model = keras.Sequential([keras.Input((4, 4, 3)), layers.Flatten(name="flat")])
    for function in (find_mixer, lambda m: preprocess(np.zeros((4, 4, 3)), m)):
        with pytest.raises(ValueError, match="must hold a Mixer.* flat"):
            function(model)


def test_predictions_are_decoded_with_the_names_of_the_model():
    (best,), _ = decode_predictions(np.eye(5)[[3, 1]], labelled(), top=1)
    assert best.name == "d"


# --- as one Mixer -----------------------------------------------------------------


class HeadFirst(keras.Model):
    """Its attributes come in another order than its calls."""

    def __init__(self):
        super().__init__()
        self.head = layers.Dense(3, "softmax", bias_initializer="random_normal")
        self.inner = mixer(num_classes=0)

    def call(self, images, training=None):
        return self.head(self.inner(images, training=training))


class Brighter(layers.Layer):
    """An augmentation of somebody's own."""

    def call(self, images, training=False):
        return images + 40 if training else images


def flat(x):
    return layers.Flatten()(layers.Dropout(0.1)(x))


def own_augmentation():
    before = [Brighter(), layers.Resizing(*SHAPE[:2])]
    return keras.Sequential([keras.Input(SHAPE), *before, mixer()])


@pytest.mark.parametrize(
    "make",
    [
        finetuned,
        functional,
        labelled,
        own_augmentation,
        lambda: after_it(lambda x: layers.Dense(3, "softmax", use_bias=False)(flat(x))),
        HeadFirst,
        lambda: keras.Sequential([keras.Input(SHAPE), HeadFirst()]),
    ],
)
def test_one_mixer_computes_the_same(make):
    model = make()
    pixels = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), "uint8")
    expected = model.predict(pixels.astype("float32"), verbose=0)
    one = as_mixer(model)
    assert type(one) is MLPMixer and one.preprocessing == RECORD
    assert one.config["classifier_activation"] == "softmax"
    np.testing.assert_allclose(one.predict(pixels, verbose=0), expected, atol=1e-5)
    assert np.ptp(expected) > 0.01


def test_a_rescaling_of_ones_own_becomes_that_of_the_record():
    model = keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Rescaling(0.01, -0.3),
            mixer(num_classes=0, include_preprocessing=False),
            layers.Dense(2),
        ]
    )
    one = as_mixer(model)
    np.testing.assert_allclose(one.preprocessing.value_range, (-0.3, 2.25))
    pixels = np.random.default_rng(0).integers(0, 256, (4, *SHAPE)).astype("float32")
    np.testing.assert_allclose(
        one.predict(pixels, verbose=0), model.predict(pixels, verbose=0), atol=1e-5
    )


def branched():
    inputs = keras.Input(SHAPE)
    x = mixer(num_classes=0)(inputs)
    return keras.Model(inputs, layers.Dense(2)(x + 0.5))


def before_it(function):
    changed = layers.Lambda(function, name="changed")
    return keras.Sequential([keras.Input(SHAPE), changed, mixer()])


def after_it(head):
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, head(mixer(num_classes=0)(inputs)))


class Scaled(Subclass):
    def call(self, images):
        return self.head(1.02 * self.parts["inner"](images))


def not_finite():
    model = finetuned()
    model.layers[-1].bias.assign(np.full(3, np.nan))
    return model


@pytest.mark.parametrize(
    "make, message",
    [
        (deep_head, "'dense.*' after its head.*hf://"),
        (branched, "whose outputs differ"),
        (lambda: called(Scaled(mixer(num_classes=0), layers.Dense(2))), "differ"),
        (lambda: before_it(lambda x: 255 - x), "'changed' before it"),
        # Within what half precision would explain.
        (lambda: before_it(lambda x: x + 1), "'changed' before it"),
        (
            lambda: after_it(lambda x: [layers.Dense(2)(x), layers.Dense(3)(x)]),
            "outputs that are a list",
        ),
        (
            lambda: after_it(lambda x: layers.Add(name="sum")([x, layers.ReLU()(x)])),
            "'sum', not alone behind another",
        ),
        (
            lambda: after_it(layers.Dense(2, lambda x: 2 * x, name="double")),
            "'double' after the pooling",
        ),
        (not_finite, "must give finite numbers. Received: 'flowers'"),
    ],
)
def test_what_one_mixer_cannot_compute_is_refused(make, message, tmp_path):
    model = make()
    with pytest.raises(ValueError, match=message):
        as_mixer(model)
    with pytest.raises(ValueError, match=message):
        hub.write_folder(model, tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_fine_tuning_in_two_phases_end_to_end(tmp_path):
    pytest.importorskip("tensorflow")
    rng = np.random.default_rng(0)
    classes = np.arange(24) % 3
    pixels = rng.integers(0, 200, (24, *SHAPE), "uint8")
    pixels[..., 0] += (classes * 27).astype("uint8")[:, None, None]
    model = finetuned()
    body = model.layers[2]
    body.trainable = False
    frozen = [w.copy() for w in body.get_weights()]
    arguments = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"]}
    model.compile(keras.optimizers.Adam(1e-2), **arguments)
    images = preprocess(list(pixels), model)
    model.fit(images, classes, epochs=2, verbose=0)
    for now, before in zip(body.get_weights(), frozen, strict=True):
        np.testing.assert_array_equal(now, before)
    body.trainable = True
    model.compile(keras.optimizers.Adam(1e-4), **arguments)
    model.fit(images, classes, epochs=1, verbose=0)
    assert any((a != b).any() for a, b in zip(body.get_weights(), frozen, strict=True))
    model.labels = ("rose", "tulip", "poppy")

    expected = model.predict(images, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(images, verbose=0), expected, atol=1e-6)
    np.testing.assert_array_equal(preprocess(list(pixels), loaded), images)

    source = data.from_arrays(pixels, classes, label_names=model.labels)
    result = evaluation.evaluate(model, source, batch_size=8)
    assert result.top_1 == np.mean(expected.argmax(axis=1) == classes)
    assert result.label_names == model.labels
    features = evaluation.extract(model, source, batch_size=8)
    np.testing.assert_allclose(features, body.predict(images, verbose=0), atol=1e-5)

    hub.write_folder(model, tmp_path / "published")
    published = keras_mixer.from_pretrained(tmp_path / "published")
    np.testing.assert_allclose(
        published.predict(images, verbose=0), expected, atol=1e-5
    )
    assert published.labels == model.labels and published.preprocessing == RECORD
    plain = keras.saving.load_model(tmp_path / "published")
    np.testing.assert_allclose(plain.predict(images, verbose=0), expected, atol=1e-5)
    read = hub.read_model(tmp_path / "model.keras")
    np.testing.assert_allclose(read.predict(images, verbose=0), expected, atol=1e-5)


def test_it_is_exported(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    model = finetuned()
    pixels = np.random.default_rng(0).integers(0, 256, (3, *SHAPE)).astype("float32")
    assert export.export(model, tmp_path / "model.onnx") < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (outputs,) = session.run(None, {"images": pixels})
    np.testing.assert_allclose(outputs, model.predict(pixels, verbose=0), atol=1e-5)


def test_weights_are_set_inside_any_scope():
    expected = keras_mixer.MixerTi4(weights="cifar10").get_weights()

    class Holder(layers.Layer):
        def build(self, input_shape):
            self.inner = keras_mixer.MixerTi4(weights="cifar10")

        def call(self, images):
            return self.inner(images)

    holder = Holder(name="head")
    holder(np.zeros((1, 32, 32, 3), "float32"))
    with keras.name_scope("outer"), keras.name_scope("block_1"):
        scoped = keras_mixer.MixerTi4(weights="cifar10")
        larger = keras_mixer.resize(scoped, (64, 64, 3))
        rebuilt = keras_mixer.models.rebuilt(scoped)
    for model in (holder.inner, scoped, rebuilt):
        for weight, array in zip(model.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(weight, array)
    outside = keras_mixer.resize(keras_mixer.MixerTi4(weights="cifar10"), (64, 64, 3))
    for weight, array in zip(larger.get_weights(), outside.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, array)


def test_every_array_needs_a_variable_and_the_other_way_round(tiny):
    from keras_mixer.models.mixer import model_weights, set_weights

    model = mlp_mixer(**tiny)
    before = [w.copy() for w in model.get_weights()]
    for change, message in (
        ({"block_9/norm_0/gamma": np.ones(16)}, "no weight for 1 .block_9"),
        ({"stem/projection/bias": None}, "no array for 1 .stem/projection/bias"),
    ):
        arrays = {k: v + 1 for k, v in model_weights(model).items()} | change
        arrays = {k: v for k, v in arrays.items() if v is not None}
        with pytest.raises(ValueError, match=message):
            set_weights(model, arrays)
    for weight, array in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, array)
