"""The command `benchmark`: how fast models run on this machine."""

import json
import sys
from pathlib import Path

from keras_mixer.cli.arguments import add_command


def add(commands):
    """Add the command to the command line."""
    command = add_command(
        commands, "benchmark", _benchmark, "measure speed and memory on this machine"
    )
    command.add_argument(
        "--variants", nargs="+", default=["B/16"], help="default: B/16"
    )
    command.add_argument(
        "--batch-sizes", nargs="+", type=int, default=[1, 16], help="default: 1 16"
    )
    command.add_argument(
        "--image-sizes",
        nargs="+",
        type=int,
        default=[None],
        metavar="PIXELS",
        help="edges of square images; several show how cost grows with patches "
        "(default: the model's own)",
    )
    command.add_argument(
        "--dtypes",
        nargs="+",
        default=["float32"],
        metavar="POLICY",
        help="such as mixed_bfloat16 (default: float32)",
    )
    command.add_argument(
        "--train", action="store_true", help="also measure whole training steps"
    )
    command.add_argument(
        "--loop",
        action="store_true",
        help="also compare predict, and fit, with a bare loop",
    )
    command.add_argument(
        "--layers", action="store_true", help="also measure kinds of layers alone"
    )
    command.add_argument(
        "--weights",
        default="none",
        help="a checkpoint's name, whose loading counts as building, or none "
        "(default: %(default)s)",
    )
    command.add_argument(
        "--rounds", type=int, default=20, help="timed calls (default: %(default)s)"
    )
    command.add_argument(
        "--json", type=Path, metavar="FILE", help="write all numbers to this file"
    )
    command.add_argument("--plot", type=Path, help="also draw them to this PNG")


def _benchmark(options):
    from rich.console import Console

    from keras_mixer import benchmark, visualize

    cases = [
        benchmark.Case(variant, batch_size, image_size, dtype, training)
        for training in ((False, True) if options.train else (False,))
        for variant in options.variants
        for dtype in options.dtypes
        for batch_size in options.batch_sizes
        for image_size in options.image_sizes
    ]
    report = benchmark.run(
        cases,
        weights=None if options.weights == "none" else options.weights,
        rounds=options.rounds,
        loop=options.loop,
        layers=options.layers,
    )
    print(", ".join(f"{key}: {value}" for key, value in report.machine.items()))
    console = Console(width=None if sys.stdout.isatty() else 120)
    for table in benchmark.tables(report):
        console.print(table)
    for group in report.to_dict()["growth"]:
        print(
            f"{group['case']['variant']}, batch {group['case']['batch_size']}: time "
            f"grows with patches to the power {group['exponent']:.3f}"
        )
    if options.plot:
        visualize.save(benchmark.figure(report), options.plot)
        print(f"Written: {options.plot}")
    if options.json:
        numbers = json.dumps(report.to_dict(), indent=1)
        options.json.write_text(numbers, encoding="utf-8")
        print(f"Written: {options.json}")
