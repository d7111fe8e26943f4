"""The command `app`: the demo in the browser."""

import argparse
from typing import TYPE_CHECKING

from keras_mixer.cli.arguments import (
    add_command,
    add_model_options,
    check_chosen_model,
    integer,
)
from keras_mixer.cli.early_checks import check_packages
from keras_mixer.cli.messages import UsageError

if TYPE_CHECKING:
    from keras_mixer.cli.arguments import Commands


def add(commands: "Commands") -> None:
    """Add the command to the command line."""
    command = add_command(
        commands,
        "app",
        _app,
        "show a model in the browser: classes, evidence, filters",
        examples=(
            "app",
            "app --variant B/16 --weights imagenet1k",
            "app --model run/model.keras --port 8000",
        ),
        check=_check,
        flags={"source": "--model"},
    )
    add_model_options(command)
    command.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="number format of the computation (default: %(default)s)",
    )
    command.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 lets other machines in, which can choose "
        "only weights that have a name (default: %(default)s)",
    )
    command.add_argument(
        "--port",
        type=integer(0, 65535),
        default=7860,
        help="port to listen on; 0 for any free one (default: %(default)s)",
    )


def _check(options: argparse.Namespace) -> None:
    if options.weights == "none":
        raise UsageError("--weights must name weights: without them there is no demo.")
    check_chosen_model(options)
    check_packages("The demo", "app", "gradio", "matplotlib", "pillow")


def _app(options: argparse.Namespace) -> None:
    from keras_mixer.app import serve

    def ready(address: str) -> None:
        print(f"Open {address} in your browser. Ctrl+C ends it.", flush=True)

    serve(
        _source(options),
        host=options.host,
        port=options.port,
        precision=options.precision,
        ready=ready,
    )


def _source(options: argparse.Namespace) -> str:
    """Return the model as `app.serve` takes it: a name, a path or an address."""
    from keras_mixer.models import CONSTRUCTORS, list_models

    if options.model:
        return str(options.model)
    weights = options.weights or options.default_weights
    name = f"{CONSTRUCTORS[options.variant or 'Ti/4'].__name__}:{weights}"
    return name if name in list_models(pretrained=True) else str(weights)
