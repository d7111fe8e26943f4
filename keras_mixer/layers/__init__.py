"""The paper's equations as Keras layers: patches, two mixing MLPs, one block.

Nothing here knows about whole models, checkpoints or image preprocessing.
"""

from keras_mixer.layers.mixer import (
    LAYER_NORM_EPSILON,
    ChannelMixing,
    MixerBlock,
    PatchEmbed,
    TokenMixing,
    zero_kernels,
)

__all__ = [
    "LAYER_NORM_EPSILON",
    "ChannelMixing",
    "MixerBlock",
    "PatchEmbed",
    "TokenMixing",
    "zero_kernels",
]
