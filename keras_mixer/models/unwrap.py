"""A Keras model around a Mixer as one plain Mixer that computes the same.

The usual form of fine-tuning is augmentation, a Mixer without a head, dropout and a
dense layer. Layers that act in training only are left out, and the dense layer becomes
the head.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from keras_mixer.layers import (
    LAYER_NORM_EPSILON,
    MixerBlock,
    PatchEmbed,
    inner_layers,
    nested_layers,
    zero_kernels,
)
from keras_mixer.models.find_mixer import (
    FoundMixer,
    find_mixer,
    has_no_effect,
    stems_of,
)
from keras_mixer.models.half_precision import HALF
from keras_mixer.models.mixer import MLPMixer, mlp_mixer, model_weights, set_weights
from keras_mixer.preprocessing import Preprocessing

# Relative: what sums in another order may differ by, and what half precision and
# adapters that were not merged may.
_TOLERANCE, _HALF_TOLERANCE = 1e-3, 0.05


def as_mixer(model: keras.Model) -> MLPMixer:
    """Return an `MLPMixer` that predicts what `model` does; a Mixer itself as it is.

    Args:
        model: A Keras model as `find_mixer` takes it. Around the Mixer there may be
            layers that act in training only, rescaling before it, and one dense layer
            with an activation after it.

    Returns:
        An `MLPMixer` in float32 with the weights, the record of the images and the
        labels of `model`, not compiled. LoRA adapters are merged.

    Raises:
        ValueError: If `model` computes something that an `MLPMixer` cannot; the message
            names the layer.
    """
    mixer, more = split_head(model)
    if more:
        raise _refused(find_mixer(model), f"{more[0].name!r} after {_end(mixer)}")
    return mixer


def split_head(
    model: keras.Model,
) -> tuple[MLPMixer, tuple[keras.layers.Layer, ...]]:
    """Return a Mixer and the layers after it that together predict what `model` does.

    Args:
        model: A Keras model as `as_mixer` takes it, with any layers one after another
            behind the Mixer.

    Returns:
        The Mixer as `as_mixer` returns it, with the first dense layer as its head, and
        the layers after that head, in order, without those that act in training only.

    Raises:
        ValueError: If the layers do not follow each other, or what is in front of the
            Mixer is no rescaling.
    """
    if isinstance(model, MLPMixer) and model.is_whole:
        return model, ()
    found = find_mixer(model)
    images, expected = _drawn(found)
    parts = _Parts(found, images)
    with zero_kernels():
        mixer = mlp_mixer(
            **parts.sizes,
            input_shape=found.image_shape,
            num_classes=parts.head.units if parts.head else 0,
            classifier_activation=parts.activation,
            preprocessing=parts.record,
            include_preprocessing=found.normalizes,
            name=model.name,
        )
    set_weights(mixer, parts.weights())
    if parts.head and not parts.more:
        mixer.labels = found.labels

    x = mixer(images, training=False)
    for layer in parts.more:
        x = _called(layer, x, found)
    _check_equal(expected, _array(x), found)
    return mixer, parts.more


def _drawn(found: FoundMixer) -> tuple[np.ndarray, np.ndarray]:
    """Return two images of noise as the model takes them, and its outputs.

    A subclass whose last layers were never called has their weights after this.
    """
    shape = (2, *found.image_shape)
    images = np.random.default_rng(0).uniform(0, 255, shape) * found.scale
    images = (images + found.offset).astype("float32")
    outputs = found.model(images, training=False)
    if not keras.ops.is_tensor(outputs):
        raise _refused(found, f"outputs that are a {type(outputs).__name__}")
    array = _array(outputs)
    if not np.isfinite(array).all():
        raise ValueError(
            f"`model` must give finite numbers. Received: {found.model.name!r}, which "
            "does not for images of noise. Look for NaNs in its weights: a training "
            "that diverges leaves them."
        )
    return images, array


def _called(layer: keras.layers.Layer, x: Any, found: FoundMixer) -> Any:
    """Return what a layer makes of what the one before it gives."""
    try:
        return layer(x, training=False)
    except Exception as error:  # it may take two inputs, or another shape
        raise _refused(found, f"{layer.name!r}, not alone behind another") from error


def _array(tensor: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor).astype("float64")


class _Parts:
    """The layers of a chain around a Mixer, each in its place."""

    def __init__(self, found: FoundMixer, images: np.ndarray) -> None:
        self.found = found
        layers = list(_chain(found.model))
        stems = [i for i, layer in enumerate(layers) if isinstance(layer, PatchEmbed)]
        if len(stems) != 1:
            raise self._refused(f"{len(stems)} Mixers in a row")
        before, self.stem, after = (
            layers[: stems[0]],
            layers[stems[0]],
            layers[stems[0] + 1 :],
        )
        if tuple(found.image_shape) != self.stem.image_shape:
            raise self._refused(f"images that are resized to {self.stem.image_shape}")
        self.record = self._record(before, images)
        self.blocks = [layer for layer in after if isinstance(layer, MixerBlock)]
        num_blocks = len(self.blocks)
        rest = [layer for layer in after[num_blocks:] if not _passes_vectors(layer)]
        if not num_blocks or after[:num_blocks] != self.blocks or len(rest) < 2:
            raise self._refused("blocks that do not follow each other")
        self.norm, pooling, *head = rest
        if not (
            isinstance(self.norm, keras.layers.LayerNormalization)
            and self.norm.epsilon == LAYER_NORM_EPSILON
            and isinstance(pooling, keras.layers.GlobalAveragePooling1D)
        ):
            raise self._refused(f"{self.norm.name!r} and {pooling.name!r} after them")
        self.head, self.activation, self.more = _read_head(head)

    @property
    def sizes(self) -> dict[str, Any]:
        """The arguments of `mlp_mixer` that the layers tell."""
        block = self.blocks[-1]
        return {
            "patch_size": self.stem.patch_size,
            "hidden_dim": self.stem.hidden_dim,
            "num_blocks": len(self.blocks),
            "tokens_mlp_dim": block.tokens_mlp_dim,
            "channels_mlp_dim": block.channels_mlp_dim,
            "approximate_gelu": block.approximate_gelu,
            "dropout_rate": block.dropout_rate,
            "stochastic_depth_rate": block.stochastic_depth_rate,
        }

    def weights(self) -> dict[str, np.ndarray]:
        """Return the weights by the paths that they have in a Mixer."""
        nodes = [("stem", self.stem), ("pre_head_layer_norm", self.norm)]
        nodes += [(f"block_{i}", block) for i, block in enumerate(self.blocks)]
        if self.head:
            nodes.append(("head", self.head))
        weights = {
            f"{node}/{name}": array
            for node, layer in nodes
            for name, array in model_weights(layer).items()
        }
        if self.head and not self.head.use_bias:
            weights["head/bias"] = np.zeros(self.head.units, "float32")
        return weights

    def _record(
        self, before: list[keras.layers.Layer], images: np.ndarray
    ) -> Preprocessing:
        """Return the record, with the normalisation that lies in the graph."""
        record = self.found.preprocessing
        scale, offset = np.ones(1), np.zeros(1)  # of all channels, or of each
        for layer in before:
            if isinstance(layer, keras.layers.Rescaling):
                scale = scale * np.ravel(layer.scale)
                offset = offset * np.ravel(layer.scale) + np.ravel(layer.offset)
            elif has_no_effect(layer):
                continue
            # Somebody's own augmentation, perhaps, or a resizing to the same size.
            elif layer.weights or not _gives_back(layer, images * scale + offset):
                raise self._refused(f"{layer.name!r} before it")
        if self.found.value_range == record.value_range:
            return record
        if not self.found.normalizes or scale.min() <= 0:
            raise self._refused("another range of pixel values")
        if np.allclose(record.scale, scale, rtol=1e-5) and np.allclose(
            record.offset, offset, rtol=1e-5
        ):
            return record
        pairs = np.broadcast_arrays(offset, 255 * scale + offset)
        return replace(record, value_range=np.stack(pairs, axis=1).tolist())

    def _refused(self, what: str) -> ValueError:
        return _refused(self.found, what)


def _read_head(
    layers: list[keras.layers.Layer],
) -> tuple[keras.layers.Dense | None, str | None, tuple[keras.layers.Layer, ...]]:
    """Return the head, the name of its activation, and the layers after it."""
    head = layers[0] if layers else None
    if not isinstance(head, keras.layers.Dense):
        return None, None, tuple(layers)
    activation, more = head.activation, layers[1:]
    if more and activation is keras.activations.linear:
        own = activation_of(more[0])
        if own is not None:
            activation, more = own, more[1:]
    if all(activation is not known for known in vars(keras.activations).values()):
        return None, None, tuple(layers)  # a function of somebody's own
    return head, keras.activations.serialize(activation), tuple(more)


def _passes_vectors(layer: keras.layers.Layer) -> bool:
    """Whether pooled features, and what comes after them, go through unchanged."""
    return has_no_effect(layer) or isinstance(layer, keras.layers.Flatten)


def _gives_back(layer: keras.layers.Layer, images: np.ndarray) -> bool:
    """Whether a layer passes on what it gets when nothing is trained, as it turns out.

    Their sum alone would not tell a small change from half precision.
    """
    images = images.astype("float32")
    try:
        outputs = _array(layer(images, training=False))
    except Exception:  # it may take two inputs, or another shape
        return False
    tolerance = 2**-8 * np.abs(images).max() if _is_half(layer) else 1e-3
    return outputs.shape == images.shape and np.allclose(
        outputs, images, rtol=0, atol=tolerance
    )


def _in_order_of_calls(holder: keras.layers.Layer) -> keras.layers.Layer:
    """Return a graph of what a class with a `call` of its own calls, if it has one.

    The attributes of the class may come in another order.
    """
    if not isinstance(holder, keras.Model) or getattr(holder, "outputs", None):
        return holder
    stems = stems_of(holder)
    if not stems or stems[0].image_shape is None:
        return holder
    images = keras.Input(stems[0].image_shape)
    try:
        return keras.Model(images, holder.call(images))
    except Exception:  # it computes with tensors, not with layers alone
        return holder


def _is_half(layer: keras.layers.Layer) -> bool:
    return getattr(layer, "compute_dtype", "float32") in HALF


def _refused(found: FoundMixer, what: str) -> ValueError:
    return ValueError(
        "`model` must be what one `MLPMixer` can compute: layers that act in "
        "training only, a rescaling, the Mixer, and one dense layer with an "
        f"activation. Received: {found.model.name!r} with {what}. Save it with "
        "`model.save` (also to the Hub, `hf://owner/name`), or give it such a head."
    )


def _end(mixer: MLPMixer) -> str:
    return "its head" if mixer.config["num_classes"] else "the pooling"


def without_augmentation(model: keras.Model) -> keras.Model:
    """Return a graph on the same weights without the layers that act in training only.

    A class with a `call` of its own is returned as it is.
    """
    if not getattr(model, "outputs", None):
        return model

    def kept(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.Sequential):
            passes = all(map(has_no_effect, layer.layers))
        else:
            passes = has_no_effect(layer)
        if passes:
            # Unlike the layer alone, it takes `mask` and `training`.
            return keras.Sequential([keras.layers.Identity()], name=layer.name)
        return layer

    return keras.models.clone_model(model, clone_function=kept)


def _chain(holder: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """Yield the layers inside, as if each were given what the one before it gives."""
    for layer in inner_layers(_in_order_of_calls(holder)):
        if isinstance(layer, keras.Model | keras.layers.Pipeline) or (
            not isinstance(layer, PatchEmbed | MixerBlock) and _holds_stem(layer)
        ):
            yield from _chain(layer)
        elif not isinstance(layer, keras.layers.InputLayer):
            yield layer


def _holds_stem(layer: keras.layers.Layer) -> bool:
    return any(isinstance(inner, PatchEmbed) for inner in nested_layers(layer))


def activation_of(layer: keras.layers.Layer) -> Any:
    """Return the activation that a layer is, or `None` if it is another layer."""
    if isinstance(layer, keras.layers.Activation):
        return layer.activation
    if isinstance(layer, keras.layers.Softmax) and layer.axis == -1:
        return keras.activations.softmax
    if type(layer) is keras.layers.ReLU and layer.max_value is None:
        return keras.activations.relu
    return None


def _check_equal(expected: np.ndarray, outputs: np.ndarray, found: FoundMixer) -> None:
    """Raise unless both are the same: a graph may be no chain."""
    inside = list(nested_layers(found.model))
    rough = any(_is_half(e) or getattr(e, "lora_enabled", False) for e in inside)
    tolerance = _HALF_TOLERANCE if rough else _TOLERANCE
    size = np.linalg.norm(expected)
    if (
        expected.shape != outputs.shape
        or not np.linalg.norm(expected - outputs) <= tolerance * size
    ):
        raise ValueError(
            "`model` must be what one `MLPMixer` can compute. Received: "
            f"{found.model.name!r}, whose outputs differ from those of its layers one "
            "after another. Save it with `model.save`, or take a graph without "
            "branches."
        )
