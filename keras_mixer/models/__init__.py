"""The whole Mixer: the family, any other size, and the same weights in another form.

Training, evaluation and publishing of a model have subpackages of their own.
"""

from keras_mixer.models.builtin_layers import plain_model
from keras_mixer.models.config import MixerConfig
from keras_mixer.models.create import create
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
    list_models,
)
from keras_mixer.models.find_mixer import FoundMixer, find_mixer, stems_of
from keras_mixer.models.images import decode_predictions, preprocess
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
from keras_mixer.models.unwrap import (
    activation_of,
    as_mixer,
    split_head,
    without_augmentation,
)

__all__ = [
    "MixerConfig",
    "CONSTRUCTORS",
    "FoundMixer",
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
    "activation_of",
    "as_mixer",
    "check_mixer",
    "create",
    "decode_predictions",
    "find_mixer",
    "list_models",
    "load_weights",
    "mlp_mixer",
    "model_weights",
    "plain_model",
    "preprocess",
    "rebuilt",
    "resize",
    "save_official",
    "split_head",
    "stems_of",
    "without_augmentation",
]
