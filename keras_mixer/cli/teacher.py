"""What `--teacher` names: a whole model, a checkpoint, or an exported file."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keras_mixer.cli.arguments import expanded
from keras_mixer.cli.early_checks import (
    check_file,
    check_model_source,
    check_packages,
    check_variant,
    check_weights,
)
from keras_mixer.cli.formats import exported_format
from keras_mixer.cli.messages import UsageError, in_flags
from keras_mixer.variants import VARIANTS

_FLAG = "--teacher"
# What the functions that read a teacher call what is in `--teacher`.
_ARGUMENTS = ("variant", "weights", "source", "path")


def check_teacher(name: str) -> None:
    """Raise unless there can be such a teacher.

    Raises:
        ImportError: If the package that reads an exported file is not installed.
        OSError: If there is no such file or folder.
        UsageError: If it names nothing that can teach.
    """
    variant, weights = _checkpoint(name)
    if weights:
        check_variant(variant, _FLAG)
        with _named_teacher(name):
            check_weights(variant, weights, _FLAG)
        if weights == "none":
            raise UsageError(f"{_FLAG} must have weights. Received: {name!r}")
    elif variant:
        raise UsageError(
            f"{_FLAG} must name the weights, too, such as {variant}:imagenet1k. "
            f"Received: {name!r}"
        )
    elif exported := exported_format(name):
        if exported.ending:
            check_file(name, _FLAG)
        check_packages("Reading the teacher", exported.extra, *exported.readers)
    else:
        check_model_source(name, _FLAG)


def teacher_argument(options: argparse.Namespace) -> dict[str, Any]:
    """Return the argument `teacher` of a recipe, nothing without `--teacher`."""
    name = options.teacher
    if name is None:
        return {}
    from keras_mixer import export, hub
    from keras_mixer.models import CONSTRUCTORS

    variant, weights = _checkpoint(name)
    with _named_teacher(name):
        if variant:
            return {"teacher": CONSTRUCTORS[variant](weights=weights)}
        if exported_format(name):
            return {"teacher": export.load(name)}
        return {"teacher": hub.read_model(name)}


@contextmanager
def _named_teacher(name: str) -> Iterator[None]:
    """Let errors about the teacher's weights or file name `--teacher`.

    The model that learns has flags of the same words.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if len(error.args) == 1 and isinstance(error.args[0], str):
            words = argparse.Namespace(flags=dict.fromkeys(_ARGUMENTS, _FLAG))
            sentence = in_flags(error.args[0], words)
            part = _checkpoint(name)[1]
            error.args = (sentence.replace(f"{_FLAG} {part!r}", f"{_FLAG} {name!r}"),)
        raise


def _checkpoint(name: str) -> tuple[str, str]:
    """Return the two parts of VARIANT:WEIGHTS; the first is empty for other names."""
    variant, _, weights = name.partition(":")
    if variant in VARIANTS and not Path(name).exists():
        return variant, expanded(weights)
    return "", ""
