"""Loss and accuracy over the steps of one training or several."""

import numpy as np

from keras_mixer.visualize.figure import new_figure

# Distinct for colour-blind readers too (Paul Tol's schemes).
_CURVES = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")


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
    figure = new_figure(5.2 * len(panels), 4)
    for axes, metric in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        _draw_curves(axes, histories, metric)
    return figure


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
