"""Whole models in files of any kind: recognised by their endings, written whole.

| ending | what it is |
| --- | --- |
| `.npz` | weights in the official layout |
| `.safetensors` | weights in the layout of timm |
| `.weights.h5` | weights as Keras saves them |
| `.keras` | a whole model as Keras saves it |
| none of these | folder of a published model; to read, also `hf://owner/name` |
"""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import keras

from keras_mixer.checkpoints import (
    CARD,
    CHECKSUMS,
    CONFIG,
    LABELS,
    METADATA,
    TIMM_WEIGHTS,
    WEIGHT_ENDINGS,
    WEIGHTS,
    describe_shapes,
    read_shapes,
)
from keras_mixer.files import atomic_replace
from keras_mixer.hub.card import Facts
from keras_mixer.hub.keras_files import read_keras
from keras_mixer.hub.publish import from_pretrained
from keras_mixer.hub.repository import write_repository
from keras_mixer.hub.timm_files import save_timm
from keras_mixer.models import as_mixer, mlp_mixer, save_official
from keras_mixer.preprocessing import Preprocessing, Range

_WRITERS: dict[str, Callable[[keras.Model, Path], None]] = {
    ".npz": lambda model, path: save_official(as_mixer(model), path),
    ".weights.h5": lambda model, path: model.save_weights(path),
    ".safetensors": lambda model, path: save_timm(as_mixer(model), path),
    ".keras": lambda model, path: model.save(path),
}
# Of files that nobody would expect to become a folder.
_NOT_WRITTEN = (".h5", ".npy", ".onnx", ".pt", ".pth")
_OUR_FILES = {CARD, CHECKSUMS, CONFIG, LABELS, METADATA, TIMM_WEIGHTS, WEIGHTS}


class Overrides(NamedTuple):
    """What a file of weights alone does not say; `None` for what is usual."""

    input_shape: tuple[int, int, int] | None = None
    approximate_gelu: bool | None = None
    value_range: Range | tuple[Range, ...] | None = None


def read_model(
    source: str | os.PathLike[str],
    *,
    input_shape: tuple[int, int, int] | None = None,
    approximate_gelu: bool | None = None,
    value_range: Range | tuple[Range, ...] | None = None,
) -> keras.Model:
    """Return the model in a file or folder of any kind that this package knows.

    A file of weights alone says all sizes but those of the image. What it does not
    say can be given; a whole model says everything itself.

    Args:
        source: A path, or `"hf://owner/name[@revision]"`.
        input_shape: `(height, width, channels)`; `None` for the square image that has
            as many patches as the weights.
        approximate_gelu: Tanh form of GELU (`True`) or the exact one (`False`); `None`:
            exact for a timm file, else tanh.
        value_range: What the pixel values 0 and 255 become, or one such pair for each
            channel; `None` for (-1, 1).

    Returns:
        An `MLPMixer`, not compiled. Of a `.keras` file with a model around a Mixer,
        what `models.as_mixer` makes of it, or else that model itself.

    Raises:
        OSError: If the source cannot be read (`FileNotFoundError` if there is none).
        ValueError: If it is damaged, not a Mixer, or does not fit the arguments.
    """
    name = os.path.expanduser(source)
    overrides = Overrides(input_shape, approximate_gelu, value_range)
    if name.endswith(WEIGHT_ENDINGS):
        return _read_weight_file(name, overrides)
    given = [f"{k}={v}" for k, v in overrides._asdict().items() if v is not None]
    if given:
        raise ValueError(
            "`input_shape`, `approximate_gelu` and `value_range` are for files of "
            f"weights alone. {name!r} says them itself. Received: {', '.join(given)}. "
            "Leave them out."
        )
    if name.endswith(".keras"):
        return read_keras(Path(name))
    if Path(name).is_file():
        raise ValueError(
            "`source` must be a folder of a published model, hf://owner/name, or end "
            f"in {', '.join((*WEIGHT_ENDINGS, '.keras'))}. Received: {name!r}"
        )
    return from_pretrained(name)


def write_model(
    model: keras.Model, target: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Write a model to a file, or to a folder as it is published, by the ending.

    What is written is complete under its name or absent.

    Args:
        model: An `MLPMixer`.
        target: Path that ends in `.npz`, `.safetensors`, `.weights.h5` or `.keras`;
            with no known ending it is a folder.
        overwrite: Whether to replace a file, or a folder of a published model.

    Raises:
        FileExistsError: If `target` exists and is not to be replaced.
        OSError: If it cannot be written.
        ValueError: If this package does not write files of that ending, or the model
            cannot be written to one.
    """
    target = os.path.expanduser(target)
    check_target(target, overwrite=overwrite)
    with atomic_replace(target) as path:
        _WRITERS.get(_ending(target) or "", write_repository)(model, path)


def write_folder(
    model: keras.Model,
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    card: str | None = None,
    provenance: Mapping[str, str] | None = None,
    timm: bool = False,
    **facts: Unpack[Facts],
) -> None:
    """Write a model to a folder as it is published, complete or not at all.

    Args:
        model: An `MLPMixer`.
        folder: Where to write.
        overwrite: Whether to replace a folder of a published model.
        card: Text of the model card; `None` to write one.
        provenance: What is known of the origin of the weights, as in `push_to_hub`.
        timm: Whether timm is to read it, too, as in `push_to_hub`.
        **facts: What else the card says: `repo_id`, `licence`, `datasets`, `metrics`,
            `base_model`, as in `push_to_hub`.

    Raises:
        FileExistsError: If `folder` exists and is not to be replaced.
        OSError: If it cannot be written.
        ValueError: If the model cannot be published, or nobody could read it.
    """
    folder = os.path.expanduser(folder)
    _check_folder(Path(folder), overwrite)
    with atomic_replace(folder) as path:
        write_repository(
            model, path, card=card, provenance=provenance, timm=timm, **facts
        )


def check_target(target: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Raise the error of `write_model` for a target that it would refuse."""
    path = Path(target)
    if not _ending(path):
        if path.name.endswith(_NOT_WRITTEN):
            raise ValueError(
                "`target` must end in .npz, .safetensors, .weights.h5 or .keras, or be "
                "a folder. "
                f"Received: {str(target)!r}"
            )
        _check_folder(path, overwrite)
    elif path.is_dir():
        raise FileExistsError(f"`target` is a folder already. Received: {str(path)!r}")
    elif path.exists() and not overwrite:
        raise _exists(path)


def reading_arguments(
    model: keras.Model, target: str | os.PathLike[str]
) -> dict[str, Any]:
    """Return the arguments without which `read_model(target)` is another model.

    Files of weights alone hold neither the shape of the image, nor the form of GELU,
    nor the normalisation.
    """
    if not str(target).endswith(WEIGHT_ENDINGS):
        return {}
    config, value_range = model.config, model.preprocessing.value_range
    arguments: dict[str, Any] = {}
    if config["input_shape"][0] != config["input_shape"][1]:
        arguments["input_shape"] = config["input_shape"]
    # A file with timm's names is read as exact.
    if not config["approximate_gelu"] and not str(target).endswith(".safetensors"):
        arguments["approximate_gelu"] = False
    if value_range != Preprocessing().value_range:
        arguments["value_range"] = value_range
    return arguments


def _read_weight_file(source: str, overrides: Overrides) -> keras.Model:
    input_shape, value_range = overrides.input_shape, overrides.value_range
    sizes: dict[str, Any] = {**describe_shapes(read_shapes(source)[0])}
    num_patches, channels = sizes.pop("num_patches"), sizes.pop("channels")
    del sizes["num_classes"]  # the head is that of the file
    if input_shape is None:
        rows = math.isqrt(num_patches)
        if rows**2 != num_patches:
            raise ValueError(
                f"`input_shape` must be given: the {num_patches} patches of "
                f"{str(source)!r} make no square image. Received: None"
            )
        edge = rows * sizes["patch_size"]
        input_shape = (edge, edge, channels)
    return mlp_mixer(
        **sizes,
        input_shape=input_shape,
        weights=source,
        approximate_gelu=overrides.approximate_gelu,
        preprocessing=Preprocessing(value_range) if value_range else None,
        # Keras would number it: equal files are to give equal models.
        name="mixer",
    )


def _ending(target: str | os.PathLike[str]) -> str | None:
    return next((end for end in _WRITERS if Path(target).name.endswith(end)), None)


def _check_folder(folder: Path, overwrite: bool) -> None:
    if folder.is_dir():
        names = {path.name for path in folder.iterdir()}
        if others := sorted(names - _OUR_FILES):
            raise FileExistsError(
                f"{str(folder)!r} holds files that are not of a published model: "
                f"{', '.join(others[:5])}. Choose another folder."
            )
        if names and not overwrite:
            raise _exists(folder)
    elif folder.exists():
        raise FileExistsError(f"{str(folder)!r} is a file. Choose another name.")


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(
        f"{str(path)!r} exists. Choose another name, or replace it with "
        "`overwrite=True` (`--force` on the command line)."
    )
