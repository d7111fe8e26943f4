"""What several commands share: how a command, a model and a data set are asked for."""


def add_command(commands, name, run, help):
    """Add a subcommand whose description is its help, as a sentence."""
    command = commands.add_parser(
        name, help=help, description=help[0].upper() + help[1:] + "."
    )
    command.set_defaults(run=run)
    return command


def add_model_options(command):
    """Add the options that `chosen_model` reads."""
    command.add_argument("--variant", default="Ti/4", help="default: %(default)s")
    command.add_argument(
        "--weights",
        default="cifar10",
        help="a checkpoint's name, a weight file or none (default: %(default)s)",
    )
    command.add_argument(
        "--model",
        help="a whole model instead of --weights: a saved .keras, a folder of a "
        "published model, or hf://owner/name[@revision]",
    )


def chosen_model(options, **arguments):
    """Return the model that `--model`, or else `--variant` and `--weights`, name.

    Args:
        options: Parsed options of `add_model_options`.
        **arguments: Arguments of the family's constructors, such as `num_classes`; only
            without `--model`.

    Raises:
        ValueError: If there is no such variant or the weights do not fit.
    """
    from keras_mixer.hub import read_model
    from keras_mixer.models import CONSTRUCTORS

    if options.model:
        return read_model(options.model)
    if options.variant not in CONSTRUCTORS:
        raise ValueError(
            f"--variant must be one of {', '.join(CONSTRUCTORS)}. "
            f"Received: {options.variant!r}"
        )
    weights = None if options.weights == "none" else options.weights
    return CONSTRUCTORS[options.variant](weights=weights, **arguments)


def add_data_options(command, *, split, validation_split=None):
    """Add the options that `opened_source` reads.

    Args:
        command: A command of `add_command`.
        split: Default of `--split`.
        validation_split: Default of `--validation-split`; `None` for a command that
            reads one split only.
    """
    group = command.add_argument_group("data")
    group.add_argument(
        "--data",
        required=True,
        metavar="NAME_OR_FOLDER",
        help="a data set of TFDS, such as cifar10, or a folder with a folder of "
        "pictures per class",
    )
    group.add_argument(
        "--data-dir",
        metavar="FOLDER",
        help="where prepared TFDS data sets lie (default: that of TFDS)",
    )
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
            help="what the accuracy is measured on, or none (default: %(default)s)",
        )
    group.add_argument(
        "--corrupt",
        choices=("raise", "skip", "trust"),
        default="raise",
        help="files of a folder that cannot be decoded are an error, are counted and "
        "left out, or are not looked for beforehand (default: %(default)s)",
    )


def opened_source(options, split):
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
