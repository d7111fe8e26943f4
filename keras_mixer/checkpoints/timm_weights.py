"""A Mixer's weights under timm's names, written as `.safetensors`."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_mixer.checkpoints.convert import TIMM, check_whole, names_of
from keras_mixer.files import atomic_replace


def to_timm(weights: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Return `weights` (our names) under timm's names, in the orientation of PyTorch.

    Raises:
        ValueError: If the weights are not those of one whole Mixer, or not finite.
    """
    dims = check_whole(weights)
    names = names_of(TIMM, dims["num_blocks"], head=dims["num_classes"] > 0)
    return {
        theirs: np.ascontiguousarray(_for_torch(weights[ours]), dtype=np.float32)
        for ours, theirs in names.items()
    }


def write_timm(path: str | Path, weights: dict[str, NDArray[Any]]) -> None:
    """Write `weights` (our names) as timm's `.safetensors`, all of it or nothing.

    Raises:
        ValueError: If `path` does not end in `.safetensors`, or as in `to_timm`.
    """
    from safetensors.numpy import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            "A file of weights for timm ends in `.safetensors`. "
            f"Received: {str(path)!r}"
        )
    arrays = to_timm(weights)
    with atomic_replace(path) as new:
        # timm and transformers look for the framework in the metadata.
        save_file(arrays, new, metadata={"format": "pt"})


def _for_torch(array: NDArray[Any]) -> NDArray[Any]:
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
