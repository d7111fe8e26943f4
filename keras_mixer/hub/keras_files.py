"""`.keras` files of unknown origin: looked at before Keras opens them.

Keras builds whatever the config says and opens whatever the archive holds. So the
entries are bounded and taken out one by one, the layers of a Mixer must be no larger
than the weights that come with it, and a child process looks at the
weights (`checkpoints/hdf5_files.py`). Only then Keras reads the folder.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_mixer.checkpoints import (
    CONFIG,
    MAX_CONFIG_SIZE,
    METADATA,
    WEIGHTS,
    look_at,
    open_archive,
)
from keras_mixer.files import open_regular
from keras_mixer.models import as_mixer, find_mixer

if TYPE_CHECKING:
    import keras

_MAX_BYTES = 32 * 2**30  # four times the largest Mixer, as with an optimizer
# Keras stores weights as they are; deflated ones shrink by a tenth. Zeros shrink more.
_MAX_INFLATION, _ANY_SIZE = 4, 64 * 2**20
_MAX_DEPTH = 64
# A number of 4 bits takes 32 while the model is built.
_MAX_BUILT, _ANY_BUILT = 8, 64 * 2**20


def read_keras(path: Path) -> "keras.Model":
    """Return the model in a `.keras` file, not compiled: a Mixer, or one around it.

    Raises:
        OSError: If there is no such file, or it cannot be opened.
        ValueError: If it is damaged, too large for what it says, or holds no Mixer.
    """
    import keras

    with open_regular(path) as file, tempfile.TemporaryDirectory() as folder:
        try:
            _unpack(file, Path(folder))
            config = _read_config(Path(folder) / CONFIG)
            arrays = look_at(Path(folder) / WEIGHTS).arrays.values()
            _check_built_size(config, sum(4 * math.prod(a.shape) for a in arrays))
            model = keras.saving.load_model(folder, compile=False, safe_mode=True)
        except MemoryError as error:
            raise MemoryError(
                f"There is not enough memory for the model in {str(path)!r}"
            ) from error
        except Exception as error:  # a damaged file can make Keras raise anything
            raise ValueError(
                f"{str(path)!r} cannot be read: {str(error) or type(error).__name__}"
            ) from error
    try:
        find_mixer(model)
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r} must hold a Mixer of this package. {error}"
        ) from error
    try:
        return as_mixer(model)
    except ValueError:  # quantized, or of more layers than a Mixer has
        return model


def _unpack(file: BufferedReader, folder: Path) -> None:
    """Write the entries that Keras reads, and no others, to a folder."""
    with open_archive(file) as archive:
        entries = archive.infolist()
        limits = {CONFIG: MAX_CONFIG_SIZE, METADATA: MAX_CONFIG_SIZE}
        for name, limit in {**limits, WEIGHTS: _MAX_BYTES}.items():
            found = [entry for entry in entries if entry.filename == name]
            if len(found) != 1:
                raise ValueError(
                    f"it has {len(found)} entries {name!r}: it is not a whole model "
                    "that Keras saved"
                )
            size, packed = found[0].file_size, found[0].compress_size
            if size > min(limit, _MAX_INFLATION * packed + _ANY_SIZE):
                raise ValueError(
                    f"its entry {name!r} claims {size} bytes and takes {packed}"
                )
            with archive.open(found[0]) as source, open(folder / name, "xb") as target:
                shutil.copyfileobj(source, target, 2**20)


def _read_config(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    config = json.loads(text)
    if not isinstance(config, dict):
        raise ValueError("its config is no object")
    if '"keras_mixer>' not in text:
        raise ValueError(
            "it must hold a Mixer of this package. Received: "
            f"{str(config.get('class_name'))[:100]}"
        )
    return config


def _check_built_size(config: dict[str, Any], declared: int) -> None:
    """Compare what Keras would build with the bytes of the weights, as float32."""
    layers = list(_layers(config))
    sizes = [size for layer in layers for size in layer.values()]
    if any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError("a size in its config is not a number of elements")
    hidden = max((layer.get("hidden_dim", 0) for layer in layers), default=0)
    pixels = max((layer.get("pixels", 0) for layer in layers), default=0)
    patch = min(
        (layer["patch_size"] for layer in layers if "patch_size" in layer), default=1
    )
    patches = pixels // max(patch, 1) ** 2
    built = 0
    for layer in layers:
        built += layer.get("hidden_dim", 0) * layer.get("patch_size", 0) ** 2 * 3
        built += 2 * patches * layer.get("tokens_mlp_dim", 0)
        built += 2 * hidden * layer.get("channels_mlp_dim", 0)
        built += hidden * layer.get("units", 0)
    if 4 * built > _MAX_BUILT * declared + _ANY_BUILT:
        raise ValueError(
            f"its config makes a model of {4 * built} bytes, its weights are of "
            f"{declared}"
        )


_SIZES = ("patch_size", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim", "units")


def _layers(value: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the sizes in every object of a config."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"its config is nested deeper than {_MAX_DEPTH}")
    if isinstance(value, dict):
        found = {key: value[key] for key in _SIZES if key in value}
        shape = value.get("batch_shape")
        if isinstance(shape, list) and all(type(n) is int for n in shape[1:]):
            found["pixels"] = math.prod(shape[1:3])
        if found:
            yield found
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _layers(item, depth + 1)
