"""Where a model lives and who trains it: one device or many, on each backend.

`start` turns a name such as `"mirrored"` or `"data"` into devices with a scope, a part
of the data, and loops of training and evaluation. Which model is trained, and how, is
not known here.
"""

from keras_mixer.distribution import jax_devices
from keras_mixer.distribution.devices import Devices
from keras_mixer.distribution.loops import padded
from keras_mixer.distribution.start import SingleDevice, start

__all__ = ["Devices", "SingleDevice", "jax_devices", "padded", "start"]
