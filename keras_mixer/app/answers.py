"""What the demo computes: classes, tables and pictures, without a word of the page."""

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray

from keras_mixer.app.limits import Limits
from keras_mixer.app.uploads import Picture, check_number, read_picture
from keras_mixer.models import MLPMixer, decode_predictions, preprocess
from keras_mixer.visualize import evidence_figure, token_mixing_filters

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

_BATCH = 16
_TOP_IN_TABLE = 3
_DPI = 110

Method = Literal["exact", "occlusion"]


class Scores(NamedTuple):
    """A picture and the names and probabilities of its classes, best first."""

    picture: Picture
    classes: list[tuple[int, str, float]]  # number, name, probability


def classify(
    model: MLPMixer, paths: Sequence[Path], limits: Limits, top: int = 10
) -> list[Scores]:
    """Return the best classes of each picture; none for one that cannot be read.

    Raises:
        TimeoutError: If it takes longer than `limits.seconds`.
        ValueError: If there are no pictures, or too many.
    """
    check_number(paths, limits)
    start = time.monotonic()
    results: list[Scores] = []
    for i in range(0, len(paths), _BATCH):
        pictures = [read_picture(path, limits) for path in paths[i : i + _BATCH]]
        pixels = [p.pixels for p in pictures if p.pixels is not None]
        scores = iter(_probabilities(model, pixels) if pixels else ())
        for picture in pictures:
            classes = []
            if picture.pixels is not None:
                classes = _ranked(next(scores), model, top)
            results.append(Scores(picture._replace(pixels=None), classes))
        if time.monotonic() - start > limits.seconds:
            raise TimeoutError(
                f"It took more than {limits.seconds} seconds for {len(results)} of "
                f"{len(paths)} pictures. Take fewer, or a smaller model."
            )
    return results


def _probabilities(model: MLPMixer, pictures: Sequence[Any]) -> NDArray[np.float32]:
    pixels = preprocess(list(pictures), model)
    # Batches of one shape, so that the model is compiled once.
    full = np.zeros((_BATCH if len(pixels) > 1 else 1, *pixels.shape[1:]), "float32")
    full[: len(pixels)] = pixels
    outputs = keras.ops.convert_to_numpy(model.predict_on_batch(full))
    return outputs.astype("float32")[: len(pixels)]


def _ranked(
    scores: NDArray[np.float32], model: MLPMixer, top: int
) -> list[tuple[int, str, float]]:
    order = np.argsort(-scores, kind="stable")[:top]
    try:
        names = [p.name for p in decode_predictions(scores[None], model, top)[0]]
    except (OSError, ValueError):  # no list of names, or no connection to get it
        names = [f"class {number}" for number in order]
    return [
        (int(number), name, float(scores[number]))
        for number, name in zip(order, names, strict=True)
    ]


def table(results: Sequence[Scores]) -> list[list[str | float]]:
    """Return a row per picture: its name, its best classes, and what was wrong."""
    rows: list[list[str | float]] = []
    for picture, classes in results:
        row: list[str | float] = [picture.name]
        for i in range(_TOP_IN_TABLE):
            row += (
                [classes[i][1], round(classes[i][2], 6)]
                if i < len(classes)
                else ["", ""]
            )
        rows.append([*row, picture.problem])
    return rows


def columns() -> list[str]:
    """Return the heads of `table`."""
    pairs = [(f"class {i}", f"probability {i}") for i in range(1, _TOP_IN_TABLE + 1)]
    return ["picture", *(name for pair in pairs for name in pair), "problem"]


def as_csv(rows: Sequence[Sequence[str | float]]) -> str:
    """Return the table as the text of a CSV file, which spreadsheets take as text."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns())
    for row in rows:
        # A spreadsheet would run a name that begins like a formula.
        writer.writerow(
            [
                f"'{c}" if isinstance(c, str) and c[:1] in "=+-@" and c else c
                for c in row
            ]
        )
    return file.getvalue()


def evidence_picture(
    model: MLPMixer,
    path: Path,
    class_index: int | None,
    method: Method,
    limits: Limits,
) -> "Image":
    """Return the evidence map of a picture, as a picture.

    Raises:
        TimeoutError: If the occlusion would take longer than `limits.seconds`.
        ValueError: If the picture cannot be read, or there is no such class.
    """
    picture = read_picture(path, limits)
    if picture.pixels is None:
        raise ValueError(picture.problem)
    if method == "occlusion":
        _check_time(model, picture.pixels, limits)
    return _drawn(evidence_figure(model, _smaller(picture.pixels), class_index, method))


def _smaller(pixels: NDArray[np.uint8], edge: int = 1024) -> "Image":
    """Return a large photo small enough to be drawn quickly."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((edge, edge))
    return image


def _check_time(model: MLPMixer, pixels: NDArray[np.uint8], limits: Limits) -> None:
    """Raise unless one pass for each patch is likely to end in time."""
    _probabilities(model, [pixels])  # compiles
    start = time.monotonic()
    _probabilities(model, [pixels])
    passes = model.get_layer("stem").output.shape[1] + 1
    seconds = passes * (time.monotonic() - start)
    if seconds > limits.seconds:
        raise TimeoutError(
            f"Occlusion takes {passes} passes, about {seconds:.0f} seconds with this "
            f"model; at most {limits.seconds} are allowed. Take the exact shares."
        )


def filters_picture(model: MLPMixer, block: int) -> "Image":
    """Return the token-mixing filters of a block, as a picture.

    Raises:
        ValueError: If there is no such block.
    """
    return _drawn(token_mixing_filters(model, block, count=128))


def _drawn(figure: "Figure") -> "Image":
    from PIL import Image

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    image = Image.open(file)
    image.load()
    return image.convert("RGB")
