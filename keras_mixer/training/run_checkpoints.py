"""Checkpoints of a training run: all of its state in one file, whole or absent.

A checkpoint holds everything the next step depends on: the weights, the optimizer's
variables (its step count, averages and accumulators included), the states of the random
seeds, which Keras itself saves nowhere, and the step, from which the position in the
data follows. It is an `.npz`: every array lies in it with a checksum, so a damaged file
is known as such, and any backend on any number of devices reads it.
"""

import errno
import json
import os
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from keras_mixer.files import atomic_write
from keras_mixer.host_values import host_value
from keras_mixer.layers import path_below_model
from keras_mixer.training.run_folder import disk_errors_name

Arrays = Mapping[str, NDArray[Any]]

_NAME = re.compile(r"step-(\d{9})\.npz")
_INFO = "info"
# What the readers of zip archives, arrays and JSON raise where the bytes are wrong.
_WRONG_BYTES = (
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class DamagedCheckpointError(ValueError):
    """The bytes of a checkpoint are not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """One moment of a run.

    Attributes:
        step: Optimizer steps made so far.
        settings: What the run was asked to do, as in JSON.
        score: Validation score, larger is better; `None` where it was not measured.
        arrays: State of the model and its optimizer, as `state_of` gives it.
        path: The file.
        history: The numbers of every checkpoint interval so far; `None` in files that
            have none.
    """

    step: int
    settings: dict[str, Any]
    score: float | None
    arrays: Arrays
    path: Path
    history: list[dict[str, float]] | None = None


class Checkpoints:
    """The checkpoints of one run in one folder: the last few, and the best.

    A file gets its name when it is complete and on disk, and older ones are removed
    only after that: there is a loadable checkpoint at every moment.

    Args:
        folder: Where they lie; made by the first `write`.
        keep: How many of the last to keep. Positive.

    Raises:
        ValueError: If `keep` is not positive.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"`keep` must be at least 1. Received: keep={keep}")
        self.folder = Path(folder)
        self.keep = keep
        self._scores: dict[Path, float | None] = {}

    @property
    def paths(self) -> list[Path]:
        """The files by their names alone, oldest first; none of them is opened."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if _NAME.fullmatch(p.name))

    def write(
        self,
        step: int,
        arrays: Arrays,
        *,
        settings: dict[str, Any],
        score: float | None = None,
        history: list[dict[str, float]] | None = None,
    ) -> Path:
        """Write one checkpoint, then remove what need not be kept.

        Returns:
            Its path.

        Raises:
            OSError: If it cannot be written; the others stay.
        """
        path = self.folder / f"step-{step:09d}.npz"
        info = {"step": step, "settings": settings, "score": score, "history": history}
        members = {_INFO: np.array(json.dumps(info)), **arrays}
        with disk_errors_name(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                np.savez(file, **members)  # type: ignore[arg-type]
            _sync_folder(self.folder)
        self._scores[path] = score
        self._remove_older()
        return path

    def latest(self) -> Checkpoint | None:
        """Return the newest `Checkpoint` that is whole, or `None` without any.

        A damaged file is passed over with a warning.

        Raises:
            ValueError: If there are files and all of them are damaged.
            OSError: If a file cannot be read: its contents may still be good.
        """
        paths = self.paths
        for path in reversed(paths):
            try:
                return read_checkpoint(path)
            except DamagedCheckpointError as error:
                warnings.warn(
                    f"The checkpoint {path} is damaged and passed over: {error}",
                    stacklevel=2,
                )
        if paths:
            raise ValueError(
                f"All checkpoints in {str(self.folder)!r} are damaged. To start anew, "
                "choose another folder or move them away."
            )
        return None

    def best(self) -> Path | None:
        """Return the path with the highest score, the newest of equals, or `None`.

        Raises:
            OSError: If a file cannot be read.
        """
        scores = {path: self._score(path) for path in self.paths}
        known = {path: score for path, score in scores.items() if score is not None}
        return max(known, key=lambda path: (known[path], path), default=None)

    def set_aside_after(self, step: int) -> None:
        """Rename the files of later steps: a run that goes on from `step` has none.

        They are damaged: otherwise `latest` would have returned one of them. A person
        may still find something in them, so they become `step-....npz.damaged`.
        """
        for path in self.paths:
            if _step(path) > step:
                aside = path.with_name(f"{path.name}.damaged")
                count = 1
                while aside.exists():
                    count += 1
                    aside = path.with_name(f"{path.name}.damaged-{count}")
                with disk_errors_name(path):
                    path.rename(aside)

    def _remove_older(self) -> None:
        paths = self.paths
        kept = set(paths[-self.keep :])
        try:
            kept.add(self.best() or paths[-1])
        except OSError:  # which one is the best cannot be known now: all stay
            kept.update(paths)
        for path in set(paths) - kept:
            path.unlink(missing_ok=True)
            self._scores.pop(path, None)
        # What killed runs left half-written.
        for path in self.folder.glob(".step-*.npz.*.tmp"):
            path.unlink(missing_ok=True)

    def _score(self, path: Path) -> float | None:
        """Return the score in a file, `None` also for a damaged one."""
        if path not in self._scores:
            try:
                with disk_errors_name(path), open(path, "rb") as file:
                    info = json.loads(str(np.load(file, allow_pickle=False)[_INFO]))
                self._scores[path] = info["score"]
            except _WRONG_BYTES:
                self._scores[path] = None
        return self._scores[path]


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the `Checkpoint` in a file, all checksums compared.

    Raises:
        DamagedCheckpointError: If the file is damaged or not a checkpoint.
        OSError: If the file cannot be read.
    """
    try:
        with disk_errors_name(path), open(path, "rb") as file:
            if damaged := zipfile.ZipFile(file).testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")
            file.seek(0)
            arrays = dict(np.load(file, allow_pickle=False))
        info = json.loads(str(arrays.pop(_INFO)))
        return Checkpoint(**info, arrays=arrays, path=path)
    except OSError as error:
        # Not from the disk: the archive points to a place before its own beginning.
        if error.errno != errno.EINVAL:
            raise
        raise DamagedCheckpointError("it points outside itself") from error
    except _WRONG_BYTES as error:
        raise DamagedCheckpointError(str(error) or type(error).__name__) from error


def state_of(model: keras.Model) -> dict[str, NDArray[Any]]:
    """Return the state of a compiled model as arrays, bfloat16 as float32 (exact).

    Weights go by their paths. Seeds and optimizer variables go by their order: Keras
    numbers their names by what was built before in the same process.

    Where processes share one model, all of them must call this.
    """
    return {name: _to_numpy(value) for name, value in _variables(model).items()}


def restore(model: keras.Model, arrays: Arrays) -> None:
    """Set the state of a compiled model to what `state_of` gave.

    Raises:
        ValueError: If the arrays are not those of this model and optimizer. Nothing is
            set then.
    """
    variables = _variables(model)
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    received = {name: array.shape for name, array in arrays.items()}
    if shapes != received:
        names = [
            name
            for name in sorted(shapes.keys() | received.keys())
            if shapes.get(name) != received.get(name)
        ]
        lines = [f"  {n}: {received.get(n)}, not {shapes.get(n)}" for n in names[:5]]
        raise ValueError(
            "The checkpoint is of another model or optimizer. Shapes in the file, and "
            "here:\n" + "\n".join(lines)
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])


def seed_states(model: keras.Model) -> list[keras.Variable]:
    """Return the variables of the model's random seeds, in the order of its layers."""
    weights = {id(weight) for weight in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


def first_not_finite(arrays: Arrays) -> str | None:
    """Return the name of the first array that holds a NaN or an infinity, or `None`."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return name
    return None


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    model.optimizer.build(model.trainable_variables)
    variables = {
        f"weights/{path_below_model(weight.path)}": weight for weight in model.weights
    }
    for group, members in (
        ("seeds", seed_states(model)),
        ("optimizer", model.optimizer.variables),
    ):
        variables |= {f"{group}/{i:04d}": value for i, value in enumerate(members)}
    return variables


def _to_numpy(variable: keras.Variable) -> NDArray[Any]:
    array = host_value(variable)
    if array.dtype.name == "bfloat16":
        array = array.astype("float32")
    # A copy: NumPy may see the very memory that the next step writes to.
    return np.array(array)


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can sync a folder."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
