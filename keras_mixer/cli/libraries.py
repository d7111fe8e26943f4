"""The backend that is there, fewer log lines, no needless import, JAX's cache."""

import contextlib
import hashlib
import importlib.abc
import importlib.machinery
import logging
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from types import ModuleType

from keras_mixer.cli.early_checks import backend, is_installed
from keras_mixer.processor import cpu_field

# Variables of TensorFlow and of the C++ libraries in it. Whoever sets one of them wants
# to see something.
_LOG_LEVELS = {"TF_CPP_MIN_LOG_LEVEL": "3", "GRPC_VERBOSITY": "NONE"}


def use_installed_backend() -> None:
    """Let Keras take the only backend that is installed, if none was asked for.

    Keras would take TensorFlow, or what its own file says, also where it is missing.
    """
    if os.environ.get("KERAS_BACKEND"):
        return
    installed = [name for name in ("tensorflow", "jax", "torch") if is_installed(name)]
    if backend() not in installed and len(installed) == 1:
        os.environ["KERAS_BACKEND"] = installed[0]


def keep_quiet(*, owns_process: bool = False) -> None:
    """Silence the log lines of TensorFlow and absl, unless their variables are set.

    Errors still come as exceptions.

    Args:
        owns_process: Whether standard error may be redirected while TensorFlow is
            imported: no variable silences what it writes then.
    """
    if owns_process:
        # Pillow's name no file, and what it could not read is an error of its own.
        warnings.filterwarnings("ignore", module=r"PIL\.")
    if any(name in os.environ for name in ("TF_CPP_MIN_LOG_LEVEL", "TF_CPP_VMODULE")):
        return
    os.environ.update(_LOG_LEVELS)
    if owns_process:
        sys.meta_path.insert(0, _QuietTensorFlow())
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).addFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def keep_compiled_programs() -> None:
    """Let JAX keep what it compiles for the next process, unless its folder is set.

    In `keras_mixer/jax` of the folder for caches (`XDG_CACHE_HOME`, else `~/.cache`),
    at most 1 GiB for each kind of processor: its programs may not run on another. An
    empty `JAX_COMPILATION_CACHE_DIR` turns it off.
    """
    if backend() != "jax" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(caches, "keras_mixer", "jax", _processor())
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**30))
    # A small Mixer compiles in less than a second, JAX's default.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def _processor() -> str:
    """Return a name for what this machine's processor can do."""
    features = cpu_field("flags") or platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


def leave_out_tensorflow() -> None:
    """Let TensorFlow count as not installed, unless it is the backend.

    Keras imports it, five seconds long, to see whether an object that is saved is one
    of TensorFlow's. Not for a process that goes on with something else.
    """
    if backend() != "tensorflow":
        sys.meta_path.insert(0, _NoTensorFlow())


class _QuietTensorFlow(importlib.abc.MetaPathFinder):
    """Imports TensorFlow as always, without the lines that its C++ code writes."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "tensorflow":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _QuietLoader(spec.loader)
        return spec


class _QuietLoader(importlib.abc.Loader):
    """Another loader, with standard error kept back while it works."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with _error_output_kept():
            self._loader.exec_module(module)

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)


@contextlib.contextmanager
def _error_output_kept() -> Iterator[None]:
    """Throw away what is written to standard error, unless something fails."""
    try:
        sys.stderr.flush()
        before = os.dup(2)
    except (OSError, ValueError, AttributeError):  # there is no standard error
        yield
        return
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except Exception:  # Ctrl-C is no failure
            kept.seek(0)
            with open(before, "wb", buffering=0, closefd=False) as output:
                shutil.copyfileobj(kept, output)
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)


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
