"""The command line `keras-mixer`: arguments in, one clear sentence out on bad input."""

import argparse
import sys
from pathlib import Path


def main(arguments=None):
    """Run one command; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    # What a user can cause: wrong arguments, missing files or packages, no network.
    except (ValueError, OSError, ImportError) as error:
        print(f"keras-mixer {options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser():
    from keras_mixer import __version__

    parser = argparse.ArgumentParser(
        prog="keras-mixer", description="MLP-Mixer for Keras 3."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = _command(commands, "models", _models, "list the models and their weights")
    command.add_argument("--variant", help='only this one, for example "B/16"')

    command = _command(commands, "predict", _predict, "classify image files")
    command.add_argument(
        "images", nargs="+", metavar="IMAGE", help="a picture or a folder of them"
    )
    command.add_argument("--variant", default="Ti/4", help="default: %(default)s")
    command.add_argument(
        "--weights",
        default="cifar10",
        help="a checkpoint's name or a weight file (default: %(default)s)",
    )
    command.add_argument(
        "--model", type=Path, help="a saved .keras model, instead of --weights"
    )
    command.add_argument("--labels", type=Path, help="text file, one class per line")
    command.add_argument("--top", type=int, default=3, help="default: %(default)s")
    command.add_argument("--plot", type=Path, help="also draw the result to this PNG")

    command = _command(
        commands, "demo", _demo, "fine-tune the embedded checkpoint on digits, offline"
    )
    command.add_argument(
        "--output",
        type=Path,
        default=Path("keras-mixer-demo"),
        help="folder for the model and the pictures (default: %(default)s)",
    )
    return parser


def _command(commands, name, run, help):
    command = commands.add_parser(
        name, help=help, description=help[0].upper() + help[1:] + "."
    )
    command.set_defaults(run=run)
    return command


def _models(options):
    from rich.console import Console
    from rich.table import Table

    from keras_mixer.checkpoints import list_checkpoints
    from keras_mixer.variants import VARIANTS, count_params, parse_variant

    if options.variant:
        parse_variant(options.variant)
    console = Console()
    sizes = Table("model", "parameters", "image", "patch", "width", "blocks")
    weights = Table("model", "weights", "classes", "image", "origin", "top-1")
    for variant in [options.variant] if options.variant else VARIANTS:
        numbers = parse_variant(variant)
        params = count_params(
            patch_size=numbers.patch_size,
            hidden_dim=numbers.hidden_dim,
            num_blocks=numbers.num_blocks,
            tokens_mlp_dim=numbers.tokens_mlp_dim,
            channels_mlp_dim=numbers.channels_mlp_dim,
            input_shape=(numbers.image_size, numbers.image_size, 3),
            num_classes=1000,
        )
        sizes.add_row(
            f"Mixer-{variant}",
            f"{params:,}",
            str(numbers.image_size),
            str(numbers.patch_size),
            str(numbers.hidden_dim),
            str(numbers.num_blocks),
        )
        for checkpoint in list_checkpoints(variant):
            weights.add_row(
                f"Mixer-{variant}",
                checkpoint.name,
                str(checkpoint.num_classes),
                str(checkpoint.image_size),
                checkpoint.origin,
                checkpoint.accuracy,
            )
    console.print("Models (parameters with a head of 1000 classes)")
    console.print(sizes)
    console.print("Weights")
    console.print(weights)


def _predict(options):
    import keras

    from keras_mixer import family, visualize
    from keras_mixer.labels import decode_predictions
    from keras_mixer.model import MLPMixer
    from keras_mixer.preprocessing import list_images, preprocess

    files = []
    for path in map(Path, options.images):
        files += list_images(path) if path.is_dir() else [path]
    if options.model:
        model = keras.saving.load_model(options.model)
        if not isinstance(model, MLPMixer):
            raise ValueError(f"{options.model} is not a model of this package")
    else:
        constructors = family.CONSTRUCTORS
        if options.variant not in constructors:
            raise ValueError(
                f"--variant must be one of {', '.join(constructors)}. "
                f"Received: {options.variant!r}"
            )
        model = constructors[options.variant](weights=options.weights)
    labels = model.labels
    if options.labels:
        labels = options.labels.read_text(encoding="utf-8").splitlines()
    images = preprocess(files, model)
    predictions = decode_predictions(
        model.predict(images, verbose=0), labels, top=options.top
    )
    width = max(len(str(file)) for file in files)
    for file, classes in zip(files, predictions, strict=True):
        scores = ", ".join(f"{c.name} {c.score:.1%}" for c in classes)
        print(f"{str(file):<{width}}  {scores}")
    if options.plot:
        visualize.save(visualize.predictions(images, predictions), options.plot)
        print(f"Written: {options.plot}")


def _demo(options):
    from keras_mixer import demo

    demo.run(options.output)
