"""The golden arrays: outputs of the official Flax implementation and of timm."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from keras_mixer.models.mixer import mlp_mixer

DATA = Path(__file__).parent / "data"


def load_golden(name):
    """Return the arrays of one golden file by name, `config` as a dictionary."""
    with np.load(DATA / f"{name}.npz") as file:
        golden = {key: file[key] for key in file.files}
    if "config" in golden:
        golden["config"] = json.loads(str(golden["config"]))
    return golden


def golden_arrays(golden, root):
    """The arrays below `root/`, by their names below it."""
    return {
        key.removeprefix(f"{root}/"): value
        for key, value in golden.items()
        if key.startswith(f"{root}/")
    }


def golden_model(golden, folder, **arguments):
    """Return the model of a golden file, its weights read from a file in `folder`."""
    config = golden["config"]
    if "embed_dim" in config:
        path = folder / "model.safetensors"
        save_file(golden_arrays(golden, "state_dict"), path)
        width = config["embed_dim"]
        tokens_ratio, channels_ratio = config["mlp_ratio"]
        sizes = {
            "patch_size": config["patch_size"],
            "hidden_dim": width,
            "num_blocks": config["num_blocks"],
            "tokens_mlp_dim": int(width * tokens_ratio),
            "channels_mlp_dim": int(width * channels_ratio),
            "input_shape": (config["img_size"], config["img_size"], 3),
        }
    else:
        path = folder / "official.npz"
        np.savez(path, **golden_arrays(golden, "params"))
        sizes = {k: v for k, v in config.items() if k != "image_shape"}
        sizes["input_shape"] = tuple(config["image_shape"])
    arguments = {
        "classifier_activation": None,
        "include_preprocessing": False,
        **sizes,
        **arguments,
    }
    return mlp_mixer(**arguments, weights=path)
