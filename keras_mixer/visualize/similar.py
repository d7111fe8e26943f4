"""The pictures of a folder that are nearest to one picture, by a model's features."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray

from keras_mixer.checks import check_dim
from keras_mixer.models import as_mixer, preprocess
from keras_mixer.preprocessing import decode_image, list_images
from keras_mixer.visualize.figure import TINY, new_figure, to_float, to_picture
from keras_mixer.visualize.names import short_name, text_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Similar(NamedTuple):
    """A picture and the cosine between its features and those of the query."""

    path: Path
    cosine: float


def similar(
    model: keras.Model,
    image: Any,
    folder: str | os.PathLike[str],
    count: int = 8,
    *,
    batch_size: int = 32,
) -> list[Similar]:
    """Return the pictures of a folder that are nearest to an image, nearest first.

    With `f` the pooled features (`pre_logits`), nearness is the cosine
    `f(a) . f(b) / (|f(a)| |f(b)|)`, in [-1, 1]. It is about what the model was trained
    on: pictures of one class, not of one colour or layout.

    Args:
        model: An `MLPMixer`, or a Keras model that `models.as_mixer` takes.
        image: One image, as `preprocess` takes it: a path, a PIL image or an array.
        folder: Folder of pictures, with the folders below it. If `image` is one of its
            files, that file is left out.
        count: How many to return at most. Positive.
        batch_size: Pictures per step. Positive.

    Raises:
        FileNotFoundError: If a path does not exist.
        ImportError: If Pillow is not installed.
        ValueError: If an argument is out of its range, the folder has no other
            pictures, or a file cannot be read.
    """
    model = as_mixer(model)
    check_dim("count", count)
    check_dim("batch_size", batch_size)
    paths = list_images(folder)
    if isinstance(image, (str, os.PathLike)):
        query = Path(image).expanduser().resolve()
        paths = [path for path in paths if path.resolve() != query]
    if not paths:
        raise ValueError(
            f"`folder` must have other pictures than `image`. Received: {str(folder)!r}"
        )
    network = model.features("pre_logits")

    def directions(images: Sequence[Any]) -> NDArray[np.float64]:
        features = to_float(network(preprocess(list(images), model)))
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        return features / np.maximum(norms, TINY)

    (own,) = directions([image])
    cosines = np.concatenate(
        [
            directions(paths[start : start + batch_size]) @ own
            for start in range(0, len(paths), batch_size)
        ]
    )
    order = np.argsort(-cosines, kind="stable")[:count]
    return [Similar(paths[i], float(cosines[i])) for i in order]


def similar_figure(image: Any, found: Sequence[Similar], columns: int = 4) -> "Figure":
    """Draw an image and the pictures that `similar` found for it.

    Args:
        image: That of `similar`: a path, a PIL image or an array of pixels in [0, 255].
        found: What `similar` returned. Not empty.
        columns: Pictures side by side. Positive.

    Raises:
        ImportError: If matplotlib or Pillow is not installed.
        ValueError: If there is nothing to draw or a file cannot be read.
    """
    columns = check_dim("columns", columns)
    if not found:
        raise ValueError("`found` must hold a picture at least. Received: none")
    pixels = image if hasattr(image, "shape") else decode_image(image)
    tiles = [("query", pixels)]
    for path, cosine in found:
        tiles.append((f"{cosine:.2f}  {short_name(path.name)}", decode_image(path)))
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    figure = new_figure(2.6 * columns, 2.8 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, picture) in zip(axes.flat, tiles, strict=False):
        axis.imshow(to_picture(picture), interpolation="nearest")
        axis.set_title(title, fontsize=9, **text_style(title))
    return figure
