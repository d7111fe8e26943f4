"""The whole Mixer: the family, any other size, and the same weights in another form.

Training, evaluation and publishing of a model have wings of their own.
"""

from keras_mixer.models.builtin_layers import plain_model
from keras_mixer.models.family import (
    CONSTRUCTORS,
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
from keras_mixer.models.mixer import (
    MLPMixer,
    check_mixer,
    load_weights,
    mlp_mixer,
    model_weights,
    save_official,
)
from keras_mixer.models.rebuild import rebuilt
from keras_mixer.models.resize import resize

__all__ = [
    "CONSTRUCTORS",
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
    "check_mixer",
    "load_weights",
    "mlp_mixer",
    "model_weights",
    "plain_model",
    "rebuilt",
    "resize",
    "save_official",
]
