"""The commands `evaluate` and `fewshot`: how good a model is on a data set."""

import json
from pathlib import Path

import numpy as np

from keras_mixer.cli.arguments import (
    add_command,
    add_data_options,
    add_model_options,
    chosen_model,
    opened_source,
)


def add(commands):
    """Add both commands to the command line."""
    command = add_command(
        commands, "evaluate", _evaluate, "measure a classifier on a data set"
    )
    add_model_options(command)
    add_data_options(command, split="test")
    _add_run_options(command)
    command.add_argument(
        "--real",
        type=Path,
        metavar="FILE",
        help="ReaL labels: a JSON list of lists of classes, one per image, in the "
        "order of the sorted file names (without files, of the data set)",
    )
    command.add_argument(
        "--worst",
        type=int,
        default=20,
        metavar="N",
        help="how many classes to list, the worst first (default: %(default)s)",
    )
    command.add_argument(
        "--plot", type=Path, help="draw the confusion matrix to this PNG"
    )

    command = add_command(
        commands,
        "fewshot",
        _fewshot,
        "measure the features of a model by linear few-shot classification",
    )
    add_model_options(command)
    add_data_options(command, split="train", validation_split="test")
    _add_run_options(command)
    command.add_argument(
        "--shots",
        nargs="+",
        type=int,
        default=[1, 5, 10, 25],
        metavar="N",
        help="examples per class (default: 1 5 10 25)",
    )
    command.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2],
        metavar="SEED",
        help="of the draws (default: 0 1 2)",
    )
    command.add_argument(
        "--l2",
        type=float,
        default=1024.0,
        help="weight of the ridge (default: %(default)g, the official value)",
    )
    command.add_argument(
        "--cache-dir",
        metavar="FOLDER",
        help="keep the features there for the next run (default: kept nowhere)",
    )


def _add_run_options(command):
    command.add_argument(
        "--batch-size", type=int, default=64, help="default: %(default)s"
    )
    command.add_argument(
        "--json", type=Path, metavar="FILE", help="write all numbers to this file"
    )


def _evaluate(options):
    from keras_mixer import visualize
    from keras_mixer.evaluation import evaluate

    real_labels = options.real and _read_real(options.real)
    source = opened_source(options, options.split)
    evaluation = evaluate(
        chosen_model(options),
        source,
        real_labels=real_labels,
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
    _write_json(options, evaluation.to_dict())


def _read_real(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--real must be a JSON file. {path}: {error}") from error


def _print_classes(evaluation, count):
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("class")
    for heading in ("images", "found", "right when said", "most taken for"):
        table.add_column(heading, justify="right")
    mistaken = evaluation.confusion_matrix.copy()
    np.fill_diagonal(mistaken, 0)
    results = list(zip(evaluation.classes, mistaken, strict=True))
    shown = [pair for pair in results if pair[0].num_examples]
    for result, row in sorted(shown, key=lambda pair: pair[0].recall)[:count]:
        table.add_row(
            result.name,
            f"{result.num_examples:,}",
            f"{result.recall:.1%}",
            f"{result.precision:.1%}",
            f"{results[row.argmax()][0].name} ({row.max()})" if row.any() else "",
        )
    Console().print(table)
    if len(shown) > count:
        print(f"The worst {count} of {len(shown)} classes; --worst N shows more.")


def _fewshot(options):
    from keras_mixer import fewshot

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
    _write_json(
        options,
        {"l2": options.l2, "seeds": options.seeds, "accuracies": accuracies},
    )


def _print_shots(accuracies, seeds):
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


def _write_json(options, numbers):
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1), encoding="utf-8")
        print(f"Written: {options.json}")
