"""The sizes of the Mixer family: one frozen table, names like "B/16", exact counts.

Source: paper, table 1. S/8 is not in the paper; Google published weights of it with
GSAM. Ti/4 is this package's own, for 32 x 32 images.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """The numbers that define one member of the family.

    Attributes:
        patch_size: Edge of a square patch, in pixels (P).
        hidden_dim: Width of a token (C).
        num_blocks: Number of Mixer blocks.
        tokens_mlp_dim: Width of the token-mixing MLP (D_S).
        channels_mlp_dim: Width of the channel-mixing MLP (D_C).
        image_size: Edge of the square image the published weights take, in pixels.
    """

    patch_size: int
    hidden_dim: int
    num_blocks: int
    tokens_mlp_dim: int
    channels_mlp_dim: int
    image_size: int = 224

    @property
    def sizes(self) -> dict[str, Any]:
        """The sizes by the arguments of `keras_mixer.mlp_mixer`."""
        sizes = asdict(self)
        del sizes["image_size"]
        return sizes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of the images the published weights take."""
        return (self.image_size, self.image_size, 3)


# size letter: (hidden_dim, num_blocks, tokens_mlp_dim, channels_mlp_dim, image_size)
_SIZES = {
    "Ti": (128, 8, 64, 512, 32),
    "S": (512, 8, 256, 2048, 224),
    "B": (768, 12, 384, 3072, 224),
    "L": (1024, 24, 512, 4096, 224),
    "H": (1280, 32, 640, 5120, 224),
}

VARIANTS = ("Ti/4", "S/32", "S/16", "S/8", "B/32", "B/16", "L/32", "L/16", "H/14")


def parse_variant(name: str) -> Variant:
    """Return the `Variant` of a name like `"B/16"`: size letter, slash, patch size.

    Any patch size goes with any size letter, as in the official code.

    Raises:
        ValueError: If the name is not of that form or the size letter is unknown.
    """
    match = re.fullmatch(r"(\w+)/([1-9]\d*)", name)
    if match is None or match[1] not in _SIZES:
        raise ValueError(
            "A variant is a size letter, a slash and a patch size in pixels; the sizes "
            f'are {", ".join(_SIZES)} (for example "B/16"). Received: {name!r}'
        )
    hidden_dim, num_blocks, tokens_mlp_dim, channels_mlp_dim, image_size = _SIZES[
        match[1]
    ]
    return Variant(
        patch_size=int(match[2]),
        hidden_dim=hidden_dim,
        num_blocks=num_blocks,
        tokens_mlp_dim=tokens_mlp_dim,
        channels_mlp_dim=channels_mlp_dim,
        image_size=image_size,
    )


def patch_grid(image_shape: Sequence[int], patch_size: int) -> tuple[int, int]:
    """Return the rows and columns of patches of an image."""
    height, width = image_shape[:2]
    return height // patch_size, width // patch_size


def num_patches(image_shape: Sequence[int], patch_size: int) -> int:
    """Return the number of patches of an image, S."""
    rows, columns = patch_grid(image_shape, patch_size)
    return rows * columns


def weight_shapes(
    *,
    patch_size: int,
    hidden_dim: int,
    num_blocks: int,
    tokens_mlp_dim: int,
    channels_mlp_dim: int,
    num_patches: int,
    channels: int,
    num_classes: int,
) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every weight of a Mixer, without building it.

    The names are the paths of the Keras variables, in the order of the model.
    `num_patches` is S, `channels` the image's; `num_classes=0` means no head.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def dense(layer: str, *kernel: int) -> None:
        shapes[f"{layer}/kernel"] = kernel
        shapes[f"{layer}/bias"] = kernel[-1:]

    def norm(layer: str) -> None:
        shapes[f"{layer}/gamma"] = shapes[f"{layer}/beta"] = (hidden_dim,)

    dense("stem/projection", patch_size, patch_size, channels, hidden_dim)
    for i in range(num_blocks):
        norm(f"block_{i}/norm_0")
        dense(f"block_{i}/token_mixing/dense_0", num_patches, tokens_mlp_dim)
        dense(f"block_{i}/token_mixing/dense_1", tokens_mlp_dim, num_patches)
        norm(f"block_{i}/norm_1")
        dense(f"block_{i}/channel_mixing/dense_0", hidden_dim, channels_mlp_dim)
        dense(f"block_{i}/channel_mixing/dense_1", channels_mlp_dim, hidden_dim)
    norm("pre_head_layer_norm")
    if num_classes:
        dense("head", hidden_dim, num_classes)
    return shapes


def count_params(*, input_shape: Sequence[int], patch_size: int, **sizes: int) -> int:
    """Return the exact number of parameters; arguments as in `mlp_mixer`."""
    shapes = weight_shapes(
        patch_size=patch_size,
        num_patches=num_patches(input_shape, patch_size),
        channels=input_shape[2],
        **sizes,
    )
    return sum(math.prod(shape) for shape in shapes.values())


def parameter_count(config: Mapping[str, Any]) -> int:
    """Return the number of parameters of the model of an `MLPMixer.config`."""
    sizes = (
        "patch_size",
        "hidden_dim",
        "num_blocks",
        "tokens_mlp_dim",
        "channels_mlp_dim",
        "input_shape",
        "num_classes",
    )
    return count_params(**{name: config[name] for name in sizes})
