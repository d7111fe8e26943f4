"""The command line `keras-mixer`: it turns arguments into calls and has no other logic.

The parsers need only the standard library and the ground files. What can be known
without a model is checked before a command imports Keras.
"""

from keras_mixer.cli.main import main

__all__ = ["main"]
