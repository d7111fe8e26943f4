"""Labelled images to batches: sources, decoding, augmentation.

A `Source` is where examples come from; `training_batches` and `evaluation_batches` turn
one into batches. Preparing single pictures for a model is `keras_mixer.preprocess`.
"""

from keras_mixer.data.augmentation import Augmentation, Crop
from keras_mixer.data.batches import (
    SHUFFLE_BYTES,
    evaluation_batches,
    training_batches,
)
from keras_mixer.data.image_folder import from_folder
from keras_mixer.data.opening import (
    check_classes,
    open_source,
    open_training_sources,
)
from keras_mixer.data.sources import Source, from_arrays, from_tfds, hold_out

__all__ = [
    "Augmentation",
    "Crop",
    "SHUFFLE_BYTES",
    "Source",
    "check_classes",
    "evaluation_batches",
    "from_arrays",
    "from_folder",
    "from_tfds",
    "hold_out",
    "open_source",
    "open_training_sources",
    "training_batches",
]
