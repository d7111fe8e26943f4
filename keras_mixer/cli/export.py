"""The command `export`: a model for other runtimes."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from keras_mixer.cli.arguments import (
    add_command,
    add_data_dir,
    add_model_options,
    check_chosen_model,
    chosen_model,
    expanded,
    integer,
)
from keras_mixer.cli.early_checks import (
    check_backend,
    check_data,
    check_packages,
    check_writable,
)
from keras_mixer.cli.formats import FORMATS, PRECISIONS
from keras_mixer.cli.messages import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from keras_mixer.cli.arguments import Commands
    from keras_mixer.models import MLPMixer

_INT8 = ("onnx", "openvino")
_NOT_BESIDE_INT8 = (("float16", "onnx"),)


def add(commands: "Commands") -> None:
    """Add the command to the command line."""
    command = add_command(
        commands,
        "export",
        _export,
        "write a model for another runtime, and check it",
        examples=(
            "export model.tflite --model run/model.keras",
            "export half.xml --precision bfloat16",
            "export fast.xml --int8 pictures/train/",
        ),
        check=_check,
        needs_tensorflow=_needs_tensorflow,
        flags={"path": "TARGET", "name": "--int8", "folder": "--int8"},
    )
    command.add_argument(
        "target",
        type=expanded,
        metavar="TARGET",
        help="ends in .onnx, .xml (OpenVINO), .tflite (LiteRT) or .pt2 (torch); with "
        "no ending the folder of a SavedModel",
    )
    add_model_options(command)
    command.add_argument(
        "--format", choices=FORMATS, help="default: by the ending of TARGET"
    )
    command.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="number format of the computation; .onnx has no bfloat16, .tflite only "
        "float32 (default: %(default)s)",
    )
    command.add_argument("--force", action="store_true", help="replace TARGET")
    group = command.add_argument_group("int8, for .onnx and .xml")
    group.add_argument(
        "--int8",
        type=expanded,
        metavar="NAME_OR_FOLDER",
        help="write int8, calibrated with training images: a folder of pictures, or a "
        "data set of TFDS, such as cifar10",
    )
    group.add_argument(
        "--count",
        type=integer(2),
        default=300,
        metavar="N",
        help="how many images, spread over the folder (default: %(default)s)",
    )
    group.add_argument(
        "--split",
        default="train",
        help="split of the data set (default: %(default)s)",
    )
    add_data_dir(group)


def _check(options: argparse.Namespace) -> None:
    name = _chosen_format(options)
    chosen = FORMATS[name]
    if options.int8 is not None and name not in _INT8:
        raise UsageError(
            f"--int8 is for .onnx and .xml. Received: the format {name} of "
            f"{options.target!r}"
        )
    if options.precision not in chosen.precisions:
        raise UsageError(
            f"--precision must be {' or '.join(chosen.precisions)} for {name}. "
            f"Received: {options.precision}"
        )
    if options.int8 is not None and (options.precision, name) in _NOT_BESIDE_INT8:
        raise UsageError(
            f"--precision must be float32 beside --int8, except for .xml. Received: "
            f"{options.precision}"
        )
    backend = check_backend()
    if backend not in chosen.backends:
        raise UsageError(
            f"The backend {backend} cannot write {name}. Set "
            f"KERAS_BACKEND={chosen.backends[0]}, or choose another ending."
        )
    check_packages(f"Writing {name}", chosen.extra, *chosen.packages)
    check_writable(options.target, "TARGET", folder=not chosen.ending)
    path = Path(options.target)
    taken = any(path.iterdir()) if path.is_dir() else path.exists()
    if taken and not options.force:
        raise FileExistsError(
            f"{options.target!r} exists. Choose another name, or replace it with "
            "--force."
        )
    if options.int8 is not None:
        if Path(options.int8).is_dir():
            check_packages("Reading pictures", "plot", "pillow")
        else:
            check_data(options.int8, flag="--int8", data_dir=options.data_dir)
    check_chosen_model(options)


def _chosen_format(options: argparse.Namespace) -> str:
    """Return the format: the one that is asked for, or that of the ending."""
    suffix = Path(options.target).suffix
    if options.format is None:
        for name, entry in FORMATS.items():
            if entry.ending == suffix:
                return name
        raise UsageError(
            "TARGET must end in one of .onnx, .xml, .tflite, .pt2, or in nothing for "
            f"the folder of a SavedModel; or give --format. Received: "
            f"{options.target!r}"
        )
    ending = FORMATS[options.format].ending
    if ending and ending != suffix:
        raise UsageError(
            f"TARGET must end in {ending} for --format {options.format}. "
            f"Received: {options.target!r}"
        )
    return str(options.format)


def _needs_tensorflow(options: argparse.Namespace) -> bool:
    tfds = options.int8 is not None and not Path(options.int8).is_dir()
    return tfds or "tensorflow" in FORMATS[_chosen_format(options)].packages


def _export(options: argparse.Namespace) -> None:
    from keras_mixer.export import export

    model = chosen_model(options)
    difference = export(
        model,
        options.target,
        format=options.format,
        precision=options.precision,
        calibration_images=_calibration_images(options, model),
        overwrite=options.force,
    )
    print(
        f"Written: {options.target} (relative difference from the model: "
        f"{difference:.1e})"
    )


def _calibration_images(
    options: argparse.Namespace, model: "MLPMixer"
) -> "NDArray[np.float32] | None":
    from keras_mixer.export import calibration_images

    if options.int8 is None:
        return None
    return calibration_images(
        model,
        options.int8,
        count=options.count,
        split=options.split,
        data_dir=options.data_dir,
    )
