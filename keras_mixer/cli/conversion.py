"""The commands `convert`, `verify` and `publish`: models as files and on the Hub."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_mixer.cli.arguments import (
    add_command,
    add_labels,
    expanded,
    integer,
    number,
    read_labels,
)
from keras_mixer.cli.early_checks import (
    check_address,
    check_backend,
    check_file,
    check_model_source,
    check_none_given,
    check_packages,
    check_repository,
    check_writable,
)
from keras_mixer.cli.messages import UsageError

if TYPE_CHECKING:
    from keras_mixer.cli.arguments import Commands, Group
    from keras_mixer.models import MLPMixer

_SOURCE = (
    "an official .npz, a timm .safetensors, a .weights.h5, a .keras, a folder of a "
    "published model, or hf://owner/name[@revision]"
)
_FILES = (".npz", ".safetensors", ".weights.h5", ".keras")
# What belongs to a model, not to a Space.
_NOT_FOR_SPACE = (
    *("timm", "tag", "licence", "dataset", "labels", "input_shape", "value_range"),
    "approximate_gelu",
)
# Endings of files: a target with one of them is not taken for a folder.
_NOT_WRITTEN = (".h5", ".npy", ".onnx", ".pt", ".pth")


def add(commands: "Commands") -> None:
    """Add the three commands to the command line."""
    _add_convert(commands)
    _add_verify(commands)
    _add_publish(commands)


def _add_convert(commands: "Commands") -> None:
    command = add_command(
        commands,
        "convert",
        _convert,
        "write a model or weights in another format",
        examples=(
            "convert Mixer-B_16.npz mixer-b16/",
            "convert model.safetensors model.keras --exact-gelu --value-range 0 1",
            "convert hf://owner/name Mixer-B_16.npz",
        ),
        check=_check_convert,
        flags={"source": "SOURCE", "target": "TARGET"},
    )
    command.add_argument("source", type=expanded, metavar="SOURCE", help=_SOURCE)
    command.add_argument(
        "target",
        type=expanded,
        metavar="TARGET",
        help="an official .npz, a timm .safetensors, a .weights.h5, a .keras, or else "
        "a folder",
    )
    _add_overrides(command)
    add_labels(command)
    command.add_argument("--force", action="store_true", help="replace TARGET")


def _add_verify(commands: "Commands") -> None:
    command = add_command(
        commands,
        "verify",
        _verify,
        "compare a model with the equations of the paper, computed in NumPy",
        examples=(
            "verify Mixer-B_16.npz",
            "verify mixer-b16/ --same-as Mixer-B_16.npz",
        ),
        check=_check_verify,
        flags={"source": "SOURCE"},
    )
    command.add_argument(
        "sources", nargs="+", type=expanded, metavar="SOURCE", help=_SOURCE
    )
    _add_overrides(command)
    command.add_argument(
        "--same-as",
        type=expanded,
        metavar="FILE",
        help="a weight file: SOURCE must have the same arrays, bit for bit",
    )


def _add_publish(commands: "Commands") -> None:
    command = add_command(
        commands,
        "publish",
        _publish,
        "verify a model and put it on the Hugging Face Hub",
        examples=(
            "publish mixer-b16/ owner/name",
            "publish run/model.keras owner/name --dataset cifar10 --dry-run folder/",
            "publish hf://owner/name --space owner/demo",
        ),
        check=_check_publish,
        flags={"source": "SOURCE", "repo_id": "OWNER/NAME"},
    )
    command.add_argument(
        "source", type=expanded, metavar="SOURCE", nargs="?", help=_SOURCE
    )
    command.add_argument(
        "repository", metavar="OWNER/NAME", nargs="?", help="created if missing"
    )
    command.add_argument(
        "--space",
        metavar="OWNER/NAME",
        help="publish the demo in the browser (see `keras-mixer app`) as this Space, "
        "with SOURCE, hf://owner/name, as its model (default: the embedded checkpoint)",
    )
    _add_overrides(command)
    add_labels(command)
    command.add_argument(
        "--private", action="store_true", help="only the owner can see it"
    )
    command.add_argument("--tag", help='a tag for the commit, such as "v1.0"')
    command.add_argument("--message", help="message of the commit")
    command.add_argument(
        "--licence",
        default="apache-2.0",
        help="licence of the weights (default: %(default)s)",
    )
    command.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="NAME",
        help="data set it was trained on, by its name on the Hub; may be repeated",
    )
    command.add_argument(
        "--timm",
        action="store_true",
        help="let timm read the repository, too: adds model.safetensors",
    )
    command.add_argument(
        "--dry-run",
        type=expanded,
        metavar="FOLDER",
        help="write the files there, send nothing",
    )


def _add_overrides(command: "Group") -> None:
    """Add what a file that holds only weights does not say of its model."""
    group = command.add_argument_group(
        "model settings", "Only for files that hold weights and nothing else."
    )
    group.add_argument(
        "--input-shape",
        nargs=3,
        type=integer(1),
        metavar=("H", "W", "C"),
        help="size of the images (default: square)",
    )
    gelu = group.add_mutually_exclusive_group()
    gelu.add_argument(
        "--exact-gelu",
        dest="approximate_gelu",
        action="store_false",
        default=None,
        help="the exact GELU, as in models trained in PyTorch (default for "
        ".safetensors)",
    )
    gelu.add_argument(
        "--tanh-gelu",
        dest="approximate_gelu",
        action="store_true",
        default=None,
        help="the tanh approximation of GELU, as in the official code (default for the "
        "other files)",
    )
    group.add_argument(
        "--value-range",
        nargs=2,
        type=number(),
        action="append",
        metavar=("LO", "HI"),
        help="what the pixel values 0 and 255 become (default: -1 1); may be repeated, "
        "once for each channel",
    )


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `read_model` that the options give."""
    return {
        "input_shape": options.input_shape and tuple(options.input_shape),
        "approximate_gelu": options.approximate_gelu,
        "value_range": options.value_range and tuple(map(tuple, options.value_range)),
    }


def _as_options(overrides: dict[str, Any]) -> str:
    """Return arguments of `read_model` as flags of the command line."""
    words = []
    for name, value in overrides.items():
        if name == "approximate_gelu":
            words.append("--tanh-gelu" if value else "--exact-gelu")
            continue
        several = value if isinstance(value[0], tuple) else (value,)  # of each channel
        for numbers in several:
            words.append(f"--{name.replace('_', '-')}")
            words += [f"{each:.12g}" for each in numbers]
    return " ".join(words)


def _check_read(options: argparse.Namespace, source: str) -> None:
    check_model_source(source, "SOURCE")
    for low, high in options.value_range or ():
        if not low < high:
            raise UsageError(
                "--value-range must be two numbers, the lower one first. "
                f"Received: {low:g} {high:g}"
            )
    if getattr(options, "labels", None):
        check_file(options.labels, "--labels")


def _check_convert(options: argparse.Namespace) -> None:
    target, path = options.target, Path(options.target)
    if target.endswith(_NOT_WRITTEN) and not target.endswith(_FILES):
        raise UsageError(
            "TARGET must end in .npz, .safetensors, .weights.h5 or .keras, or be a "
            "folder. "
            f"Received: {target!r}"
        )
    check_writable(target, "TARGET", folder=not target.endswith(_FILES))
    taken = any(path.iterdir()) if path.is_dir() else path.exists()
    if taken and not options.force:
        raise FileExistsError(
            f"{target!r} exists. Choose another name, or replace it with --force."
        )
    _check_read(options, options.source)
    check_backend()


def _check_verify(options: argparse.Namespace) -> None:
    for source in options.sources:
        _check_read(options, source)
    if options.same_as:
        check_file(options.same_as, "--same-as")
    check_backend()


def _check_publish(options: argparse.Namespace) -> None:
    if options.space is not None:
        _check_space(options)
        return
    if options.source is None or options.repository is None:
        raise UsageError(
            "SOURCE and OWNER/NAME are needed: what to publish, and where; or --space "
            "OWNER/NAME for the demo."
        )
    check_repository(options.repository)
    if options.dry_run is not None:
        check_writable(options.dry_run, "--dry-run", folder=True)
    _check_read(options, options.source)
    check_backend()
    if options.dry_run is None:
        _check_token()


def _check_space(options: argparse.Namespace) -> None:
    check_repository(options.space)
    if options.repository is not None:
        raise UsageError(
            "OWNER/NAME is given by --space: leave it out here. Received: "
            f"{options.repository!r}"
        )
    if options.source is not None:
        if not options.source.startswith("hf://"):
            raise UsageError(
                "SOURCE must be hf://owner/name with --space: a Space reads no files "
                f"of this machine. Received: {options.source!r}"
            )
        check_address(options.source)
    check_none_given(options, "with --space: it holds no weights", _NOT_FOR_SPACE)
    if options.dry_run is not None:
        check_writable(options.dry_run, "--dry-run", folder=True)
    check_packages("A Space", "app", "gradio")
    check_backend()
    if options.dry_run is None:
        _check_token()


def _check_token() -> None:
    from huggingface_hub import get_token

    if not get_token():
        raise PermissionError(
            "Publishing needs a token of the Hub with the right to write. Log in with "
            "`hf auth login`, or set HF_TOKEN. (--dry-run FOLDER needs none.)"
        )


def _convert(options: argparse.Namespace) -> None:
    from keras_mixer.hub import check_target, reading_arguments, write_model

    check_target(options.target, overwrite=options.force)
    model = _read_source(options)
    write_model(model, options.target, overwrite=options.force)
    print(f"Written: {options.target}")
    if overrides := reading_arguments(model, options.target):
        print(f"It holds only weights: read it with {_as_options(overrides)}")


def _read_source(options: argparse.Namespace) -> "MLPMixer":
    from keras_mixer.hub import read_model

    model = read_model(options.source, **_overrides(options))
    model.labels = read_labels(options, model)
    return model


def _verify(options: argparse.Namespace) -> None:
    from keras_mixer.hub import verify

    for i, source in enumerate(options.sources):
        report = verify(source, same_as=options.same_as, **_overrides(options))
        print(f"\n{report}" if i else report)


def _publish(options: argparse.Namespace) -> None:
    from keras_mixer.hub import push_to_hub, verify, write_folder

    if options.space is not None:
        _publish_space(options)
        return
    model = _read_source(options)
    print(verify(model))
    facts: dict[str, Any] = {
        "timm": options.timm,
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


def _publish_space(options: argparse.Namespace) -> None:
    from keras_mixer.hub import push_space, write_space

    source = {} if options.source is None else {"source": options.source}
    if options.dry_run:
        write_space(options.dry_run, options.space, **source)
        print(f"Written, nothing sent: {options.dry_run}")
        return
    commit = push_space(
        options.space,
        private=options.private or None,
        commit_message=options.message,
        **source,
    )
    print(f"Published: the Space {options.space}, {commit}")
