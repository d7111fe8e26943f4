"""The whole Mixer as a functional `keras.Model`, and the function that builds it.

Every block is a named node of the graph (`stem`, `block_0` ... `block_{N-1}`,
`pre_head_layer_norm`, `pre_logits`, `head`), so features, new heads, freezing,
`summary()`, saving and cloning are plain Keras.

Source: paper, section 2 and figure 1; `MlpMixer` of `vit_jax/models_mixer.py`.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from os import PathLike
from typing import Any, Self

import keras
import numpy as np
from numpy.typing import NDArray

from keras_mixer.checkpoints import (
    check_shapes,
    describe_shapes,
    read_shapes,
    read_weights,
    write_official,
)
from keras_mixer.checks import check_dim, check_image_shape, check_rate
from keras_mixer.host_values import host_value
from keras_mixer.layers import (
    LAYER_NORM_EPSILON,
    Dense,
    MixerBlock,
    PatchEmbed,
    nested_layers,
    path_below_model,
    zero_kernels,
)
from keras_mixer.models import half_precision, torch_graph
from keras_mixer.models.config import MixerConfig
from keras_mixer.models.find_mixer import stems_of
from keras_mixer.models.kept_weights import kept_weights
from keras_mixer.preprocessing import Preprocessing
from keras_mixer.variants import num_patches, weight_shapes

_SIZES = (
    "patch_size",
    "hidden_dim",
    "num_blocks",
    "tokens_mlp_dim",
    "channels_mlp_dim",
)


@keras.saving.register_keras_serializable("keras_mixer")
class MLPMixer(keras.Model):
    """A Mixer. Made by `mlp_mixer` and the family (`MixerB16`, ...), not by hand.

    The constructor is Keras's functional one, `MLPMixer(inputs, outputs)`: the graph is
    the config, so nothing can drift from it. Beside the graph a model carries how its
    images are prepared and what its classes are called; both are saved with it.

    Attributes:
        preprocessing: The `Preprocessing` record of the weights. It lies in the stem,
            and so in every clone and every other model around it.
        labels: One name per class, or `None`. They lie in the layer of the outputs: a
            new head has none.
    """

    @property
    def preprocessing(self) -> Preprocessing:
        """The `Preprocessing` record of the weights."""
        records = [stem.preprocessing for stem in stems_of(self)]
        return (records and records[0]) or Preprocessing()

    @preprocessing.setter
    def preprocessing(self, record: Preprocessing) -> None:
        for stem in stems_of(self):
            stem.preprocessing = record

    @property
    def labels(self) -> tuple[str, ...] | None:
        """One name per class, or `None`."""
        if len(self.outputs) != 1:
            return None
        return getattr(self.layers[-1], "labels", None)

    @labels.setter
    def labels(self, labels: Sequence[str] | None) -> None:
        self.layers[-1].labels = tuple(labels) if labels else None

    @property
    def is_whole(self) -> bool:
        """Whether the graph is that of `mlp_mixer`, without other layers."""
        names = [layer.name for layer in self.layers]
        blocks = [f"block_{i}" for i in range(len(self.blocks))]
        body = ["stem", *blocks, "pre_head_layer_norm", "pre_logits"]
        start = 2 if names[1:2] == ["normalization"] else 1
        return (
            names[start:] in (body, [*body, "head"])
            and len(self.operations) == len(names)
            and not any(isinstance(layer, keras.Model) for layer in self.layers)
        )

    @property
    def blocks(self) -> list[MixerBlock]:
        """The `MixerBlock` layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, MixerBlock)]

    @property
    def config(self) -> MixerConfig:
        """The arguments of `mlp_mixer` that build this architecture again."""
        nodes = {layer.name: layer for layer in self.layers}
        stem, block = nodes["stem"], self.blocks[-1]
        head = nodes.get("head")
        return {
            "patch_size": stem.patch_size,
            "hidden_dim": stem.hidden_dim,
            "num_blocks": len(self.blocks),
            "tokens_mlp_dim": block.tokens_mlp_dim,
            "channels_mlp_dim": block.channels_mlp_dim,
            "input_shape": tuple(self.input_shape[1:]),
            "num_classes": head.units if head else 0,
            "approximate_gelu": block.approximate_gelu,
            "classifier_activation": _serialized(head.activation) if head else None,
            "include_preprocessing": "normalization" in nodes,
            "dropout_rate": block.dropout_rate,
            "stochastic_depth_rate": block.stochastic_depth_rate,
        }

    def features(self, *names: str) -> keras.Model:
        """Return a model with the same input that outputs the named nodes.

        Args:
            *names: `"stem"`, `"block_3"`, `"pre_logits"`, ...: token features of shape
                `(batch, S, hidden_dim)` up to `pre_head_layer_norm`, then
                `(batch, hidden_dim)`. One name gives one tensor, several a list.

        Raises:
            ValueError: If there is no node of that name.
        """
        outputs = [self.get_layer(name).output for name in names]
        return keras.Model(self.input, outputs[0] if len(names) == 1 else outputs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs; under `torch.compile` by one graph, see `torch_graph`."""
        if keras.config.backend() == "torch" and torch_graph.is_traced_by_compiler():
            return torch_graph.outside_compiler()(self, *args, **kwargs)
        return super().__call__(*args, **kwargs)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Return the outputs of the graph."""
        self._check_images(inputs)
        if (
            keras.config.backend() == "torch"
            and (self.jit_compile or torch_graph.is_called_by_compiler())
            and torch_graph.can_run(self, inputs, training)
        ):
            return torch_graph.run(self, inputs, training)
        return super().call(inputs, training=training, mask=mask)

    def _check_images(self, images: Any) -> None:
        """Raise for images of another size: Keras's `predict` does not always look."""
        expected, found = self.input_shape, getattr(images, "shape", None)
        if found is None or getattr(found, "rank", 0) is None:
            return  # several inputs, or TensorFlow does not know
        found = tuple(found)[1:]
        if not isinstance(expected, tuple) or len(found) != len(expected) - 1:
            return  # Keras adds or names the axis that is missing
        if any(
            None not in pair and pair[0] != pair[1]
            for pair in zip(expected[1:], found, strict=True)
        ):
            raise ValueError(
                f"Images of this model have the shape {expected[1:]}. Received: "
                f"{found}. Make them of that size, as `keras_mixer.preprocess(path, "
                f"model)` does, or build the model with `input_shape={found}`."
            )

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: Any = None,
    ) -> Any:
        """Return the outputs as NumPy arrays, as `keras.Model.predict` does.

        Raises:
            ValueError: If images have another size than those of the model.
        """
        self._check_images(x)
        with kept_weights(self):
            return super().predict(x, batch_size, verbose, steps, callbacks)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Return loss and metrics, as `keras.Model.evaluate` does."""
        with kept_weights(self):
            return super().evaluate(*args, **kwargs)

    def _use_torch_compile(self) -> bool:
        return False  # `call` compiles by itself; Keras's steps around it need not

    _should_torch_compile = _use_torch_compile  # its name before Keras 3.16

    def _resolve_auto_jit_compile(self) -> bool:
        # Keras's "auto" leaves TensorFlow without XLA on CPUs, where a Mixer in float32
        # is 1.1 to 1.5 times as fast with it and hardly longer to compile.
        if keras.config.backend() != "tensorflow" or self._distribute_strategy:
            return super()._resolve_auto_jit_compile()
        from keras.src.trainers.trainer import model_supports_jit

        if half_precision.loses_onednn(self):
            return False
        # Keras's own guards: Metal GPUs, deterministic operations, its layers.
        return model_supports_jit(self)

    def make_train_function(self, force: bool = False) -> Any:
        """Make what `fit` runs, and warn where half precision costs time."""
        half_precision.warn_where_slow(self)
        return super().make_train_function(force)

    def make_test_function(self, force: bool = False) -> Any:
        """Make what `evaluate` runs, and warn where half precision costs time."""
        half_precision.warn_where_slow(self)
        return super().make_test_function(force)

    def make_predict_function(self, force: bool = False) -> Any:
        """Make what `predict` runs, and warn where half precision costs time."""
        half_precision.warn_where_slow(self)
        return super().make_predict_function(force)

    def get_config(self) -> dict[str, Any]:
        """Return the graph, with the preprocessing record and the labels beside it."""
        return {
            **super().get_config(),
            "preprocessing": self.preprocessing.to_dict(),
            "labels": self.labels,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Self:
        """Build the model of `get_config`."""
        config = dict(config)
        preprocessing = Preprocessing.from_dict(config.pop("preprocessing"))
        labels = config.pop("labels")
        model = super().from_config(config, custom_objects=custom_objects)
        model.preprocessing = preprocessing
        if labels:
            model.labels = labels
        return model


def _serialized(activation: Any) -> Any:
    """Return what `keras.activations.get` takes.

    Keras's own `serialize` imports TensorFlow, on any backend, to look for its types.
    """
    name = getattr(activation, "__name__", None)
    try:
        if keras.activations.get(name) is activation:
            return name
    except (TypeError, ValueError):  # a function of the user's
        pass
    return keras.activations.serialize(activation)


def mlp_mixer(
    *,
    patch_size: int,
    hidden_dim: int,
    num_blocks: int,
    tokens_mlp_dim: int,
    channels_mlp_dim: int,
    input_shape: Sequence[int],
    num_classes: int | None = None,
    weights: str | PathLike[str] | None = None,
    approximate_gelu: bool | None = None,
    preprocessing: Preprocessing | None = None,
    classifier_activation: str | Callable[..., Any] | None = "softmax",
    include_preprocessing: bool = True,
    dropout_rate: float = 0.0,
    stochastic_depth_rate: float = 0.0,
    name: str | None = None,
    dtype: Any = None,
    labels: Sequence[str] | None = None,
) -> MLPMixer:
    """Build a Mixer of any size, with random weights or those of a file.

    `tokens = PatchEmbed(images)`; `num_blocks` times `tokens = MixerBlock(tokens)`;
    `pre_logits = mean over patches of LayerNorm(tokens)`; `head` is one dense layer.
    Kernels are drawn from LeCun's normal distribution, biases and the head are zero.

    Args:
        patch_size: Edge of a patch in pixels (P). Positive.
        hidden_dim: Width of a token (C). Positive.
        num_blocks: Number of Mixer blocks. Positive.
        tokens_mlp_dim: Width of the token-mixing MLPs (D_S; C / 2 in the paper).
        channels_mlp_dim: Width of the channel-mixing MLPs (D_C; 4 C in the paper).
        input_shape: `(height, width, channels)` of the images, both edges multiples of
            `patch_size`. Always channels last.
        num_classes: Number of classes. `None`: that of the file, or 1000 without one.
            0: no head, the output is `pre_logits`. Any other number than the file's
            gives a new zero head.
        weights: `None`, or the path of an official `.npz`, a timm `.safetensors` or a
            `.weights.h5` of this package.
        approximate_gelu: Tanh form of GELU (`True`, the official code) or the exact one
            (`False`, models trained in PyTorch). `None`: exact for a timm file, else
            tanh.
        preprocessing: The `Preprocessing` record of the weights; `None` for Google's,
            pixels to [-1, 1].
        classifier_activation: Activation of the head; `None` for logits.
        include_preprocessing: Whether the graph normalises: the model then takes pixels
            in [0, 255]. `False`: the input is already normalised.
        dropout_rate: Dropout inside the MLPs, in [0, 1).
        stochastic_depth_rate: Probability to drop a branch of the last block, in
            [0, 1); it grows linearly from 0 at the first block.
        name: Name of the model.
        dtype: Dtype policy of the blocks, for example `"mixed_bfloat16"`. The final
            norm, the pooling and the head stay in float32 under half precision, unless
            a `DTypePolicyMap` names them.
        labels: One name per class; `num_classes` may then be left out. The head is a
            new zero one.

    Returns:
        An `MLPMixer`; output `(batch, num_classes)` or, headless,
        `(batch, hidden_dim)`.

    Raises:
        ValueError: If an argument is out of its range or the file does not fit.
        FileNotFoundError: If there is no file at `weights`.

    Reference: paper, section 2; stochastic depth as in section 3.
    """
    patch_size = check_dim("patch_size", patch_size)
    image_shape = check_image_shape(input_shape, patch_size)
    sizes: dict[str, Any] = {
        "patch_size": patch_size,
        "hidden_dim": check_dim("hidden_dim", hidden_dim),
        "num_blocks": check_dim("num_blocks", num_blocks),
        "tokens_mlp_dim": check_dim("tokens_mlp_dim", tokens_mlp_dim),
        "channels_mlp_dim": check_dim("channels_mlp_dim", channels_mlp_dim),
        "input_shape": image_shape,
    }
    check_rate("dropout_rate", dropout_rate)
    check_rate("stochastic_depth_rate", stochastic_depth_rate)
    if num_classes not in (None, 0):
        check_dim("num_classes", num_classes)
    if labels is not None:
        labels = check_labels(labels, num_classes)
        num_classes = len(labels)
    if preprocessing is not None:
        preprocessing.check_channels(image_shape[2])

    arrays = None
    if weights is not None:
        arrays, num_classes, layout = _read_for(weights, sizes, num_classes)
        if approximate_gelu is None:
            approximate_gelu = layout != "timm"
    with zero_kernels() if arrays else nullcontext():
        model = _build(
            {
                **sizes,
                "num_classes": 1000 if num_classes is None else num_classes,
                "approximate_gelu": approximate_gelu is not False,
                "classifier_activation": classifier_activation,
                "include_preprocessing": include_preprocessing,
                "dropout_rate": dropout_rate,
                "stochastic_depth_rate": stochastic_depth_rate,
            },
            preprocessing or Preprocessing(),
            name=name,
            dtype=dtype,
        )
    if arrays:
        set_weights(model, arrays, new_head=not _has_head(arrays))
    if labels is not None:
        name_head(model, labels)
    return model


def check_labels(labels: Sequence[str], num_classes: int | None) -> tuple[str, ...]:
    """Return the names of classes if they can be those of a head.

    Raises:
        ValueError: If they are not distinct strings, or not `num_classes` many (`None`:
            any number).
    """
    names = () if isinstance(labels, str) else tuple(labels)
    wrong = [name for name in names if not isinstance(name, str) or not name]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if not names or wrong or repeated:
        what = f"labels={labels!r}"[:200]
        if wrong:
            what = f"{wrong[0]!r} among them"
        elif repeated:
            what = f"{repeated[0]!r} more than once"
        raise ValueError(
            "`labels` must be a list of different names, one per class. "
            f"Received: {what}"
        )
    if num_classes is not None and len(names) != num_classes:
        raise ValueError(
            f"`labels` must have one name per class. Received: {len(names)} names, "
            f"num_classes={num_classes}. Leave `num_classes` out to count the names."
        )
    return names


def name_head(model: MLPMixer, labels: tuple[str, ...]) -> None:
    """Set the labels of a Mixer, with a new zero head if it is that of others."""
    if model.labels != labels:
        for weight in model.get_layer("head").weights:
            weight.assign(np.zeros(weight.shape))
    model.labels = labels


def _build(
    config: dict[str, Any],
    preprocessing: Preprocessing,
    *,
    name: str | None,
    dtype: Any,
) -> MLPMixer:
    """Return the model of a `MixerConfig`, whose activation may be any function."""
    images = keras.Input(config["input_shape"], name="images")
    x = images
    if config["include_preprocessing"]:
        x = keras.layers.Rescaling(
            **preprocessing.rescaling,
            dtype=_at_least_float32(dtype, "normalization"),
            name="normalization",
        )(x)
    stem = PatchEmbed(
        config["hidden_dim"], config["patch_size"], dtype=dtype, name="stem"
    )
    stem.preprocessing = preprocessing
    x = stem(x)
    for i in range(config["num_blocks"]):
        rate = config["stochastic_depth_rate"] * i / max(config["num_blocks"] - 1, 1)
        x = MixerBlock(
            config["tokens_mlp_dim"],
            config["channels_mlp_dim"],
            dropout_rate=config["dropout_rate"],
            stochastic_depth_rate=rate,
            approximate_gelu=config["approximate_gelu"],
            dtype=dtype,
            name=f"block_{i}",
        )(x)
    x = keras.layers.LayerNormalization(
        epsilon=LAYER_NORM_EPSILON,
        dtype=_at_least_float32(dtype, "pre_head_layer_norm"),
        name="pre_head_layer_norm",
    )(x)
    x = keras.layers.GlobalAveragePooling1D(
        data_format="channels_last",
        dtype=_at_least_float32(dtype, "pre_logits"),
        name="pre_logits",
    )(x)
    if config["num_classes"]:
        x = Dense(
            config["num_classes"],
            activation=config["classifier_activation"],
            kernel_initializer="zeros",
            dtype=_at_least_float32(dtype, "head"),
            name="head",
        )(x)
    return MLPMixer(images, x, name=name)


def _at_least_float32(dtype: Any, name: str) -> keras.dtype_policies.DTypePolicy:
    """Return the policy of a layer that must not lose precision at either end.

    A `DTypePolicyMap` that names the layer decides itself.
    """
    policy = keras.dtype_policies.get(dtype)
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        named = any(re.fullmatch(pattern, name) for pattern in policy)
        policy = policy[name]
        if named:
            return policy
    half = policy.compute_dtype in half_precision.HALF
    return keras.dtype_policies.get("float32") if half else policy


def _read_for(
    path: str | PathLike[str], sizes: Mapping[str, Any], num_classes: int | None
) -> tuple[dict[str, NDArray[Any]], int, str]:
    """Return the file's arrays that fit, the number of classes, and its layout."""
    shapes, layout = read_shapes(path)
    file_classes = describe_shapes(shapes)["num_classes"]
    if num_classes is None:
        num_classes = file_classes
    if num_classes != file_classes:
        # Another head than the file's is a new one, or none.
        shapes = {k: v for k, v in shapes.items() if not k.startswith("head/")}
    sizes = dict(sizes)
    image_shape = sizes.pop("input_shape")
    expected = weight_shapes(
        **sizes,
        num_patches=num_patches(image_shape, sizes["patch_size"]),
        channels=image_shape[2],
        num_classes=num_classes if num_classes == file_classes else 0,
    )
    # Before any number is read, and memory taken for it.
    check_shapes(shapes, expected, source=path)
    arrays, _ = read_weights(path, names=shapes)
    return arrays, num_classes, layout


def load_weights(model: MLPMixer, path: str | PathLike[str]) -> None:
    """Set the weights of a Mixer to those of a file.

    A head with another number of classes than the file's stays as it is.

    Args:
        model: An `MLPMixer`.
        path: An official `.npz`, a timm `.safetensors` or a `.weights.h5`.

    Raises:
        ValueError: If the file is damaged or does not fit; nothing is set then.
        FileNotFoundError: If there is no file at `path`.
    """
    config = model.config
    sizes = {k: v for k, v in config.items() if k in (*_SIZES, "input_shape")}
    arrays, *_ = _read_for(path, sizes, config["num_classes"])
    set_weights(model, arrays, new_head=not _has_head(arrays))


def _has_head(arrays: dict[str, np.ndarray]) -> bool:
    return "head/kernel" in arrays


def set_weights(
    model: keras.Model, arrays: dict[str, np.ndarray], *, new_head: bool = False
) -> None:
    """Set every weight of a Mixer, and let go of each array once it is set.

    Args:
        model: An `MLPMixer` without adapters, not quantized.
        arrays: By the paths of the variables below the model. Emptied.
        new_head: Whether the head keeps its own weights.

    Raises:
        ValueError: If an array has no variable or a variable no array. Nothing is set
            then.
    """
    variables = {path_below_model(v.path): v for v in model.weights}
    if new_head:
        variables = {k: v for k, v in variables.items() if not k.startswith("head/")}
    if variables.keys() != arrays.keys():
        missing = sorted(variables.keys() - arrays.keys())
        left = sorted(arrays.keys() - variables.keys())
        raise ValueError(
            "Every weight of the model needs one array, and every array one weight. "
            f"Received: no array for {len(missing)} ({', '.join(missing[:3])}), no "
            f"weight for {len(left)} ({', '.join(left[:3])})"
        )
    for path, variable in variables.items():
        variable.assign(arrays.pop(path))


def save_official(model: MLPMixer, path: str | PathLike[str]) -> None:
    """Write the model's weights in the layout of the official checkpoints.

    The file is complete under its name or absent. It holds float32 arrays under the
    official names and neither the form of GELU nor the normalisation.

    Args:
        model: An `MLPMixer`. LoRA adapters are merged into their kernels.
        path: Where to write; ends in `.npz`.

    Raises:
        ValueError: If the model is quantized, its weights are not those of one whole
            Mixer or not finite, or the path has another ending.
    """
    write_official(path, model_weights(model))


def model_weights(model: keras.layers.Layer) -> dict[str, np.ndarray]:
    """Return the float32 arrays of a Mixer's weights by their paths below the model.

    Args:
        model: An `MLPMixer`, or one of its layers: then the paths start below it. LoRA
            adapters are merged into their kernels.

    Raises:
        ValueError: If a layer is quantized.
    """
    weights: dict[str, object] = {}
    lora = []
    whole = isinstance(model, keras.Model)
    above = 0 if whole else len(path_below_model(model.path)) + 1

    def below(path: str) -> str:
        return path_below_model(path)[above:]

    for layer in (*([] if whole else [model]), *nested_layers(model)):
        if layer.quantization_mode is not None:
            raise ValueError(
                "A quantized model has no float weights to give. Received: "
                f"{layer.path} in {layer.quantization_mode}. Use the model from before "
                "`quantize`."
            )
        if getattr(layer, "lora_enabled", False):
            # Their sum is what the layer computes with.
            weights[below(f"{layer.path}/kernel")] = layer.kernel
            lora += [layer.lora_kernel_a, layer.lora_kernel_b]
    adapters = set(map(id, lora))
    for variable in model.weights:
        if id(variable) not in adapters:
            weights.setdefault(below(variable.path), variable)
    return {
        path: host_value(keras.ops.cast(value, "float32"))
        for path, value in weights.items()
    }


def check_mixer(model: object) -> None:
    """Raise a `ValueError` unless `model` is an `MLPMixer` itself, not around one."""
    if not isinstance(model, MLPMixer):
        raise ValueError(
            "`model` must be an `MLPMixer`, as `keras_mixer.mlp_mixer` and "
            f"`keras_mixer.MixerB16` return it. Received: {type(model).__name__}. "
            "`keras_mixer.models.as_mixer` makes one of a model around it."
        )
