"""timm's repositories: what their `config.json` says of the model, and their weights.

timm (PyTorch Image Models) publishes a model as `config.json` and `model.safetensors`,
or several such files and their index. They are read here without timm and torch; both
are data, checked against each other before a model is built.

Source: `load_model_config_from_hf` in `timm/models/_hub.py`; `MlpMixer` in
`timm/models/mlp_mixer.py`; `resolve_data_config` in `timm/data/config.py`.
"""

import re
from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

from keras_mixer.checkpoints.convert import differences
from keras_mixer.checkpoints.manifest import (
    CONFIG,
    MAX_CONFIG_SIZE,
    Entry,
    check_architecture,
    naming,
    read_json,
)
from keras_mixer.checkpoints.weight_files import read_index, read_shapes
from keras_mixer.files import NoSuchFileError
from keras_mixer.preprocessing import Preprocessing
from keras_mixer.variants import (
    num_patches,
    parameter_count,
    parse_variant,
    weight_shapes,
)

TIMM_WEIGHTS = "model.safetensors"
TIMM_INDEX = f"{TIMM_WEIGHTS}.index.json"

# timm's `crop_mode` -> the transform of `Preprocessing`.
CROP_MODES = {
    "center": "resmall_crop",
    "squash": "resize_crop",
    "border": "resize_pad",
}

_SIZES = (
    "patch_size",
    "hidden_dim",
    "num_blocks",
    "tokens_mlp_dim",
    "channels_mlp_dim",
    "num_classes",
)
_PICKLES = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "pytorch_model.pth",
    "model.pth",
)
# With a tag, or by an old name, which timm still takes.
_MIXER = re.compile(r"mixer_([sbl])(16|32)_224(_miil)?(_in21k)?(\.\w+)?", re.ASCII)
_OTHERS = {
    "gmixer": "a gMixer, whose MLPs have gates (GLU)",
    "resmlp": "a ResMLP, which has affine layers in place of norms",
    "gmlp": "a gMLP, whose blocks are spatial gating units",
}
_GELUS = {"gelu": False, "gelu_tanh": True}
_RATIOS = [0.5, 4.0]
# What pretrained_cfg need not say: `PretrainedCfg` in `timm/models/_pretrained.py`.
_DEFAULTS: dict[str, Any] = {
    "input_size": [3, 224, 224],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
# They change how a model is trained or initialised, not what it computes.
_TRAINING_ARGS = {"drop_rate", "proj_drop_rate", "drop_path_rate", "nlhb"}


def open_timm(fetch: Callable[..., Path], source: str) -> tuple[Entry, Path] | None:
    """Return the `Entry` and the path of the weights of a repository of timm.

    Args:
        fetch: As in `open_repository`.
        source: What to call the repository in messages.

    Returns:
        A pair like that of `open_repository`, or `None` if it is no repository of timm.

    Raises:
        ValueError: If it is one of another architecture, its files contradict each
            other, or there are only pickles.
        OSError: As `fetch` does.
    """
    try:
        path = fetch(CONFIG, max_size=MAX_CONFIG_SIZE)
    except NoSuchFileError:
        return None
    with naming(source, path):
        config = read_json(path, MAX_CONFIG_SIZE)
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        return None
    match = _MIXER.fullmatch(architecture)
    if match is None:
        raise _other_architecture(source, architecture)
    with naming(source, path):
        entry = _entry(config, f"{match[1].upper()}/{match[2]}", architecture)
    weights = _fetch_weights(fetch, source, entry)
    _check_shapes(entry, weights, source)
    return entry, weights


def _other_architecture(source: str, architecture: str) -> ValueError:
    what = next((_OTHERS[name] for name in _OTHERS if name in architecture), "no Mixer")
    return ValueError(
        f"{source} holds timm's {architecture[:200]!r}, {what}. keras_mixer reads "
        "timm's mixer_s16_224, mixer_s32_224, mixer_b16_224, mixer_b32_224, "
        "mixer_l16_224 and mixer_l32_224, at any image size. Load the others with timm."
    )


def _entry(config: dict[str, Any], variant: str, architecture: str) -> Entry:
    """Return what a `config.json` says, in our words."""
    record = config.get("pretrained_cfg", config)  # older files have one level
    if not isinstance(record, dict):
        raise ValueError("its pretrained_cfg is not an object")
    record = _DEFAULTS | {key: v for key, v in record.items() if v is not None}
    args = config.get("model_args") or {}
    if not isinstance(args, dict):
        raise ValueError("its model_args are not an object")
    args = {key: value for key, value in args.items() if value is not None}
    num_classes = args.pop(
        "num_classes", config.get("num_classes", record.get("num_classes", 1000))
    )
    channels, height, width = _integers("input_size", record["input_size"], 3)
    channels = args.pop("in_chans", channels)
    size = args.pop("img_size", [height, width])
    height, width = _integers("img_size", size if _is_list(size) else [size] * 2, 2)
    sizes = parse_variant(variant).sizes | _mlp_dims(
        args.pop("mlp_ratio", _RATIOS), parse_variant(variant).hidden_dim
    )
    approximate_gelu = _read_args(args)
    model = {
        **sizes,
        "input_shape": [height, width, channels],
        "num_classes": num_classes,
        "approximate_gelu": approximate_gelu,
        "classifier_activation": "softmax" if num_classes else None,
        "include_preprocessing": True,
        "dropout_rate": 0.0,
        "stochastic_depth_rate": 0.0,
    }
    check_architecture(model)
    if height % model["patch_size"] or width % model["patch_size"]:
        raise ValueError(
            f"its image size {height} x {width} is no multiple of the patches of "
            f"{architecture}, {model['patch_size']} x {model['patch_size']}"
        )
    return Entry(
        architecture.partition(".")[0],
        {**model, "input_shape": (height, width, channels)},
        _preprocessing(record, channels),
        _labels(config, record, num_classes),
    )


def _read_args(args: dict[str, Any]) -> bool:
    """Return whether the GELU is approximated; refuse what makes another model."""
    gelu = args.pop("act_layer", "gelu")
    if not isinstance(gelu, str) or gelu not in _GELUS:
        raise ValueError(
            f"its model_args have act_layer={gelu!r}, and a Mixer of this package has "
            f"{' or '.join(_GELUS)}"
        )
    harmless = {"global_pool": "avg", "stem_norm": False}
    for name, value in args.items():
        if name in _TRAINING_ARGS or harmless.get(name, ...) == value:
            continue
        raise ValueError(
            f"its model_args have {name}={str(value)[:100]!r}, which makes a model "
            "that this package does not build"
        )
    return _GELUS[gelu]


def _mlp_dims(ratios: object, hidden_dim: int) -> dict[str, int]:
    pair = ratios if _is_list(ratios) else [ratios, ratios]
    tokens, channels = (int(r * hidden_dim) for r in _numbers("mlp_ratio", pair, (2,)))
    return {"tokens_mlp_dim": tokens, "channels_mlp_dim": channels}


def _preprocessing(record: dict[str, Any], channels: int) -> Preprocessing:
    mean, std = (_per_channel(name, record[name], channels) for name in ("mean", "std"))
    if min(std) <= 0:
        raise ValueError(f"its std must be positive. Received: std={std}")
    crop_mode = record["crop_mode"]
    if not isinstance(crop_mode, str) or crop_mode not in CROP_MODES:
        raise ValueError(
            f"its crop_mode must be one of {', '.join(CROP_MODES)}. "
            f"Received: crop_mode={crop_mode!r}"
        )
    if len(mean) < len(std):
        mean *= len(std)
    elif len(std) < len(mean):
        std *= len(mean)
    return Preprocessing(
        tuple(((0 - m) / s, (1 - m) / s) for m, s in zip(mean, std, strict=True)),
        CROP_MODES[crop_mode],
        record["interpolation"],
        record["crop_pct"],
        library="pillow",
    )


def _per_channel(name: str, value: object, channels: int) -> list[float]:
    """Return one number, or one for each channel.

    timm keeps the three of RGB for a model with `in_chans=1`, and takes their mean.

    Source: `resolve_input_data_config` in `timm/data/model_config.py`.
    """
    numbers = _numbers(name, value, (1, 3) if channels == 1 else (1, channels))
    return [sum(numbers) / len(numbers)] if channels == 1 else numbers


def _labels(
    config: dict[str, Any], record: dict[str, Any], num_classes: int
) -> tuple[str, ...] | None:
    """Return what the classes are called: their descriptions, where all have one."""
    names = config.get("label_names") or record.get("label_names")
    names = names or (record.get("labels") if "pretrained_cfg" not in config else None)
    if not names or not num_classes:
        return None
    if isinstance(names, dict):  # by the number of the class, maybe with gaps
        numbered = {str(i): str(i) for i in range(num_classes)}
        if unknown := sorted(names.keys() - numbered.keys()):
            raise ValueError(
                f"its label_names name class {unknown[0][:100]!r}; there are "
                f"{num_classes} classes"
            )
        names = list((numbered | names).values())
    if not isinstance(names, list) or len(names) != num_classes:
        raise ValueError(f"its label_names are not one name for {num_classes} classes")
    if not all(isinstance(name, str) for name in names):
        raise ValueError("its label_names are not all text")
    texts = config.get("label_descriptions") or record.get("label_descriptions")
    if isinstance(texts, dict):
        described = [text for text in map(texts.get, names) if isinstance(text, str)]
        # Two kinds of crane are still two classes.
        if len(set(described)) == num_classes:
            return tuple(described)
    return tuple(names)


def _fetch_weights(fetch: Callable[..., Path], source: str, entry: Entry) -> Path:
    """Return the path of the weights or of their index; the files are then there."""
    # Double precision at most, and a header.
    max_size = 8 * parameter_count(entry.architecture) + 2**20
    max_size += 2**14 * entry.architecture["num_blocks"]
    try:
        return fetch(TIMM_WEIGHTS, max_size=max_size)
    except NoSuchFileError:
        pass
    try:
        index = fetch(TIMM_INDEX, max_size=MAX_CONFIG_SIZE)
    except NoSuchFileError:
        raise _no_weights(fetch, source) from None
    with naming(source, index):
        shards = read_index(index)
    for shard in shards:
        fetch(shard, max_size=max_size)
    return index


def _no_weights(fetch: Callable[..., Path], source: str) -> ValueError:
    pickles = [name for name in _PICKLES if _is_there(fetch, name)]
    if not pickles:
        return ValueError(
            f"{source} has the {CONFIG} of a model of timm, but no {TIMM_WEIGHTS}. "
            "Tell the owner of the repository."
        )
    return ValueError(
        f"{source} has its weights as a pickle only ({pickles[0]}), which can run any "
        "program when it is read, so it is not read. In a folder with it and "
        f"{CONFIG}, these two lines convert it where torch and safetensors are:\n"
        "    import safetensors.torch, torch\n"
        "    safetensors.torch.save_file(torch.load("
        f"{pickles[0].removesuffix('.index.json')!r}, weights_only=True), "
        f"{TIMM_WEIGHTS!r})\n"
        "Then read that folder, or upload the new file to the repository."
    )


def _is_there(fetch: Callable[..., Path], filename: str) -> bool:
    """Return whether a file exists, without downloading it."""
    try:
        fetch(filename, max_size=0)
    except NoSuchFileError:
        return False
    except ValueError:  # larger than nothing
        pass
    return True


def _check_shapes(entry: Entry, path: Path, source: str) -> None:
    """Raise a `ValueError` if the arrays are not those of the config."""
    sizes = dict(entry.architecture)
    height, width, channels = sizes["input_shape"]
    expected = weight_shapes(
        **{name: sizes[name] for name in _SIZES},
        num_patches=num_patches(sizes["input_shape"], sizes["patch_size"]),
        channels=channels,
    )
    if lines := differences(read_shapes(path)[0], expected, f"its {CONFIG}"):
        raise ValueError(
            f"{source} contradicts itself: the arrays in {path.name} are not those of "
            f"the model in its {CONFIG} ({entry.name}, images {height} x {width} x "
            f"{channels}, {sizes['num_classes']} classes). Tell the owner of the "
            f"repository.\n{lines}"
        )


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _integers(name: str, value: object, length: int) -> list[int]:
    if (
        not isinstance(value, list)
        or len(value) != length
        or any(type(number) is not int or number < 1 for number in value)
    ):
        raise ValueError(
            f"its {name} must be {length} positive integers. Received: "
            f"{name}={str(value)[:100]}"
        )
    return value


def _numbers(name: str, value: object, lengths: tuple[int, ...]) -> list[float]:
    if (
        not isinstance(value, list)
        or len(value) not in lengths
        or not all(isinstance(n, Real) and not isinstance(n, bool) for n in value)
        or not all(abs(number) < 1e6 for number in value)
    ):
        raise ValueError(
            f"its {name} must be {' or '.join(map(str, lengths))} numbers. Received: "
            f"{name}={str(value)[:100]}"
        )
    return [float(number) for number in value]
