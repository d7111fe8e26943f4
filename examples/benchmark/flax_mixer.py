"""The official architecture in Flax's own modules, to compare with.

`MlpMixer` has the module names and the arithmetic of `vit_jax/models_mixer.py` of
google-research/vision_transformer, so it takes the parameters of the official files.
`dtype` is what it computes in; parameters are float32.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class MlpBlock(nn.Module):
    """Two dense layers with a GELU between, along the last axis."""

    mlp_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        y = nn.gelu(nn.Dense(self.mlp_dim, dtype=self.dtype)(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype)(y)


class MixerBlock(nn.Module):
    """Token mixing, then channel mixing, each normalised and residual."""

    tokens_mlp_dim: int
    channels_mlp_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        y = jnp.swapaxes(nn.LayerNorm(dtype=self.dtype)(x), 1, 2)
        y = MlpBlock(self.tokens_mlp_dim, self.dtype, name="token_mixing")(y)
        x = x + jnp.swapaxes(y, 1, 2)
        y = nn.LayerNorm(dtype=self.dtype)(x)
        y = MlpBlock(self.channels_mlp_dim, self.dtype, name="channel_mixing")(y)
        return x + y


class MlpMixer(nn.Module):
    """Normalised images to logits."""

    patch_size: int
    hidden_dim: int
    num_blocks: int
    tokens_mlp_dim: int
    channels_mlp_dim: int
    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(
            self.hidden_dim,
            (self.patch_size, self.patch_size),
            strides=self.patch_size,
            dtype=self.dtype,
            name="stem",
        )(images)
        x = x.reshape(x.shape[0], -1, self.hidden_dim)
        for _ in range(self.num_blocks):
            x = MixerBlock(self.tokens_mlp_dim, self.channels_mlp_dim, self.dtype)(x)
        x = nn.LayerNorm(dtype=self.dtype, name="pre_head_layer_norm")(x)
        x = jnp.mean(x, axis=1)
        zeros = nn.initializers.zeros
        return nn.Dense(self.num_classes, kernel_init=zeros, name="head")(x)
