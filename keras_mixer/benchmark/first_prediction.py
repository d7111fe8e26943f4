"""How long a new process takes to its first prediction, phase by phase."""

import json
import subprocess
import sys
from pathlib import Path

from keras_mixer.benchmark.records import Case, FirstPrediction

_SCRIPT = Path(__file__).with_name("first_prediction_phases.py")


def first_prediction(case: Case, weights: str | None = None) -> FirstPrediction:
    """Time the phases from the start of a new process to its first prediction.

    The process has the environment of this one, so the same backend and, on JAX, the
    same cache of compiled programs (`JAX_COMPILATION_CACHE_DIR`): called twice, the
    second time shows what the cache saves.

    Args:
        case: The model, its dtype and the images per call; images have the model's own
            size.
        weights: As in the family's constructors; `None` for random ones.

    Raises:
        RuntimeError: If the process fails; the message is its last line.
    """
    words = case.variant, case.dtype, str(case.batch_size), weights or ""
    # -P: the script's folder must not stand before the standard library.
    result = subprocess.run(
        [sys.executable, "-P", str(_SCRIPT), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"The first prediction failed: {lines[-1]}")
    return FirstPrediction(case, json.loads(result.stdout.strip().splitlines()[-1]))
