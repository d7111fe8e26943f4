"""The numbers of a benchmark as tables and as a picture."""

from collections.abc import Callable

from keras_mixer.benchmark.records import growth

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")


def tables(report):
    """Return rich tables of a `Report`: speed, costs, and what was compared."""
    shown = [
        _table(report, "Speed, median with quartiles", _SPEED),
        _table(report, "Before and around it", _COSTS),
    ]
    peers = list(dict.fromkeys(name for r in report.results for name in r.peers))
    if peers:
        columns = {name: _peer_column(name) for name in peers}
        shown.append(_table(report, "How many times as fast as", columns))
    layers = list(dict.fromkeys(name for r in report.results for name in r.layers))
    if layers:
        columns = {name: _layer_column(name) for name in layers}
        shown.append(_table(report, "Layers alone, ms in the whole model", columns))
    return shown


Column = Callable[..., str]

_SPEED: dict[str, Column] = {
    "ms": lambda r: _span(*(1e3 * s for s in (r.timing.median, *r.timing.quartiles))),
    "images/s": lambda r: f"{r.images_per_second:,.1f}",
    "GFLOP/s": lambda r: f"{r.flops_per_second / 1e9:,.0f}",
    "of large products": lambda r: f"{r.share_of_ceiling:.0%}",
}
_COSTS: dict[str, Column] = {
    "build s": lambda r: f"{r.build_seconds:.2f}",
    "compile s": lambda r: f"{r.compile_seconds:.2f}",
    "host MiB": lambda r: _mebibytes(r.host_peak),
    "device MiB": lambda r: _mebibytes(r.device_peak),
    "fit, predict / bare loop": lambda r: _ratio(r.loop),
}


def _peer_column(name):
    return lambda result: _ratio(result.peers.get(name))


def _layer_column(name):
    return lambda r: f"{1e3 * r.layers[name]:.2f}" if name in r.layers else ""


def _table(report, title, columns):
    from rich import box
    from rich.table import Table

    # Where lines are short, cells go on in the next one; nothing is cut.
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("case", overflow="fold")
    for heading in columns:
        table.add_column(heading, justify="right", overflow="fold")
    for result in report.results:
        numbers = (column(result) for column in columns.values())
        table.add_row(_name(result.case), *numbers)
    return table


def _name(case):
    work = "training" if case.training else "inference"
    size = case.sizes["input_shape"][0]
    return f"{case.variant}, {size} px, batch {case.batch_size}, {case.dtype}, {work}"


def _span(median, low, high):
    return f"{median:,.4g} ({low:,.4g} to {high:,.4g})"


def _ratio(ratio):
    return f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio else ""


def _mebibytes(number):
    return "" if number is None else f"{number / 2**20:,.0f}"


def figure(report):
    """Draw throughput against parameters and, with several sizes of image, the growth.

    The second panel shows time per image against the number of patches S, with the
    measured exponent; a dotted line shows growth with S (paper: linear) from the first
    point on.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Plots need matplotlib: pip install 'keras_mixer[plot]'"
        ) from error
    groups = report.image_sizes()
    panels = 2 if groups else 1
    drawing = Figure(figsize=(6 * panels, 4.5), layout="constrained")
    axes = drawing.subplots(1, panels, squeeze=False)[0]
    machine = report.machine
    drawing.suptitle(
        f"{machine['devices']}, {machine['processor']}, {machine['backend']}",
        fontsize=10,
    )
    _draw_throughput(axes[0], report.results)
    if groups:
        _draw_growth(axes[1], groups)
    return drawing


def _draw_throughput(axes, results):
    series = {}
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


def _draw_growth(axes, groups):
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


def _setting(case):
    kind = "training" if case.training else "inference"
    return f"{kind}, batch {case.batch_size}, {case.dtype}"
