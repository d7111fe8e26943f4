"""Frozen features of a model on a data set: extracted once, kept on disk.

The features are `pre_logits`, the mean over the patches after the final norm. The name
of a cache file is a hash of everything that decides its numbers (the architecture, all
weights, the preprocessing, the backend, and the images), so that a cached file is never
used for other features and never has to be deleted.
"""

import hashlib
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray

from keras_mixer.data import Source
from keras_mixer.evaluation.inference import outputs
from keras_mixer.files import atomic_write
from keras_mixer.host_values import host_value
from keras_mixer.layers import MixerBlock, path_below_model
from keras_mixer.models import FoundMixer, find_mixer
from keras_mixer.preprocessing import Preprocessing

NODE = "pre_logits"


def extract(
    model: keras.Model,
    source: Source,
    *,
    indices: ArrayLike | None = None,
    batch_size: int = 64,
    preprocessing: Preprocessing | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> NDArray[np.float32]:
    """Return the features of a data set, or of some examples of it, `(n, C)` float32.

    Args:
        model: A Keras model that is a Mixer or holds one at any depth.
        source: The `data.Source` of the examples.
        indices: Numbers of the examples to compute, ascending; `None` for all.
        batch_size: Images per step. Positive.
        preprocessing: The `Preprocessing` record of the images; `None` for the model's
            own.
        cache_dir: Folder where features are kept and looked up; `None` for no cache.
        progress: Whether to show a progress bar on the standard error.

    Raises:
        ImportError: If TensorFlow, which reads the images, is not installed.
        OSError: If the folder cannot be written.
        ValueError: If an argument is out of its range.
    """
    found = find_mixer(model)
    found = find_mixer(found.mixer)  # without what lies around it
    model = found.mixer
    if indices is not None:
        source = _subset(source, indices)
    path = None
    if cache_dir is not None:
        key = _key(found, preprocessing or found.preprocessing, source)
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


def _subset(source: Source, indices: ArrayLike) -> Source:
    """Return the `Source` of some examples; the others are not decoded."""
    import tensorflow as tf

    chosen = np.zeros(source.num_examples, bool)
    chosen[np.asarray(indices)] = True
    dataset = source.dataset.enumerate()
    dataset = dataset.filter(lambda index, example: tf.gather(chosen, index))
    dataset = dataset.map(lambda index, example: example)
    return replace(source, dataset=dataset, num_examples=int(chosen.sum()))


def _key(found: FoundMixer, record: Preprocessing, source: Source) -> str:
    """Return the SHA-256 of everything that decides the features, in hexadecimal."""
    model = found.mixer
    facts = {
        "node": NODE,
        "backend": keras.config.backend(),
        "layers": [(type(each).__name__, each.name) for each in model.layers],
        "blocks": [
            each.get_config() for each in model.layers if isinstance(each, MixerBlock)
        ],
        "policies": [layer.dtype_policy.name for layer in model.layers],
        "images": (found.image_shape, found.value_range),
        "preprocessing": record.to_dict(),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for weight in model.weights:
        array = host_value(weight)
        name = path_below_model(weight.path)
        digest.update(repr((name, array.shape, str(array.dtype))).encode())
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


def _read(path: Path) -> NDArray[np.float32] | None:
    """Return the features of a cache file; `None` where it is missing or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays["features"]
    except (FileNotFoundError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, features: NDArray[np.float32]) -> None:
    """Write a cache file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez(file, features=features)
