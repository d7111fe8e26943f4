"""The command `plot`: what a model learned, or its training, in pictures."""

import argparse
import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from keras_mixer.cli.arguments import (
    Parser,
    add_command,
    add_model_options,
    check_chosen_model,
    chosen_model,
    epilog,
    integer,
    path_of,
)
from keras_mixer.cli.early_checks import check_backend, check_file, check_plot
from keras_mixer.cli.messages import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from keras_mixer.cli.arguments import Commands
    from keras_mixer.models import MLPMixer


def add(commands: "Commands") -> None:
    """Add the command and its kinds of pictures to the command line."""
    command = commands.add_parser(
        "plot",
        help="draw what a model learned, or its training",
        description="Draw what a model learned, or its training.",
        epilog=epilog(
            (
                "plot filters filters.png --variant B/16 --weights imagenet21k",
                "plot stem stem.png --model run/model.keras",
                "plot curves curves.png run/log.csv",
            )
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pictures: Commands = command.add_subparsers(
        dest="picture", required=True, metavar="PICTURE"
    )
    picture = add_command(
        pictures,
        "filters",
        _plot_filters,
        "draw the units of a token-mixing MLP",
        examples=(
            "plot filters filters.png --block 3",
            "plot filters filters.png --variant B/16 --weights gsam --count 128",
        ),
        check=_check_model_picture,
    )
    _add_picture_options(picture)
    picture.add_argument(
        "--block",
        type=integer(0),
        default=0,
        help="number of the block (default: first)",
    )
    picture = add_command(
        pictures,
        "stem",
        _plot_stem,
        "draw the linear embeddings of the patches",
        examples=("plot stem stem.png", "plot stem stem.png --model run/model.keras"),
        check=_check_model_picture,
    )
    _add_picture_options(picture)
    _add_evidence(pictures)
    picture = add_command(
        pictures,
        "curves",
        _plot_curves,
        "draw loss and accuracy of trainings",
        examples=(
            "plot curves curves.png run/log.csv",
            "plot curves both.png first/log.csv second/log.csv",
        ),
        check=_check_curves,
    )
    _add_png(picture)
    picture.add_argument(
        "logs",
        nargs="+",
        type=path_of,
        metavar="LOG",
        help="a log.csv of `finetune` or `pretrain`, or of Keras's CSVLogger",
    )


def _add_evidence(pictures: "Commands") -> None:
    picture = add_command(
        pictures,
        "evidence",
        _plot_evidence,
        "draw which parts of a picture speak for a class",
        examples=(
            "plot evidence evidence.png photo.jpg",
            "plot evidence evidence.png photo.jpg --class frog --method occlusion",
        ),
        check=_check_evidence,
        flags={"class_index": "--class", "image": "IMAGE"},
    )
    _add_png(picture)
    picture.add_argument("image", type=path_of, metavar="IMAGE", help="the photo")
    add_model_options(picture)
    picture.add_argument(
        "--class",
        dest="class_name",
        metavar="NAME",
        help="name or number of the class (default: the most probable one)",
    )
    picture.add_argument(
        "--method",
        choices=("exact", "occlusion"),
        default="exact",
        help="exact: the share of each patch in the logit; occlusion: what the logit "
        "loses without the patch (default: %(default)s)",
    )


def _add_png(picture: Parser) -> None:
    picture.add_argument(
        "target", type=path_of, metavar="PNG", help="the file to write"
    )


def _add_picture_options(picture: Parser) -> None:
    _add_png(picture)
    add_model_options(picture)
    picture.add_argument(
        "--count", type=integer(1), metavar="N", help="how many units (default: all)"
    )


def _check_model_picture(options: argparse.Namespace) -> None:
    check_plot(options.target, "PNG")
    check_chosen_model(options)


def _check_evidence(options: argparse.Namespace) -> None:
    check_file(options.image, "IMAGE")
    _check_model_picture(options)


def _check_curves(options: argparse.Namespace) -> None:
    check_plot(options.target, "PNG")
    for log in options.logs:
        check_file(log, "LOG")
    check_backend()


def _plot_filters(options: argparse.Namespace) -> None:
    from keras_mixer import visualize
    from keras_mixer.models import split_head

    model, _ = split_head(chosen_model(options))
    _save(
        visualize.token_mixing_filters(model, options.block, options.count),
        options.target,
    )


def _plot_stem(options: argparse.Namespace) -> None:
    from keras_mixer import visualize
    from keras_mixer.models import split_head

    model, _ = split_head(chosen_model(options))
    _save(visualize.stem_filters(model, options.count), options.target)


def _plot_evidence(options: argparse.Namespace) -> None:
    from keras_mixer import visualize

    model = chosen_model(options)
    figure = visualize.evidence_figure(
        model, options.image, _class_index(model, options.class_name), options.method
    )
    _save(figure, options.target)


def _class_index(model: "MLPMixer", name: str | None) -> int | None:
    """Return the number of a class that is given by its number or its name."""
    if name is None:
        return None
    if name.isdecimal():
        return int(name)
    from keras_mixer.labels import label_names
    from keras_mixer.models import find_mixer

    names = label_names(find_mixer(model).labels, model.output_shape[-1])
    found = [i for i, known in enumerate(names) if name in known]
    if len(found) != 1:
        near = difflib.get_close_matches(name, [known[1] for known in names])
        hint = f" Near names: {', '.join(near)}." if near else ""
        raise UsageError(
            f"--class must be one of the {len(names)} classes of the model, by name or "
            f"number. Received: {name!r}.{hint}"
        )
    return found[0]


def _plot_curves(options: argparse.Namespace) -> None:
    from keras_mixer import visualize

    histories = {str(path): visualize.read_log(path) for path in options.logs}
    _save(visualize.training_curves(histories), options.target)


def _save(figure: "Figure", path: Path) -> None:
    from keras_mixer import visualize

    visualize.save(figure, path)
    print(f"Written: {path}")
