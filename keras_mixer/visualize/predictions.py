"""Pictures with bars of their most probable classes."""

import math
from numbers import Integral

import numpy as np

from keras_mixer.labels import Prediction, decode_predictions
from keras_mixer.labels import label_names as named_labels
from keras_mixer.visualize.figure import check_count, new_figure, short_name, to_float

_BAR, _TRUE_BAR = "#bbccee", "#b5ddb0"
_RIGHT, _WRONG = "#1b7037", "#bb2211"


def predictions(
    images, scores_or_predictions, labels=None, true_labels=None, top=3, columns=3
):
    """Draw pictures with bars of their most probable classes.

    The bar of the true class is green and its name marked with a tick; a picture whose
    first class is wrong gets a red title.

    Args:
        images: Sequence of `(height, width, channels)` arrays of 1 or 3 channels, or
            `(height, width)`, with pixels in [0, 255].
        scores_or_predictions: Probabilities `(batch, classes)`, or what
            `keras_mixer.decode_predictions` made of them.
        labels: The names of the classes; `None` for their numbers.
        true_labels: The true class of each image, as a number or a name.
        top: Number of classes to draw. Positive.
        columns: Number of pictures side by side. Positive.

    Raises:
        ValueError: If the numbers of images, predictions and labels differ, or the
            scores are not probabilities.
        ImportError: If matplotlib is not installed.
    """
    top, columns = check_count("top", top), check_count("columns", columns)
    images = [_picture(image) for image in images]
    ranked, names = _ranked(scores_or_predictions, labels, top)
    if true_labels is None:
        truths = [None] * len(images)
    else:
        truths = [_truth(label, names) for label in true_labels]
    if not images or not len(images) == len(ranked) == len(truths):
        raise ValueError(
            "`images`, `scores_or_predictions` and `true_labels` must have one entry "
            f"per picture. Received: {len(images)}, {len(ranked)} and {len(truths)}"
        )
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    heights = [2.4, 0.27 * max(map(len, ranked))]  # inches: picture, bars
    figure = new_figure(3.2 * columns, (sum(heights) + 0.35) * rows)
    axes = figure.subplots(
        2 * rows, columns, squeeze=False, height_ratios=heights * rows
    )
    for axis in axes.flat:
        axis.axis("off")
    for i, (image, classes, truth) in enumerate(
        zip(images, ranked, truths, strict=True)
    ):
        row, column = divmod(i, columns)
        _draw_picture(axes[2 * row, column], image, classes, truth)
        _draw_bars(axes[2 * row + 1, column], classes, truth)
    return figure


def _picture(image):
    """Return an image as `(height, width, 3)` in [0, 1]."""
    pixels = to_float(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(
            "`images` must be (height, width, channels) each, with 1 or 3 channels. "
            f"Received: shape={pixels.shape}"
        )
    pixels = np.clip(pixels, 0, 255) / 255
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def _ranked(scores_or_predictions, labels, top):
    """Return the `top` `Prediction`s of each picture, and `(class_id, name)` of all."""
    if _is_decoded(scores_or_predictions):
        ranked = [list(classes)[:top] for classes in scores_or_predictions]
        names = None if labels is None else named_labels(labels, len(labels))
    else:
        scores = to_float(scores_or_predictions)
        labels = range(scores.shape[-1]) if labels is None else labels
        ranked = decode_predictions(scores, labels, top)
        names = named_labels(labels, scores.shape[-1])
    scores = [prediction.score for classes in ranked for prediction in classes]
    if scores and not (min(scores) >= 0 and max(scores) <= 1.0001):
        raise ValueError(
            "`scores_or_predictions` must be probabilities in [0, 1]. Received: values "
            f"from {min(scores):.3g} to {max(scores):.3g}. Apply softmax to logits."
        )
    return ranked, names


def _is_decoded(predictions):
    return isinstance(predictions, (list, tuple)) and all(
        isinstance(prediction, Prediction)
        for classes in predictions
        for prediction in classes
    )


def _truth(label, names):
    """Return what tells a true class among `Prediction`s, and the name to show."""
    if not isinstance(label, Integral):
        return str(label), str(label)
    if names is None:
        return str(label), f"class {label}"
    if not 0 <= label < len(names):
        raise ValueError(
            f"`true_labels` must lie in [0, {len(names)}). Received: {label}"
        )
    return names[label]


def _draw_picture(axes, image, classes, truth):
    axes.imshow(image, interpolation="nearest")
    if truth is not None:
        colour = _RIGHT if truth[0] in classes[0][:2] else _WRONG
        axes.set_title(
            f"true: {short_name(truth[1])}", fontsize=10, color=colour, parse_math=False
        )


def _draw_bars(axes, classes, truth):
    """Draw names and percentages inside the bars, so that long ones need no margin."""
    axes.set(xlim=(0, 1), ylim=(len(classes) - 0.5, -0.5))
    for place, prediction in enumerate(classes):
        is_true = truth is not None and truth[0] in prediction[:2]
        axes.barh(place, prediction.score, 0.86, color=_TRUE_BAR if is_true else _BAR)
        name = short_name(prediction.name) + (" \N{CHECK MARK}" if is_true else "")
        text = {"va": "center", "fontsize": 9, "parse_math": False}
        axes.text(0.02, place, name, **text)
        axes.text(0.98, place, f"{prediction.score:.0%}", ha="right", **text)
