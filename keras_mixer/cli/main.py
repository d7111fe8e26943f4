"""The command line `keras-mixer`: arguments in, an exit status out, never a traceback.

| exit status | what happened |
| --- | --- |
| 0 | done |
| 1 | failed, or partly failed |
| 2 | wrong usage: nothing was begun |
| 130 | interrupted |
"""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Sequence

from keras_mixer.cli import (
    app,
    benchmark,
    conversion,
    demo,
    evaluation,
    export,
    models,
    plot,
    predict,
    training,
)
from keras_mixer.cli.arguments import Parser, epilog
from keras_mixer.cli.interrupts import Interrupts
from keras_mixer.cli.libraries import (
    keep_compiled_programs,
    keep_quiet,
    leave_out_tensorflow,
    use_installed_backend,
)
from keras_mixer.cli.messages import (
    PROGRAM,
    UsageError,
    complain,
    in_flags,
    sentence_of,
)
from keras_mixer.files import reason_of

# Where this variable is set, errors are printed with their traceback, too.
_TRACEBACK = "KERAS_MIXER_TRACEBACK"
_INTERRUPTED = 130  # as shells report it
# In the words of JAX, TensorFlow and torch.
_OUT_OF_MEMORY = re.compile(
    r"RESOURCE_EXHAUSTED|OOM when allocating|out of memory|can't allocate memory",
    re.IGNORECASE,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status.

    Args:
        arguments: The words after the name of the program; `None` for those of the
            process, which then belongs to the command.
    """
    if arguments is None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    interrupts = None
    # The server of `app` ends in order, and has limits of its own.
    if arguments is None and options.command != "app":
        interrupts = Interrupts(lambda: _say_interrupted(options, []), _INTERRUPTED)
    try:
        return _run(options, owns_process=arguments is None)
    except BrokenPipeError:  # whoever read the output has seen enough
        _give_up_output()
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt) or (interrupts and interrupts.happened):
            notes = _notes_of(error, options)
            if interrupts is None:
                _say_interrupted(options, notes)
            else:
                interrupts.tell(lambda: _say_interrupted(options, notes))
            return _INTERRUPTED
        if os.environ.get(_TRACEBACK):
            traceback.print_exc()
        complain(options.command, _explained(error, options), _notes_of(error, options))
        return 2 if isinstance(error, UsageError) else 1


def parser() -> Parser:
    """Return the parser of all commands."""
    new = Parser(
        prog=PROGRAM,
        description="MLP-Mixer for Keras 3: models, weights, training, evaluation.",
        epilog=epilog(
            (
                "models",
                "predict photo.jpg",
                "finetune --data cifar10 --output run/",
            )
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    new.add_argument("--version", action=_Version)
    commands = new.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (
        models,
        predict,
        training,
        evaluation,
        export,
        plot,
        benchmark,
        conversion,
        demo,
        app,
    ):
        group.add(commands)
    return new


class _Version(argparse.Action):
    """Prints the version, which is looked up for nothing else."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(
            option_strings, argparse.SUPPRESS, nargs=0, help="print the version"
        )

    def __call__(self, parser: argparse.ArgumentParser, *others: object) -> None:
        from keras_mixer import __version__

        print(__version__)
        parser.exit()


def _run(options: argparse.Namespace, *, owns_process: bool) -> int:
    keep_quiet(owns_process=owns_process)
    if owns_process:
        use_installed_backend()
    options.check(options)
    if owns_process:
        keep_compiled_programs()
    if owns_process and not options.needs_tensorflow(options):
        leave_out_tensorflow()
    status = options.run(options)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError:
        _give_up_output()
        raise
    return status or 0


def _say_interrupted(options: argparse.Namespace, notes: list[str]) -> None:
    """Say so, and how to go on.

    Args:
        options: The parsed options of the command.
        notes: What the run itself said.
    """
    hint = " Run it again with --resume to go on." if "resume" in options else ""
    complain(options.command, "interrupted." + ("" if notes else hint), notes)


def _notes_of(error: BaseException, options: argparse.Namespace) -> list[str]:
    """Return the notes of an exception in the words of the command line."""
    return [in_flags(note, options) for note in getattr(error, "__notes__", [])]


def _explained(error: Exception, options: argparse.Namespace) -> str:
    """Return an exception as a sentence in the words of the command line."""
    sentence = sentence_of(error)
    # What a user can cause: wrong arguments, missing files or packages, no network, a
    # training that diverges.
    if isinstance(error, (ValueError, OSError, ImportError, FloatingPointError)):
        return in_flags(sentence, options)
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(sentence):
        return "The memory of this machine is too small. Try smaller batches or images."
    kind = type(error).__name__
    prefix = "" if isinstance(error, RuntimeError) else f"{kind}: "
    sentence = reason_of(sentence)  # a backend may print its whole graph
    return f"{prefix}{sentence} ({_TRACEBACK}=1 shows where it comes from.)"


def _give_up_output() -> None:
    """Keep Python from writing the rest of the output when it ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # no file: nothing is written to it either
        pass
