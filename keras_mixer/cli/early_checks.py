"""Checks before Keras is imported: of names, paths, packages and the backend.

A call that is wrong on every machine raises a `UsageError` (exit status 2); a file or
package that this machine lacks an `OSError` or an `ImportError` (exit status 1).
"""

import argparse
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from keras_mixer.cli.messages import UsageError
from keras_mixer.variants import VARIANTS

WEIGHT_ENDINGS = (".npz", ".safetensors", ".weights.h5")

# Packages of the extras whose module has another name, and that name.
_MODULES = {
    "pillow": "PIL",
    "scikit-learn": "sklearn",
}
# Every backend of Keras, and the package it needs.
_BACKENDS = {
    "tensorflow": "tensorflow",
    "jax": "jax",
    "torch": "torch",
    "numpy": "numpy",
    "openvino": "openvino",
}
_DTYPES = re.compile(r"(mixed_)?(bfloat16|float16)|float32|float64")


def check_backend(*wanted: str) -> str:
    """Return the backend that Keras is going to take, if it is there.

    Args:
        *wanted: The backends that the command can use; none means all.

    Raises:
        UsageError: If `KERAS_BACKEND` names none, or none of the wanted ones.
        ImportError: If it is not installed.
    """
    name = backend()
    if name not in _BACKENDS:
        raise UsageError(
            "KERAS_BACKEND must be tensorflow, jax or torch. Received: "
            f"KERAS_BACKEND={name!r}"
        )
    if wanted and name not in wanted:
        raise UsageError(
            f"The command needs the backend {' or '.join(wanted)}: set KERAS_BACKEND="
            f"{wanted[0]}. Received: KERAS_BACKEND={name!r}"
        )
    if not is_installed(_BACKENDS[name]):
        raise ImportError(
            f"The backend {name} is not installed: pip install 'keras-mixer[{name}]', "
            "or set KERAS_BACKEND to the one you have."
        )
    return name


def backend() -> str:
    """Return what Keras reads: from its variable, from its file, or its default."""
    if name := os.environ.get("KERAS_BACKEND"):
        return name
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    try:
        config = json.loads((home / "keras.json").read_text(encoding="utf-8"))
        return str(config.get("backend", "tensorflow"))
    except (OSError, ValueError, AttributeError):
        return "tensorflow"


def is_installed(package: str) -> bool:
    """Whether there is a package, by its name on PyPI; it is not imported."""
    module = _MODULES.get(package) or package.replace("-", "_")
    return importlib.util.find_spec(module) is not None


def check_packages(what: str, extra: str, *packages: str) -> None:
    """Raise an `ImportError` unless the packages of an extra are installed.

    Args:
        what: What needs them, such as `"Drawing"`.
        extra: The extra of this package that has them.
        *packages: Their names on PyPI.
    """
    missing = [name for name in packages if not is_installed(name)]
    if missing:
        raise ImportError(
            f"{what} needs {' and '.join(missing)}: pip install 'keras-mixer[{extra}]'"
        )


def check_variant(name: str, flag: str = "--variant") -> None:
    """Raise a `UsageError` unless the family has the variant."""
    if name not in VARIANTS:
        raise UsageError(
            f"{flag} must be one of {', '.join(VARIANTS)}. Received: {name!r}"
        )


def check_weights(variant: str, weights: str, flag: str = "--weights") -> None:
    """Raise unless there is such a checkpoint, file or address, or it is `"none"`."""
    if weights == "none":
        return
    if weights.endswith(WEIGHT_ENDINGS):
        check_file(weights, flag)
    elif weights.startswith("hf://"):
        check_address(weights)
    else:
        from keras_mixer.checkpoints import find_checkpoint

        try:
            find_checkpoint(variant, weights)
        except ValueError as error:
            raise UsageError(str(error)) from error


def check_model(*, variant: str | None, weights: str | None, model: str | None) -> None:
    """Raise unless `--variant`, `--weights` and `--model` name what can be read."""
    if model is not None:
        check_model_source(model, "--model")
    if variant is not None:
        check_variant(variant)
    if weights is not None:
        check_weights(variant or "Ti/4", weights)
    check_backend()


def check_model_source(source: str, name: str) -> None:
    """Raise unless a whole model, or a file of weights, can be at `source`."""
    if source.startswith("hf://"):
        check_address(source)
        return
    path = Path(source)
    if source.endswith((*WEIGHT_ENDINGS, ".keras")):
        check_file(source, name)
    elif not path.exists():
        hint = ""
        if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", source):
            hint = f" If you mean a repository on the Hub: hf://{source}"
        raise FileNotFoundError(f"There is no file or folder {source!r}.{hint}")
    elif not path.is_dir():
        raise UsageError(
            f"{name} must be a folder of a published model, hf://owner/name, or end in "
            f"{', '.join((*WEIGHT_ENDINGS, '.keras'))}. Received: {source!r}"
        )


def check_address(address: str) -> None:
    """Raise a `UsageError` unless it has the form hf://owner/name[@revision]."""
    from keras_mixer.checkpoints import parse_address

    try:
        parse_address(address)
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_repository(name: str) -> None:
    """Raise a `UsageError` unless it has the form owner/name."""
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII):
        raise UsageError(f"OWNER/NAME must be two names. Received: {name!r}")


def check_file(path: str | os.PathLike[str], name: str) -> None:
    """Raise unless there is a file that may be read.

    Args:
        path: Where it should be.
        name: The flag or the word that gave it.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{name} must be a file. {str(path)!r} is a folder.")
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r} ({name}).")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"The file {str(path)!r} ({name}) may not be read.")


def check_writable(
    path: str | os.PathLike[str], name: str, *, folder: bool = False
) -> None:
    """Raise unless a file, or a folder, can be written under its name.

    Args:
        path: What is to be written. Folders above it may be missing.
        name: The flag or the word that gave it.
        folder: Whether it is a folder.
    """
    if not str(path):
        raise UsageError(f"{name} must not be empty.")
    path = Path(path)
    if path.exists() and path.is_dir() != folder:
        kind = "a file" if folder else "a folder"
        raise FileExistsError(f"{str(path)!r} ({name}) is {kind}. Choose another name.")
    place = path if folder and path.exists() else path.absolute().parent
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(
            f"{str(path)!r} ({name}) cannot be written: {str(place)!r} is a file."
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{str(path)!r} ({name}) cannot be written: {str(place)!r} is read-only."
        )


def check_plot(path: Path | None, name: str = "--plot") -> None:
    """Raise unless a picture can be drawn there."""
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise UsageError(f"{name} must end in .png. Received: {str(path)!r}")
    check_packages("Drawing", "plot", "matplotlib", "pillow")
    check_writable(path, name)


def check_data(data: str, *, flag: str = "--data", data_dir: str | None = None) -> None:
    """Raise unless a data set or folder can be read on this machine.

    Args:
        data: A TFDS name, or a folder of pictures.
        flag: What gave it.
        data_dir: Folder of prepared TFDS data sets.
    """
    if not data:
        raise UsageError(f"{flag} must name a data set or a folder. Received: ''")
    path = Path(data)
    if path.is_file():
        raise NotADirectoryError(
            f"{flag} must be a data set of TFDS or a folder. {data!r} is a file."
        )
    if data.startswith(("/", "./", "../", "~")) and not path.is_dir():
        raise FileNotFoundError(f"There is no folder {data!r} ({flag}).")
    if data_dir is not None and not Path(data_dir).is_dir():
        raise FileNotFoundError(f"There is no folder {data_dir!r} (--data-dir).")
    pictures = ("pillow",) if path.is_dir() else ()
    check_packages(
        "Reading data", "data", "tensorflow", "tensorflow-datasets", *pictures
    )


def check_none_given(
    options: argparse.Namespace, beside: str, names: Sequence[str]
) -> None:
    """Raise a `UsageError` if a flag is given that would do nothing.

    Args:
        options: The parsed options.
        beside: What makes the flags useless, in words, such as `"with --input"`.
        names: Of these options.
    """
    given = [
        f"--{name.replace('_', '-')}"
        for name in names
        if getattr(options, name) != options.default_of(name)
    ]
    if given:
        raise UsageError(f"{', '.join(given)} cannot be used {beside}.")


def check_dtype(name: str | None, flag: str = "--dtype") -> None:
    """Raise a `UsageError` unless Keras has such a dtype policy of floats."""
    if name is not None and not _DTYPES.fullmatch(name):
        raise UsageError(
            f"{flag} must be float32, float64, float16, bfloat16, mixed_float16 or "
            f"mixed_bfloat16. Received: {name!r}"
        )
