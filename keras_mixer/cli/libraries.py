"""What other libraries do unasked: lines of a log, and TensorFlow where it is idle."""

import importlib.abc
import importlib.machinery
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from keras_mixer.cli.early_checks import backend

# Variables of TensorFlow and of the C++ libraries in it. Whoever sets one of them wants
# to see something.
_LOG_LEVELS = {"TF_CPP_MIN_LOG_LEVEL": "3", "GRPC_VERBOSITY": "NONE"}


def keep_quiet() -> None:
    """Silence the log lines of TensorFlow and absl, unless their variables are set.

    Errors still come as exceptions.
    """
    if any(name in os.environ for name in ("TF_CPP_MIN_LOG_LEVEL", "TF_CPP_VMODULE")):
        return
    os.environ.update(_LOG_LEVELS)
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).addFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def leave_out_tensorflow() -> None:
    """Let TensorFlow count as not installed in this process, unless it computes.

    Keras imports it, five seconds long, to see whether an object that is saved is one
    of TensorFlow's. Not for a process that goes on with something else.
    """
    if backend() != "tensorflow":
        sys.meta_path.insert(0, _NoTensorFlow())


class _NoTensorFlow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Fails to import TensorFlow; whether it is there can still be asked."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "tensorflow":
            return None
        return importlib.machinery.ModuleSpec(name, self)

    def exec_module(self, module: ModuleType) -> None:
        raise ImportError("This command works without TensorFlow.")
