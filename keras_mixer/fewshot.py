"""Few-shot evaluation, under its public name; written in `evaluation/fewshot.py`."""

from keras_mixer.evaluation import fewshot

__all__ = ["evaluate", "linear_probe"]

evaluate = fewshot.evaluate
linear_probe = fewshot.linear_probe
