"""The same Mixer in the operators of ONNX, written from its weights.

The graph is the same from every backend, takes batches of any size, and keeps each
LayerNorm and GELU one operator, which the runtimes compute in one pass; what a
converter finds in a traced model depends on the backend and falls into pieces.

Source: ONNX operators, opset 20 (`Gelu`; `LayerNormalization` since 17).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_mixer.layers import LAYER_NORM_EPSILON
from keras_mixer.models import MLPMixer, activation_of, model_weights

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT = "images", "outputs"
PRECISION_KEY = "keras_mixer.precision"  # of the metadata in the file

_OPSET, _IR_VERSION = 20, 9  # the first versions that have all operators used here
_ACTIVATIONS = {
    "elu": "Elu",
    "gelu": "Gelu",
    "log_softmax": "LogSoftmax",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "softmax": "Softmax",
    "softplus": "Softplus",
    "tanh": "Tanh",
}


def onnx_model(
    model: MLPMixer,
    more: Sequence[keras.layers.Layer] = (),
    *,
    half: bool = False,
) -> "onnx.ModelProto":
    """Return an `onnx.ModelProto` that computes what a Mixer computes.

    Args:
        model: An `MLPMixer`. LoRA adapters are merged into their kernels.
        more: Layers after it, one after another: dense layers, batch norms and
            activations.
        half: Whether the stem, the MLPs and the residual sums compute in float16. The
            normalisation, the norms, the pooling and the head stay in float32.

    Returns:
        A model with the input `images`, float32 `(batch, height, width, channels)`, and
        the output `outputs`, `(batch, num_classes)`, or `(batch, hidden_dim)` without a
        head.

    Raises:
        ImportError: If the package `onnx` is not installed.
        ValueError: If the model is quantized, an activation has no operator, or there
            is another layer after the model.
    """
    _check_activation(model.config["classifier_activation"], "the head")
    return _Graph(model_weights(model), half).mixer(model, more)


def _check_activation(name: Any, owner: str) -> None:
    if name not in (None, "linear", *_ACTIVATIONS):
        raise ValueError(
            f"The activation of {owner} must be one of {', '.join(_ACTIVATIONS)} or "
            f"none. Received: {name!r}. Build the model without it, and apply yours to "
            "its outputs."
        )


class _Graph:
    """Nodes in the order of computation. Methods add some and return the last name."""

    def __init__(self, weights: dict[str, NDArray[Any]], half: bool) -> None:
        import onnx

        self.onnx = onnx
        self.weights = weights
        self.half = half
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def mixer(
        self, model: MLPMixer, more: Sequence[keras.layers.Layer]
    ) -> "onnx.ModelProto":
        helper, float32 = self.onnx.helper, self.onnx.TensorProto.FLOAT
        shape = model.input_shape[1:]
        images = helper.make_tensor_value_info(INPUT, float32, ["batch", *shape])
        x = self._stem(INPUT, model)
        approximate = "tanh" if model.config["approximate_gelu"] else "none"
        for block in model.blocks:
            x = self._block(x, block.name, approximate)
        x = self._norm(x, "pre_head_layer_norm")
        axes = self._constant("pre_logits/axes", np.array([1]))
        x = self._add("ReduceMean", x, axes, keepdims=0)
        if model.config["num_classes"]:
            x = self._dense(x, "head")
            x = self._activation(x, model.config["classifier_activation"])
        num_outputs = model.output_shape[-1]
        for layer in more:
            x = self._layer(x, layer)
            num_outputs = getattr(layer, "units", num_outputs)
        self.nodes[-1].output[0] = OUTPUT
        outputs = helper.make_tensor_value_info(OUTPUT, float32, ["batch", num_outputs])
        graph = helper.make_graph(
            self.nodes, model.name, [images], [outputs], self.constants
        )
        proto = helper.make_model(
            graph,
            producer_name="keras_mixer",
            ir_version=_IR_VERSION,
            opset_imports=[helper.make_opsetid("", _OPSET)],
        )
        precision = "float16" if self.half else "float32"
        helper.set_model_props(proto, {PRECISION_KEY: precision})
        return proto

    def _stem(self, x: str, model: MLPMixer) -> str:
        config, record = model.config, model.preprocessing
        size, channels = config["patch_size"], config["input_shape"][2]
        rows, columns = model.get_layer("stem").grid
        if config["include_preprocessing"]:
            scale = self._constant(
                "normalization/scale", np.asarray(record.scale, "float32")
            )
            offset = self._constant(
                "normalization/offset", np.asarray(record.offset, "float32")
            )
            x = self._add("Add", self._add("Mul", x, scale), offset)
        x = self._cast(x, "FLOAT16")
        # A convolution whose stride is its kernel's size: cut, then one product.
        x = self._reshape(x, "stem/cut", (rows, size, columns, size * channels))
        x = self._add("Transpose", x, perm=(0, 1, 3, 2, 4))
        x = self._reshape(x, "stem/patches", (rows * columns, size * size * channels))
        return self._dense(x, "stem/projection")

    def _block(self, x: str, name: str, approximate: str) -> str:
        def mlp(x: str, name: str) -> str:
            x = self._add(
                "Gelu", self._dense(x, f"{name}/dense_0"), approximate=approximate
            )
            return self._dense(x, f"{name}/dense_1")

        y = self._add("Transpose", self._norm(x, f"{name}/norm_0"), perm=(0, 2, 1))
        y = self._add("Transpose", mlp(y, f"{name}/token_mixing"), perm=(0, 2, 1))
        x = self._add("Add", x, y)
        return self._add(
            "Add", x, mlp(self._norm(x, f"{name}/norm_1"), f"{name}/channel_mixing")
        )

    def _dense(self, x: str, name: str) -> str:
        dtype = "float16" if self.half and name != "head" else "float32"
        array = self.weights[f"{name}/kernel"].astype(dtype)
        array = array.reshape(-1, array.shape[-1])  # the stem's has four axes
        kernel = self._constant(f"{name}/kernel", array)
        array = self.weights[f"{name}/bias"].astype(dtype)
        bias = self._constant(f"{name}/bias", array)
        return self._add("Add", self._add("MatMul", x, kernel), bias)

    def _norm(self, x: str, name: str) -> str:
        """Add a norm in float32; its output is what the next product takes."""
        x = self._cast(x, "FLOAT")
        gamma, beta = (
            self._constant(f"{name}/{leaf}", self.weights[f"{name}/{leaf}"])
            for leaf in ("gamma", "beta")
        )
        x = self._add("LayerNormalization", x, gamma, beta, epsilon=LAYER_NORM_EPSILON)
        return x if name == "pre_head_layer_norm" else self._cast(x, "FLOAT16")

    def _layer(self, x: str, layer: keras.layers.Layer) -> str:
        """Add a layer after the Mixer, in float32."""

        def constant(name: str, value: Any) -> str:
            array = keras.ops.convert_to_numpy(value).astype("float32")
            return self._constant(f"after/{layer.name}/{name}", array)

        if isinstance(layer, keras.layers.Dense) and not layer.quantization_mode:
            # With LoRA, `kernel` is the merged one.
            x = self._add("MatMul", x, constant("kernel", layer.kernel))
            if layer.use_bias:
                x = self._add("Add", x, constant("bias", layer.bias))
            return self._activation(x, keras.activations.serialize(layer.activation))
        if isinstance(layer, keras.layers.BatchNormalization) and layer.axis in (-1, 1):
            mean, variance, gamma, beta = (
                default if weight is None else keras.ops.convert_to_numpy(weight)
                for weight, default in (
                    (layer.moving_mean, 0.0),
                    (layer.moving_variance, 1.0),
                    (layer.gamma, 1.0),
                    (layer.beta, 0.0),
                )
            )
            scale = gamma / np.sqrt(variance + layer.epsilon)
            x = self._add("Mul", x, constant("scale", scale))
            return self._add("Add", x, constant("offset", beta - mean * scale))
        activation = activation_of(layer)
        if activation is not None:
            return self._activation(x, keras.activations.serialize(activation))
        raise ValueError(
            "ONNX and OpenVINO files can hold dense layers, batch norms and "
            f"activations after the Mixer. Received: {layer.name!r} of the class "
            f"{type(layer).__name__}. Choose the format tf_saved_model, litert or "
            "torch."
        )

    def _activation(self, x: str, name: Any) -> str:
        _check_activation(name, "a layer after the Mixer")
        return self._add(_ACTIVATIONS[name], x) if name in _ACTIVATIONS else x

    def _cast(self, x: str, dtype: str) -> str:
        """Add a change of the dtype, in a graph of half precision only."""
        if not self.half:
            return x
        return self._add("Cast", x, to=self.onnx.TensorProto.DataType.Value(dtype))

    def _reshape(self, x: str, name: str, shape: tuple[int, ...]) -> str:
        return self._add("Reshape", x, self._constant(name, np.array((-1, *shape))))

    def _add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{len(self.nodes)}_{operator}"
        node = self.onnx.helper.make_node(operator, inputs, [name], name, **attributes)
        self.nodes.append(node)
        return name

    def _constant(self, name: str, array: NDArray[Any]) -> str:
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name
