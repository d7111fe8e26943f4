"""What the processes of one job must agree on before they train together."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_mixer.training.run_checkpoints import Checkpoint

_NONE, _FAILED = -1, -2
# Steps are added up in float32, in two parts that it holds exactly.
_BASE = 2**20


def agreed(find: Callable[[], Checkpoint | None], devices: Any) -> Checkpoint | None:
    """Return what `find` returns, if every process of the job found the same step.

    All processes must call this. A process that goes on from another step than the
    others, or from none, would train on other images with other weights.

    Args:
        find: Returns the checkpoint to go on from, `None` to start.
        devices: What `distribution.start` returned.

    Raises:
        RuntimeError: If the processes found different steps, or another one failed.
        Exception: What `find` raised.
    """
    index, count = devices.shard
    if count == 1:
        return find()
    checkpoint, failure = None, None
    try:
        checkpoint = find()
    except Exception as error:  # the others must learn of it before it is raised
        failure = error
    step = _FAILED if failure else _NONE if checkpoint is None else checkpoint.step
    own = np.zeros((count, 2), "float32")
    own[index] = divmod(step - _FAILED, _BASE)
    (parts,) = devices.add_up([own])
    steps = [int(high) * _BASE + int(low) + _FAILED for high, low in np.asarray(parts)]
    if failure is not None:
        raise failure
    if len(set(steps)) > 1:
        words = {_NONE: "no checkpoint", _FAILED: "an error, see its output"}
        found = ", ".join(
            f"process {i}: {words.get(step, f'step {step}')}"
            for i, step in enumerate(steps)
        )
        raise RuntimeError(
            "The processes of this job found different checkpoints to go on from. All "
            f"must see the same `output_dir`. Found: {found}"
        )
    return checkpoint
