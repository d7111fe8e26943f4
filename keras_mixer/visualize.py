"""Figures: learned filters, predictions, training curves, confusion matrices.

Every function returns a `matplotlib.figure.Figure` and touches no global state, so it
works without a display and beside any other plotting: `save` it or show it in a
notebook.

Source: paper, section 3.5, figures 5 to 7.
"""

import math
from numbers import Integral
from pathlib import Path

import numpy as np
from keras import ops

from keras_mixer.labels import Prediction, decode_predictions
from keras_mixer.labels import label_names as named_labels
from keras_mixer.whole_files import writing_whole

# Distinct for colour-blind readers too (Paul Tol's schemes).
_CURVES = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
_BAR, _TRUE_BAR = "#bbccee", "#b5ddb0"
_RIGHT, _WRONG = "#1b7037", "#bb2211"

_NO_NUMBER = float(np.finfo(np.float64).tiny)  # keeps 0 / 0 at 0


def token_mixing_filters(model, block=0, count=None):
    """Draw the hidden units of a block's token-mixing MLP (paper, figures 5 and 6).

    A unit is one column of `block_{i}/token_mixing/dense_0/kernel`: a weight per patch,
    drawn where the patch lies in the image, blue below zero and red above, relative to
    the unit's largest weight. Each unit stands beside its closest inverse; pairs of low
    spatial frequency come first. See `pair_by_frequency`.

    Args:
        model: An `MLPMixer`.
        block: Number of the block.
        count: How many units to draw; `None` for all.

    Raises:
        ValueError: If there is no such block, or `count` is not positive.
        ImportError: If matplotlib is not installed.
    """
    num_blocks = len(model.blocks)
    if not -num_blocks <= block < num_blocks:
        raise ValueError(
            f"`block` must be one of the model's {num_blocks} blocks, 0 to "
            f"{num_blocks - 1}. Received: block={block!r}"
        )
    mixing = model.blocks[block].token_mixing
    kernel = _to_float(ops.convert_to_tensor(mixing.dense_0.kernel))  # (S, D_S)
    height, width, _ = model.input_shape[1:]
    patch_size = model.get_layer("stem").patch_size
    rows, columns = height // patch_size, width // patch_size

    order = pair_by_frequency(kernel, (rows, columns))
    units = kernel.T[order[: _count("count", count, len(order))]]
    units = units.reshape(-1, rows, columns) / _largest(units)[:, None, None]
    mosaic = _mosaic(units, pair_gap=1)

    figure, axes = _mosaic_figure(mosaic)
    axes.set_title(
        f"Token mixing of {model.blocks[block].name}: {len(units)} of {len(order)} "
        f"hidden units over {rows} x {columns} patches\n"
        "inverses side by side, low frequencies first",
        fontsize=11,
    )
    image = axes.imshow(mosaic, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, ticks=[-1, 0, 1], shrink=0.5, aspect=25)
    bar.set_label("weight / largest weight of the unit")
    bar.outline.set_visible(False)
    return figure


def pair_by_frequency(kernel, grid):
    """Return the order of units in which inverses stand together, low frequency first.

    The paper names no measures; these are plain ones. The two units of opposite sign
    with the most negative cosine form a pair, then the next two of those left. The
    frequency of a unit is the mean radius in its two-dimensional Fourier spectrum,
    weighted by power; that of a pair the mean of both. In a pair the lower comes first,
    and an odd unit left over is last.

    Args:
        kernel: `(S, D_S)`, patches row by row.
        grid: `(rows, columns)` of patches, S in all.

    Returns:
        `D_S` indices.
    """
    units = np.asarray(kernel, np.float64).T  # (D_S, S)
    frequencies = _frequencies(units.reshape(-1, *grid))
    unit_vectors = units / np.maximum(
        np.linalg.norm(units, axis=1, keepdims=True), _NO_NUMBER
    )
    cosines = unit_vectors @ unit_vectors.T
    np.fill_diagonal(cosines, np.inf)
    pairs = []
    for _ in range(len(units) // 2):
        pair = np.array(np.unravel_index(cosines.argmin(), cosines.shape))
        pairs.append(pair[np.argsort(frequencies[pair], kind="stable")])
        cosines[pair, :] = cosines[:, pair] = np.inf
    pairs.sort(key=lambda pair: frequencies[pair].mean())
    paired = np.array(pairs, int).ravel()
    return np.concatenate([paired, np.setdiff1d(np.arange(len(units)), paired)])


def stem_filters(model, count=None):
    """Draw the linear patch embeddings as small images (paper, figure 7).

    A unit is `stem/projection/kernel[..., c]`, one weight per pixel and colour. Grey is
    zero; the largest weight of a unit is at the end of the colour range.

    Args:
        model: An `MLPMixer` of images with 1 or 3 channels.
        count: How many units to draw; `None` for all.

    Raises:
        ValueError: If the images have other channels, or `count` is not positive.
        ImportError: If matplotlib is not installed.
    """
    stem = model.get_layer("stem")
    kernel = _to_float(
        ops.convert_to_tensor(stem.projection.kernel)
    )  # (P, P, channels, C)
    channels, num_units = kernel.shape[2:]
    if channels not in (1, 3):
        raise ValueError(
            "`model` must take images of 1 or 3 channels, which can be shown as grey "
            f"or colour. Received: {channels} channels"
        )
    units = np.moveaxis(kernel, -1, 0)[: _count("count", count, num_units)]
    units = 0.5 + 0.5 * units / _largest(units)[:, None, None, None]
    units = np.broadcast_to(units, (*units.shape[:3], 3))
    mosaic = _mosaic(units, fill=1.0)

    figure, axes = _mosaic_figure(mosaic)
    axes.set_title(
        f"Patch embedding: {len(units)} of {num_units} units, "
        f"{stem.patch_size} x {stem.patch_size} pixels each",
        fontsize=11,
    )
    axes.imshow(mosaic, interpolation="nearest")
    return figure


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
    top, columns = _count("top", top), _count("columns", columns)
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
    figure = _figure(3.2 * columns, (sum(heights) + 0.35) * rows)
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


def training_curves(histories):
    """Draw loss and accuracy over epochs or steps, of one training or of several.

    Args:
        histories: `name -> history`: what `fit` returns, or its `.history`, a
            dictionary of one list per metric. Validation metrics (`val_...`) are drawn
            dashed in the colour of their training, NaN left out. The list `step`, as
            `training.finetune` returns it, says where each entry lies.

    Raises:
        ValueError: If there is no history or one without a loss.
        ImportError: If matplotlib is not installed.
    """
    histories = {
        name: getattr(history, "history", history)
        for name, history in histories.items()
    }
    if not histories or not all("loss" in history for history in histories.values()):
        raise ValueError(
            "`histories` must map names to histories with a 'loss'. Received: "
            f"{ {name: list(history) for name, history in histories.items()} }"
        )
    panels = [
        metric
        for metric in ("loss", "accuracy")
        if any(
            {metric, f"val_{metric}"} & history.keys() for history in histories.values()
        )
    ]
    figure = _figure(5.2 * len(panels), 4)
    for axes, metric in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        _draw_curves(axes, histories, metric)
    return figure


def confusion_matrix(matrix, label_names=None):
    """Draw how often each true class (rows) was taken for each class (columns).

    Colours show fractions of the row, so that rare classes can be compared with
    frequent ones, on a square-root scale, so that rare confusions can be seen. Small
    matrices show the counts too; in large ones, a row or column is several neighbouring
    classes together.

    Args:
        matrix: Array `(classes, classes)` of counts, or the tuple
            `(true, predicted)` of two lists of class numbers.
        label_names: The names of the classes; `None` for their numbers.

    Raises:
        ValueError: If the matrix is not square, or the numbers of classes differ.
        ImportError: If matplotlib is not installed.
    """
    counts = _counts(matrix, label_names)
    num_classes = len(counts)
    if label_names is None:
        label_names = range(num_classes)
    names = [_short(str(name)) for name in label_names]
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

    edge = min(3.5 + 0.42 * num_classes, 12)
    figure = _figure(edge + 0.8, edge)
    from matplotlib.colors import PowerNorm

    axes = figure.subplots()
    image = axes.imshow(
        fractions, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest"
    )
    axes.set_title(f"Confusion matrix, accuracy {accuracy:.1%}", fontsize=11)
    several = f", {together} together" if together > 1 else ""
    axes.set(xlabel=f"predicted class{several}", ylabel=f"true class{several}")
    ticks = range(0, len(cells), math.ceil(len(cells) / 40))
    names = [names[tick * together] for tick in ticks]
    tilted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(ticks, names, parse_math=False, **tilted)
    axes.set_yticks(ticks, names, parse_math=False)
    axes.tick_params(length=0, labelsize=8)
    if num_classes <= 20:
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
    bar = figure.colorbar(image, ax=axes, shrink=0.75, aspect=25)
    bar.set_ticks([0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1])
    bar.set_label("fraction of the true class")
    bar.outline.set_visible(False)
    return figure


def save(figure, path):
    """Write a figure as a PNG of 150 dots per inch; the folder is made if missing.

    The file appears whole or not at all.

    Raises:
        ValueError: If `path` does not end in `.png`.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"`path` must end in `.png`. Received: {str(path)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing_whole(path) as file:
        figure.savefig(file, format="png", dpi=150)


def _figure(width, height):
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "`keras_mixer.visualize` needs matplotlib: pip install 'keras_mixer[plot]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _frequencies(units):
    """Return the mean frequency of each `(rows, columns)` unit, in cycles per patch."""
    power = np.abs(np.fft.fft2(units)) ** 2
    vertical, horizontal = (np.fft.fftfreq(size) for size in units.shape[1:])
    radius = np.hypot(vertical[:, None], horizontal)
    total = np.maximum(power.sum(axis=(1, 2)), _NO_NUMBER)
    return (power * radius).sum(axis=(1, 2)) / total


def _largest(units):
    """Return the largest absolute weight of each unit, never zero."""
    return np.maximum(np.abs(units.reshape(len(units), -1)).max(axis=1), _NO_NUMBER)


def _mosaic(units, pair_gap=0, fill=np.nan):
    """Return one picture of all units `(n, height, width, ...)`, row by row.

    Units are one element apart; `pair_gap` is added after every second and between
    rows.
    """
    n, height, width = units.shape[:3]
    columns = _num_columns(n, width / height)
    rows = math.ceil(n / columns)
    tops = np.arange(rows) * (height + 1 + pair_gap)
    lefts = np.arange(columns) * (width + 1) + np.arange(columns) // 2 * pair_gap
    mosaic = np.full((tops[-1] + height, lefts[-1] + width, *units.shape[3:]), fill)
    for i, unit in enumerate(units):
        top, left = tops[i // columns], lefts[i % columns]
        mosaic[top : top + height, left : left + width] = unit
    return mosaic


def _num_columns(n, aspect):
    """Return an even number of columns: a mosaic wider than high, few empty places."""

    def cost(columns):
        rows = math.ceil(n / columns)
        shape = abs(math.log(columns / rows * aspect / 1.5))
        return shape + 8 * (rows * columns - n) / n

    return min(range(2, n + 1, 2), key=cost, default=1)


def _mosaic_figure(mosaic):
    height, width = mosaic.shape[:2]
    figure = _figure(8, 0.8 + min(7 * height / width, 9))
    axes = figure.subplots()
    axes.axis("off")
    return figure, axes


def _picture(image):
    """Return an image as `(height, width, 3)` in [0, 1]."""
    pixels = _to_float(image)
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
        scores = _to_float(scores_or_predictions)
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
            f"true: {_short(truth[1])}", fontsize=10, color=colour, parse_math=False
        )


def _draw_bars(axes, classes, truth):
    """Draw names and percentages inside the bars, so that long ones need no margin."""
    axes.set(xlim=(0, 1), ylim=(len(classes) - 0.5, -0.5))
    for place, prediction in enumerate(classes):
        is_true = truth is not None and truth[0] in prediction[:2]
        axes.barh(place, prediction.score, 0.86, color=_TRUE_BAR if is_true else _BAR)
        name = _short(prediction.name) + (" \N{CHECK MARK}" if is_true else "")
        text = {"va": "center", "fontsize": 9, "parse_math": False}
        axes.text(0.02, place, name, **text)
        axes.text(0.98, place, f"{prediction.score:.0%}", ha="right", **text)


def _short(name, length=26):
    return (
        name if len(name) <= length else name[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"
    )


def _draw_curves(axes, histories, metric):
    for i, (name, history) in enumerate(histories.items()):
        colour = _CURVES[i % len(_CURVES)]
        for key, style, label in (
            (metric, "-", name),
            (f"val_{metric}", "--", f"{name}, validation"),
        ):
            if key in history:
                values = np.asarray(history[key], np.float64)
                places = np.asarray(history.get("step", range(1, len(values) + 1)))
                measured = ~np.isnan(values)
                axes.plot(
                    places[measured],
                    values[measured],
                    style,
                    color=colour,
                    label=label,
                    marker="o" if measured.sum() == 1 else None,
                )
    axes.set_title(metric.capitalize(), fontsize=11)
    in_steps = all("step" in history for history in histories.values())
    axes.set_xlabel("step" if in_steps else "epoch")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def _counts(matrix, label_names):
    """Return the `(classes, classes)` counts of a matrix or of `(true, predicted)`."""
    if isinstance(matrix, tuple):
        num_classes = None if label_names is None else len(label_names)
        return _count_pairs(*matrix, num_classes)
    counts = np.asarray(matrix)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.size:
        raise ValueError(
            "`matrix` must be square, or a tuple of true and predicted class numbers. "
            f"Received: shape={counts.shape}"
        )
    return counts


def _count_pairs(true, predicted, num_classes):
    true, predicted = np.asarray(true), np.asarray(predicted)
    if true.ndim != 1 or true.shape != predicted.shape or not true.size:
        raise ValueError(
            "`matrix` as a tuple must be true and predicted class numbers, one of each "
            f"per image. Received: shapes {true.shape} and {predicted.shape}"
        )
    largest = max(true.max(), predicted.max())
    num_classes = num_classes or largest + 1
    if min(true.min(), predicted.min()) < 0 or largest >= num_classes:
        raise ValueError(
            f"`matrix` must hold class numbers in [0, {num_classes}). Received: up to "
            f"{largest}"
        )
    counts = np.zeros((num_classes, num_classes), int)
    np.add.at(counts, (true, predicted), 1)
    return counts


def _count(name, value, largest=None):
    """Return a positive integer, `largest` for `None`."""
    if value is None and largest is not None:
        return largest
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value!r}"
        )
    return value


def _to_float(array):
    return np.asarray(ops.convert_to_numpy(array), np.float64)
