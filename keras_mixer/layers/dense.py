"""Keras's dense layer with what a Mixer needs to keep: names of classes, LoRA."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_mixer.layers import tensorflow_products, torch_products
from keras_mixer.layers.torch_products import GeluForm


@keras.saving.register_keras_serializable("keras_mixer")
class Dense(keras.layers.Dense):
    """`activation(x kernel + bias)`, Keras's layer, with two additions.

    It knows what its outputs are called, so that a clone of a head, or a new model
    around it, keeps the names. And with LoRA it can be trained on after it was loaded:
    Keras saves the sum of kernel and adapter, and then sets both factors of the adapter
    to zero, where no gradient reaches either.

    The class has the name of Keras's own: Keras stores weights under that name.

    Args:
        units: Number of outputs. Positive.
        labels: One name per output, or `None`.
        **kwargs: Arguments of `keras.layers.Dense`.

    Input shape: `(batch, ..., n)`. Output shape: `(batch, ..., units)`.
    """

    def __init__(
        self, units: int, *, labels: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(units, **kwargs)
        self.labels = tuple(labels) if labels else None

    def call(
        self,
        inputs: keras.KerasTensor,
        training: bool | None = None,
        gelu: GeluForm | None = None,
    ) -> keras.KerasTensor:
        # With `gelu`, where a `can_fuse` said so, there is no activation.
        products: Any
        match keras.config.backend():
            case "torch":
                products = torch_products
            # Nothing is joined for a gradient; a GELU that was asked for is made.
            case "tensorflow" if gelu or not training:
                products = tensorflow_products
            case _:
                return super().call(inputs, training)
        kernel = ops.convert_to_tensor(self.kernel)
        if not products.fits(inputs, kernel):
            return super().call(inputs, training)
        bias = None if self.bias is None else ops.convert_to_tensor(self.bias)
        outputs = products.linear(inputs, kernel, bias, gelu)
        return outputs if self.activation is None else self.activation(outputs)

    def quantize(
        self, mode: str | None = None, type_check: bool = True, config: Any = None
    ) -> None:
        # Keras's check refuses subclasses; this one computes what Keras's layer does.
        super().quantize(mode, type_check=False, config=config)

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        super().load_own_variables(store)
        if self.lora_enabled:
            initializer = keras.initializers.HeUniform()
            shape = self.lora_kernel_a.shape
            self.lora_kernel_a.assign(initializer(shape, "float32"))

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return {**config, "labels": list(self.labels)} if self.labels else config
