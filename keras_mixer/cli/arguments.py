"""What several commands share: the options that name a model and a data set."""

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from keras_mixer.cli.early_checks import check_data, check_dtype, check_model
from keras_mixer.cli.messages import PROGRAM, UsageError

if TYPE_CHECKING:
    from keras_mixer.data import Source
    from keras_mixer.models import MLPMixer

    Commands = argparse._SubParsersAction["Parser"]
    Group = argparse._ActionsContainer

Run = Callable[[argparse.Namespace], int | None]
Check = Callable[[argparse.Namespace], None]

EXIT_STATUS = (
    "exit status: 0 done, 1 failed or partly failed, 2 wrong usage, 130 interrupted"
)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Leave with status 2; argparse would print all options first."""
        words = message.removeprefix("unrecognized arguments: ")
        if words != message and not words.startswith("-"):
            message += (
                " (arguments without a flag must stand together: flags go before or "
                "after all of them)"
            )
        self.exit(2, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


def epilog(examples: Sequence[str]) -> str:
    """Return the end of a command's help."""
    lines = [f"  {PROGRAM} {example}" for example in examples]
    return "\n".join(["examples:", *lines, "", EXIT_STATUS])


def add_command(
    commands: "Commands",
    name: str,
    run: Run,
    help: str,
    *,
    examples: Sequence[str],
    check: Check | None = None,
    needs_tensorflow: Callable[[argparse.Namespace], bool] = lambda options: False,
    flags: dict[str, str] | None = None,
) -> Parser:
    """Add a command whose description is its help, as a sentence.

    Args:
        commands: What `add_subparsers` gave.
        name: The word that starts it.
        run: Does it; returns the exit status, `None` for 0.
        help: What it does, in one line without a full stop.
        examples: Two or three, without the name of the program.
        check: Raises what can be known before Keras is imported.
        needs_tensorflow: Whether the command reads TFDS or tf.data, on any backend.
        flags: Names of arguments in the package's errors -> what the command calls
            them, beyond those that `messages` knows.
    """
    command = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=epilog(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(
        run=run,
        check=check or (lambda options: None),
        needs_tensorflow=needs_tensorflow,
        flags=flags or {},
        default_of=command.get_default,
    )
    return command


def reads_data(options: argparse.Namespace) -> bool:
    """Say that a command reads tf.data: the `needs_tensorflow` of `add_command`."""
    return True


def expanded(text: str) -> str:
    """Return a name, an address or a path, with `~` as the user's folder.

    The type of every option that may be a path: a shell expands only the `~` that
    begins a word, not that of `--model=~/run/model.keras`.
    """
    return os.path.expanduser(text)


def path_of(text: str) -> Path:
    """Return a path, with `~` as `expanded` does; the type of options that are one."""
    return Path(expanded(text))


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return the type of an option that is an integer of at least `low`."""
    wanted = {0: "an integer, 0 or more", 1: "a positive integer"}.get(
        low, f"an integer, {low} or more"
    )
    if high is not None:
        wanted = f"an integer from {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"must be {wanted}. Received: {text!r}")
        return value

    return parse


def number(
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> Callable[[str], float]:
    """Return the type of an option that is a finite number between two others.

    Args:
        low: Smallest value.
        high: Largest value.
        open_low: Whether `low` itself is too small.
        open_high: Whether `high` itself is too large.
    """
    wanted = "a number"
    if math.isfinite(low):
        wanted += f" above {low:g}" if open_low else f" of at least {low:g}"
    if math.isfinite(high):
        join = " and" if math.isfinite(low) else ""
        wanted += f"{join} below {high:g}" if open_high else f"{join} at most {high:g}"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        inside = low < value if open_low else low <= value
        inside = inside and (value < high if open_high else value <= high)
        if not (inside and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"must be {wanted}. Received: {text!r}")
        return value

    return parse


def add_model_options(command: "Group") -> None:
    """Add the options that `check_chosen_model` and `chosen_model` read."""
    command.add_argument(
        "--variant", help="such as B/16, see `keras-mixer models` (default: Ti/4)"
    )
    which = command.add_mutually_exclusive_group()
    which.add_argument(
        "--weights",
        type=expanded,
        help="a checkpoint's name, a weight file or none (default: cifar10)",
    )
    which.add_argument(
        "--model",
        type=expanded,
        help="a whole model instead of --variant and --weights: a saved .keras, a "
        "folder of a published model, or hf://owner/name[@revision]",
    )
    command.set_defaults(default_weights="cifar10")


def check_chosen_model(options: argparse.Namespace) -> None:
    """Raise unless there can be such a model; see `add_model_options`."""
    # A recipe of pre-training is that of a variant, whatever model starts.
    if options.model and options.variant and options.command != "pretrain":
        raise UsageError("--variant: not allowed with --model, which has its own sizes")
    check_model(variant=options.variant, weights=options.weights, model=options.model)
    check_dtype(getattr(options, "dtype", None))


def chosen_model(options: argparse.Namespace, **arguments: Any) -> "MLPMixer":
    """Return the model that `--model`, or else `--variant` and `--weights`, name.

    Args:
        options: Parsed options of `add_model_options`.
        **arguments: Arguments of the family's constructors, such as `num_classes`; they
            do not change a `--model`.

    Raises:
        OSError: If it cannot be read.
        ValueError: If the weights do not fit.
    """
    from keras_mixer.hub import read_model
    from keras_mixer.models import CONSTRUCTORS

    if options.model:
        return read_model(options.model)
    weights = options.weights or options.default_weights
    constructor = CONSTRUCTORS[options.variant or "Ti/4"]
    return constructor(weights=None if weights == "none" else weights, **arguments)


def add_data_options(
    command: "Group", *, split: str, validation_split: str | None = None
) -> "Group":
    """Add the options that `check_source` and `opened_source` read.

    Args:
        command: A command of `add_command`.
        split: Default of `--split`.
        validation_split: Default of `--validation-split`; `None` for a command that
            reads one split only.

    Returns:
        The group, for the options that a command adds to it.
    """
    group = command.add_argument_group("data")
    group.add_argument(
        "--data",
        type=expanded,
        required=True,
        metavar="NAME_OR_FOLDER",
        help="a data set of TFDS, such as cifar10, or a folder that has one folder of "
        "pictures per class",
    )
    add_data_dir(group)
    group.add_argument(
        "--split",
        default=split,
        help='which examples, such as "train[:98%%]" (default: %(default)s)',
    )
    if validation_split:
        group.add_argument(
            "--validation-split",
            default=validation_split,
            metavar="SPLIT",
            help="split to measure the accuracy on (default: %(default)s)",
        )
    group.add_argument(
        "--corrupt",
        choices=("raise", "skip", "trust"),
        default="raise",
        help="what to do with files of a folder that cannot be decoded: raise an "
        "error, skip them, or trust the folder without a check (default: %(default)s)",
    )
    return group


def add_data_dir(group: "Group") -> None:
    """Add `--data-dir`."""
    group.add_argument(
        "--data-dir",
        type=expanded,
        metavar="FOLDER",
        help="folder of prepared TFDS data sets (default: the one of TFDS)",
    )


def check_source(options: argparse.Namespace) -> None:
    """Raise unless `--data` can be read on this machine."""
    check_data(options.data, data_dir=options.data_dir)


def opened_source(options: argparse.Namespace, split: str) -> "Source":
    """Return the `data.Source` of one split of what `--data` names.

    Raises:
        ImportError: If a package that reads it is not installed.
        OSError: If it cannot be read.
        ValueError: If there is no such data set, folder or split.
    """
    from keras_mixer.data import open_source

    return open_source(
        options.data, split, data_dir=options.data_dir, corrupt=options.corrupt
    )


def add_labels(command: "Group") -> None:
    """Add `--labels`, which `read_labels` reads."""
    command.add_argument(
        "--labels", type=path_of, metavar="FILE", help="text file, one class per line"
    )


def read_labels(
    options: argparse.Namespace, model: "MLPMixer"
) -> tuple[str, ...] | None:
    """Return the class names in the file of `--labels`, or else those of the model.

    Raises:
        ValueError: If the number of names is not the number of classes.
    """
    from keras_mixer.labels import label_names
    from keras_mixer.models import find_mixer

    if not options.labels:
        return find_mixer(model).labels
    try:
        names = options.labels.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--labels must be a text file in UTF-8. Received: {str(options.labels)!r}"
        ) from error
    label_names(names, model.output_shape[-1])  # as many as there are classes
    return tuple(names)
