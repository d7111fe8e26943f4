"""The one Mixer inside a Keras model, however deep it lies, and its images."""

from collections.abc import Iterator
from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray

from keras_mixer.layers import PatchEmbed, inner_layers
from keras_mixer.preprocessing import Preprocessing, Range

_PIXELS = (0.0, 255.0)
# What the pixel values 0 and 255 usually are for a model with a layer that rescales.
_USUAL_RANGES = (_PIXELS, (0.0, 1.0), (-1.0, 1.0))


@dataclass(frozen=True)
class FoundMixer:
    """A Keras model, the Mixer inside it, and what the whole takes and gives.

    Attributes:
        model: The whole model.
        mixer: The Keras model that holds the stem of the Mixer; often `model` itself.
        preprocessing: The `Preprocessing` record of the Mixer's images.
        image_shape: `(height, width, channels)` that `model` takes.
        value_range: What the pixel values 0 and 255 become before they enter `model`:
            (0, 255) where it normalises inside. One pair, or one for each channel.
        labels: One name per class, or `None`. Those of the Mixer only if its head is
            the last that has weights; else the attribute `labels` of `model`, if set.
    """

    model: keras.Model
    mixer: keras.Model
    preprocessing: Preprocessing
    image_shape: tuple[int, int, int]
    value_range: Range | tuple[Range, ...]
    labels: tuple[str, ...] | None

    @property
    def normalizes(self) -> bool:
        """Whether the model takes pixels in [0, 255]."""
        return self.value_range == _PIXELS

    @property
    def scale(self) -> NDArray[np.float32]:
        """The factor in `pixels * scale + offset`, which is what the model takes."""
        return np.asarray(Preprocessing(self.value_range).scale, np.float32)

    @property
    def offset(self) -> NDArray[np.float32]:
        """The summand in `pixels * scale + offset`."""
        return np.asarray(Preprocessing(self.value_range).offset, np.float32)

    @property
    def num_classes(self) -> int:
        """Number of classes of the model; 0 if it gives pooled features or tokens."""
        last = _last_with_effect(self.model)
        if not isinstance(last, keras.layers.Layer) or isinstance(
            last,
            keras.layers.GlobalAveragePooling1D | keras.layers.LayerNormalization,
        ):
            return 0
        shape = getattr(self.model, "output_shape", None)
        if shape is None:  # a subclass with a `call` of its own
            shape = self.model(np.zeros((1, *self.image_shape), "float32")).shape
        return int(shape[-1]) if len(shape) == 2 else 0


def find_mixer(model: keras.Model) -> FoundMixer:
    """Return the Mixer inside a Keras model, and how its images are prepared.

    The model may be a Mixer; a Sequential, functional or subclassed model that holds
    one at any depth, with augmentation before and any head after it; or a new model on
    nodes of one, such as `keras.Model(mixer.input, ...)`.

    Args:
        model: A built Keras model.

    Raises:
        ValueError: If it is not a Keras model, holds no Mixer, or several whose images
            are prepared in different ways.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`model` must be a Keras model with a Mixer inside, such as "
            f"`keras_mixer.MixerB16` returns. Received: {type(model).__name__}"
        )
    stems: list[tuple[PatchEmbed, keras.Model]] = []
    rescalings: list[keras.layers.Layer] = []
    for layer, holder in _walk(model, model, set()):
        if isinstance(layer, PatchEmbed):
            stems.append((layer, holder))
        elif not stems and _normalizes(layer):
            rescalings.append(layer)
    if not stems:
        raise ValueError(
            f"`model` must hold a Mixer of this package. Received: {model.name!r} of "
            f"the layers {', '.join(layer.name for layer in model.layers[:8])}. If "
            "Keras loaded it from a published repository, it has built-in layers only: "
            "load it with `keras_mixer.from_pretrained`."
        )
    records = [stem.preprocessing or Preprocessing() for stem, _ in stems]
    if len(set(records)) > 1:
        raise ValueError(
            "`model` must prepare its images in one way. Received: Mixers with "
            f"different records, {records[0]} and "
            f"{next(r for r in records if r != records[0])}. Use each of them alone, "
            "or set `preprocessing` of both to the same record."
        )
    stem, mixer = stems[0]
    return FoundMixer(
        model=model,
        mixer=mixer,
        preprocessing=records[0],
        image_shape=_image_shape(model, stem),
        value_range=_value_range(records[0], rescalings),
        labels=_labels(model, mixer),
    )


def stems_of(model: keras.Model) -> list[PatchEmbed]:
    """Return the stems of all Mixers inside a Keras model."""
    found = _walk(model, model, set())
    return [layer for layer, _ in found if isinstance(layer, PatchEmbed)]


def has_no_effect(layer: keras.layers.Layer) -> bool:
    """Whether a layer passes on what it gets when nothing is trained."""
    if isinstance(layer, keras.layers.Activation):
        return layer.activation is keras.activations.linear
    if isinstance(layer, keras.layers.Pipeline):
        return all(map(has_no_effect, layer.layers))
    return isinstance(layer, _WITHOUT_EFFECT)


# Augmentation by name, not by Keras's private base classes.
_WITHOUT_EFFECT = tuple(
    value
    for name, value in vars(keras.layers).items()
    if isinstance(value, type)
    and (
        (name.startswith("Random") and name not in ("RandomFourierFeatures",))
        or name
        in (
            "ActivityRegularization",
            "AlphaDropout",
            "AugMix",
            "CutMix",
            "Dropout",
            "GaussianDropout",
            "GaussianNoise",
            "Identity",
            "InputLayer",
            "MixUp",
            "RandAugment",
            "SpatialDropout1D",
            "SpatialDropout2D",
        )
    )
)


def _walk(
    layer: keras.layers.Layer, holder: keras.Model, seen: set[int]
) -> Iterator[tuple[keras.layers.Layer, keras.Model]]:
    """Yield all layers inside, in order, each with the Keras model that holds it."""
    if id(layer) in seen:
        return
    seen.add(id(layer))
    if isinstance(layer, keras.Model):
        holder = layer
    else:
        yield layer, holder
    if not isinstance(layer, PatchEmbed):
        for inner in inner_layers(layer):
            yield from _walk(inner, holder, seen)


def _normalizes(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization)


def _value_range(
    record: Preprocessing, rescalings: list[keras.layers.Layer]
) -> Range | tuple[Range, ...]:
    """Return what 0 and 255 must become for the stem to get the record's range."""
    if not rescalings:
        return record.value_range
    if all(isinstance(layer, keras.layers.Rescaling) for layer in rescalings):
        values = np.asarray(record.ranges, "float64").T  # of each channel, or of all
        for layer in reversed(rescalings):
            values = (values - np.ravel(layer.offset)) / np.ravel(layer.scale)
        for usual in _USUAL_RANGES:
            if np.allclose(values, np.array(usual)[:, None], rtol=1e-4, atol=1e-3):
                return usual
    return _PIXELS  # a normalisation of the user's own


def _image_shape(model: keras.Model, stem: PatchEmbed) -> tuple[int, int, int]:
    """Return the image shape of the whole model; the stem's where it takes any."""
    shape = getattr(model, "input_shape", None)
    own = stem.image_shape
    if shape is None:
        shape = (None, None, None, None)
    if not isinstance(shape, tuple) or len(shape) != 4:
        raise ValueError(
            "`model` must take one image, (batch, height, width, channels). "
            f"Received: input_shape={shape}"
        )
    if own is None:
        raise ValueError(
            "`model` must be built: call it once on an image. Received: "
            f"{model.name!r}, whose stem has no weights yet"
        )
    height, width, channels = (
        inner if outer is None else outer
        for outer, inner in zip(shape[1:], own, strict=True)
    )
    return height, width, channels


def _labels(model: keras.Model, mixer: keras.Model) -> tuple[str, ...] | None:
    labels = _own_labels(model)
    if labels is None and len(model.weights) == len(mixer.weights):
        labels = _own_labels(mixer)
    return tuple(labels) if labels else None


def _own_labels(model: keras.Model) -> tuple[str, ...] | None:
    """Return the labels set on a model, or else those of the layer of its outputs."""
    labels = getattr(model, "labels", None)
    if labels is None and len(getattr(model, "outputs", None) or ()) == 1:
        labels = getattr(model.layers[-1], "labels", None)
    return labels


def _last_with_effect(model: keras.Model) -> keras.layers.Layer | None:
    for layer in reversed(model.layers):
        if isinstance(layer, keras.Model):
            return _last_with_effect(layer)
        if not has_no_effect(layer):
            return layer
    return None
