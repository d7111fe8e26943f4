"""Ways to train a Mixer that exists: its head alone, adapters, less memory.

Each function changes the model in place. Call it before `compile`: Keras decides what
is trained, and how, when it compiles. What is frozen inside a block, and adapters, are
there again in a model that was read from a `.keras` file.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; Chen et
al. 2016, "Training Deep Nets with Sublinear Memory Cost" (remat);
`big_vision/configs/mlp_mixer_i1k.py` (bias of the head).
"""

import math
from numbers import Integral

import keras
from keras import ops


def freeze_body(model: keras.Model) -> None:
    """Leave only the head to train: a linear probe.

    Args:
        model: An `MLPMixer` with a head.

    Raises:
        ValueError: If the model has no head.
    """
    head = _head(model)
    for layer in model.layers:
        layer.trainable = layer is head


def add_lora(model: keras.Model, rank: int) -> None:
    """Freeze the body and train a low-rank addition to each of its dense kernels.

    In every block, `kernel + A B` with `A` of shape `(inputs, rank)`, drawn, and `B` of
    shape `(rank, outputs)`, zero: the model's outputs do not change. The head, if there
    is one, trains as a whole. All files hold the sums. A model read from a `.keras`
    file has new adapters on them, of the same rank, and goes on with the state of its
    optimizer; `models.rebuilt` gives a plain Mixer without adapters.

    Args:
        model: An `MLPMixer` without adapters.
        rank: Rank of the additions. Positive, at most the smaller edge of every kernel.

    Raises:
        ValueError: If `rank` is out of its range or the model has adapters.
    """
    check_lora_rank(model, rank)
    layers = _dense_layers(model)
    for layer in model.layers:
        # A frozen block would freeze its adapters: what is in it is frozen instead.
        layer.trainable = layer in model.blocks or layer.name == "head"
    for block in model.blocks:
        block.norm_0.trainable = False
        block.norm_1.trainable = False
    for dense in layers:
        dense.bias.trainable = False
        dense.enable_lora(int(rank))


def check_lora_rank(model: keras.Model, rank: int, name: str = "rank") -> None:
    """Raise a `ValueError` where `add_lora` would; the model is not changed.

    `name` is what the caller calls the argument `rank`.
    """
    layers = _dense_layers(model)
    largest = min(min(dense.kernel.shape) for dense in layers)
    if not isinstance(rank, Integral) or not 1 <= rank <= largest:
        raise ValueError(
            f"`{name}` must be an integer in [1, {largest}], the smallest edge of the "
            f"model's kernels. Received: {name}={rank!r}"
        )
    if any(dense.lora_enabled for dense in layers):
        raise ValueError(
            "The model has adapters already. `keras_mixer.models.rebuilt(model)` "
            "merges them."
        )


def _dense_layers(model: keras.Model) -> list[keras.layers.Dense]:
    return [
        dense
        for block in model.blocks
        for mixing in (block.token_mixing, block.channel_mixing)
        for dense in (mixing.dense_0, mixing.dense_1)
    ]


def set_remat(model: keras.Model, enabled: bool = True) -> None:
    """Choose whether training keeps the activations of the blocks or their inputs only.

    With remat the rest is computed again for the gradient: less memory, about a third
    more computation, and the same numbers. It is saved with the model.

    Args:
        model: An `MLPMixer`.
        enabled: Whether to compute again.
    """
    for block in model.blocks:
        block.remat = bool(enabled)


def set_head_bias(model: keras.Model, value: float) -> None:
    """Set every bias of the head to one value.

    With the sigmoid loss and 1000 classes big_vision starts at -6.9, about
    `-log(1000)`: at first every class is as probable as it is frequent.

    Args:
        model: An `MLPMixer` with a head.
        value: The bias. Finite.

    Raises:
        ValueError: If the model has no head or `value` is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"`value` must be finite. Received: value={value!r}")
    bias = _head(model).bias
    bias.assign(ops.full(bias.shape, value, bias.dtype))


def _head(model: keras.Model) -> keras.layers.Layer:
    head = model.layers[-1]
    if head.name != "head":
        raise ValueError(
            "The model has no head. Build it with `num_classes` > 0. "
            f"Received a model that ends in {head.name!r}."
        )
    return head
