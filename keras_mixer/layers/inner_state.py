"""What a layer saves of the layers inside it, beside what Keras does.

Keras rebuilds inner layers from the arguments of the outer one. Without this a model
would lose the quantizers inside a block, come back in float and refuse its own weights,
or train what was frozen.
"""

from typing import Any, Self

import keras

from keras_mixer.layers.nesting import nested_layers


class LayerOfLayers(keras.layers.Layer):
    """A layer whose inner layers come back as they were: quantized, frozen, with LoRA.

    Attributes:
        inner_state: Path below this layer -> what differs there from a new layer.
    """

    inner_state: dict[str, dict[str, Any]] = {}

    def inner_state_below(self, name: str) -> dict[str, dict[str, Any]]:
        """Return the part of `inner_state` that belongs to the inner layer `name`."""
        return {
            path.removeprefix(f"{name}/"): dict(state)
            for path, state in self.inner_state.items()
            if path.startswith(f"{name}/")
        }

    def freeze_inner(self) -> None:
        """Freeze what was frozen. Call it at the end of `build`."""
        for path, layer in _by_path(self).items():
            state = self.inner_state.get(path, {})
            if state.get("trainable", True) is False:
                layer.trainable = False
            for name in state.get("frozen", ()):
                getattr(layer, name).trainable = False

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        inner = _by_path(self)
        # A pattern: the layer may be built in another scope when it is loaded.
        quantized = {
            rf"(.*/)?{path}": layer.dtype_policy
            for path, layer in inner.items()
            if layer.quantization_mode is not None
        }
        if quantized:
            default = self.dtype_policy
            if isinstance(default, keras.dtype_policies.DTypePolicyMap):
                default = default.default_policy
            policies = keras.dtype_policies.DTypePolicyMap(default.name, quantized)
            config["dtype"] = keras.saving.serialize_keras_object(policies)
        states = {path: _state(layer, self.trainable) for path, layer in inner.items()}
        if states := {path: state for path, state in states.items() if state}:
            config["inner_state"] = states
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        state = config.pop("inner_state", None)
        layer = super().from_config(config)
        if state:
            layer.inner_state = state
        return layer


def dense_arguments(state: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a dense layer that its saved state holds."""
    arguments = {k: v for k, v in state.items() if k.startswith("lora_")}
    if config := state.get("quantization_config"):
        arguments["quantization_config"] = keras.saving.deserialize_keras_object(config)
    return arguments


def _by_path(layer: keras.layers.Layer) -> dict[str, keras.layers.Layer]:
    """Return the layers inside by their paths below `layer`, as far as it is built."""
    above = f"{layer.path}/"
    return {
        inner.path.removeprefix(above): inner
        for inner in nested_layers(layer)
        if inner.path and inner.path.startswith(above)
    }


def _state(layer: keras.layers.Layer, outer_is_trainable: bool) -> dict[str, Any]:
    state: dict[str, Any] = {}
    config = getattr(layer, "quantization_config", None)
    if isinstance(config, keras.quantizers.QuantizationConfig):
        state["quantization_config"] = keras.saving.serialize_keras_object(config)
    if getattr(layer, "lora_enabled", False):
        state["lora_rank"], state["lora_alpha"] = layer.lora_rank, layer.lora_alpha
    if not outer_is_trainable:
        return state  # it freezes all inside
    if not layer.trainable:
        state["trainable"] = False
    elif getattr(layer, "bias", None) is not None and not layer.bias.trainable:
        state["frozen"] = ["bias"]
    return state
