"""The constructors of the family, `MixerS32` ... `MixerH14` and `MixerTi4`.

Each is written out, so that an editor shows its arguments; all are `create`.
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from keras_mixer.checkpoints import list_checkpoints
from keras_mixer.models.create import create
from keras_mixer.models.mixer import MLPMixer

_Shape = tuple[int, int, int]


def MixerTi4(
    weights: str | Path | None = None,
    *,
    input_shape: _Shape | None = None,
    num_classes: int | None = None,
    classifier_activation: Any = "softmax",
    include_preprocessing: bool = True,
    dropout_rate: float = 0.0,
    stochastic_depth_rate: float = 0.0,
    name: str | None = None,
    dtype: Any = None,
    labels: Sequence[str] | None = None,
) -> MLPMixer:
    """Build Mixer-Ti/4: 8 blocks of width 128 on patches of 4 x 4.

    Checkpoints: `"cifar10"`.
    Images are 32 x 32 RGB unless `input_shape` says otherwise. Arguments, results and
    errors are those of `keras_mixer.models.create`.
    """
    return create("Ti/4", **locals())


def MixerS32(
    weights: str | Path | None = None,
    *,
    input_shape: _Shape | None = None,
    num_classes: int | None = None,
    classifier_activation: Any = "softmax",
    include_preprocessing: bool = True,
    dropout_rate: float = 0.0,
    stochastic_depth_rate: float = 0.0,
    name: str | None = None,
    dtype: Any = None,
    labels: Sequence[str] | None = None,
) -> MLPMixer:
    """Build Mixer-S/32: 8 blocks of width 512 on patches of 32 x 32.

    Checkpoints: `"gsam"`.
    Images are 224 x 224 RGB unless `input_shape` says otherwise. Arguments, results and
    errors are those of `keras_mixer.models.create`.
    """
    return create("S/32", **locals())


def MixerS16(
    weights: str | Path | None = None,
    *,
    input_shape: _Shape | None = None,
    num_classes: int | None = None,
    classifier_activation: Any = "softmax",
    include_preprocessing: bool = True,
    dropout_rate: float = 0.0,
    stochastic_depth_rate: float = 0.0,
    name: str | None = None,
    dtype: Any = None,
    labels: Sequence[str] | None = None,
) -> MLPMixer:
    """Build Mixer-S/16: 8 blocks of width 512 on patches of 16 x 16.

    Checkpoints: `"gsam"`.
    Images are 224 x 224 RGB unless `input_shape` says otherwise. Arguments, results and
    errors are those of `keras_mixer.models.create`.
    """
    return create("S/16", **locals())


def MixerS8(
    weights: str | Path | None = None,
    *,
    input_shape: _Shape | None = None,
    num_classes: int | None = None,
    classifier_activation: Any = "softmax",
    include_preprocessing: bool = True,
    dropout_rate: float = 0.0,
    stochastic_depth_rate: float = 0.0,
    name: str | None = None,
    dtype: Any = None,
    labels: Sequence[str] | None = None,
) -> MLPMixer:
    """Build Mixer-S/8: 8 blocks of width 512 on patches of 8 x 8.

    Checkpoints: `"gsam"`.
    Images are 224 x 224 RGB unless `input_shape` says otherwise. Arguments, results and
    errors are those of `keras_mixer.models.create`.
    """
    return create("S/8", **locals())


def MixerB32(
    weights: str | Path | None = None,
    *,
    input_shape: _Shape | None = None,
    num_classes: int | None = None,
    classifier_activation: Any = "softmax",
    include_preprocessing: bool = True,
    dropout_rate: float = 0.0,
    stochastic_depth_rate: float = 0.0,
    name: str | None = None,
    dtype: Any = None,
    labels: Sequence[str] | None = None,
) -> MLPMixer:
    """Build Mixer-B/32: 12 blocks of width 768 on patches of 32 x 32.

    Checkpoints: `"sam"`, `"gsam"`.
    Images are 224 x 224 RGB unless `input_shape` says otherwise. Arguments, results and
    errors are those of `keras_mixer.models.create`.
    """
    return create("B/32", **locals())


def MixerB16(
    weights: str | Path | None = None,
    *,
    input_shape: _Shape | None = None,
    num_classes: int | None = None,
    classifier_activation: Any = "softmax",
    include_preprocessing: bool = True,
    dropout_rate: float = 0.0,
    stochastic_depth_rate: float = 0.0,
    name: str | None = None,
    dtype: Any = None,
    labels: Sequence[str] | None = None,
) -> MLPMixer:
    """Build Mixer-B/16: 12 blocks of width 768 on patches of 16 x 16.

    Checkpoints: `"imagenet1k"`, `"imagenet21k"`, `"sam"`, `"gsam"`,
    `"miil_imagenet21k"`, `"miil_imagenet1k"`.
    Images are 224 x 224 RGB unless `input_shape` says otherwise. Arguments, results and
    errors are those of `keras_mixer.models.create`.
    """
    return create("B/16", **locals())


def MixerL32(
    weights: str | Path | None = None,
    *,
    input_shape: _Shape | None = None,
    num_classes: int | None = None,
    classifier_activation: Any = "softmax",
    include_preprocessing: bool = True,
    dropout_rate: float = 0.0,
    stochastic_depth_rate: float = 0.0,
    name: str | None = None,
    dtype: Any = None,
    labels: Sequence[str] | None = None,
) -> MLPMixer:
    """Build Mixer-L/32: 24 blocks of width 1024 on patches of 32 x 32.

    It has no published checkpoint.
    Images are 224 x 224 RGB unless `input_shape` says otherwise. Arguments, results and
    errors are those of `keras_mixer.models.create`.
    """
    return create("L/32", **locals())


def MixerL16(
    weights: str | Path | None = None,
    *,
    input_shape: _Shape | None = None,
    num_classes: int | None = None,
    classifier_activation: Any = "softmax",
    include_preprocessing: bool = True,
    dropout_rate: float = 0.0,
    stochastic_depth_rate: float = 0.0,
    name: str | None = None,
    dtype: Any = None,
    labels: Sequence[str] | None = None,
) -> MLPMixer:
    """Build Mixer-L/16: 24 blocks of width 1024 on patches of 16 x 16.

    Checkpoints: `"imagenet1k"`, `"imagenet21k"`.
    Images are 224 x 224 RGB unless `input_shape` says otherwise. Arguments, results and
    errors are those of `keras_mixer.models.create`.
    """
    return create("L/16", **locals())


def MixerH14(
    weights: str | Path | None = None,
    *,
    input_shape: _Shape | None = None,
    num_classes: int | None = None,
    classifier_activation: Any = "softmax",
    include_preprocessing: bool = True,
    dropout_rate: float = 0.0,
    stochastic_depth_rate: float = 0.0,
    name: str | None = None,
    dtype: Any = None,
    labels: Sequence[str] | None = None,
) -> MLPMixer:
    """Build Mixer-H/14: 32 blocks of width 1280 on patches of 14 x 14.

    It has no published checkpoint.
    Images are 224 x 224 RGB unless `input_shape` says otherwise. Arguments, results and
    errors are those of `keras_mixer.models.create`.
    """
    return create("H/14", **locals())


# Variant name -> constructor, for callers that have the name as a string.
CONSTRUCTORS: dict[str, Callable[..., MLPMixer]] = {
    "Ti/4": MixerTi4,
    "S/32": MixerS32,
    "S/16": MixerS16,
    "S/8": MixerS8,
    "B/32": MixerB32,
    "B/16": MixerB16,
    "L/32": MixerL32,
    "L/16": MixerL16,
    "H/14": MixerH14,
}


def list_models(filter: str = "*", pretrained: bool = False) -> list[str]:
    """Return the names of the constructors, or of them with their checkpoints.

    Args:
        filter: Pattern of names, with the wildcards of file names: `"*B*"`,
            `"MixerL16"`, `"*:imagenet21k"`. Upper and lower case are the same.
        pretrained: Whether to list one name per checkpoint, such as
            `"MixerB16:imagenet21k"`, which is `MixerB16(weights="imagenet21k")`.

    Returns:
        Names in the order of the table of variants.
    """
    names: list[tuple[str, str]] = []
    for variant, constructor in CONSTRUCTORS.items():
        name = constructor.__name__
        if not pretrained:
            names.append((name, name))
            continue
        for checkpoint in list_checkpoints(variant):
            names.append((name, f"{name}:{checkpoint.name}"))
    pattern = filter.lower()
    return [
        full
        for name, full in names
        if fnmatchcase(name.lower(), pattern) or fnmatchcase(full.lower(), pattern)
    ]
