"""One training script for one device or many: where the model lives and who trains it.

    devices = distribution.start("data")  # or "mirrored", "tpu", ...; None: one device
    with devices.scope():
        model = build()
        model.compile(...)
    devices.fit(model, batches, epochs=3, steps_per_epoch=100)

The batch size in `batches` is always the global one, and a global batch gives the same
step on any number of devices: same loss, same clipping, same learning rate.
"""

from contextlib import nullcontext


def start(name=None):
    """Return the devices that `name` asks for, ready to build a model on.

    Call it first: some backends must know of the other processes before their first
    operation.

    Args:
        name: `None` for one device.

    Raises:
        ValueError: If `name` is unknown.
    """
    if name is None:
        return SingleDevice()
    raise ValueError(f"`name` must be None. Received: name={name!r}")


class SingleDevice:
    """Keras as it is: one process, the device the backend chooses.

    Attributes:
        shard: `(index, count)`: which part of every global batch this process feeds.
        num_replicas: Copies of the model that train together.
        is_chief: Whether this process writes the files.
    """

    shard = (0, 1)
    num_replicas = 1
    is_chief = True

    def scope(self):
        """Return the context in which to build, load and compile the model."""
        return nullcontext()

    def fit(self, model, batches, **arguments):
        """Train as `model.fit(batches, **arguments)` does and return its `History`."""
        return model.fit(batches, **arguments)

    def evaluate(self, model, batches, **arguments):
        """Return what `model.evaluate(batches, **arguments)` returns."""
        return model.evaluate(batches, **arguments)

    def predict(self, model, x, **arguments):
        """Return what `model.predict(x, **arguments)` returns, for all of `x`."""
        return model.predict(x, **arguments)
