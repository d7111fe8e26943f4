"""One measurement of `gpu_table.py`, in a process of its own.

    python gpu_cell.py '{"contender": "flax", "variant": "S/16", ...}'

Builds and compiles, says `ready`, waits for a line, and answers with one line of JSON:
seconds of each call, and the largest memory in bytes.
"""

import json
import os
import sys
import time
from importlib import metadata

_ROUNDS, _SECONDS = 30, 2.0  # the timed calls of a cell: whichever ends first
_LEAST = 5
_PACKAGES = ("keras", "jax", "tensorflow", "torch", "flax", "timm")


def main():
    """Prepare, wait for the turn, measure."""
    cell = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else prints does not answer
    measure = _ceilings() if cell["contender"] == "ceilings" else _contender(cell)
    answers.write("ready\n")
    sys.stdin.readline()
    answers.write(json.dumps(measure()) + "\n")


def _contender(cell):
    """Return the function that times a contender which is compiled now."""
    import numpy as np
    from contenders import contender

    from keras_mixer.benchmark.machine import device_peak, host_peak, reset_peaks
    from keras_mixer.benchmark.records import Case
    from keras_mixer.benchmark.timing import timed

    case = Case(
        cell["variant"],
        cell["batch_size"],
        cell["image_size"],
        "mixed_bfloat16",
        cell["training"],
    )
    rng = np.random.default_rng(0)
    shape = (case.batch_size, *case.sizes["input_shape"])
    images = rng.integers(0, 256, shape, "uint8")
    labels = rng.integers(0, case.sizes["num_classes"], case.batch_size)
    name = cell["contender"] + ("-remat" if cell["remat"] else "")
    call = contender(name, case, images, labels)
    for _ in range(3):
        timed(call)

    def measure():
        reset_peaks()
        seconds, end = [], time.perf_counter() + _SECONDS
        while len(seconds) < _LEAST or (
            len(seconds) < _ROUNDS and time.perf_counter() < end
        ):
            seconds.append(timed(call))
        on_gpu = device_peak()
        return {"seconds": seconds, "peak": host_peak() if on_gpu is None else on_gpu}

    return measure


def _ceilings():
    """Return the function that measures what the device can do at most."""
    from keras_mixer.benchmark.flops import matrix_product_ceiling
    from keras_mixer.benchmark.machine import describe_machine

    def measure():
        return {
            "flops": matrix_product_ceiling("bfloat16"),
            "copied": _copy_speed(),
            "machine": describe_machine(),
            "versions": dict(_versions()),
        }

    return measure


def _copy_speed():
    """Return bytes a second that one operation reads and writes, the best of five."""
    import keras

    from keras_mixer.benchmark.compiled_steps import compiled
    from keras_mixer.benchmark.machine import device_peak
    from keras_mixer.benchmark.timing import timed

    size = 2**25 if device_peak() is None else 2**29
    x = keras.ops.ones((size,), "bfloat16")
    negative = compiled(keras.ops.negative, jit_compile=False)
    timed(lambda: negative(x))
    return 2 * 2 * size / min(timed(lambda: negative(x)) for _ in range(5))


def _versions():
    for name in _PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


if __name__ == "__main__":
    main()
