"""Loss and accuracy over the steps of one training or several."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_mixer.visualize.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinct for colour-blind readers too (Paul Tol's schemes).
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
_FEW = 20  # points; fewer are marked, so that nobody reads what lies between them


def training_curves(histories: Mapping[str, Any]) -> "Figure":
    """Draw loss and accuracy over epochs or steps, of one training or of several.

    Curves of fewer than 20 points have a mark at each.

    Args:
        histories: `name -> history`: what `fit` returns, or its `.history`, a
            dictionary of one list per metric. Validation metrics (`val_...`) are drawn
            dashed in the colour of their training; NaNs are left out. The list `step`,
            which `training.finetune` returns, holds the step of each entry; without it
            entries are epochs.

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


def _draw_curves(
    axes: "Axes", histories: Mapping[str, Mapping[str, Any]], metric: str
) -> None:
    from matplotlib.ticker import MaxNLocator

    for i, (name, history) in enumerate(histories.items()):
        colour = _COLOURS[i % len(_COLOURS)]
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
                    marker="o" if measured.sum() < _FEW else None,
                    markersize=4,
                )
    axes.set_title(metric.capitalize(), fontsize=11)
    in_steps = all("step" in history for history in histories.values())
    axes.set_xlabel("step" if in_steps else "epoch")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
