"""Checkpoints of a training run: all of its state in one file, whole or absent.

A checkpoint holds everything the next step depends on: the weights, the optimizer's
variables (its step count, averages and accumulators included), the states of the random
seeds, which Keras itself saves nowhere, and the step, from which the position in the
data follows. It is an `.npz`: every array lies in it with a checksum, so a damaged file
is known as such, and any backend on any number of devices reads it.
"""

import json
import os
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_mixer.files import atomic_write
from keras_mixer.host_values import host_value
from keras_mixer.layers import path_below_model

_NAME = re.compile(r"step-(\d{9})\.npz")
_INFO = "info"


@dataclass(frozen=True)
class Checkpoint:
    """One moment of a run.

    Attributes:
        step: Optimizer steps made so far.
        settings: What the run was asked to do, as in JSON.
        score: Validation score, larger is better; `None` where it was not measured.
        arrays: State of the model and its optimizer, as `state_of` gives it.
        path: The file.
    """

    step: int
    settings: dict
    score: float | None
    arrays: dict
    path: Path


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

    def __init__(self, folder, *, keep=2):
        if keep < 1:
            raise ValueError(f"`keep` must be at least 1. Received: keep={keep}")
        self.folder = Path(folder)
        self.keep = keep

    @property
    def paths(self):
        """The files by their names alone, oldest first; none of them is opened."""
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if _NAME.fullmatch(p.name))

    def write(self, step, arrays, *, settings, score=None):
        """Write one checkpoint, then remove what need not be kept.

        Returns:
            Its path.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:09d}.npz"
        info = json.dumps({"step": step, "settings": settings, "score": score})
        with atomic_write(path) as file:
            np.savez(file, **{_INFO: np.array(info)}, **arrays)
        _sync_folder(self.folder)
        self._remove_older()
        return path

    def latest(self):
        """Return the newest `Checkpoint` that is whole, or `None` without any.

        A damaged file is passed over with a warning.
        """
        for path in reversed(self.paths):
            try:
                return read_checkpoint(path)
            except Exception as error:  # a damaged file can raise anything
                warnings.warn(
                    f"The checkpoint {path} is damaged and passed over: "
                    f"{str(error) or type(error).__name__}",
                    stacklevel=2,
                )
        return None

    def best(self):
        """Return the path with the highest score, the newest of equals, or `None`."""
        scores = {path: _score(path) for path in self.paths}
        scores = {path: score for path, score in scores.items() if score is not None}
        return max(scores, key=lambda path: (scores[path], path), default=None)

    def remove_after(self, step):
        """Remove the files of later steps: a run that goes on from `step` has none."""
        for path in self.paths:
            if int(_NAME.fullmatch(path.name)[1]) > step:
                path.unlink()

    def _remove_older(self):
        kept = {*self.paths[-self.keep :], self.best()}
        for path in set(self.paths) - kept:
            path.unlink()
        # What killed runs left half-written.
        for path in self.folder.glob(".step-*.npz.*.tmp"):
            path.unlink(missing_ok=True)


def read_checkpoint(path):
    """Return the `Checkpoint` in a file, all checksums compared.

    Raises:
        Exception: Of any kind, if the file is damaged or not a checkpoint.
    """
    with open(path, "rb") as file:
        if damaged := zipfile.ZipFile(file).testzip():
            raise ValueError(f"the checksum of {damaged} is wrong")
        file.seek(0)
        arrays = dict(np.load(file, allow_pickle=False))
    info = json.loads(str(arrays.pop(_INFO)))
    return Checkpoint(**info, arrays=arrays, path=path)


def state_of(model):
    """Return the state of a compiled model as arrays, bfloat16 as float32 (exact).

    Weights go by their paths. Seeds and optimizer variables go by their order: Keras
    numbers their names by what was built before in the same process.

    Where processes share one model, all of them must call this.
    """
    return {name: _to_numpy(value) for name, value in _variables(model).items()}


def restore(model, arrays):
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


def seed_states(model):
    """Return the variables of the model's random seeds, in the order of its layers."""
    weights = {id(weight) for weight in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


def first_not_finite(arrays):
    """Return the name of the first array that holds a NaN or an infinity, or `None`."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return name
    return None


def _variables(model):
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


def _to_numpy(variable):
    array = host_value(variable)
    if array.dtype.name == "bfloat16":
        array = array.astype("float32")
    # A copy: NumPy may see the very memory that the next step writes to.
    return np.array(array)


def _score(path):
    """Return the score in a file, `None` also for a damaged one."""
    try:
        with open(path, "rb") as file:
            return json.loads(str(np.load(file, allow_pickle=False)[_INFO]))["score"]
    except Exception:  # a damaged file can raise anything
        return None


def _sync_folder(folder):
    """Make a rename survive a power cut, where the system can sync a folder."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
