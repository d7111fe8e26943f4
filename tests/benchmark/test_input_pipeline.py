import numpy as np
import pytest

from keras_mixer import data
from keras_mixer.benchmark import input_pipeline

# No backend computes here.
pytestmark = pytest.mark.backend_free

pytest.importorskip("tensorflow")


def test_speed_is_images_by_seconds(monkeypatch):
    source = data.from_arrays(np.zeros((8, 9, 9, 3), "uint8"), np.arange(8) % 2)
    asked = []

    def batches(source, **arguments):
        asked.append(arguments)
        return iter(range(1000))

    # Each look at the clock takes a second.
    ticks = iter(range(1000))
    monkeypatch.setattr(input_pipeline, "training_batches", batches)
    monkeypatch.setattr(input_pipeline.time, "perf_counter", lambda: next(ticks))
    speeds = input_pipeline.input_speed(source, image_size=8, batch_size=4, seconds=5)
    assert speeds == dict.fromkeys(input_pipeline.AUGMENTATIONS, 4 * 4 / 5)
    assert [one["augmentation"].randaugment for one in asked] == [None, (2, 15)]
    assert all(one["image_size"] == 8 and one["batch_size"] == 4 for one in asked)
    monkeypatch.undo()
    speeds = input_pipeline.input_speed(
        source, image_size=8, batch_size=4, seconds=0.01
    )
    assert all(speed > 0 for speed in speeds.values())
    with pytest.raises(ValueError, match="`seconds` must be positive"):
        input_pipeline.input_speed(source, seconds=0)
