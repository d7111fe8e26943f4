"""The names of official and timm checkpoints and ours, on dictionaries of arrays.

Our names are the paths of the model's variables (`block_0/norm_0/gamma`). Every array
is accounted for. Files are opened in `weight_files.py`.

Source of the names and layouts: `vit_jax/models_mixer.py` and its published files; the
older layout in `big_vision/models/mlp_mixer.py`; `timm/models/mlp_mixer.py`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from keras_mixer.variants import weight_shapes

Arrays = dict[str, npt.NDArray[Any]]
Shapes = dict[str, tuple[int, ...]]


class Layout(NamedTuple):
    """How a kind of file names what we call `layer/leaf`; `{i}` numbers the blocks."""

    block: str
    leaves: dict[str, str]
    layers: dict[str, str]


OFFICIAL = Layout(
    block="MixerBlock_{i}",
    leaves={"kernel": "kernel", "bias": "bias", "gamma": "scale", "beta": "bias"},
    layers={
        "stem/projection": "stem/{leaf}",
        "block_{i}/norm_0": "{block}/LayerNorm_0/{leaf}",
        "block_{i}/token_mixing/dense_0": "{block}/token_mixing/Dense_0/{leaf}",
        "block_{i}/token_mixing/dense_1": "{block}/token_mixing/Dense_1/{leaf}",
        "block_{i}/norm_1": "{block}/LayerNorm_1/{leaf}",
        "block_{i}/channel_mixing/dense_0": "{block}/channel_mixing/Dense_0/{leaf}",
        "block_{i}/channel_mixing/dense_1": "{block}/channel_mixing/Dense_1/{leaf}",
        "pre_head_layer_norm": "pre_head_layer_norm/{leaf}",
        "head": "head/{leaf}",
    },
)
OLDER = Layout(
    block="Mixer/encoderblock_{i}",
    leaves=OFFICIAL.leaves,
    layers={
        "stem/projection": "embedding/{leaf}",
        "block_{i}/norm_0": "{block}/LayerNorm_0/{leaf}",
        "block_{i}/token_mixing/dense_0": "{block}/token_mixing_phase_0/{leaf}1",
        "block_{i}/token_mixing/dense_1": "{block}/token_mixing_phase_0/{leaf}2",
        "block_{i}/norm_1": "{block}/LayerNorm_1/{leaf}",
        "block_{i}/channel_mixing/dense_0": "{block}/channel_mixing_phase_0/{leaf}1",
        "block_{i}/channel_mixing/dense_1": "{block}/channel_mixing_phase_0/{leaf}2",
        "pre_head_layer_norm": "Mixer/encoder_norm/{leaf}",
        "head": "head/{leaf}",
    },
)
TIMM = Layout(
    block="blocks.{i}",
    leaves={"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"},
    layers={
        "stem/projection": "stem.proj.{leaf}",
        "block_{i}/norm_0": "{block}.norm1.{leaf}",
        "block_{i}/token_mixing/dense_0": "{block}.mlp_tokens.fc1.{leaf}",
        "block_{i}/token_mixing/dense_1": "{block}.mlp_tokens.fc2.{leaf}",
        "block_{i}/norm_1": "{block}.norm2.{leaf}",
        "block_{i}/channel_mixing/dense_0": "{block}.mlp_channels.fc1.{leaf}",
        "block_{i}/channel_mixing/dense_1": "{block}.mlp_channels.fc2.{leaf}",
        "pre_head_layer_norm": "norm.{leaf}",
        "head": "head.{leaf}",
    },
)

# As `save_weights` of Keras writes them: layers by name, their variables by number.
_KERAS_LAYERS = {
    ours: ours.replace("block_{i}", "{block}").replace("/", "_") + "/{leaf}"
    for ours in OFFICIAL.layers
}
KERAS = Layout(
    block="block_{i}",
    leaves={"kernel": "0", "bias": "1", "gamma": "0", "beta": "1"},
    layers=_KERAS_LAYERS,
)

_MAX_LINES = 20
_MAX_NAME = 200  # characters of it that are shown
_CHUNK = 2**18  # numbers checked at once; small enough to stay in the cache


def describe(weights: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes of the Mixer that `weights` (our names to arrays) belong to.

    Returns:
        A dictionary with `patch_size`, `hidden_dim`, `num_blocks`, `tokens_mlp_dim`,
        `channels_mlp_dim`, `num_patches`, `channels`, and `num_classes` (0 without a
        head).

    Raises:
        ValueError: If the arrays that tell the sizes are missing.
    """
    return describe_shapes(shapes_of(weights))


def check_shapes(
    shapes: Shapes, expected: Mapping[str, Iterable[int]], *, source: object
) -> None:
    """Check that weights fit a model, array by array, in both directions.

    Args:
        shapes: Our names to the shapes of the arrays.
        expected: Our names to the shapes of the model's variables.
        source: What the weights were read from, for the message.

    Raises:
        ValueError: If a name is only on one side or a shape differs. The message says
            what the weights are, what to do, and lists every difference.
    """
    right = {name: tuple(shape) for name, shape in expected.items()}
    if lines := differences(shapes, right, "the model"):
        raise ValueError(
            f"The weights in {str(source)!r} do not fit the model."
            f"{_advice(shapes, right)}\n{lines}"
        )


def to_official(weights: Mapping[str, Any]) -> Arrays:
    """Return `weights` (our names) under the official names, sorted, as float32.

    Raises:
        ValueError: As in `check_whole`.
    """
    dims = check_whole(weights)
    names = names_of(OFFICIAL, dims["num_blocks"], head=dims["num_classes"] > 0)
    return {
        theirs: np.ascontiguousarray(weights[ours], dtype=np.float32)
        for ours, theirs in sorted(names.items(), key=lambda pair: pair[1])
    }


def check_whole(weights: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes of the Mixer of `weights` (our names), after all is checked.

    Raises:
        ValueError: If the weights are not those of one whole Mixer, or not finite in
            float32.
    """
    shapes = shapes_of(weights)
    dims = describe_shapes(shapes)
    if lines := differences(shapes, weight_shapes(**dims), "a Mixer"):
        raise ValueError(f"These are not the weights of one Mixer.\n{lines}")
    for name, array in weights.items():
        try:
            check_finite(np.asarray(array, dtype=np.float32))
        except ValueError as error:
            raise ValueError(f"Cannot write array {name!r}: {error}") from error
    return dims


def check_finite(array: npt.NDArray[Any]) -> None:
    """Raise a `ValueError` that counts the numbers that are not finite, if any."""
    flat = array.reshape(-1)
    chunks = (flat[start : start + _CHUNK] for start in range(0, flat.size, _CHUNK))
    finite = sum(np.count_nonzero(np.isfinite(chunk)) for chunk in chunks)
    if finite < flat.size:
        raise ValueError(
            f"{flat.size - finite} of its {flat.size} numbers are not finite"
        )


def older_shapes(shapes: Shapes) -> Shapes:
    """Return the right shapes of the arrays of a file in the older layout.

    They carry extra axes of size 1 at places nobody wrote down; the biases tell the
    sizes that are right, among which there may be a 1.
    """
    right = dict(shapes)
    for name, shape in weight_shapes(**describe_shapes(shapes)).items():
        without_ones = [size for size in shapes.get(name, ()) if size != 1]
        if "_mixing/" in name and without_ones == [size for size in shape if size != 1]:
            right[name] = shape
    return right


def common_prefix(file_names: Iterable[str], layout: Layout) -> str:
    """Return what stands before every name of a file, such as `model.` or `module.`.

    It is told by the name of the stem's kernel; '' if one name is without it.
    """
    names = list(file_names)
    stem = layout.layers["stem/projection"].format(leaf=layout.leaves["kernel"])
    prefixes = [
        name.removesuffix(stem)
        for name in names
        if name.endswith(stem) and name[: -len(stem)].endswith((".", "/"))
    ]
    if len(prefixes) == 1 and all(name.startswith(prefixes[0]) for name in names):
        return prefixes[0]
    return ""


def match_names(file_names: Iterable[str], layout: Layout) -> dict[str, str]:
    """Return our name -> the file's name, for a file whose names make one Mixer."""
    file_names = list(file_names)
    prefix = layout.block.removesuffix("{i}")
    block = re.compile(re.escape(prefix) + "([0-9]{1,9})(?![0-9])")
    numbers = {int(match[1]) for match in map(block.match, file_names) if match}
    if not numbers:
        first = [name[:_MAX_NAME] for name in sorted(file_names)[:5]]
        raise ValueError(
            f"no array is called `{prefix}0...`: the file is of another model, not a "
            f"Mixer. Received: {len(file_names)} arrays, {first} first"
        )
    # Few of them: the numbers of a hostile file may be huge.
    gaps = set(range(len(numbers))) - numbers
    if gaps:
        raise ValueError(f"block {min(gaps)} is missing, block {max(numbers)} is there")
    head = any(name.startswith("head") for name in file_names)
    names = names_of(layout, len(numbers), head=head)
    lines = differences(
        dict.fromkeys(file_names), dict.fromkeys(names.values()), "a Mixer"
    )
    if lines:
        raise ValueError(f"its arrays are not those of one Mixer\n{lines}")
    return names


def names_of(layout: Layout, num_blocks: int, *, head: bool) -> dict[str, str]:
    """Return our name -> the file's name, for all arrays of a Mixer."""
    names = {}
    for ours, theirs in layout.layers.items():
        if ours == "head" and not head:
            continue
        for leaf in ("gamma", "beta") if "norm" in ours else ("kernel", "bias"):
            for i in range(num_blocks if "{i}" in ours else 1):
                names[f"{ours}/{leaf}".format(i=i)] = theirs.format(
                    block=layout.block.format(i=i), leaf=layout.leaves[leaf]
                )
    return names


def shapes_of(weights: Mapping[str, Any]) -> Shapes:
    """Return name -> shape of a dictionary of arrays."""
    return {name: tuple(np.shape(array)) for name, array in weights.items()}


def describe_shapes(shapes: Shapes) -> dict[str, int]:
    """Return the sizes of a Mixer from the shapes of its arrays, by our names."""
    try:
        patch_size, _, channels, hidden_dim = shapes["stem/projection/kernel"]
        mixing = "block_0/{}_mixing/dense_{}/bias".format
        return {
            "patch_size": patch_size,
            "hidden_dim": hidden_dim,
            "num_blocks": sum(name.endswith("/norm_0/gamma") for name in shapes),
            "tokens_mlp_dim": math.prod(shapes[mixing("token", 0)]),
            "channels_mlp_dim": math.prod(shapes[mixing("channel", 0)]),
            "num_patches": math.prod(shapes[mixing("token", 1)]),
            "channels": channels,
            "num_classes": math.prod(shapes.get("head/bias", (0,))),
        }
    except KeyError as error:
        raise ValueError(
            f"These are not the weights of a Mixer: {error} is missing. "
            f"Received: {sorted(shapes)[:5]} and so on"
        ) from error
    except ValueError as error:
        raise ValueError(
            "The stem's kernel must have 4 axes. "
            f"Received: shape {shapes['stem/projection/kernel']}"
        ) from error


def differences(file: Mapping[str, Any], other: Mapping[str, Any], what: str) -> str:
    """Return the lines in which two dictionaries name -> shape differ, or ''."""
    lines = [f"- only in {what}: {name}" for name in sorted(other.keys() - file.keys())]
    lines += [
        # A damaged name may be of any length, and steer a terminal.
        f"+ only in the file: {repr(name[:_MAX_NAME])[1:-1]}"
        for name in sorted(file.keys() - other.keys())
    ]
    lines += [
        f"! {name}: {file[name]} in the file, {other[name]} in {what}"
        for name in sorted(file.keys() & other.keys())
        if file[name] != other[name]
    ]
    if len(lines) > _MAX_LINES:
        lines[_MAX_LINES:] = [f"... and {len(lines) - _MAX_LINES} more"]
    return "\n".join(lines)


def _advice(shapes: Shapes, expected: Shapes) -> str:
    """Say what the file is and what to do, where the sizes tell; else nothing."""
    try:
        file, model = describe_shapes(shapes), describe_shapes(expected)
    except ValueError:
        return ""
    differing = [key for key in file if file[key] != model[key]]
    sentences = []
    if set(differing) - {"num_patches", "num_classes"}:
        sizes = ", ".join(f"{key}={value}" for key, value in file.items())
        others = ", ".join(f"{key}={model[key]}" for key in differing)
        sentences.append(
            f"The file is of another model: {sizes}. This one has {others}. Build the "
            "model with the sizes of the file, or take a file of this model."
        )
    elif "num_patches" in differing:
        sentences.append(
            f"The file is for images of {_patches(file)}; the model has "
            f"{_patches(model)}. Build the model for the image size of the file, then "
            "change it with `keras_mixer.resize`."
        )
    if "num_classes" in differing:
        keep = f"{file['num_classes']} or None" if file["num_classes"] else "0"
        sentences.append(
            f"The head of the file has {file['num_classes']} classes, that of the "
            f"model {model['num_classes']}: pass num_classes={keep} to keep the head; "
            "any other number gives a new head."
        )
    return "".join(f" {sentence}" for sentence in sentences)


def _patches(dims: dict[str, int]) -> str:
    text = f"{dims['num_patches']} patches"
    edge = math.isqrt(dims["num_patches"])
    if edge**2 != dims["num_patches"]:
        return text
    pixels = edge * dims["patch_size"]
    return f"{text} ({pixels} x {pixels} with patch {dims['patch_size']})"
