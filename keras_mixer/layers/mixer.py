"""The MLP-Mixer's equations as four Keras layers: patches, two mixing MLPs, one block.

Shapes are written with S patches and C = `hidden_dim` channels. With `x` of shape
`(batch, S, C)`, one block (paper, eq. 1) is

    u = x + TokenMixing(LayerNorm(x))        # along the S patches, per channel
    y = u + ChannelMixing(LayerNorm(u))      # along the C channels, per patch

Nothing here knows about whole models or checkpoints.

Source: Tolstikhin et al. 2021, "MLP-Mixer: An all-MLP Architecture for Vision",
section 2; `vit_jax/models_mixer.py` of google-research/vision_transformer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self

import keras
from keras import ops

from keras_mixer.checks import check_dim, check_image_shape, check_rate
from keras_mixer.layers.dense import Dense
from keras_mixer.layers.dropout import Dropout, dropped
from keras_mixer.layers.inner_calls import call_inner
from keras_mixer.layers.inner_state import LayerOfLayers, dense_arguments
from keras_mixer.layers.nesting import path_below_model
from keras_mixer.layers.operations import LayerNorm, dense, dense_gelu
from keras_mixer.preprocessing import Preprocessing
from keras_mixer.variants import num_patches, patch_grid

# The official code's value (Flax's default); Keras's own default is 1e-3.
LAYER_NORM_EPSILON = 1e-6

_kernel_initializer = ContextVar("kernel_initializer", default="lecun_normal")


@contextmanager
def zero_kernels() -> Iterator[None]:
    """Build layers with zero kernels inside this context.

    For models whose weights are set right after: drawing the random numbers of a B/16
    takes seconds. The layers' configs do not change, so clones are drawn as always.
    """
    token = _kernel_initializer.set("zeros")
    try:
        yield
    finally:
        _kernel_initializer.reset(token)


@keras.saving.register_keras_serializable("keras_mixer")
class PatchEmbed(keras.layers.Layer):
    """Cuts images into patches and projects each one linearly to a token.

    `tokens[s] = kernel^T patch[s] + bias`: a convolution whose stride equals its kernel
    size, then `(height / patch_size, width / patch_size)` flattened row by row to the
    S patches. Images are always `(height, width, channels)`, whatever
    `keras.config.image_data_format()` says.

    Args:
        hidden_dim: Width of a token (C in the paper). Positive.
        patch_size: Edge of a square patch in pixels (P in the paper). Positive.

    Attributes:
        preprocessing: The `Preprocessing` record of the images that the weights were
            trained on, or `None`. It computes nothing, but it is saved, and comes along
            into clones and into new models around the layer.
        image_shape: `(height, width, channels)` once the layer is built.

    Input shape: `(batch, height, width, channels)`.
    Output shape: `(batch, S, hidden_dim)`, `S = height * width / patch_size**2`.

    Raises:
        ValueError: If height, width or channels is unknown when the layer is built, or
            an edge of the image is not a multiple of `patch_size`.

    Reference: paper, section 2 ("per-patch fully-connected"); `stem` of the official
    code.
    """

    preprocessing: Preprocessing | None = None
    image_shape: tuple[int, int, int] | None = None

    def __init__(self, hidden_dim: int, patch_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.hidden_dim = check_dim("hidden_dim", hidden_dim)
        self.patch_size = check_dim("patch_size", patch_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches, once the layer is built."""
        if self.image_shape is None:
            raise ValueError(f"{self.name!r} must be built before it has a grid")
        return patch_grid(self.image_shape, self.patch_size)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.compute_output_shape(input_shape)
        self.image_shape = check_image_shape(input_shape[1:], self.patch_size)
        self.projection = keras.layers.Conv2D(
            self.hidden_dim,
            self.patch_size,
            strides=self.patch_size,
            kernel_initializer=_kernel_initializer.get(),
            data_format="channels_last",
            dtype=self.dtype_policy,
            trainable=self.trainable,
            name="projection",
        )
        self.projection.build(input_shape)

    def call(self, images: keras.KerasTensor) -> keras.KerasTensor:
        x = self.projection(images)  # (batch, height / P, width / P, hidden_dim)
        num_patches = x.shape[1] * x.shape[2]
        return ops.reshape(x, (-1, num_patches, self.hidden_dim))

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        image_shape = check_image_shape(input_shape[1:], self.patch_size)
        patches = num_patches(image_shape, self.patch_size)
        return (input_shape[0], patches, self.hidden_dim)

    def get_config(self) -> dict[str, Any]:
        config = {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "patch_size": self.patch_size,
        }
        if self.preprocessing:
            config["preprocessing"] = self.preprocessing.to_dict()
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        record = config.pop("preprocessing", None)
        layer = super().from_config(config)
        if record:
            layer.preprocessing = Preprocessing.from_dict(record)
        return layer


class _MLP(LayerOfLayers):
    """`dense_1(gelu(dense_0(x)))` along the last axis, back to the width it came with.

    What both mixings share; they differ in the axis that stands last.
    """

    def __init__(
        self,
        mlp_dim: int,
        *,
        dropout_rate: float = 0.0,
        approximate_gelu: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.mlp_dim = check_dim("mlp_dim", mlp_dim)
        self.dropout_rate = check_rate("dropout_rate", dropout_rate)
        self.approximate_gelu = bool(approximate_gelu)
        # Created here, not in `build`, so that its seed exists before the first trace.
        self.dropout = Dropout(dropout_rate, dtype=self.dtype_policy, name="dropout")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.dense_0 = self._dense(self.mlp_dim, "dense_0")
        self.dense_0.build(input_shape)
        self.dense_1 = self._dense(input_shape[-1], "dense_1")
        self.dense_1.build((*input_shape[:-1], self.mlp_dim))
        self.freeze_inner()

    def _dense(self, units: Any, name: str) -> Dense:
        policy = self.dtype_policy
        if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
            # Keras does not save a quantized Dense that holds the whole map.
            policy = policy[path_below_model(f"{self.path}/{name}")]
        return Dense(
            units,
            **dense_arguments(self.inner_state.get(name, {})),
            kernel_initializer=_kernel_initializer.get(),
            dtype=policy,
            trainable=self.trainable,
            name=name,
        )

    def call(
        self, x: keras.KerasTensor, training: bool | None = None
    ) -> keras.KerasTensor:
        x = dense_gelu(self.dense_0, x, self.approximate_gelu, training, self)
        x = dropped(self.dropout, x, training)
        return dropped(self.dropout, dense(self.dense_1, x, self), training)

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "mlp_dim": self.mlp_dim,
            "dropout_rate": self.dropout_rate,
            "approximate_gelu": self.approximate_gelu,
        }


@keras.saving.register_keras_serializable("keras_mixer")
class ChannelMixing(_MLP):
    """Mixes the channels of each patch: the same MLP for every patch.

    `y[s] = W2 gelu(W1 x[s] + b1) + b2` for every patch `s`, with `W1` of shape
    `(mlp_dim, C)` and `W2` of shape `(C, mlp_dim)`.

    Args:
        mlp_dim: Width of the hidden layer (D_C in the paper, there 4 C). Positive.
        dropout_rate: Fraction of activations dropped in training after the GELU and
            after the second dense layer, in [0, 1). The published models used 0.
        approximate_gelu: Whether to use the tanh form of GELU, as the official code
            does. The exact form differs by up to 5e-4 per activation; checkpoints
            trained in PyTorch need it.

    Input shape: `(batch, S, C)`. Output shape: the same.

    Raises:
        ValueError: If an argument is out of its range.

    Reference: paper, section 2, eq. (1), second line; `MlpBlock` of the official code.
    """


@keras.saving.register_keras_serializable("keras_mixer")
class TokenMixing(_MLP):
    """Mixes the patches of an image: the same MLP for every channel.

    `y[:, c] = W2 gelu(W1 x[:, c] + b1) + b2` for every channel `c`, with `W1` of shape
    `(mlp_dim, S)` and `W2` of shape `(S, mlp_dim)`. The number of patches is fixed when
    the layer is built: another image size needs other weights.

    Args:
        mlp_dim: Width of the hidden layer (D_S in the paper, there C / 2). Positive.
        dropout_rate: As in `ChannelMixing`.
        approximate_gelu: As in `ChannelMixing`.

    Input shape: `(batch, S, C)`. Output shape: the same.

    Raises:
        ValueError: If an argument is out of its range, or the number of patches is not
            known when the layer is built.

    Reference: paper, section 2, eq. (1), first line; `MixerBlock` of the official code.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        batch, num_patches, hidden_dim = input_shape
        if num_patches is None:
            raise ValueError(
                "`TokenMixing` needs to know the number of patches, because its "
                f"kernels have that size. Received: input_shape={tuple(input_shape)}. "
                "Give the model a fixed image height and width."
            )
        super().build((batch, hidden_dim, num_patches))

    def call(
        self, x: keras.KerasTensor, training: bool | None = None
    ) -> keras.KerasTensor:
        x = ops.swapaxes(x, 1, 2)  # (batch, C, S)
        x = super().call(x, training=training)
        return ops.swapaxes(x, 1, 2)  # (batch, S, C)


@keras.saving.register_keras_serializable("keras_mixer")
class MixerBlock(LayerOfLayers):
    """One Mixer layer: token mixing, then channel mixing, each normalised and residual.

    `u = x + TokenMixing(LayerNorm(x))`, `y = u + ChannelMixing(LayerNorm(u))`. Both
    LayerNorms are over the channels, in float32 under any dtype policy.

    In training, stochastic depth drops a whole branch of a sample with probability
    `stochastic_depth_rate` and divides the kept ones by `1 - stochastic_depth_rate`
    (the Keras and timm convention; the big_vision code does not rescale). The two
    branches draw independently.

    Args:
        tokens_mlp_dim: Width of the token-mixing MLP (D_S). Positive.
        channels_mlp_dim: Width of the channel-mixing MLP (D_C). Positive.
        dropout_rate: Dropout inside both MLPs, in [0, 1).
        stochastic_depth_rate: Probability to drop a branch ("drop path"), in [0, 1).
        approximate_gelu: Tanh form of GELU (official) or the exact one (PyTorch).
        remat: Whether training keeps only the block's input and computes the rest
            again for the gradient: less memory, about a third more computation, the
            same numbers.

    Input shape: `(batch, S, C)`. Output shape: the same.

    Raises:
        ValueError: If an argument is out of its range, or the number of patches is not
            known when the layer is built.

    Reference: paper, section 2, eq. (1) and figure 1; `MixerBlock` of the official
    code; stochastic depth as in the paper, section 3.
    """

    def __init__(
        self,
        tokens_mlp_dim: int,
        channels_mlp_dim: int,
        *,
        dropout_rate: float = 0.0,
        stochastic_depth_rate: float = 0.0,
        approximate_gelu: bool = True,
        remat: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.tokens_mlp_dim = check_dim("tokens_mlp_dim", tokens_mlp_dim)
        self.channels_mlp_dim = check_dim("channels_mlp_dim", channels_mlp_dim)
        self.dropout_rate = check_rate("dropout_rate", dropout_rate)
        self.stochastic_depth_rate = check_rate(
            "stochastic_depth_rate", stochastic_depth_rate
        )
        self.approximate_gelu = bool(approximate_gelu)
        self.remat = bool(remat)

        mlp = {
            "dropout_rate": dropout_rate,
            "approximate_gelu": approximate_gelu,
            "dtype": self.dtype_policy,
            "trainable": self.trainable,
        }
        self.norm_0 = self._layer_norm("norm_0")
        self.token_mixing = TokenMixing(tokens_mlp_dim, **mlp, name="token_mixing")
        self.norm_1 = self._layer_norm("norm_1")
        self.channel_mixing = ChannelMixing(
            channels_mlp_dim, **mlp, name="channel_mixing"
        )
        self.stochastic_depth = Dropout(
            stochastic_depth_rate,
            noise_shape=(None, 1, 1),  # one draw per sample
            dtype=self.dtype_policy,
            name="stochastic_depth",
        )

    def _layer_norm(self, name: str) -> LayerNorm:
        return LayerNorm(
            epsilon=LAYER_NORM_EPSILON,
            dtype=self.dtype_policy,
            trainable=self.trainable,
            name=name,
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        for mixing in (self.token_mixing, self.channel_mixing):
            mixing.inner_state = self.inner_state_below(mixing.name)
        self.norm_0.build(input_shape)
        self.token_mixing.build(input_shape)
        self.norm_1.build(input_shape)
        self.channel_mixing.build(input_shape)
        self.freeze_inner()

    def call(
        self, x: keras.KerasTensor, training: bool | None = None
    ) -> keras.KerasTensor:
        if self.remat and training:
            return self._mix_with_remat(x)
        return self._mix(x, training)

    def _mix_with_remat(self, x: keras.KerasTensor) -> keras.KerasTensor:
        # Variables become values, so that the second computation draws the masks of
        # the first, and none changes inside: the seeds' new states are an output.
        weights, seeds = self.weights, self._seed_states()
        states = [ops.copy(seed) for seed in seeds]

        def mix(x: Any, *values: Any) -> Any:
            mapping = list(zip(weights + seeds, [*values, *states], strict=True))
            with keras.StatelessScope(state_mapping=mapping) as scope:
                y = self._mix(x, training=True)
            return y, [scope.get_current_value(seed) for seed in seeds]

        y, states_after = keras.remat(mix)(x, *[ops.copy(w) for w in weights])
        for seed, state in zip(seeds, states_after, strict=True):
            seed.assign(state)
        return y

    def _seed_states(self) -> list[keras.Variable]:
        weights = {id(weight) for weight in self.weights}
        return [v for v in self.variables if id(v) not in weights]

    def _mix(self, x: keras.KerasTensor, training: bool | None) -> keras.KerasTensor:
        outer = None if self.remat else self  # the second computation is not in a call
        y = call_inner(self.norm_0, x, outer)
        y = call_inner(self.token_mixing, y, outer, training=training)
        x = x + dropped(self.stochastic_depth, y, training)
        y = call_inner(self.norm_1, x, outer)
        y = call_inner(self.channel_mixing, y, outer, training=training)
        return x + dropped(self.stochastic_depth, y, training)

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "tokens_mlp_dim": self.tokens_mlp_dim,
            "channels_mlp_dim": self.channels_mlp_dim,
            "dropout_rate": self.dropout_rate,
            "stochastic_depth_rate": self.stochastic_depth_rate,
            "approximate_gelu": self.approximate_gelu,
            "remat": self.remat,
        }
