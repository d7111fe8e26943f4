"""A model's outputs for every example of a data set, one batch after another."""

import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from keras_mixer.data import Source, evaluation_batches
from keras_mixer.models import find_mixer
from keras_mixer.preprocessing import Preprocessing


def outputs(
    model: keras.Model,
    source: Source,
    *,
    node: str | None = None,
    batch_size: int = 64,
    preprocessing: Preprocessing | None = None,
    progress: bool = False,
) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    """Yield `(outputs, labels)` of one pass over a data set, in its order.

    Images are resized and cropped as the model's record says. All batches have the same
    shape, so that the model is compiled once: the last one is padded, and the outputs
    of the padding are left out.

    Args:
        model: A Keras model that is a Mixer or holds one at any depth.
        source: The `data.Source` of the examples.
        node: Name of the node of the Mixer inside to return, such as `"pre_logits"`;
            `None` for the model's own output.
        batch_size: Images per step. Positive.
        preprocessing: The `Preprocessing` record of the images; `None` for the model's
            own. The value range is always the model's.
        progress: Whether to show a progress bar on the standard error, if that is a
            terminal.

    Yields:
        `(outputs, labels)`, NumPy arrays of `(n, ...)` and `(n,)`, `n <= batch_size`.

    Raises:
        ImportError: If TensorFlow, which reads the images, is not installed.
        ValueError: If an argument is out of its range.
    """
    found = find_mixer(model)
    network = model
    if node:
        found = find_mixer(found.mixer)  # without what lies before it
        network = keras.Model(found.mixer.input, found.mixer.get_layer(node).output)
    batches = evaluation_batches(
        source,
        image_size=found.image_shape[:2],
        batch_size=batch_size,
        preprocessing=preprocessing or found.preprocessing,
        pad=True,
    )
    console = Console(stderr=True)
    for images, labels, weights in track(
        batches.as_numpy_iterator(),
        description=f"{source.num_examples:,} images",
        total=math.ceil(source.num_examples / batch_size),
        console=console,
        transient=True,
        disable=not (progress and console.is_terminal),
    ):
        values = network.predict_on_batch(images * found.scale + found.offset)
        real = weights > 0
        yield keras.ops.convert_to_numpy(values)[real], labels.argmax(axis=1)[real]


def read_labels(source: Source) -> NDArray[np.int64]:
    """Return the labels of a data set, `(N,)` integers, without decoding an image."""
    labels = source.dataset.map(lambda _, label: label)
    return np.fromiter(labels.as_numpy_iterator(), np.int64)
