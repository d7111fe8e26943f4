"""The architecture of a Mixer as a dictionary."""

from typing import TypedDict


class MixerConfig(TypedDict):
    """The arguments of `mlp_mixer` that build an architecture again."""

    patch_size: int
    hidden_dim: int
    num_blocks: int
    tokens_mlp_dim: int
    channels_mlp_dim: int
    input_shape: tuple[int, int, int]
    num_classes: int
    approximate_gelu: bool
    classifier_activation: str | None
    include_preprocessing: bool
    dropout_rate: float
    stochastic_depth_rate: float
