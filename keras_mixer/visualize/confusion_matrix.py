"""The confusion matrix of a classifier as a picture."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from keras_mixer.visualize.figure import new_figure
from keras_mixer.visualize.names import readable, text_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Two sequences of class numbers, one entry per image: true and predicted.
Pairs = tuple[ArrayLike, ArrayLike]


def confusion_matrix(
    matrix: ArrayLike | Pairs, label_names: Sequence[str] | None = None
) -> "Figure":
    """Draw how often images of each true class (rows) were given each class (columns).

    Colours show fractions of the row, so that rare classes can be compared with
    frequent ones, on a square-root scale, so that rare confusions can be seen. Up to 20
    classes show the counts too. Above 100 classes, several neighbouring classes share a
    row and a column.

    Args:
        matrix: Array `(classes, classes)` of counts, or the tuple
            `(true, predicted)` of two lists of class numbers.
        label_names: The names of the classes; `None` for their numbers. A letter that
            no installed font has is drawn as a square, and the number of the class
            added.

    Raises:
        ValueError: If the matrix is not square, or the numbers of classes differ.
        ImportError: If matplotlib is not installed.
    """
    counts = _counts(matrix, label_names)
    num_classes = len(counts)
    names = [str(name) for name in label_names or range(num_classes)]
    if len(names) != num_classes:
        raise ValueError(
            "`label_names` must have one name per class. Received: "
            f"{len(names)} names for {num_classes} classes"
        )
    accuracy = np.trace(counts) / max(counts.sum(), 1)
    together = math.ceil(num_classes / 100)
    starts = range(0, num_classes, together)
    cells = np.add.reduceat(np.add.reduceat(counts, starts, axis=0), starts, axis=1)
    fractions = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)

    edge = min(3.5 + 0.42 * num_classes, 12.0)
    figure = new_figure(edge + 0.8, edge)
    from matplotlib.colors import PowerNorm

    axes = figure.subplots()
    image = axes.imshow(
        fractions, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest"
    )
    axes.set_title(f"Confusion matrix, accuracy {accuracy:.1%}", fontsize=11)
    of_column, of_row = (
        f", {together} per {line}" if together > 1 else "" for line in ("column", "row")
    )
    axes.set(xlabel=f"predicted class{of_column}", ylabel=f"true class{of_row}")
    ticks = range(0, len(cells), math.ceil(len(cells) / 40))
    classes = [tick * together for tick in ticks]
    shown = [readable(names[number], number) for number in classes]
    style = text_style(*shown)
    axes.set_xticks(
        ticks, shown, rotation=45, ha="right", rotation_mode="anchor", **style
    )
    axes.set_yticks(ticks, shown, **style)
    axes.tick_params(length=0, labelsize=8)
    if num_classes <= 20:
        _draw_counts(axes, counts, fractions)
    bar = figure.colorbar(image, ax=axes, shrink=0.75, aspect=25)
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1])
    bar.set_label("fraction of the true class")
    bar.outline.set_visible(False)
    return figure


def _draw_counts(
    axes: "Axes", counts: NDArray[Any], fractions: NDArray[np.float64]
) -> None:
    for (row, column), count in np.ndenumerate(counts):
        axes.text(
            column,
            row,
            f"{count:g}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if fractions[row, column] > 0.3 else "black",
        )


def _counts(
    matrix: ArrayLike | Pairs, label_names: Sequence[str] | None
) -> NDArray[Any]:
    """Return the `(classes, classes)` counts of a matrix or of `(true, predicted)`."""
    if isinstance(matrix, tuple):
        num_classes = None if label_names is None else len(label_names)
        true_classes, predicted_classes = matrix
        return _count_pairs(true_classes, predicted_classes, num_classes)
    counts = np.asarray(matrix)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
        raise ValueError(
            "`matrix` must be square, or a tuple of true and predicted class numbers. "
            f"Received: shape={counts.shape}"
        )
    return counts


def _count_pairs(
    true_classes: ArrayLike, predicted_classes: ArrayLike, num_classes: int | None
) -> NDArray[np.int64]:
    true, predicted = np.asarray(true_classes), np.asarray(predicted_classes)
    if true.ndim != 1 or true.shape != predicted.shape or not true.size:
        raise ValueError(
            "`matrix` as a tuple must be true and predicted class numbers, one of each "
            f"per image. Received: shapes {true.shape} and {predicted.shape}"
        )
    largest = max(true.max(), predicted.max())
    num_classes = num_classes or int(largest) + 1
    if min(true.min(), predicted.min()) < 0 or largest >= num_classes:
        raise ValueError(
            f"`matrix` must hold class numbers in [0, {num_classes}). Received: up to "
            f"{largest}"
        )
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (true, predicted), 1)
    return counts
