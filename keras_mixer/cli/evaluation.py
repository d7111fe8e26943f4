"""The commands `evaluate` and `fewshot`: how good a model is on a data set."""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_mixer.cli.arguments import (
    Parser,
    add_command,
    add_data_options,
    add_model_options,
    check_chosen_model,
    check_source,
    chosen_model,
    expanded,
    integer,
    number,
    opened_source,
    path_of,
    reads_data,
)
from keras_mixer.cli.early_checks import check_file, check_plot, check_writable
from keras_mixer.cli.messages import UsageError, escaped
from keras_mixer.cli.output import write_json

if TYPE_CHECKING:
    from keras_mixer.cli.arguments import Commands
    from keras_mixer.evaluation import Evaluation

_DATA_FLAGS = {"name": "--data", "folder": "--data", "name_or_folder": "--data"}


def add(commands: "Commands") -> None:
    """Add both commands to the command line."""
    command = add_command(
        commands,
        "evaluate",
        _evaluate,
        "measure a classifier on a data set",
        examples=(
            "evaluate --data cifar10",
            "evaluate --data pictures/ --model run/model.keras --plot confusion.png",
            "evaluate --data imagenet2012 --split validation --variant B/16 \\\n"
            "      --weights imagenet1k --real real.json",
        ),
        check=_check_evaluate,
        needs_tensorflow=reads_data,
        flags=_DATA_FLAGS,
    )
    add_model_options(command)
    add_data_options(command, split="test")
    _add_run_options(command)
    command.add_argument(
        "--real",
        type=path_of,
        metavar="FILE",
        help="ReaL labels: a JSON list of lists of classes, one per image, in the "
        "order of the sorted file names (of the data set, where it has no files)",
    )
    command.add_argument(
        "--match",
        choices=("name", "position"),
        default="name",
        help="how a class of the data is found in the model: by its name, or class i "
        "is class i (default: %(default)s)",
    )
    command.add_argument(
        "--worst",
        type=integer(1),
        default=20,
        metavar="N",
        help="how many classes to list, the worst first (default: %(default)s)",
    )
    command.add_argument(
        "--plot", type=path_of, metavar="PNG", help="draw the confusion matrix there"
    )
    _add_fewshot(commands)


def _add_fewshot(commands: "Commands") -> None:
    command = add_command(
        commands,
        "fewshot",
        _fewshot,
        "measure the features of a model by linear few-shot classification",
        examples=(
            "fewshot --data cifar10",
            "fewshot --data oxford_iiit_pet --variant B/16 --weights imagenet21k \\\n"
            "      --shots 1 5 --cache-dir features/",
        ),
        check=_check_fewshot,
        needs_tensorflow=reads_data,
        flags=_DATA_FLAGS,
    )
    add_model_options(command)
    add_data_options(command, split="train", validation_split="test")
    _add_run_options(command)
    command.add_argument(
        "--shots",
        nargs="+",
        type=integer(1),
        default=[1, 5, 10, 25],
        metavar="N",
        help="examples per class (default: 1 5 10 25)",
    )
    command.add_argument(
        "--seeds",
        nargs="+",
        type=integer(0),
        default=[0, 1, 2],
        metavar="SEED",
        help="seeds of the random examples (default: 0 1 2)",
    )
    command.add_argument(
        "--l2",
        type=number(0),
        default=1024.0,
        help="weight of the L2 penalty (default: %(default)g, the official value)",
    )
    command.add_argument(
        "--cache-dir",
        type=expanded,
        metavar="FOLDER",
        help="keep the features there for the next run (default: keep none)",
    )


def _add_run_options(command: Parser) -> None:
    command.add_argument(
        "--batch-size", type=integer(1), default=64, help="default: %(default)s"
    )
    command.add_argument(
        "--json", type=path_of, metavar="FILE", help="write all numbers to this file"
    )


def _check(options: argparse.Namespace) -> None:
    if options.json:
        check_writable(options.json, "--json")
    check_chosen_model(options)
    check_source(options)


def _check_evaluate(options: argparse.Namespace) -> None:
    check_plot(options.plot)
    if options.real:
        check_file(options.real, "--real")
        options.real = _read_real(options.real)
    _check(options)


def _check_fewshot(options: argparse.Namespace) -> None:
    if options.validation_split == "none":
        raise UsageError(
            "--validation-split must be a split: the accuracy is measured on it."
        )
    if options.cache_dir:
        check_writable(options.cache_dir, "--cache-dir", folder=True)
    _check(options)


def _read_real(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"--real must be a JSON file. Received: {str(path)!r}: {error}"
        ) from error


def _evaluate(options: argparse.Namespace) -> None:
    from keras_mixer import visualize
    from keras_mixer.evaluation import evaluate

    source = opened_source(options, options.split)
    evaluation = evaluate(
        chosen_model(options),
        source,
        match=options.match,
        real_labels=options.real,
        batch_size=options.batch_size,
        progress=True,
    )
    _print_classes(evaluation, options.worst)
    accuracies = {"top-1": evaluation.top_1, "top-5": evaluation.top_5}
    if evaluation.real is not None:
        accuracies["ReaL"] = evaluation.real
    print(
        f"{evaluation.num_examples:,} images: "
        + ", ".join(f"{name} {value:.2%}" for name, value in accuracies.items())
    )
    if options.plot:
        figure = visualize.confusion_matrix(
            evaluation.confusion_matrix, evaluation.label_names
        )
        visualize.save(figure, options.plot)
        print(f"Written: {options.plot}")
    if options.json:
        write_json(options.json, evaluation.to_dict())


def _print_classes(evaluation: "Evaluation", count: int) -> None:
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("class")
    for heading in ("images", "recall", "precision", "most confused with"):
        table.add_column(heading, justify="right")
    mistaken = evaluation.confusion_matrix.copy()
    np.fill_diagonal(mistaken, 0)
    results = list(zip(evaluation.classes, mistaken, strict=True))
    shown = [pair for pair in results if pair[0].num_examples]
    for result, row in sorted(shown, key=lambda pair: pair[0].recall)[:count]:
        taken_for = results[row.argmax()][0].name
        table.add_row(
            _cell(result.name),
            f"{result.num_examples:,}",
            f"{result.recall:.1%}",
            "" if math.isnan(result.precision) else f"{result.precision:.1%}",
            f"{_cell(taken_for)} ({row.max()})" if row.any() else "",
        )
    Console().print(table)
    if len(shown) > count:
        print(f"The worst {count} of {len(shown)} classes; --worst N shows more.")


def _cell(name: str) -> str:
    """Return the name of a class, codes of the terminal and of rich escaped."""
    from rich.markup import escape

    return escape(escaped(name))


def _fewshot(options: argparse.Namespace) -> None:
    from keras_mixer.evaluation import fewshot

    accuracies = fewshot.evaluate(
        chosen_model(options),
        opened_source(options, options.split),
        opened_source(options, options.validation_split),
        shots=options.shots,
        seeds=options.seeds,
        l2=options.l2,
        batch_size=options.batch_size,
        cache_dir=options.cache_dir,
        progress=True,
    )
    _print_shots(accuracies, options.seeds)
    if options.json:
        numbers = {"seeds": options.seeds, "accuracies": accuracies}
        write_json(options.json, {"l2": options.l2} | numbers)


def _print_shots(accuracies: dict[int, list[float]], seeds: list[int]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    headings = ("shots", *(f"seed {seed}" for seed in seeds), "mean")
    for heading in headings:
        table.add_column(heading, justify="right")
    for shots, values in accuracies.items():
        mean = sum(values) / len(values)
        table.add_row(str(shots), *(f"{value:.2%}" for value in (*values, mean)))
    Console().print(table)
