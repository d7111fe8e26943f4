"""The commands `benchmark` and `tpu-compile`: how fast models run, and what fits."""

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from keras_mixer.cli.arguments import Parser, add_command, expanded, integer, path_of
from keras_mixer.cli.early_checks import (
    check_backend,
    check_data,
    check_dtype,
    check_none_given,
    check_packages,
    check_plot,
    check_variant,
    check_weights,
    check_writable,
)
from keras_mixer.cli.messages import UsageError
from keras_mixer.cli.output import write_json

if TYPE_CHECKING:
    from keras_mixer.cli.arguments import Commands

# What --input does not measure with.
_NOT_FOR_INPUT = (
    *("variants", "batch_sizes", "dtypes", "weights", "rounds", "train", "loop"),
    *("layers", "first", "plot"),
)


def add(commands: "Commands") -> None:
    """Add both commands to the command line."""
    command = add_command(
        commands,
        "benchmark",
        _benchmark,
        "measure speed and memory on this machine",
        examples=(
            "benchmark --variants B/16 S/16 --batch-sizes 1 16",
            "benchmark --variants S/16 --train --loop --dtypes mixed_bfloat16",
            "benchmark --image-sizes 224 448 896 --json speed.json --plot speed.png",
        ),
        check=_check_benchmark,
        needs_tensorflow=lambda options: options.input is not None,
        flags={"variant": "--variants", "batch_size": "--batch-sizes"}
        | {"image_size": "--image-sizes", "dtype": "--dtypes"},
    )
    _add_cases(command)
    command.add_argument(
        "--train", action="store_true", help="also measure whole training steps"
    )
    command.add_argument(
        "--loop",
        action="store_true",
        help="also compare predict and fit with a hand-written loop",
    )
    command.add_argument(
        "--layers", action="store_true", help="also measure each kind of layer alone"
    )
    command.add_argument(
        "--first",
        action="store_true",
        help="also time new processes until their first prediction, phase by phase",
    )
    command.add_argument(
        "--input",
        type=expanded,
        metavar="NAME_OR_FOLDER",
        help="measure only how many augmented images a second are read from this data "
        "set, as --data of finetune; goes with --image-sizes and --json alone",
    )
    command.add_argument(
        "--weights",
        type=expanded,
        default="none",
        help="a checkpoint's name, whose loading counts as building, or none "
        "(default: %(default)s)",
    )
    command.add_argument(
        "--rounds",
        type=integer(1),
        default=20,
        help="timed calls (default: %(default)s)",
    )
    command.add_argument(
        "--json", type=path_of, metavar="FILE", help="write all numbers to this file"
    )
    command.add_argument(
        "--plot", type=path_of, metavar="PNG", help="also draw them to this file"
    )
    _add_tpu_compile(commands)


def _add_cases(command: Parser) -> None:
    """Add the options whose values are combined: each variant with each size, dtype."""
    command.add_argument(
        "--variants",
        nargs="+",
        default=["B/16"],
        help="default: B/16",
    )
    command.add_argument(
        "--batch-sizes",
        nargs="+",
        type=integer(1),
        default=[1, 16],
        help="default: 1 16",
    )
    command.add_argument(
        "--image-sizes",
        nargs="+",
        type=integer(1),
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


def _add_tpu_compile(commands: "Commands") -> None:
    command = add_command(
        commands,
        "tpu-compile",
        _tpu_compile,
        "compile a training step for a TPU slice; no TPU is needed",
        examples=(
            "tpu-compile --variant B/16 --topology v5e:2x2 --batch 1024",
            "tpu-compile --variant L/16 --batch 256 --backend jax tensorflow",
            "tpu-compile --variant H/14 --topology v5e:16x16 --remat",
        ),
        check=_check_tpu_compile,
        flags={"batch_size": "--batch", "num_classes": "--classes"},
    )
    command.add_argument("--variant", default="B/16", help="default: %(default)s")
    command.add_argument(
        "--backend",
        nargs="+",
        choices=("jax", "tensorflow"),
        help="backends to compile with, one column of the table for each (default: "
        "that of KERAS_BACKEND)",
    )
    command.add_argument(
        "--topology",
        default="v5e:2x2",
        metavar="SLICE",
        help="v5e:2x2, v6e:16x16, v4:2x2x1, ... (default: %(default)s)",
    )
    command.add_argument(
        "--batch",
        type=_batch,
        metavar="N",
        help="images over all devices, or largest (default: largest, the largest that "
        "fits)",
    )
    command.add_argument(
        "--model-devices",
        type=integer(1),
        default=1,
        metavar="N",
        help="devices that share one copy of the weights, on JAX (default: "
        "%(default)s)",
    )
    command.add_argument(
        "--image-size",
        type=integer(1),
        default=224,
        metavar="PIXELS",
        help="default: %(default)s",
    )
    command.add_argument(
        "--classes",
        type=integer(1),
        default=1000,
        metavar="N",
        help="default: %(default)s",
    )
    command.add_argument(
        "--dtype",
        default="mixed_bfloat16",
        metavar="POLICY",
        help="default: %(default)s",
    )
    command.add_argument(
        "--remat", action="store_true", help="compute blocks twice, to save memory"
    )
    command.add_argument(
        "--optimizer",
        default="finetune",
        choices=("finetune", "pretrain"),
        help="the optimizer of finetune or of pretrain (default: %(default)s)",
    )
    command.add_argument(
        "--evaluation",
        action="store_true",
        help="compile an evaluation step instead: no gradients, no optimizer",
    )


def _batch(text: str) -> int | None:
    return None if text == "largest" else integer(1)(text)


def _check_benchmark(options: argparse.Namespace) -> None:
    if options.input is not None:
        check_none_given(options, "with --input, which runs no model", _NOT_FOR_INPUT)
        check_data(options.input, flag="--input")
    for variant in options.variants:
        check_variant(variant, "--variants")
        check_weights(variant, options.weights)
    for dtype in options.dtypes:
        check_dtype(dtype, "--dtypes")
    if options.json:
        check_writable(options.json, "--json")
    check_plot(options.plot)
    check_backend()


def _check_tpu_compile(options: argparse.Namespace) -> None:
    check_variant(options.variant)
    check_dtype(options.dtype)
    options.backend = options.backend or [check_backend("jax", "tensorflow")]
    if "tensorflow" in options.backend:
        check_packages("TensorFlow's step", "tensorflow", "tensorflow")
        if options.model_devices > 1:
            raise UsageError(
                "--model-devices must be 1 with the backend tensorflow: TPUStrategy "
                "gives every core the whole model. Received: --model-devices "
                f"{options.model_devices}"
            )
    check_packages("Compiling for TPUs", "tpu-compile", "libtpu")


def _measure_input(options: argparse.Namespace) -> None:
    from keras_mixer.benchmark import input_speed
    from keras_mixer.data import open_source

    source = open_source(options.input, "train")
    numbers = {}
    for size in options.image_sizes:
        edge = size or 224
        numbers[str(edge)] = speeds = input_speed(source, image_size=edge)
        for name, speed in speeds.items():
            print(f"{name}, {edge} x {edge}: {speed:,.0f} images/s")
    if options.json:
        write_json(options.json, {"input": options.input, "images_per_second": numbers})


def _benchmark(options: argparse.Namespace) -> None:
    if options.input is not None:
        return _measure_input(options)
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
    weights = None if options.weights == "none" else options.weights
    report = benchmark.run(
        cases,
        weights=weights,
        rounds=options.rounds,
        loop=options.loop,
        layers=options.layers,
    )
    if options.first:
        first = tuple(
            benchmark.first_prediction(case, weights)
            for case in cases
            if not case.training and case.image_size is None
        )
        report = replace(report, first_predictions=first)
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
        write_json(options.json, report.to_dict())


def _tpu_compile(options: argparse.Namespace) -> int:
    from keras_mixer.benchmark import tpu_compile

    step = tpu_compile.SliceStep(
        options.variant,
        options.topology,
        model_devices=options.model_devices,
        image_size=options.image_size,
        num_classes=options.classes,
        dtype=options.dtype,
        remat=options.remat,
        optimizer=options.optimizer,
        training=not options.evaluation,
    )
    compiled = tpu_compile.compile_in_backends(step, options.batch, options.backend)
    print(tpu_compile.table(step, compiled))
    return 0 if all(compiled.values()) else 1
