"""The paper's equations as Keras layers: patches, two mixing MLPs, one block.

Also what every model made of layers needs: which layers lie inside another, and what a
weight is called inside its model. Nothing here knows about whole models or checkpoints.
"""

from keras_mixer.layers.dense import Dense
from keras_mixer.layers.mixer import (
    LAYER_NORM_EPSILON,
    ChannelMixing,
    MixerBlock,
    PatchEmbed,
    TokenMixing,
    zero_kernels,
)
from keras_mixer.layers.nesting import inner_layers, nested_layers, path_below_model
from keras_mixer.layers.tensorflow_products import is_onednns
from keras_mixer.layers.torch_products import for_compiler, is_for_compiler

__all__ = [
    "LAYER_NORM_EPSILON",
    "ChannelMixing",
    "Dense",
    "MixerBlock",
    "PatchEmbed",
    "TokenMixing",
    "for_compiler",
    "inner_layers",
    "is_for_compiler",
    "is_onednns",
    "nested_layers",
    "path_below_model",
    "zero_kernels",
]
