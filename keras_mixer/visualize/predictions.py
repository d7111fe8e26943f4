"""Pictures with bars of their most probable classes."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeGuard

from numpy.typing import ArrayLike, NDArray

from keras_mixer.checks import check_dim
from keras_mixer.labels import Prediction, decode_predictions
from keras_mixer.labels import label_names as named_labels
from keras_mixer.visualize.figure import new_figure, to_float, to_picture
from keras_mixer.visualize.names import readable, short_name, text_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What identifies a true class among `Prediction`s, and the name to show.
Truth = tuple[str, str]

_BAR, _TRUE_BAR = "#bbccee", "#b5ddb0"
_RIGHT, _WRONG = "#1b7037", "#bb2211"


def predictions(
    images: Sequence[Any] | NDArray[Any],
    scores_or_predictions: ArrayLike | Sequence[Sequence[Prediction]],
    labels: Sequence[str] | str | None = None,
    true_labels: Sequence[int | str] | None = None,
    top: int = 3,
    columns: int = 3,
    titles: Sequence[str] | None = None,
) -> "Figure":
    """Draw pictures with bars of their most probable classes.

    The bar of the true class is green and its name marked with a tick; a picture whose
    best class is wrong gets a red title. Pictures are drawn pixel by pixel: pass
    them as they were before they were resized for the model.

    Args:
        images: Arrays `(height, width, channels)` of 1 or 3 channels, or
            `(height, width)`, of any sizes, with pixels in [0, 255].
        scores_or_predictions: Probabilities `(batch, classes)`, or what
            `keras_mixer.decode_predictions` made of them.
        labels: The names of the classes; `None` for their numbers.
        true_labels: The true class of each image, as a number or a name.
        top: Number of classes to draw. Positive.
        columns: Number of pictures side by side. Positive.
        titles: What to write above each picture that has no true class, such as the
            names of the files.

    Raises:
        ValueError: If the numbers of images, predictions, labels and titles differ, or
            the scores are not probabilities.
        ImportError: If matplotlib is not installed.
    """
    top, columns = check_dim("top", top), check_dim("columns", columns)
    pictures = [to_picture(image) for image in images]
    ranked, names = _ranked(scores_or_predictions, labels, top)
    truths: list[Truth | None] = [None] * len(pictures)
    if true_labels is not None:
        truths = [_truth(label, names) for label in true_labels]
    if not pictures or not len(pictures) == len(ranked) == len(truths):
        raise ValueError(
            "`images`, `scores_or_predictions` and `true_labels` must have one entry "
            f"per picture. Received: {len(pictures)}, {len(ranked)} and {len(truths)}"
        )
    if titles is not None and len(titles) != len(pictures):
        raise ValueError(
            "`titles` must have one entry per picture. Received: "
            f"{len(titles)} titles, {len(pictures)} pictures"
        )
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    heights = [2.4, 0.27 * max(map(len, ranked))]  # inches: picture, bars
    figure = new_figure(3.2 * columns, (sum(heights) + 0.35) * rows)
    axes = figure.subplots(
        2 * rows, columns, squeeze=False, height_ratios=heights * rows
    )
    for axis in axes.flat:
        axis.axis("off")
    for i, (image, classes, truth) in enumerate(
        zip(pictures, ranked, truths, strict=True)
    ):
        row, column = divmod(i, columns)
        _draw_picture(axes[2 * row, column], image, classes, truth)
        if titles is not None and truth is None:
            _write_title(axes[2 * row, column], titles[i])
        _draw_bars(axes[2 * row + 1, column], classes, truth)
    return figure


def _ranked(
    scores_or_predictions: ArrayLike | Sequence[Sequence[Prediction]],
    labels: Sequence[str] | str | None,
    top: int,
) -> tuple[list[list[Prediction]], tuple[Truth, ...] | None]:
    """Return the `top` `Prediction`s of each picture, and `(class_id, name)` of all."""
    names: tuple[Truth, ...] | None
    if _is_decoded(scores_or_predictions):
        ranked = [list(classes)[:top] for classes in scores_or_predictions]
        names = None if labels is None else named_labels(labels, len(labels))
    else:
        scores = to_float(scores_or_predictions)
        if labels is None:
            labels = [str(number) for number in range(scores.shape[-1])]
        ranked = decode_predictions(scores, labels, top)
        names = named_labels(labels, scores.shape[-1])
    shown = [prediction.score for classes in ranked for prediction in classes]
    if shown and not (min(shown) >= 0 and max(shown) <= 1.0001):
        raise ValueError(
            "`scores_or_predictions` must be probabilities in [0, 1]. Received: values "
            f"from {min(shown):.3g} to {max(shown):.3g}. Apply softmax to logits."
        )
    return ranked, names


def _is_decoded(predictions: object) -> TypeGuard[Sequence[Sequence[Prediction]]]:
    return isinstance(predictions, (list, tuple)) and all(
        isinstance(prediction, Prediction)
        for classes in predictions
        for prediction in classes
    )


def _truth(label: int | str, names: tuple[Truth, ...] | None) -> Truth:
    if not isinstance(label, Integral):
        return str(label), str(label)
    if names is None:
        return str(label), f"class {label}"
    if not 0 <= label < len(names):
        raise ValueError(
            f"`true_labels` must lie in [0, {len(names)}). Received: {label}"
        )
    return names[label]


def _draw_picture(
    axes: "Axes",
    image: NDArray[Any],
    classes: Sequence[Prediction],
    truth: Truth | None,
) -> None:
    axes.imshow(image, interpolation="nearest")
    if truth is not None:
        colour = _RIGHT if truth[0] in classes[0][:2] else _WRONG
        title = f"true: {readable(truth[1], truth[0])}"
        axes.set_title(title, fontsize=10, color=colour, **text_style(title))


def _write_title(axes: "Axes", title: str) -> None:
    """Write a title of which the end remains, since that of a path tells more."""
    short = short_name(title[::-1], 36)[::-1]
    axes.set_title(short, fontsize=9, **text_style(short))


def _draw_bars(
    axes: "Axes", classes: Sequence[Prediction], truth: Truth | None
) -> None:
    """Draw names and percentages inside the bars, so that long ones need no margin."""
    axes.set(xlim=(0, 1), ylim=(len(classes) - 0.5, -0.5))
    for place, prediction in enumerate(classes):
        is_true = truth is not None and truth[0] in prediction[:2]
        axes.barh(place, prediction.score, 0.86, color=_TRUE_BAR if is_true else _BAR)
        name = readable(prediction.name, prediction.class_id)
        name += " \N{CHECK MARK}" if is_true else ""
        axes.text(0.02, place, name, va="center", fontsize=9, **text_style(name))
        score = f"{prediction.score:.0%}"
        axes.text(0.98, place, score, va="center", ha="right", fontsize=9)
