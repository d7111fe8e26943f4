"""Frozen features of a model on a data set: extracted once, kept on disk.

The features are `pre_logits`, the mean over the patches after the final norm. A file
of the cache is named by a hash of all that decides its numbers (the architecture, every
weight, the preprocessing, the backend, and the images themselves), so none can be taken
for another and nothing has to be invalidated.
"""

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np

from keras_mixer.evaluation.inference import outputs
from keras_mixer.files import atomic_write
from keras_mixer.host_values import host_value
from keras_mixer.models import check_mixer

NODE = "pre_logits"


def extract(
    model,
    source,
    *,
    indices=None,
    batch_size=64,
    preprocessing=None,
    cache_dir=None,
    progress=False,
):
    """Return the features of a data set, or of some examples of it, `(n, C)` float32.

    Args:
        model: An `MLPMixer`.
        source: The `data.Source` of the examples.
        indices: Which examples, ascending; `None` for all. No other is computed.
        batch_size: Images per step. Positive.
        preprocessing: The `Preprocessing` record of the images; `None` for the model's
            own.
        cache_dir: Folder to keep the features in and to look for them; `None` for none.
        progress: Whether to show a progress bar on the standard error.

    Raises:
        ImportError: If TensorFlow, which reads the images, is not installed.
        OSError: If the folder cannot be written.
        ValueError: If an argument is out of its range.
    """
    check_mixer(model)
    if indices is not None:
        source = _subset(source, indices)
    path = None
    if cache_dir is not None:
        key = _key(model, preprocessing or model.preprocessing, source)
        path = Path(cache_dir).expanduser() / f"{key}.npz"
        features = _read(path)
        if features is not None:
            return features
    batches = outputs(
        model,
        source,
        node=NODE,
        batch_size=batch_size,
        preprocessing=preprocessing,
        progress=progress,
    )
    features = np.concatenate([batch.astype("float32") for batch, _ in batches])
    if path:
        _write(path, features)
    return features


def _subset(source, indices):
    """Return the `Source` of some examples only; nothing of the others is decoded."""
    import tensorflow as tf

    chosen = np.zeros(source.num_examples, bool)
    chosen[indices] = True
    dataset = source.dataset.enumerate()
    dataset = dataset.filter(lambda index, example: tf.gather(chosen, index))
    dataset = dataset.map(lambda index, example: example)
    return replace(source, dataset=dataset, num_examples=len(indices))


def _key(model, record, source):
    """Return the SHA-256 of all that decides the features, in hexadecimal digits."""
    facts = {
        "node": NODE,
        "backend": keras.config.backend(),
        "architecture": model.config,
        "policies": [layer.dtype_policy.name for layer in model.layers],
        "value_range": model.preprocessing.value_range,
        "preprocessing": record.to_dict(),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for weight in model.weights:
        array = host_value(weight)
        digest.update(repr((weight.path, array.shape, str(array.dtype))).encode())
        digest.update(array.tobytes())
    images = source.dataset.map(lambda image, _: image)
    if source.read:
        images = images.map(source.read)
    for image in images.as_numpy_iterator():
        if isinstance(image, np.ndarray):  # pixels, not the bytes of a file
            digest.update(repr((image.shape, str(image.dtype))).encode())
            image = image.tobytes()
        digest.update(hashlib.sha256(image).digest())
    return digest.hexdigest()


def _read(path):
    """Return the features of a cache file; `None` where it is missing or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays["features"]
    except (FileNotFoundError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _write(path, features):
    """Write a cache file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez(file, features=features)
