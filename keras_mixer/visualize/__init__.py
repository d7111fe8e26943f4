"""Figures: filters, evidence, similar pictures, predictions, curves, confusion.

Every function that draws returns a `matplotlib.figure.Figure` and touches no global
state, so it works without a display and beside any other plotting: `save` it or show it
in a notebook.
"""

from keras_mixer.visualize.confusion_matrix import confusion_matrix
from keras_mixer.visualize.curves import training_curves
from keras_mixer.visualize.evidence import evidence, evidence_figure
from keras_mixer.visualize.figure import new_figure, save
from keras_mixer.visualize.filters import (
    pair_by_frequency,
    stem_filters,
    token_mixing_filters,
)
from keras_mixer.visualize.logs import read_log
from keras_mixer.visualize.predictions import predictions
from keras_mixer.visualize.similar import Similar, similar, similar_figure

__all__ = [
    "Similar",
    "confusion_matrix",
    "evidence",
    "evidence_figure",
    "new_figure",
    "pair_by_frequency",
    "predictions",
    "read_log",
    "save",
    "similar",
    "similar_figure",
    "stem_filters",
    "token_mixing_filters",
    "training_curves",
]
