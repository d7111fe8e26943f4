"""Shares of a class score: they add up, and are drawn where the patches lie."""

import keras
import numpy as np
import oracle
import pytest
from drawn import LABELS, drawn_model
from numpy.testing import assert_allclose

from keras_mixer import preprocess, visualize
from keras_mixer.models.mixer import model_weights
from keras_mixer.preprocessing import Preprocessing
from keras_mixer.visualize.model_view import as_seen

CROPPED = Preprocessing((-0.5, 1.5), "resmall_crop", crop_fraction=0.5)


def logits_in_numpy(model, pixels):
    if model.config["include_preprocessing"]:
        pixels = pixels * model.preprocessing.scale + model.preprocessing.offset
    return oracle.mixer(model_weights(model), pixels, True)[1]


def image(seed=3, shape=(32, 24, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, "uint8")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"classifier_activation": None},
        {"include_preprocessing": False, "preprocessing": CROPPED},
        {"dtype": "mixed_bfloat16", "classifier_activation": None},
    ],
    ids=["softmax", "logits", "normalised", "half"],
)
def test_shares_add_up_to_the_logit_minus_the_bias(changes):
    model = drawn_model(**changes)
    pixels = preprocess(image(), model)[0]
    bias = keras.ops.convert_to_numpy(model.get_layer("head").bias)
    if "dtype" in changes:  # compared with itself: its tokens are not NumPy's
        logits = keras.ops.convert_to_numpy(model(pixels[None]))[0]
    else:
        logits = logits_in_numpy(model, pixels[None])[0]
    assert np.abs(bias).max() > 0.1 and np.abs(logits - bias).max() > 0.1
    for number in range(5):
        shares = visualize.evidence(model, pixels, number)
        assert shares.shape == (4, 3)
        assert_allclose(shares.sum(), logits[number] - bias[number], atol=1e-5)


def test_a_share_is_the_head_applied_to_the_token_of_its_patch():
    model = drawn_model()
    (tokens,) = keras.ops.convert_to_numpy(
        model.features("pre_head_layer_norm")(image()[None])
    )
    kernel = keras.ops.convert_to_numpy(model.get_layer("head").kernel)
    shares = visualize.evidence(model, image(), np.int64(2))
    for patch, token in enumerate(tokens):
        expected = sum(token * kernel[:, 2]) / 12
        assert_allclose(shares[patch // 3, patch % 3], expected, atol=1e-5)


def test_lora_of_the_head_counts():
    model = drawn_model(classifier_activation=None)
    head = model.get_layer("head")
    head.enable_lora(2)
    head.lora_kernel_b.assign(np.ones(head.lora_kernel_b.shape))
    logits = keras.ops.convert_to_numpy(model(image()[None]))[0]
    bias = keras.ops.convert_to_numpy(head.bias)
    shares = visualize.evidence(model, image(), 1)
    assert_allclose(shares.sum(), logits[1] - bias[1], atol=1e-5)


def test_a_mixer_inside_another_model_is_explained_as_the_whole():
    inner = drawn_model(num_classes=0)
    whole = keras.Sequential(
        [
            keras.Input((32, 24, 3)),
            keras.layers.RandomFlip(),
            inner,
            keras.layers.Dropout(0.5),
            keras.layers.Dense(4, bias_initializer="ones", activation="softmax"),
        ]
    )
    head = whole.layers[-1]
    kernel, bias = map(keras.ops.convert_to_numpy, (head.kernel, head.bias))
    pooled = keras.ops.convert_to_numpy(inner(image()[None].astype("float32")))[0]
    shares = visualize.evidence(whole, image(), 2)
    assert_allclose(shares.sum(), (pooled @ kernel)[2], atol=1e-5)
    assert bias[2] == 1  # which is no part of the shares


@pytest.mark.parametrize("batch_size", [1, 5, 13, 64])
@pytest.mark.parametrize("include_preprocessing", [True, False])
def test_occlusion_is_the_drop_of_the_logit_with_a_grey_patch(
    batch_size, include_preprocessing
):
    model = drawn_model(
        include_preprocessing=include_preprocessing, preprocessing=CROPPED
    )
    pixels = preprocess(image(), model)[0]
    drops = visualize.evidence(model, pixels, 3, "occlusion", batch_size=batch_size)
    whole = logits_in_numpy(model, pixels[None])[0, 3]
    for row in range(4):
        for column in range(3):
            grey = pixels.copy()
            patch = np.s_[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            grey[patch] = 127.5 if include_preprocessing else 0.5
            expected = whole - logits_in_numpy(model, grey[None])[0, 3]
            assert_allclose(drops[row, column], expected, atol=2e-5)
    assert np.abs(drops).max() > 1e-3


def test_every_kind_of_image_goes_through_preprocess(tmp_path):
    from PIL import Image

    model = drawn_model(preprocessing=CROPPED)
    photo = image(shape=(50, 70, 3))
    Image.fromarray(photo).save(tmp_path / "photo.png")
    expected = visualize.evidence(model, preprocess([photo], model)[0], 0)
    for given in (photo, tmp_path / "photo.png", Image.fromarray(photo)):
        assert_allclose(visualize.evidence(model, given, 0), expected, atol=1e-6)
    tensor = keras.ops.convert_to_tensor(preprocess([photo], model)[0])
    assert_allclose(visualize.evidence(model, tensor, 0), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "gradient"), "`method` must be 'exact' or 'occlusion'.*'gradient'"),
        ((5,), r"`class_index` must be an integer in \[0, 5\). .*class_index=5"),
        ((-1,), "class_index=-1"),
        ((True,), "class_index=True"),
        (("cat",), "class_index='cat'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        visualize.evidence(drawn_model(), image(), *arguments)


def test_models_without_a_float_head():
    with pytest.raises(ValueError, match="must have a head"):
        visualize.evidence(drawn_model(num_classes=0), image(), 0)
    quantized = drawn_model()
    quantized.get_layer("head").quantize("int8")
    with pytest.raises(ValueError, match="a head in int8.*from before `quantize`"):
        visualize.evidence(quantized, image(), 0)


# The picture


@pytest.mark.parametrize("transform", ["resize", "resize_crop", "resmall_crop"])
@pytest.mark.parametrize("shape", [(200, 130, 3), (100, 310, 3)])
def test_the_frame_is_what_the_model_sees(transform, shape):
    record = Preprocessing(transform=transform, crop_fraction=0.6)
    model = drawn_model(preprocessing=record)
    down, along = np.meshgrid(*map(np.arange, shape[:2]), indexing="ij")
    for axis, place in enumerate((down, along)):
        # Each pixel is its own place: what comes out says where it was.
        picture = np.repeat(place[..., None] * (250 / shape[axis]), 3, 2)
        seen = preprocess([picture], model)[0, ..., 0].mean(axis=1 - axis)
        places = seen * shape[axis] / 250
        _, (left, right, bottom, top) = as_seen(model, picture)
        low, high = ((top, bottom), (left, right))[axis]
        step = (high - low) / len(places)
        assert_allclose(places[0], low + step / 2 - 0.5, atol=step / 2 + 1)
        assert_allclose(places[-1], high - step / 2 - 0.5, atol=step / 2 + 1)


def test_the_figure_shows_the_picture_and_every_share():
    model = drawn_model(preprocessing=CROPPED)
    model.labels = LABELS
    photo = image(shape=(50, 70, 3))
    figure = visualize.evidence_figure(model, photo)
    left, right = figure.axes[:2]
    assert_allclose(left.images[0].get_array(), photo / 255, atol=1e-6)
    scores = keras.ops.convert_to_numpy(model(preprocess([photo], model)))[0]
    best = int(scores.argmax())
    shares = visualize.evidence(model, photo, best)
    overlay = right.images[1]
    assert_allclose(overlay.get_array(), shares, atol=1e-6)
    mean = shares.mean()
    distances = np.abs(shares - mean)
    limit = np.quantile(distances, 0.95)
    assert limit < distances.max()
    assert_allclose(overlay.get_clim(), (mean - limit, mean + limit))
    assert_allclose(overlay.get_alpha(), 0.1 + 0.6 * np.minimum(distances / limit, 1))
    assert figure.axes[2].get_ylabel() == (
        f"share of the logit (white: the mean, {mean:.3g})"
    )
    bias = float(keras.ops.convert_to_numpy(model.get_layer("head").bias)[best])
    title = figure.get_suptitle()
    assert title.startswith(f"{LABELS[best]}: logit {shares.sum() + bias:.2f} = ")
    assert "not where it came from" in figure.get_supxlabel()
    other = visualize.evidence_figure(model, photo, 1, "occlusion")
    assert other.get_suptitle().startswith(f"{LABELS[1]}: logit")
    assert "do not add up" in other.get_supxlabel()
    drops = visualize.evidence(model, photo, 1, "occlusion")
    overlay = other.axes[1].images[1]
    assert_allclose(overlay.get_array(), drops, atol=1e-6)
    limit = np.quantile(np.abs(drops), 0.95)
    assert_allclose(overlay.get_clim(), (-limit, limit))


def test_a_normalised_image_is_drawn_as_the_pixels_it_was():
    model = drawn_model(include_preprocessing=False, preprocessing=CROPPED)
    pixels = image()
    normalised = (pixels / 255 * 2 - 0.5).astype("float32")
    figure = visualize.evidence_figure(model, normalised, 0)
    assert_allclose(figure.axes[0].images[0].get_array(), pixels / 255, atol=1e-5)
