"""Images and labels as batches: TFDS data sets, folders and arrays, through tf.data.

A `Source` is where examples come from; `training_batches` and `evaluation_batches` turn
one into an endless augmented stream and into one plain pass. Batches are uint8-ranged
float pixels in [0, 255] (the model normalises them) with one-hot labels. Every random
decision is drawn from `(seed, position in the stream)`, so a run can stop anywhere and
go on with the same images.

Needs TensorFlow for the pipeline, whatever backend trains: `pip install
'keras_mixer[data]'`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

# Enough to shuffle CIFAR whole; 250,000 is what the official ImageNet recipe holds.
SHUFFLE_BUFFER = 50_000


@dataclass(frozen=True)
class Source:
    """Labelled images before any resizing.

    Attributes:
        dataset: `tf.data.Dataset` of `(image, label)`; `image` is uint8 `(height,
            width, channels)`, `label` an integer.
        num_examples: Number of examples in one pass.
        label_names: One name per class, in the order of the labels.
    """

    dataset: Any
    num_examples: int
    label_names: tuple[str, ...]

    @property
    def num_classes(self):
        """Number of classes."""
        return len(self.label_names)


def from_tfds(name, split, *, data_dir=None):
    """Return the `Source` of a TensorFlow Datasets data set, downloaded if need be.

    Args:
        name: TFDS name, for example `"cifar10"` or `"oxford_iiit_pet:4.0.0"`.
        split: TFDS split, slices included: `"train[:98%]"`.
        data_dir: Folder of prepared data sets; `None` for TFDS's own default.

    Raises:
        ImportError: If tensorflow-datasets is not installed.
        ValueError: If there is no such data set or split, or it has no labels.
    """
    tfds = _import_tfds()
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            f"`name` must be a data set of TFDS. Received: name={name!r}, "
            f"data_dir={data_dir!r}. TFDS says: {error}"
        ) from error
    builder.download_and_prepare()  # nothing, where it is prepared already
    if not {"image", "label"} <= set(builder.info.features):
        raise ValueError(
            "`name` must be a data set with the features `image` and `label`. "
            f"Received: name={name!r} with {', '.join(builder.info.features)}"
        )
    try:
        num_examples = builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:  # TFDS's versions differ
        raise ValueError(
            f"`split` must be one of {', '.join(builder.info.splits)}, or a slice of "
            f"one. Received: split={split!r}"
        ) from error
    dataset = builder.as_dataset(split=split)
    dataset = dataset.map(lambda example: (example["image"], example["label"]))
    names = tuple(builder.info.features["label"].names)
    return Source(dataset, num_examples, names)


def from_arrays(images, labels, *, label_names=None):
    """Return the `Source` of arrays in memory.

    Args:
        images: Pixels in [0, 255], `(examples, height, width, channels)`.
        labels: Integers from 0, `(examples,)`.
        label_names: One name per class; `None` for the numbers.

    Raises:
        ValueError: If the lengths differ or a label has no name.
    """
    import tensorflow as tf

    images, labels = np.asarray(images), np.asarray(labels)
    if len(images) != len(labels):
        raise ValueError(
            "`images` and `labels` must have the same length. Received: "
            f"{len(images)} images, {len(labels)} labels"
        )
    if label_names is None:
        label_names = [str(i) for i in range(int(labels.max()) + 1)]
    if labels.min() < 0 or labels.max() >= len(label_names):
        raise ValueError(
            f"`labels` must lie in [0, {len(label_names)}), one name per class. "
            f"Received: labels from {labels.min()} to {labels.max()}"
        )
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    return Source(dataset, len(images), tuple(label_names))


def training_batches(
    source, *, image_size, batch_size, pad=4, mixup=0.0, seed=0, first_step=0
):
    """Return an endless, shuffled, augmented stream of batches.

    Each image is resized if it has another size, padded by `pad` zero pixels, cropped
    at a random place and flipped left to right with probability 1/2. `mixup` blends
    each batch with itself rolled by one: `a x + (1 - a) roll(x)` with one
    `a = max(b, 1 - b)`, `b ~ Beta(mixup, mixup)`, per batch, labels alike, as in the
    official code.

    Args:
        source: The `Source` of the examples.
        image_size: Edge of the square images, in pixels.
        batch_size: Images per batch; every batch is full.
        pad: Zero pixels added on each side before the random crop.
        mixup: Parameter of the Beta distribution, 0 for no mixup.
        seed: Seed of the order and of every augmentation.
        first_step: Number of batches to leave out at the beginning of the stream.

    Returns:
        A `tf.data.Dataset` of `(images, one-hot labels)`, both float32.
    """
    import tensorflow as tf

    size = (image_size, image_size)

    def cached_size(image, label):
        if image.shape[:2] != size:
            image = tf.round(tf.image.resize(image, size))
        return tf.cast(image, tf.uint8), label

    def augment(index, example):
        image, label = example
        seeds = tf.random.split(tf.stack([tf.cast(seed, tf.int64), index]), 2)
        image = tf.pad(image, [(pad, pad), (pad, pad), (0, 0)])
        image = tf.image.stateless_random_crop(
            image, (*size, image.shape[-1]), seed=seeds[0]
        )
        image = tf.image.stateless_random_flip_left_right(image, seed=seeds[1])
        return tf.cast(image, tf.float32), tf.one_hot(label, source.num_classes)

    def mix(index, batch):
        images, labels = batch
        # Beta(p, p) as a ratio of two Gamma(p) draws.
        gammas = tf.random.stateless_gamma(
            (2,), seed=tf.stack([tf.cast(seed, tf.int64) + 1, index]), alpha=mixup
        )
        a = gammas[0] / tf.maximum(gammas[0] + gammas[1], 1e-20)
        a = tf.maximum(a, 1 - a)
        return (
            a * images + (1 - a) * tf.roll(images, 1, axis=0),
            a * labels + (1 - a) * tf.roll(labels, 1, axis=0),
        )

    dataset = source.dataset.map(cached_size, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.cache().shuffle(SHUFFLE_BUFFER, seed=seed).repeat()
    dataset = dataset.enumerate().skip(first_step * batch_size)
    dataset = dataset.map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    if mixup:
        dataset = dataset.enumerate(first_step).map(mix)
    return dataset.prefetch(tf.data.AUTOTUNE)


def evaluation_batches(source, *, image_size, batch_size):
    """Return one pass over `source` in its own order, each image resized (bilinear).

    Returns:
        A `tf.data.Dataset` of `(images, one-hot labels)`; the last batch may be short.
    """
    import tensorflow as tf

    def prepare(image, label):
        if image.shape[:2] != (image_size, image_size):
            image = tf.image.resize(image, (image_size, image_size))
        return tf.cast(image, tf.float32), tf.one_hot(label, source.num_classes)

    dataset = source.dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batch_size).cache().prefetch(tf.data.AUTOTUNE)


def _import_tfds():
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "Reading TFDS data sets needs tensorflow-datasets: "
            "pip install 'keras_mixer[data]'"
        ) from error
    return tfds
