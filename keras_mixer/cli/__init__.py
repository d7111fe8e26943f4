"""The command line `keras-mixer`: arguments to calls, and no logic.

The parsers need the standard library and the ground files alone. What can be known
without a model is checked before a command imports Keras.
"""

from keras_mixer.cli.main import main

__all__ = ["main"]
