"""The Mixer one writes in an hour of Keras's built-in layers, to compare with."""

from keras import Input, Model, layers


def naive_mixer(
    *,
    patch_size,
    hidden_dim,
    num_blocks,
    tokens_mlp_dim,
    channels_mlp_dim,
    input_shape,
    num_classes,
    dtype=None,
):
    """Return a functional model from pixels to logits; arguments as in `mlp_mixer`."""

    def mlp(x, width):
        y = layers.Dense(width, activation="gelu", dtype=dtype)(x)
        return layers.Dense(x.shape[-1], dtype=dtype)(y)

    images = Input(input_shape)
    x = layers.Rescaling(1 / 127.5, -1)(images)
    x = layers.Conv2D(hidden_dim, patch_size, strides=patch_size, dtype=dtype)(x)
    x = layers.Reshape((-1, hidden_dim), dtype=dtype)(x)
    for _ in range(num_blocks):
        y = layers.LayerNormalization(dtype=dtype)(x)
        y = layers.Permute((2, 1), dtype=dtype)(y)
        y = layers.Permute((2, 1), dtype=dtype)(mlp(y, tokens_mlp_dim))
        x = layers.Add(dtype=dtype)([x, y])
        y = mlp(layers.LayerNormalization(dtype=dtype)(x), channels_mlp_dim)
        x = layers.Add(dtype=dtype)([x, y])
    x = layers.LayerNormalization(dtype=dtype)(x)
    x = layers.GlobalAveragePooling1D(dtype=dtype)(x)
    return Model(images, layers.Dense(num_classes)(x))
