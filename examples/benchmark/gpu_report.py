"""The tables of `gpu_table.py`, and their place in a page of the documentation."""

import re
import statistics

TITLE = "## On a GPU"
NAMES = {
    "ours-jax": "ours, JAX",
    "ours-tensorflow": "ours, TensorFlow",
    "ours-torch": "ours, torch",
    "flax": "Flax",
    "timm": "timm",
    "timm-compiled": "timm compiled",
    "timm-autotuned": "timm autotuned",
}


def section(results, *, command, date):
    """Return the section of a page, in Markdown.

    Args:
        results: Pairs of a cell and its answer, see `gpu_turns`.
        command: What made them.
        date: When.
    """
    ceilings = next(
        (answer for cell, answer in results if cell["contender"] == "ceilings"), {}
    )
    measured = [pair for pair in results if pair[0]["contender"] != "ceilings"]
    lines = [TITLE, "", _introduction(ceilings)]
    for training, what in ((False, "Inference"), (True, "Training steps")):
        mode = [pair for pair in measured if pair[0]["training"] == training]
        if mode:
            lines += ["", f"{what}, images a second:", "", *_table(mode, _speed)]
            lines += ["", f"{what}, peak memory in MiB:", "", *_table(mode, _memory)]
    missing = [
        f"- {NAMES[cell['contender']]}, {_row(cell)}, "
        f"{'training' if cell['training'] else 'inference'}: {answer['error']}"
        for cell, answer in measured
        if "error" in answer
    ]
    if missing:
        lines += ["", "Not measured:", "", *missing]
    lines += ["", "```sh", command, "```", "", f"{_versions(ceilings)}{date}.", ""]
    return "\n".join(lines)


def into_page(page, section):
    """Return the text of a page with this section in place of the old one.

    Where there is none it comes before the page's second section.
    """
    parts = re.split(r"(?m)^(?=## )", page)
    own = [part for part in parts if part.startswith(TITLE + "\n")]
    if own:
        parts[parts.index(own[0])] = section + "\n"
    else:
        parts.insert(min(2, len(parts)), section + "\n")
    return "".join(parts).rstrip("\n") + "\n"


def _introduction(ceilings):
    lines = [
        "Mixed bfloat16, images on the device, medians of calls that have the device",
        'for themselves; "-" was not measured. The last column is the best of ours',
        "over the best of the others.",
    ]
    if "flops" in ceilings:
        machine = ceilings["machine"]
        device = machine["devices"]
        if device == "CPU":
            device = machine["processor"]
        lines.append(
            f"{device}: matrix products reach {ceilings['flops'] / 1e12:,.3g} TFLOP/s,"
        )
        lines.append(f"copies {ceilings['copied'] / 1e9:,.0f} GB/s.")
    return "\n".join(lines)


def _table(pairs, value):
    columns = [name for name in NAMES if any(c["contender"] == name for c, _ in pairs)]
    rows = {}
    for cell, answer in pairs:
        key = (_row(cell), cell["batch_size"])
        rows.setdefault(key, {})[cell["contender"]] = value(answer)
    yield f"| | batch | {' | '.join(NAMES[name] for name in columns)} | ratio |"
    yield f"| --- | ---: |{' ---: |' * (len(columns) + 1)}"
    for (row, batch), values in rows.items():
        cells = [_cell(values.get(name)) for name in columns]
        ratio = _ratio(values, best=max if value is _speed else min)
        yield f"| {row} | {batch} | {' | '.join(cells)} | {ratio} |"


def _ratio(values, best):
    ours, others = (
        [v for name, v in values.items() if v and name.startswith("ours") == own]
        for own in (True, False)
    )
    return f"{best(ours) / best(others):.2f}" if ours and others else "-"


def _cell(value):
    return "-" if value is None else f"{value:,.0f}"


def _row(cell):
    return cell["variant"] + (", remat" if cell["remat"] else "")


def _speed(answer):
    if "error" in answer:
        return None
    return answer["batch_size"] / statistics.median(answer["seconds"])


def _memory(answer):
    return answer["peak"] / 2**20 if answer.get("peak") else None


def _versions(ceilings):
    names = {"jax": "JAX", "tensorflow": "TensorFlow", "flax": "Flax", "keras": "Keras"}
    found = ceilings.get("versions", {})
    return "".join(f"{names.get(k, k)} {version}, " for k, version in found.items())
