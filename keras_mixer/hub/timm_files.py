"""A Mixer for timm (PyTorch Image Models): its weights, and what its config says.

timm takes its Mixers from the Hub by `timm.create_model("hf-hub:owner/name")`, which
reads `config.json` and `model.safetensors`.

Source: `save_for_hf` in `timm/models/_hub.py`; `MlpMixer` in
`timm/models/mlp_mixer.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_mixer.checkpoints import CROP_MODES, write_timm
from keras_mixer.models import MLPMixer, as_mixer, model_weights
from keras_mixer.preprocessing import Preprocessing
from keras_mixer.variants import parse_variant

# The Mixers timm has: it takes their patches, width and blocks by their names alone.
_VARIANTS = ("S/32", "S/16", "B/32", "B/16", "L/32", "L/16")
_MLP_RATIOS = [0.5, 4.0]


def save_timm(model: keras.Model, path: str | Path) -> None:
    """Write the model's weights as a `.safetensors` with timm's names.

    The file is complete under its name or absent. It holds float32 arrays, for timm's
    `create_model(..., checkpoint_path=path)` or `load_state_dict`. timm's models return
    logits. The image size and the normalisation are not in the file: a folder that is
    written with `timm=True` tells timm those, too.

    Args:
        model: An `MLPMixer` of any size with the exact form of GELU, or a Keras model
            around one that `models.as_mixer` takes. LoRA adapters are merged into their
            kernels.
        path: Where to write; ends in `.safetensors`.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If the model is quantized, approximates GELU (timm does not), its
            weights are not finite, or the path has another ending.
    """
    model = as_mixer(model)
    _check_gelu(model)
    write_timm(path, model_weights(model))


def timm_config(model: MLPMixer) -> dict[str, Any]:
    """Return timm's entries of a `config.json` for a model.

    Args:
        model: An `MLPMixer` with the patches, width and blocks of one of timm's, and
            the exact form of GELU; image size, channels, classes and the widths of the
            MLPs are free.

    Raises:
        ValueError: If timm cannot build the model.
    """
    config = model.config
    _check_gelu(model)
    architecture = _architecture(config)
    height, width, channels = config["input_shape"]
    entries: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": config["num_classes"],
        "num_features": config["hidden_dim"],
        "global_pool": "avg",
    }
    if model.labels:
        entries["label_names"] = [str(label) for label in model.labels]
    ratios = [
        _ratio(config["hidden_dim"], config[name])
        for name in ("tokens_mlp_dim", "channels_mlp_dim")
    ]
    if ratios != _MLP_RATIOS:
        entries["model_args"] = {"mlp_ratio": ratios}
    entries["pretrained_cfg"] = {
        "input_size": [channels, height, width],
        "fixed_input_size": True,
        **_transform(model.preprocessing, channels),
        "num_classes": config["num_classes"],
        "first_conv": "stem.proj",
        "classifier": "head",
    }
    return entries


def _check_gelu(model: MLPMixer) -> None:
    if model.config["approximate_gelu"]:
        raise ValueError(
            "`model` must have the exact form of GELU: timm's Mixers compute that one, "
            "and a file cannot ask for another (`act_layer` is a Python class). "
            "Received: the tanh form. The same weights with the exact form give "
            "slightly other outputs (timm's own copies of Google's weights do so):\n"
            "    exact = keras_mixer.mlp_mixer(\n"
            '        **{**model.config, "approximate_gelu": False},\n'
            "        preprocessing=model.preprocessing)\n"
            "    exact.set_weights(model.get_weights()); exact.labels = model.labels\n"
            "For a file of weights: `keras-mixer convert --exact-gelu FILE TARGET`."
        )


def _architecture(config: Mapping[str, object]) -> str:
    """Return the name in timm of the model with these sizes."""
    sizes = ("patch_size", "hidden_dim", "num_blocks")
    own = [config[name] for name in sizes]
    for name in _VARIANTS:
        variant = parse_variant(name)
        if own == [getattr(variant, size) for size in sizes]:
            return f"mixer_{name.replace('/', '').lower()}_224"
    raise ValueError(
        "`model` must have the patches, width and blocks of one of timm's Mixers, "
        f"{', '.join(_VARIANTS)}: timm takes these by the name alone. Received: "
        + ", ".join(f"{name}={config[name]}" for name in sizes)
        + ". `keras_mixer.save_timm` writes the weights of any size."
    )


def _ratio(hidden_dim: int, width: int) -> float:
    """Return a number with `int(number * hidden_dim) == width`, as timm computes it."""
    ratio = width / hidden_dim
    return ratio if int(ratio * hidden_dim) == width else (width + 0.5) / hidden_dim


def _transform(record: Preprocessing, channels: int) -> dict[str, Any]:
    """Return the record in the words of timm.

    Pillow's resizing is the only one timm has. For a record of TensorFlow's it is the
    nearest there is: the same crop, smoothed where an image shrinks.
    """
    modes = {transform: mode for mode, transform in CROP_MODES.items()}
    whole = record.transform == "resize"
    each = channels if len(record.ranges) == 1 else 1
    return {
        "interpolation": {"area": "box"}.get(
            record.interpolation, record.interpolation
        ),
        "crop_pct": 1.0 if whole else record.crop_fraction,
        "crop_mode": "squash" if whole else modes[record.transform],
        "mean": list(record.mean) * each,
        "std": list(record.std) * each,
    }
