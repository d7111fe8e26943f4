"""What is said to a person: flags, not arguments, and no control characters."""

import argparse
import re
import sys
from collections.abc import Mapping

PROGRAM = "keras-mixer"


class UsageError(ValueError):
    """The command line itself is wrong, whatever lies on this machine."""


# Arguments of the package whose flag has another name. `total_steps` becomes
# `--total-steps` by itself where a command has such a flag.
_FLAGS = {
    "accumulation_steps": "--accumulation",
    "approximate_gelu": "--exact-gelu",
    "base_learning_rate": "--learning-rate",
    "base_learning_rates": "--grid",
    "block_index": "--block",
    "calibration_images": "--int8",
    "distillation_temperature": "--temperature",
    "dropout_rate": "--dropout",
    "ema_momentum": "--ema",
    "lora_rank": "--lora",
    "num_units": "--count",
    "output_dir": "--output",
    "overwrite": "--force",
    "real_labels": "--real",
    "stochastic_depth_rate": "--stochastic-depth",
    "total_steps": "--steps",
    "train_only": "--linear-probe",
    "use_best": "--best",
}

# Entries of the parsed options that are no flags.
_INTERNAL = {
    *("run", "check", "command", "flags", "needs_tensorflow", "picture"),
    *("default_of", "default_weights"),
}


def escaped(text: object) -> str:
    """Return a text on one line, without control characters or broken encodings."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii")
        for c in str(text)
    )


def in_flags(sentence: str, options: argparse.Namespace) -> str:
    """Return an error of the package as one of the command line.

    `` `total_steps` `` becomes `--steps`, `` `overwrite=True` `` becomes `--force`, and
    `total_steps=0` becomes `--steps 0`, for arguments that are flags of the command.

    Args:
        sentence: The message of an exception.
        options: The parsed options of the command; `options.flags` holds the names
            that only this command uses, such as `{"path": "TARGET"}`.
    """
    flags = _flags_of(options)
    names = "|".join(sorted(map(re.escape, flags), key=len, reverse=True))
    if not names:
        return sentence

    def quoted(match: re.Match[str]) -> str:
        value = match["value"] or ""
        if value in ("", "True", "None"):
            return flags[match["name"]]
        return f"{flags[match['name']]} {value.strip(chr(34))}"

    def received(match: re.Match[str]) -> str:
        return f"{flags[match['name']]} "

    # Some messages of the package add the flag, in parentheses: it would come twice.
    sentence = re.sub(r"(?<=`) \(`?--[^()]*\)", "", sentence)
    sentence = re.sub(rf"`(?P<name>{names})(=(?P<value>[^`]*))?`", quoted, sentence)
    return re.sub(rf"(?<![\w`.])(?P<name>{names})=(?=\S)", received, sentence)


def _flags_of(options: argparse.Namespace) -> Mapping[str, str]:
    """Return argument name -> flag, for the flags that the command has."""
    known = {name: f"--{name.replace('_', '-')}" for name in vars(options)}
    renamed = {
        name: flag
        for name, flag in _FLAGS.items()
        if name in known or flag.removeprefix("--").replace("-", "_") in known
    }
    plain = {name: flag for name, flag in known.items() if name not in _INTERNAL}
    return plain | renamed | getattr(options, "flags", {})


def sentence_of(error: BaseException) -> str:
    """Return what an exception says, never empty."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {str(error.filename)!r}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}."
    return str(error) or type(error).__name__


def complain(command: str, sentence: str, notes: list[str] | None = None) -> None:
    """Say on standard error what is wrong with, or in, a command."""
    text = "\n".join([sentence, *(notes or [])])
    lines = [escaped(line) for line in text.splitlines()] or [""]
    print("\n".join([f"{PROGRAM} {command}: {lines[0]}", *lines[1:]]), file=sys.stderr)
