"""Run as a script in a new process: times each phase up to the first prediction.

    python -P first_prediction_phases.py VARIANT DTYPE BATCH WEIGHTS

writes the seconds of each phase as JSON. Nothing is imported before the clock starts.
"""

import json
import sys
import time


def main(variant: str, dtype: str, batch_size: int, weights: str | None) -> None:
    """Time the phases and write them."""
    marks = [time.perf_counter()]

    def phase() -> float:
        marks.append(time.perf_counter())
        return marks[-1] - marks[-2]

    seconds = {}
    import keras  # noqa: F401, with its backend

    seconds["import Keras"] = phase()
    import numpy as np

    from keras_mixer.layers import zero_kernels
    from keras_mixer.models import create

    seconds["import keras_mixer"] = phase()
    with zero_kernels():
        model = create(variant, dtype=dtype)
    seconds["build"] = phase()
    if weights:
        # It builds again: what remains is reading.
        model = create(variant, weights, dtype=dtype)
        seconds["read weights"] = max(phase() - seconds["build"], 0.0)
    images = np.zeros((batch_size, *model.input_shape[1:]), "float32")
    phase()
    model.predict(images, batch_size=batch_size, verbose=0)
    first = phase()
    model.predict(images, batch_size=batch_size, verbose=0)
    seconds["run"] = phase()
    seconds["compile"] = max(first - seconds["run"], 0.0)
    sys.stdout.write(json.dumps(seconds) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] or None)
