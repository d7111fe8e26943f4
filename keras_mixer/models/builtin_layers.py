"""The same Mixer as a graph of built-in Keras layers, which loads without this package.

It is what `keras.saving.load_model("hf://owner/name")` reads. Its layers have the paths
of ours with underscores (`block_0_token_mixing_dense_0`), so the file of its weights is
one that `mlp_mixer(weights=...)` takes, too.
"""

import itertools
from typing import Any

import keras
from keras import layers

from keras_mixer.checkpoints import activations, check_finite
from keras_mixer.layers import LAYER_NORM_EPSILON
from keras_mixer.models.mixer import MLPMixer, model_weights

_FLOAT32 = {"dtype": "float32"}  # whatever the policy of the model or of the process


def plain_model(model: MLPMixer) -> keras.Model:
    """Return a float32 `keras.Model` of built-in layers that computes the same.

    Models that are equal give files that are equal: no name or seed is left to chance.

    Args:
        model: An `MLPMixer`. LoRA adapters are merged into their kernels.

    Raises:
        ValueError: If the model is quantized, has weights that are not finite, or the
            activation of its head is not one of Keras's own.
    """
    weights = model_weights(model)
    activation = model.config["classifier_activation"]
    if activation is not None and activation not in activations():
        raise ValueError(
            "The activation of the head must be one of Keras's own, so that the model "
            f"loads with Keras alone. Received: {activation!r}. Build the model with "
            "`classifier_activation=None`, and apply yours to its outputs."
        )
    images, outputs = _graph(model)
    plain = keras.Model(images, outputs, name=model.name)
    for path, array in weights.items():
        try:
            check_finite(array)
        except ValueError as error:
            raise ValueError(f"`model` is broken. Received: {path}: {error}") from error
        layer, leaf = path.rsplit("/", 1)
        getattr(plain.get_layer(layer.replace("/", "_")), leaf).assign(array)
    # Keras numbers operations through all models of the process.
    gelus = (op for op in plain.operations if not isinstance(op, layers.Layer))
    for i, gelu in enumerate(gelus):
        gelu.name = f"gelu_{i}"
    return plain


def _graph(model: MLPMixer) -> keras.Model:
    config, record = model.config, model.preprocessing
    hidden_dim, patch_size = config["hidden_dim"], config["patch_size"]
    seeds = itertools.count()

    def norm(x: Any, name: str) -> Any:
        return layers.LayerNormalization(
            epsilon=LAYER_NORM_EPSILON, name=name, **_FLOAT32
        )(x)

    def dropout(x: Any, rate: float, name: str, noise_shape: Any = None) -> Any:
        if not rate:
            return x
        seed = next(seeds)
        return layers.Dropout(rate, noise_shape, seed, name=name, **_FLOAT32)(x)

    def mlp(x: Any, mlp_dim: int, name: str) -> Any:
        out_dim, rate = x.shape[-1], config["dropout_rate"]
        x = _dense(mlp_dim, f"{name}_dense_0")(x)
        # The layer `Activation("gelu")` is always the exact form.
        x = keras.ops.gelu(x, approximate=config["approximate_gelu"])
        x = dropout(x, rate, f"{name}_dropout_0")
        x = _dense(out_dim, f"{name}_dense_1")(x)
        return dropout(x, rate, f"{name}_dropout_1")

    def swap(x: Any, name: str) -> Any:
        return layers.Permute((2, 1), name=name, **_FLOAT32)(x)

    def add(x: Any, y: Any, rate: float, name: str) -> Any:
        y = dropout(y, rate, f"{name}_stochastic_depth", noise_shape=(None, 1, 1))
        return layers.Add(name=name, **_FLOAT32)([x, y])

    images = x = keras.Input(config["input_shape"], name="images")
    if config["include_preprocessing"]:
        x = layers.Rescaling(**record.rescaling, name="normalization", **_FLOAT32)(x)
    x = layers.Conv2D(
        hidden_dim,
        patch_size,
        strides=patch_size,
        data_format="channels_last",
        kernel_initializer="lecun_normal",
        name="stem_projection",
        **_FLOAT32,
    )(x)
    num_patches = x.shape[1] * x.shape[2]
    x = layers.Reshape((num_patches, hidden_dim), name="stem", **_FLOAT32)(x)
    for i, block in enumerate(model.blocks):
        name, rate = f"block_{i}", block.stochastic_depth_rate
        y = swap(norm(x, f"{name}_norm_0"), f"{name}_to_channels")
        y = mlp(y, config["tokens_mlp_dim"], f"{name}_token_mixing")
        y = swap(y, f"{name}_to_tokens")
        x = add(x, y, rate, f"{name}_tokens_mixed")
        y = norm(x, f"{name}_norm_1")
        y = mlp(y, config["channels_mlp_dim"], f"{name}_channel_mixing")
        x = add(x, y, rate, name)
    x = norm(x, "pre_head_layer_norm")
    x = layers.GlobalAveragePooling1D(
        data_format="channels_last", name="pre_logits", **_FLOAT32
    )(x)
    if config["num_classes"]:
        activation = config["classifier_activation"]
        x = _dense(config["num_classes"], "head", "zeros", activation)(x)
    return images, x


def _dense(
    units: int,
    name: str,
    kernel_initializer: str = "lecun_normal",
    activation: str | None = None,
) -> keras.layers.Dense:
    return layers.Dense(
        units,
        activation=activation,
        kernel_initializer=kernel_initializer,
        name=name,
        **_FLOAT32,
    )
