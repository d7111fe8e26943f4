"""The demo in the browser: pictures in, classes, evidence and filters out.

`serve(source)` runs it on this machine; `keras-mixer app` and a Space of the Hugging
Face Hub call it. It asks no other host for anything but weights that somebody chooses.
"""

from keras_mixer.app.limits import Limits
from keras_mixer.app.server import serve

__all__ = [
    "Limits",
    "serve",
]
