"""The numbers of a benchmark as tables and as a picture."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from keras_mixer.benchmark.records import Case, FirstPrediction, Report, Result, growth
from keras_mixer.benchmark.timing import Ratio
from keras_mixer.visualize import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")


def tables(report: Report) -> list["Table"]:
    """Return rich tables of a `Report`: speed, costs, and comparisons if measured."""
    shown = [
        _table(report, "Speed: median (first to third quartile)", _SPEED),
        _table(report, "Building, compiling, memory", _COSTS),
    ]
    peers = list(dict.fromkeys(name for r in report.results for name in r.peers))
    if peers:
        columns = {name: _peer_column(name) for name in peers}
        shown.append(
            _table(
                report,
                "Our speed as a multiple of: median (first to third quartile)",
                columns,
            )
        )
    layers = list(dict.fromkeys(name for r in report.results for name in r.layers))
    if layers:
        columns = {name: _layer_column(name) for name in layers}
        shown.append(
            _table(report, "Each kind of layer alone, ms in the whole model", columns)
        )
    if report.first_predictions:
        shown.append(_first_predictions(report.first_predictions))
    return shown


def _first_predictions(found: Sequence[FirstPrediction]) -> "Table":
    phases = list(dict.fromkeys(name for first in found for name in first.seconds))
    table = _empty_table("A new process until its first prediction, s")
    for heading in (*phases, "all", "/ import Keras"):
        table.add_column(heading, justify="right", overflow="fold")
    for first in found:
        numbers = [first.seconds.get(phase) for phase in phases]
        cells = ["" if number is None else f"{number:.2f}" for number in numbers]
        total = f"{sum(first.seconds.values()):.2f}"
        multiple = f"{first.multiple_of_import:.2f}"
        table.add_row(_name(first.case), *cells, total, multiple)
    return table


Column = Callable[[Result], str]

_SPEED: dict[str, Column] = {
    "ms": lambda r: _span(*(1e3 * s for s in (r.timing.median, *r.timing.quartiles))),
    "images/s": lambda r: f"{r.images_per_second:,.1f}",
    "GFLOP/s": lambda r: f"{r.flops_per_second / 1e9:,.0f}",
    "of matrix-product peak": lambda r: f"{r.share_of_ceiling:.0%}",
}
_COSTS: dict[str, Column] = {
    "build s": lambda r: f"{r.build_seconds:.2f}",
    "compile s": lambda r: f"{r.compile_seconds:.2f}",
    "host MiB": lambda r: _mebibytes(r.host_peak),
    "device MiB": lambda r: _mebibytes(r.device_peak),
    "fit or predict / hand-written loop": lambda r: _ratio(r.loop),
}


def _peer_column(name: str) -> Column:
    return lambda result: _ratio(result.peers.get(name))


def _layer_column(name: str) -> Column:
    return lambda r: f"{1e3 * r.layers[name]:.2f}" if name in r.layers else ""


def _empty_table(title: str) -> "Table":
    from rich import box
    from rich.table import Table

    # In a narrow terminal long cells are folded; nothing is cut off.
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("case", overflow="fold")
    return table


def _table(report: Report, title: str, columns: Mapping[str, Column]) -> "Table":
    table = _empty_table(title)
    for heading in columns:
        table.add_column(heading, justify="right", overflow="fold")
    for result in report.results:
        numbers = (column(result) for column in columns.values())
        table.add_row(_name(result.case), *numbers)
    return table


def _name(case: Case) -> str:
    work = "training" if case.training else "inference"
    size = case.sizes["input_shape"][0]
    return f"{case.variant}, {size} px, batch {case.batch_size}, {case.dtype}, {work}"


def _span(median: float, low: float, high: float) -> str:
    return f"{median:,.4g} ({low:,.4g} to {high:,.4g})"


def _ratio(ratio: Ratio | None) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else ""


def _mebibytes(number: int | None) -> str:
    return "" if number is None else f"{number / 2**20:,.0f}"


def figure(report: Report) -> "Figure":
    """Draw the throughput and, where image sizes differ, how the time grows with it.

    Several models: images per second over parameters. One model: one bar per setting
    (kind, image size, batch, dtype), with first and third quartile. The second panel
    shows time per image over the number of patches S, with the measured exponent; its
    dotted line grows linearly with S, as the paper says, from the first point on.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    groups = report.image_sizes()
    panels = 2 if groups else 1
    drawing = new_figure(6.5 * panels, max(4.5, 0.3 * len(report.results) + 1.5))
    axes = drawing.subplots(1, panels, squeeze=False)[0]
    machine = report.machine
    drawing.suptitle(
        f"{machine['devices']}, {machine['processor']}, {machine['backend']}",
        fontsize=10,
    )
    if len({result.case.variant for result in report.results}) > 1:
        _draw_throughput(axes[0], report.results)
    else:
        _draw_bars(axes[0], report.results)
    if groups:
        _draw_growth(axes[1], groups)
    return drawing


def _draw_bars(axes: "Axes", results: Sequence[Result]) -> None:
    """Draw one bar per result: over parameters, one model would be a single point."""
    for place, result in enumerate(results):
        speed = result.images_per_second
        slow, fast = (
            result.case.batch_size / seconds
            for seconds in reversed(result.timing.quartiles)
        )
        colour = _COLOURS[1 if result.case.training else 0]
        axes.barh(place, speed, 0.7, color=colour)
        axes.plot([slow, fast], [place, place], color="black", linewidth=1)
        axes.annotate(
            f"{speed:,.1f}",
            (max(speed, fast), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    case = results[0].case
    axes.set_yticks(
        range(len(results)), [_bar_name(result.case) for result in results], fontsize=8
    )
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("images per second (line: first to third quartile)")
    millions = results[0].num_params / 1e6
    axes.set_title(f"Mixer-{case.variant}, {millions:,.1f} M parameters", fontsize=10)


def _bar_name(case: Case) -> str:
    kind = "training" if case.training else "inference"
    size = case.sizes["input_shape"][0]
    return f"{kind}, {size} px,\nbatch {case.batch_size}, {case.dtype}"


def _draw_throughput(axes: "Axes", results: Sequence[Result]) -> None:
    series: dict[str, list[Result]] = {}
    for result in results:
        series.setdefault(_setting(result.case), []).append(result)
    for number, (setting, members) in enumerate(series.items()):
        axes.plot(
            [r.num_params / 1e6 for r in members],
            [r.images_per_second for r in members],
            "o",
            color=_COLOURS[number % len(_COLOURS)],
            label=setting,
        )
    for result in results:
        axes.annotate(
            result.case.variant,
            (result.num_params / 1e6, result.images_per_second),
            xytext=(4, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="parameters, millions", ylabel="images per second")
    axes.legend(fontsize=8)


def _draw_growth(axes: "Axes", groups: Sequence[Sequence[Result]]) -> None:
    for number, group in enumerate(groups):
        group = sorted(group, key=lambda result: result.case.num_patches)
        patches = [r.case.num_patches for r in group]
        costs = [1e3 / r.images_per_second for r in group]
        case = group[0].case
        label = f"{case.variant}, {_setting(case)}: S^{growth(group):.2f}"
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(patches, costs, "o-", color=colour, label=label)
        linear = [costs[0] * count / patches[0] for count in patches]
        axes.plot(patches, linear, ":", color=colour)
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="patches S", ylabel="ms per image (dotted: linear)")
    axes.legend(fontsize=8)


def _setting(case: Case) -> str:
    kind = "training" if case.training else "inference"
    return f"{kind}, batch {case.batch_size}, {case.dtype}"
