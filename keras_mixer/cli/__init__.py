"""The command line `keras-mixer`: arguments to calls, and no logic."""

from keras_mixer.cli.main import main

__all__ = ["main"]
