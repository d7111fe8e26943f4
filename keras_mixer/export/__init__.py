"""A model in a file for another runtime, kept only if it computes the same."""

from keras_mixer.export.calibration import calibration_images
from keras_mixer.export.writer import (
    FLOAT32_TOLERANCE,
    FORMATS,
    HALF_PRECISION_TOLERANCE,
    INT8_TOLERANCE,
    export,
)

__all__ = [
    "FLOAT32_TOLERANCE",
    "FORMATS",
    "HALF_PRECISION_TOLERANCE",
    "INT8_TOLERANCE",
    "calibration_images",
    "export",
]
