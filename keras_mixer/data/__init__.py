"""Labelled images to batches: sources, decoding, augmentation.

A `Source` is where examples come from; `training_batches` and `evaluation_batches` turn
one into batches. Preparing single pictures for a model is `keras_mixer.preprocess`.
"""

from keras_mixer.data.augmentation import Augmentation
from keras_mixer.data.batches import evaluation_batches, open_source, training_batches
from keras_mixer.data.image_folder import from_folder
from keras_mixer.data.sources import Source, from_arrays, from_tfds

__all__ = [
    "Augmentation",
    "Source",
    "evaluation_batches",
    "from_arrays",
    "from_folder",
    "from_tfds",
    "open_source",
    "training_batches",
]
