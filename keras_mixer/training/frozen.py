"""The forward pass of a model that is not trained, beside one that is."""

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_mixer.distribution import Devices, padded
from keras_mixer.host_values import host_value

Forward = Callable[[NDArray[Any]], NDArray[np.float32]]


def frozen_function(
    model: keras.Model, devices: Devices, *, deterministic: bool = True
) -> Forward:
    """Return `outputs = function(images)`: inference mode, without gradients.

    The function takes the images of this process and may be called in any thread while
    another model trains. It computes on JAX with a copy of the weights on every device
    of this process, in parts of the batch; on TensorFlow on the first device; on torch
    where the weights are.

    Args:
        model: A built Keras model of one input and one output.
        devices: What `distribution.start` returned.
        deterministic: Whether TensorFlow compiles it with XLA, see `RunOptions`.
    """
    backend = keras.config.backend()
    if backend == "jax":
        return _on_jax(model, several=devices.num_replicas > 1)
    if backend == "tensorflow":
        return _on_tensorflow(model, xla=deterministic)
    return _on_torch(model)


def _on_jax(model: keras.Model, *, several: bool) -> Forward:
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    places = jax.local_devices() if several else jax.local_devices()[:1]
    mesh = Mesh(np.array(places), ("batch",))
    whole = NamedSharding(mesh, PartitionSpec())
    rows = NamedSharding(mesh, PartitionSpec("batch"))
    state = [
        [jax.device_put(host_value(variable), whole) for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]

    @jax.jit
    def call(weights: list[Any], others: list[Any], x: Any) -> Any:
        return model.stateless_call(weights, others, x, training=False)[0]

    def run(images: NDArray[Any]) -> NDArray[np.float32]:
        x = jax.device_put(padded(images, len(places)), rows)
        outputs = call(*state, x)
        return np.asarray(outputs, "float32")[: len(images)]

    return run


def _on_tensorflow(model: keras.Model, *, xla: bool) -> Forward:
    import tensorflow as tf

    @tf.function(jit_compile=xla)
    def call(x: Any) -> Any:
        return model(x, training=False)

    def run(images: NDArray[Any]) -> NDArray[np.float32]:
        return call(tf.constant(images)).numpy().astype("float32")

    return run


def _on_torch(model: keras.Model) -> Forward:
    import torch

    place = model.variables[0].value.device

    def run(images: NDArray[Any]) -> NDArray[np.float32]:
        # Each thread has its own present GPU, and whether gradients are wanted.
        on_gpu = torch.cuda.device(place) if place.type == "cuda" else None
        with torch.no_grad(), on_gpu or contextlib.nullcontext():
            outputs = model(images, training=False)
            return keras.ops.convert_to_numpy(outputs).astype("float32")

    return run
