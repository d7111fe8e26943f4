"""Small models whose every weight matters."""

import oracle
from conftest import TINY

from keras_mixer.models.mixer import mlp_mixer

LABELS = ("ant", "bee", "cat", "dog", "elk")


def drawn_model(seed=0, **changes):
    """A model of the tiny sizes with drawn weights; `changes` as in `mlp_mixer`."""
    model = mlp_mixer(**{"name": "tiny", **TINY, **changes})
    shapes = {w.path: tuple(w.shape) for w in model.weights}
    values = oracle.random_weights(shapes, seed)
    for weight in model.weights:
        weight.assign(values[weight.path])
    return model
