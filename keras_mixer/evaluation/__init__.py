"""How good a model is: accuracy per class, features, few-shot classification.

Training is the task of `keras_mixer.training`, speed that of `keras_mixer.benchmark`.
"""

from keras_mixer.evaluation import fewshot
from keras_mixer.evaluation.classification import (
    ClassResult,
    Evaluation,
    evaluate,
)
from keras_mixer.evaluation.features import (
    extract,
)
from keras_mixer.evaluation.inference import (
    outputs,
)

__all__ = [
    "ClassResult",
    "Evaluation",
    "evaluate",
    "extract",
    "fewshot",
    "outputs",
]
