"""A fresh user and every named checkpoint at full size: online once, then offline.

Drawn weights in the exact layout stand for the official files and MIIL's; loopback
copies of the official storage and of the Hub serve them. Five gigabytes in all, so only
`make nightly` runs this.
"""

import json
import os
import subprocess
import sys

import numpy as np
import oracle
import pytest
from checkpoints.test_records import (
    STORAGE,
    official,
    official_name,
    timm_name,
    weight_sizes,
)
from hub_server import Hub
from official_storage import OfficialStorage
from safetensors.numpy import save_file

from keras_mixer.checkpoints.records import list_checkpoints

# What a user types, but for the address of the storage.
USER = """
import dataclasses, json, sys
import numpy as np
import keras_mixer
from keras_mixer import checkpoints

variant, name, official, storage = sys.argv[1:]
checkpoints._CHECKPOINTS = tuple(
    dataclasses.replace(c, address=c.address and c.address.replace(official, storage))
    for c in checkpoints._CHECKPOINTS
)
model = getattr(keras_mixer, "Mixer" + variant.replace("/", ""))(weights=name)
images = np.random.default_rng(0).integers(0, 256, (2, *model.input_shape[1:]), "uint8")
print(json.dumps(model.predict(images, verbose=0).tolist()))
"""


@pytest.mark.nightly
@pytest.mark.parametrize(
    "checkpoint",
    [c for c in list_checkpoints() if c.address],
    ids=lambda c: f"{c.variant} {c.name}",
)
def test_a_fresh_user_and_then_offline(checkpoint, tmp_path):
    weights = oracle.random_weights(weight_sizes(checkpoint), seed=5)
    with Hub(tmp_path / "hub") as hub, OfficialStorage(tmp_path / "storage") as storage:
        if official(checkpoint):
            path = storage.folder / checkpoint.address.removeprefix(f"{STORAGE}/")
            path.parent.mkdir(parents=True)
            np.savez(path, **{official_name(n): a for n, a in weights.items()})
            storage.md5(path)  # takes its time where the machine is busy
        else:
            path = tmp_path / "model.safetensors"
            save_file(
                {timm_name(n): outputs_first(a) for n, a in weights.items()}, path
            )
            repository = "/".join(checkpoint.address.split("/")[2:4])
            hub.commit(repository, {"model.safetensors": path})

        environment = {
            **os.environ,
            **hub.environment(tmp_path / "home"),
            "KERAS_HOME": str(tmp_path / "keras"),
        }
        user = [sys.executable, "-c", USER, checkpoint.variant, checkpoint.name]

        def predict(**more):
            output = subprocess.run(
                [*user, STORAGE, storage.url],
                env=environment | more,
                stdout=subprocess.PIPE,
                check=True,
                timeout=900,
            ).stdout
            return np.array(json.loads(output.splitlines()[-1]))

        online = predict()
        requests = len(hub.log) + len(storage.log)
        assert requests
        np.testing.assert_array_equal(predict(HF_HUB_OFFLINE="1"), online)
        assert len(hub.log) + len(storage.log) == requests

    size = checkpoint.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), "uint8")
    low, high = checkpoint.preprocessing.value_range
    _, logits = oracle.mixer(
        weights, low + pixels / 255 * (high - low), checkpoint.approximate_gelu
    )
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    assert np.ptp(scores, axis=0).max() > 0.01 * scores.max()  # the images matter
    np.testing.assert_allclose(online, scores, rtol=1e-3, atol=1e-7)


def outputs_first(array):
    """PyTorch's order of the axes."""
    array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return np.ascontiguousarray(array)
