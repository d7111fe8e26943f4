"""A model in a file for another runtime, kept only if it computes the same.

`export` writes a file, `load` gives back its function, as in serving.
"""

from keras_mixer.export.calibration import calibration_images
from keras_mixer.export.formats import (
    FLOAT16_TOLERANCE,
    FLOAT32_TOLERANCE,
    HALF_PRECISION_TOLERANCE,
    INT8_TOLERANCE,
)
from keras_mixer.export.loader import ExportedModel, load
from keras_mixer.export.writer import export

__all__ = [
    "FLOAT16_TOLERANCE",
    "FLOAT32_TOLERANCE",
    "HALF_PRECISION_TOLERANCE",
    "INT8_TOLERANCE",
    "ExportedModel",
    "calibration_images",
    "export",
    "load",
]
