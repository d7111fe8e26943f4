"""The whole table of a GPU in one command: ours, the official Flax model and timm.

    python examples/benchmark/gpu_table.py --page docs/speed.md
    python examples/benchmark/gpu_table.py --wheels wheels/     # without a network
    python examples/benchmark/gpu_table.py --device cpu --small # that it runs at all

needs the packages of the extras jax, tensorflow, torch and benchmark, built for the
GPU; a contender whose package is missing is left out. Prints a plan of the time first.
Every measurement is a process of its own with a time of its own: one that fails costs
nothing else. Wheels, as `pip download --no-deps` stores them, are installed into a
temporary folder, which the processes see; the environment stays as it is.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from gpu_report import NAMES, into_page, section
from gpu_turns import Turns

VARIANTS = ("B/16", "S/16", "L/16", "B/32")
# GiB of a training step of 256 images (of 64 for H/14), of the hungriest contender;
# inference takes a quarter at most.
_GIB = {"S/16": 12, "B/32": 12, "B/16": 26, "L/16": 70, "H/14": 36, "Ti/4": 1}
# Seconds to import, build, compile, and be timed.
_SECONDS = {"ours-torch": 18, "timm": 18, "timm-compiled": 35, "timm-autotuned": 60}
_OTHERS = 25  # compiled by XLA
_AUTOTUNED = "timm-autotuned"
# Contenders at H/14 beside ours on JAX with remat, and whether they have it.
_AT_H14 = (
    *(("ours-jax", False), ("ours-torch", True)),
    *(("flax", False), ("timm", False)),
)
_AT_LARGER_BATCHES = ("ours-jax", "ours-tensorflow", "flax", "timm-compiled")
_BACKENDS = {"flax": "jax", "ours-jax": "jax", "ours-tensorflow": "tensorflow"}


def main():
    """Plan, measure, print and write."""
    start = time.monotonic()
    options = _options()
    cells = plan(options.batch_sizes, small=options.small)
    for cell in cells:
        cell["budget"] = options.patience * cell["seconds"]
    gib = options.memory or device_memory(options.device)
    lanes = options.lanes or max(1, min(5, (os.cpu_count() or 1) // 3))
    print(plan_text(cells, lanes, options.minutes), flush=True)
    results, lock = [], threading.Lock()

    def done(cell, answer):
        with lock:
            results.append((cell, answer | {"batch_size": cell["batch_size"]}))
            print(_line(cell, answer, time.monotonic() - start), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        if options.wheels:
            install(options.wheels, folder)
        turns = Turns(
            lanes=lanes,
            memory=0.9 * gib,
            end=start + 60 * options.minutes,
            environment=environment(options.device, folder),
        )
        turns.run(cells, done)
    order = [id(cell) for cell in cells]
    results.sort(key=lambda pair: order.index(id(pair[0])))
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    text = section(
        results,
        command=f"python examples/benchmark/{' '.join(words)}",
        date=datetime.date.today().isoformat(),
    )
    print(f"\n{text}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if options.page:
        page = options.page.read_text(encoding="utf-8")
        options.page.write_text(into_page(page, text), encoding="utf-8")
    return 0 if any("seconds" in answer for _, answer in results) else 1


def plan(batch_sizes, *, small=False):
    """Return the cells in the order of their importance.

    The ceilings; at the first batch size all but what is autotuned; H/14, with and
    without remat; what is autotuned; inference of larger batches.

    Args:
        batch_sizes: Images of a batch.
        small: Whether Ti/4 with images of 8 x 8 pixels stands for all.
    """
    variants, (huge, few) = VARIANTS, ("H/14", 64)
    first, *larger = batch_sizes
    if small:
        variants, (huge, few), first, larger = ("Ti/4",), ("Ti/4", 4), 2, []
    modes = [(variant, training) for variant in variants for training in (False, True)]
    cells = [_cell("ceilings", variants[0], 0)]
    cells += [
        _cell(name, variant, first, training=training)
        for variant, training in modes
        for name in NAMES
        if name != _AUTOTUNED
    ]
    cells += [
        _cell(name, huge, few, training=True, remat=remat)
        for name, remat in (("ours-jax", True), *([] if small else _AT_H14))
    ]
    cells += [
        _cell(_AUTOTUNED, variant, first, training=training)
        for variant, training in modes
    ]
    cells += [
        _cell(name, variant, batch_size)
        for batch_size in larger
        for variant in variants
        for name in _AT_LARGER_BATCHES
    ]
    if small:
        for cell in cells:
            cell["image_size"] = 8
    return cells


def plan_text(cells, lanes, minutes):
    """Return what will be done and about how long it takes, as lines."""
    seconds = sum(cell["seconds"] for cell in cells) / lanes
    rows = [
        f"{len(cells)} measurements, {lanes} at a time, in the order of importance:"
    ]
    kinds = {}
    for cell in cells:
        kinds.setdefault(cell["contender"], []).append(cell)
    rows += [
        f"  {name:<18}{len(group):>4}, {min(c['seconds'] for c in group):.0f} to "
        f"{max(c['seconds'] for c in group):.0f} s each, ended after at most "
        f"{max(c['budget'] for c in group):.0f} s"
        for name, group in kinds.items()
    ]
    rows.append(f"about {seconds / 60:.1f} minutes; it stops after {minutes:g}")
    return "\n".join(rows)


def device_memory(device):
    """Return the GiB of the first GPU, or a guess for a CPU."""
    if device == "cpu":
        return 16.0
    try:
        output = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"nvidia-smi finds no GPU: {error}. For a trial: --device cpu --small"
        ) from error
    return int(output.split()[0]) / 1024


def environment(device, folder):
    """Return the variables of the processes that measure."""
    here = Path(__file__).resolve().parent
    paths = [folder, str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    variables = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # all share one device
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    if device == "cpu":
        hidden = {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
        variables |= hidden | {"OMP_NUM_THREADS": "1"}  # several lanes, few cores
    return variables


def install(wheels, folder):
    """Install the wheels of a folder into another one, without a network."""
    files = sorted(str(path) for path in wheels.glob("*.whl"))
    if not files:
        raise SystemExit(f"--wheels must be a folder of .whl files. Received: {wheels}")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", folder, *files], check=True)


def _cell(contender, variant, batch_size, *, training=False, remat=False):
    gib = _GIB[variant] * (batch_size or 1) / (64 if variant == "H/14" else 256)
    seconds = _SECONDS.get(contender, _OTHERS)
    if variant in ("L/16", "H/14") and contender != "timm":
        seconds *= 1.5
    return {
        "contender": contender,
        "variant": variant,
        "batch_size": batch_size,
        "image_size": None,
        "training": training,
        "remat": remat,
        "backend": _BACKENDS.get(contender, "torch"),
        "memory": 1 + gib * (0.25 if remat or not training else 1),
        "seconds": seconds,
    }


def _line(cell, answer, seconds):
    what = f"{cell['contender']}{', remat' if cell['remat'] else ''}"
    kind = "training" if cell["training"] else "inference"
    found = answer.get("error")
    if "seconds" in answer:
        best = sorted(answer["seconds"])[len(answer["seconds"]) // 2]
        found = f"{1e3 * best:.2f} ms"
    elif found is None:
        found = (
            f"{answer['flops'] / 1e12:.3g} TFLOP/s, {answer['copied'] / 1e9:.0f} GB/s"
        )
    return (
        f"{seconds:5.0f} s  {what:<18}{cell['variant']:<6}{cell['batch_size']:>5} "
        f"{kind:<10}{found}"
    )


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[256, 1024])
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="for everything (default: 9)"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=2.0,
        metavar="TIMES",
        help="as long as planned, after which a process is ended (default: 2)",
    )
    parser.add_argument(
        "--lanes", type=int, help="processes at once (default: cores/3)"
    )
    parser.add_argument("--memory", type=float, metavar="GIB", help="of the device")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument(
        "--small", action="store_true", help="tiny models and images: a trial of this"
    )
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="install these")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all numbers")
    parser.add_argument("--page", type=Path, metavar="FILE", help="page to be updated")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
