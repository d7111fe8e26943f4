"""MLP-Mixer for Keras 3: the official models, exact on TensorFlow, JAX and torch."""

from importlib.metadata import version as _version

from keras_mixer import (
    benchmark,
    data,
    distribution,
    evaluation,
    export,
    fewshot,
    layers,
    training,
    visualize,
)
from keras_mixer.checkpoints import list_checkpoints
from keras_mixer.family import (
    MixerB16,
    MixerB32,
    MixerH14,
    MixerL16,
    MixerL32,
    MixerS8,
    MixerS16,
    MixerS32,
    MixerTi4,
)
from keras_mixer.hub import from_pretrained, push_to_hub
from keras_mixer.labels import decode_predictions
from keras_mixer.model import MLPMixer, mlp_mixer, save_official
from keras_mixer.preprocessing import preprocess
from keras_mixer.resolution import resize

__version__ = _version("keras-mixer")

__all__ = [
    "MLPMixer",
    "MixerB16",
    "MixerB32",
    "MixerH14",
    "MixerL16",
    "MixerL32",
    "MixerS8",
    "MixerS16",
    "MixerS32",
    "MixerTi4",
    "benchmark",
    "data",
    "decode_predictions",
    "distribution",
    "evaluation",
    "export",
    "fewshot",
    "from_pretrained",
    "layers",
    "list_checkpoints",
    "mlp_mixer",
    "preprocess",
    "push_to_hub",
    "resize",
    "save_official",
    "training",
    "visualize",
]
