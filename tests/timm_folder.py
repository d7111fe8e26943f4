"""A repository of timm in a folder, as timm's `save_for_hf` writes it, without timm.

The names of the arrays are written out here once more, from `timm/models/mlp_mixer.py`.
"""

import json

import numpy as np
from safetensors.numpy import save_file

# 6 patches of 16 x 16 pixels; the MLPs are narrow, so that the files are small.
SHAPE = (32, 48, 3)
WIDTH, BLOCKS, PATCH, TOKENS, CHANNELS, CLASSES = 512, 8, 16, 64, 128, 5
CONFIG = {
    "architecture": "mixer_s16_224",
    "num_classes": CLASSES,
    "num_features": WIDTH,
    "global_pool": "avg",
    "model_args": {"mlp_ratio": [0.125, 0.25]},
    "label_names": ["ant", "bee", "cat", "dog", "elk"],
    "pretrained_cfg": {
        "tag": "mine",
        "custom_load": False,
        "input_size": [3, 32, 48],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "num_classes": CLASSES,
        "pool_size": None,
        "first_conv": "stem.proj",
        "classifier": "head",
    },
}


def draw(seed=0, *, shape=SHAPE, classes=CLASSES):
    """Return drawn weights by our names, float32."""
    height, width, channels = shape
    patches = height * width // PATCH**2
    rng = np.random.default_rng(seed)
    weights = {}

    def dense(name, *kernel):
        scale = np.sqrt(np.prod(kernel[:-1]))
        weights[f"{name}/kernel"] = rng.standard_normal(kernel) / scale
        weights[f"{name}/bias"] = 0.1 * rng.standard_normal(kernel[-1])

    def norm(name):
        weights[f"{name}/gamma"] = 1 + 0.1 * rng.standard_normal(WIDTH)
        weights[f"{name}/beta"] = 0.1 * rng.standard_normal(WIDTH)

    dense("stem/projection", PATCH, PATCH, channels, WIDTH)
    for i in range(BLOCKS):
        norm(f"block_{i}/norm_0")
        dense(f"block_{i}/token_mixing/dense_0", patches, TOKENS)
        dense(f"block_{i}/token_mixing/dense_1", TOKENS, patches)
        norm(f"block_{i}/norm_1")
        dense(f"block_{i}/channel_mixing/dense_0", WIDTH, CHANNELS)
        dense(f"block_{i}/channel_mixing/dense_1", CHANNELS, WIDTH)
    norm("pre_head_layer_norm")
    if classes:
        dense("head", WIDTH, classes)
    return {name: array.astype("float32") for name, array in weights.items()}


def state_dict(weights):
    """Return the weights as timm has them."""
    layers = {"stem/projection": "stem.proj", "pre_head_layer_norm": "norm"}
    layers["head"] = "head"
    for i in range(BLOCKS):
        ours, theirs = f"block_{i}", f"blocks.{i}"
        layers[f"{ours}/norm_0"] = f"{theirs}.norm1"
        layers[f"{ours}/norm_1"] = f"{theirs}.norm2"
        for k in (0, 1):
            fc = f"fc{k + 1}"
            layers[f"{ours}/token_mixing/dense_{k}"] = f"{theirs}.mlp_tokens.{fc}"
            layers[f"{ours}/channel_mixing/dense_{k}"] = f"{theirs}.mlp_channels.{fc}"
    arrays = {}
    for name, array in weights.items():
        layer, leaf = name.rsplit("/", 1)
        if name == "stem/projection/kernel":
            array = array.transpose(3, 2, 0, 1)
        elif leaf == "kernel":
            array = array.T
        leaf = "bias" if leaf in ("bias", "beta") else "weight"
        arrays[f"{layers[layer]}.{leaf}"] = np.ascontiguousarray(array)
    return arrays


def write(folder, arrays, config=CONFIG):
    """Write `config.json` and `model.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})


def write_sharded(folder, arrays, num_shards=3):
    """Write the arrays as several files and their index, without the config."""
    names, weight_map = sorted(arrays), {}
    for i in range(num_shards):
        file = f"model-{i + 1:05}-of-{num_shards:05}.safetensors"
        part = {name: arrays[name] for name in names[i::num_shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
