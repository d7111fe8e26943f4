"""Dropout whose masks differ between the replicas of a model."""

from typing import Any

import keras
from keras import ops


class _ReplicaSeeds(keras.random.SeedGenerator):
    """Keras's seeds on one device, and different ones on each of several replicas.

    Without it all replicas of a TensorFlow strategy, and all processes of torch, would
    drop the same places of their parts of a batch.
    """

    # Keras draws first seeds below 1e9: those of two replicas are never equal.
    stride = 1_000_000_007

    def next(self, ordered: bool = True) -> Any:
        """Return the next seed of this replica."""
        seed = super().next(ordered)
        offset = ops.cast(_replica() * self.stride % 2**31, seed.dtype)
        return seed + offset * ops.convert_to_tensor([1, 0], seed.dtype)


def _replica() -> Any:
    """Number of the copy of the model that computes here, from 0."""
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        return context.replica_id_in_sync_group if context else 0
    if keras.config.backend() == "torch":
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank()
    return 0  # JAX draws one mask for the global batch


class Dropout(keras.layers.Layer):
    """Keras's dropout with a mask of its own on every replica.

    Not a subclass: Keras's layer takes no more state once it has its seeds.
    """

    def __init__(
        self,
        rate: float,
        noise_shape: tuple[int | None, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rate = rate
        self.noise_shape = noise_shape
        if rate:
            self.seed_generator = _ReplicaSeeds()
        self.built = True  # a block that was never called can be quantized, too

    def call(
        self, x: keras.KerasTensor, training: bool | None = False
    ) -> keras.KerasTensor:
        if not (training and self.rate):
            return x
        return keras.random.dropout(
            x, self.rate, noise_shape=self.noise_shape, seed=self.seed_generator
        )

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return input_shape


def dropped(
    layer: Dropout, x: keras.KerasTensor, training: bool | None
) -> keras.KerasTensor:
    """Return `layer(x)`, without a call where the rate is 0.

    On torch even the call of a layer that does nothing takes time.
    """
    return layer(x, training=training) if layer.rate else x
