"""The command line `keras-mixer`: arguments in, one clear sentence out on bad input."""

import argparse
import sys
from pathlib import Path

from keras_mixer.cli import (
    benchmark,
    evaluation,
    export,
    training,
)
from keras_mixer.cli.arguments import add_command, add_model_options, chosen_model


def main(arguments=None):
    """Run one command; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    # What a user can cause: wrong arguments, missing files or packages, no network, a
    # training that diverges.
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        _complain(options.command, str(error), error)
        return 1
    except KeyboardInterrupt as interruption:
        _complain(options.command, "interrupted", interruption)
        return 130  # as shells report it
    return 0


def _complain(command, sentence, error):
    notes = getattr(error, "__notes__", ())
    print("\n".join([f"keras-mixer {command}: {sentence}", *notes]), file=sys.stderr)


def _parser():
    from keras_mixer import __version__

    parser = argparse.ArgumentParser(
        prog="keras-mixer", description="MLP-Mixer for Keras 3."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = add_command(
        commands, "models", _models, "list the models and their weights"
    )
    command.add_argument("--variant", help='only this one, for example "B/16"')

    command = add_command(commands, "predict", _predict, "classify image files")
    command.add_argument(
        "images", nargs="+", metavar="IMAGE", help="a picture or a folder of them"
    )
    add_model_options(command)
    _add_labels(command)
    command.add_argument("--top", type=int, default=3, help="default: %(default)s")
    command.add_argument("--plot", type=Path, help="also draw the result to this PNG")

    training.add(commands)
    evaluation.add(commands)
    export.add(commands)
    benchmark.add(commands)

    command = add_command(
        commands, "convert", _convert, "write a model or weights in another format"
    )
    command.add_argument("source", metavar="SOURCE", help=_SOURCE)
    command.add_argument(
        "target",
        metavar="TARGET",
        help="an official .npz, a .weights.h5, a .keras, or else a folder",
    )
    _add_told(command)
    _add_labels(command)
    command.add_argument("--force", action="store_true", help="replace TARGET")

    command = add_command(
        commands, "verify", _verify, "check a model against the paper, in NumPy"
    )
    command.add_argument("sources", nargs="+", metavar="SOURCE", help=_SOURCE)
    _add_told(command)
    command.add_argument(
        "--same-as",
        metavar="FILE",
        help="a weight file whose arrays must be there, bit for bit",
    )

    command = add_command(
        commands,
        "publish",
        _publish,
        "verify a model and put it on the Hugging Face Hub",
    )
    command.add_argument("source", metavar="SOURCE", help=_SOURCE)
    command.add_argument("repository", metavar="OWNER/NAME", help="made if missing")
    _add_told(command)
    _add_labels(command)
    command.add_argument(
        "--private", action="store_true", help="only the owner can see it"
    )
    command.add_argument("--tag", help='a tag for the commit, such as "v1.0"')
    command.add_argument("--message", help="of the commit")
    command.add_argument(
        "--licence", default="apache-2.0", help="of the weights (default: %(default)s)"
    )
    command.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME",
        help="what it was trained on, by its name on the Hub; may be repeated",
    )
    command.add_argument(
        "--dry-run", metavar="FOLDER", help="write the files there, send nothing"
    )

    command = add_command(
        commands, "demo", _demo, "fine-tune the embedded checkpoint on digits, offline"
    )
    command.add_argument(
        "--output",
        type=Path,
        default=Path("keras-mixer-demo"),
        help="folder for the model and the pictures (default: %(default)s)",
    )
    return parser


_SOURCE = (
    "an official .npz, a timm .safetensors, a .weights.h5, a .keras, a folder of a "
    "published model, or hf://owner/name[@revision]"
)


def _add_told(command):
    """Add what a file of weights alone does not tell."""
    group = command.add_argument_group("what a file of weights alone does not tell")
    group.add_argument(
        "--input-shape",
        nargs=3,
        type=int,
        metavar=("H", "W", "C"),
        help="of the images (default: square)",
    )
    gelu = group.add_mutually_exclusive_group()
    gelu.add_argument(
        "--exact-gelu",
        dest="approximate_gelu",
        action="store_false",
        default=None,
        help="of models trained in PyTorch (default for .safetensors)",
    )
    gelu.add_argument(
        "--tanh-gelu",
        dest="approximate_gelu",
        action="store_true",
        default=None,
        help="of the official code (default for the others)",
    )
    group.add_argument(
        "--value-range",
        nargs=2,
        type=float,
        metavar=("LO", "HI"),
        help="what the pixel values 0 and 255 become (default: -1 1)",
    )


def _add_labels(command):
    command.add_argument("--labels", type=Path, help="text file, one class per line")


def _read_labels(options, model):
    """Return the names of the classes that are given, or else those of the model."""
    from keras_mixer.labels import label_names

    if not options.labels:
        return model.labels
    names = options.labels.read_text(encoding="utf-8").splitlines()
    label_names(names, model.output_shape[-1])  # as many as there are classes
    return tuple(names)


def _read_source(options):
    """Return the model of SOURCE, with all that is told of it."""
    from keras_mixer.hub import read_model

    model = read_model(options.source, **_told(options))
    model.labels = _read_labels(options, model)
    return model


def _told(options):
    return {
        "input_shape": options.input_shape and tuple(options.input_shape),
        "approximate_gelu": options.approximate_gelu,
        "value_range": options.value_range and tuple(options.value_range),
    }


def _as_options(told):
    words = []
    for name, value in told.items():
        if name == "approximate_gelu":
            words.append("--tanh-gelu" if value else "--exact-gelu")
        else:
            words += [
                f"--{name.replace('_', '-')}",
                *(f"{number:g}" for number in value),
            ]
    return " ".join(words)


def _models(options):
    from rich.console import Console
    from rich.table import Table

    from keras_mixer.checkpoints import list_checkpoints
    from keras_mixer.variants import VARIANTS, count_params, parse_variant

    console = Console()
    sizes = Table("model", "parameters", "image", "patch", "width", "blocks")
    weights = Table("model", "weights", "classes", "image", "origin", "top-1")
    for variant in [options.variant] if options.variant else VARIANTS:
        numbers = parse_variant(variant)
        params = count_params(
            **numbers.sizes, input_shape=numbers.image_shape, num_classes=1000
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
    from keras_mixer import visualize
    from keras_mixer.labels import decode_predictions
    from keras_mixer.preprocessing import list_images, preprocess

    files = []
    for path in map(Path, options.images):
        files += list_images(path) if path.is_dir() else [path]
    model = chosen_model(options)
    labels = _read_labels(options, model)
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


def _convert(options):
    from keras_mixer.hub import check_target, reading_arguments, write_model

    check_target(options.target, overwrite=options.force)
    model = _read_source(options)
    write_model(model, options.target, overwrite=options.force)
    print(f"Written: {options.target}")
    if told := reading_arguments(model, options.target):
        print(f"It holds weights alone: read it with {_as_options(told)}")


def _verify(options):
    from keras_mixer.hub import verify

    for i, source in enumerate(options.sources):
        report = verify(source, same_as=options.same_as, **_told(options))
        print(f"\n{report}" if i else report)


def _publish(options):
    from keras_mixer.hub import push_to_hub, verify, write_folder

    model = _read_source(options)
    print(verify(model))
    facts = {
        "licence": options.licence,
        "datasets": options.dataset,
        "provenance": {
            "verification": "`keras-mixer verify`, against NumPy in float64"
        },
    }
    if options.dry_run:
        write_folder(model, options.dry_run, repo_id=options.repository, **facts)
        print(f"Written, nothing sent: {options.dry_run}")
        return
    commit = push_to_hub(
        model,
        options.repository,
        private=options.private or None,
        tag=options.tag,
        commit_message=options.message,
        **facts,
    )
    print(f"Published: hf://{options.repository}@{commit}")


def _demo(options):
    from keras_mixer.cli import demo

    demo.run(options.output)
