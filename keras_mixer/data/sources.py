"""Where labelled images come from: arrays and the data sets of TFDS.

Photos are decoded after the examples are shuffled, so that shuffling, skipping and
caching handle bytes, and cropping can be part of decoding. Needs TensorFlow, whatever
backend trains: `pip install 'keras-mixer[data]'`.
"""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_mixer.data.decoding import decoded

# Images of one known size are kept in memory, decoded, if they take no more than this.
CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Source:
    """Labelled images before decoding and resizing.

    Attributes:
        dataset: `tf.data.Dataset` of `(image, label)`, one pass, always in the same
            order; `label` is an integer. `image` is either pixels in [0, 255],
            `(height, width, channels)`, or a string, the bytes of a JPEG, PNG or still
            GIF file, which are decoded to RGB. Or it is what `read` takes.
        num_examples: Number of examples in one pass.
        label_names: One name per class, in the order of the labels.
        read: Returns pixels or bytes for the `image` of an example, in TensorFlow; for
            sources that can read any image at any time, so that `dataset` holds only
            where it is. `None` if `dataset` holds the images themselves.
        file_names: Returns the names of the images' files, in the order of `dataset`;
            `None` where there are none.
    """

    dataset: Any
    num_examples: int
    label_names: tuple[str, ...]
    read: Callable | None = None
    file_names: Callable | None = None

    @property
    def num_classes(self):
        """Number of classes."""
        return len(self.label_names)


def from_arrays(images, labels, *, label_names=None):
    """Return the `Source` of arrays in memory.

    Args:
        images: Pixels in [0, 255], `(examples, height, width, channels)`.
        labels: Integers from 0, `(examples,)`.
        label_names: One name per class; `None` for the numbers.

    Raises:
        ValueError: If the arrays are not such, their lengths differ, or a label has no
            name.
    """
    import tensorflow as tf

    images, labels = np.asarray(images), np.asarray(labels)
    _check_pixels(images)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            "`labels` must be integers, (examples,). Received: "
            f"shape={labels.shape}, dtype={labels.dtype}"
        )
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
    with tf.device("CPU"):  # a data set does not belong into a GPU's memory
        images = tf.constant(images)
        dataset = tf.data.Dataset.from_tensor_slices(
            (np.arange(len(labels)), labels.astype("int64"))
        )
    return Source(dataset, len(labels), tuple(label_names), lambda index: images[index])


def from_tfds(name, split, *, data_dir=None):
    """Return the `Source` of a TensorFlow Datasets data set, downloaded if need be.

    After the first pass a small data set stays in memory: decoded, if its images have
    one size and take no more than `CACHE_BYTES`, else as TFDS decides (250 MB).

    Args:
        name: TFDS name, for example `"cifar10"` or `"oxford_iiit_pet:4.0.0"`.
        split: TFDS split, slices included: `"train[:98%]"`.
        data_dir: Folder of prepared data sets; `None` for TFDS's own default.

    Raises:
        ImportError: If tensorflow-datasets is not installed.
        ValueError: If there is no such data set or split, or it is not one of images
            with one label each.
    """
    tfds = import_tfds()
    import tensorflow as tf

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        plain = name.split("/")[0].split(":")[0]
        near = difflib.get_close_matches(plain, tfds.list_builders())
        raise ValueError(
            "`name` must be a data set of TFDS. Received: "
            f"name={name!r}, data_dir={data_dir!r}."
            + (f" Near names: {', '.join(near)}." if near else "")
            + f" TFDS says: {error}"
        ) from error
    features = builder.info.features
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(
        key in features and isinstance(features[key], kind)
        for key, kind in kinds.items()
    ):
        raise ValueError(
            "`name` must be a data set with the features `image`, one image, and "
            f"`label`, one class. Received: name={name!r} with {', '.join(features)}"
        )
    builder.download_and_prepare()  # nothing, where it is prepared already
    try:
        num_examples = builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:  # TFDS's versions differ
        raise _no_split(split, builder.info.splits) from error
    if num_examples < 1:
        raise _no_split(split, builder.info.splits)

    def file_names():
        decoders = tfds.decode.PartialDecoding({"file_name": True})
        names = builder.as_dataset(split=split, decoders=decoders)
        return [os.fsdecode(e["file_name"]) for e in names.as_numpy_iterator()]

    decoders = tfds.decode.PartialDecoding(
        dict.fromkeys(kinds, True), {"image": tfds.decode.SkipDecoding()}
    )
    dataset = builder.as_dataset(split=split, decoders=decoders)
    dataset = dataset.map(lambda example: (example["image"], example["label"]))
    shape = features["image"].shape
    if None not in shape and num_examples * shape[0] * shape[1] * 3 <= CACHE_BYTES:
        dataset = dataset.map(
            lambda image, label: (
                tf.ensure_shape(decoded(image), (*shape[:2], 3)),
                label,
            ),
            tf.data.AUTOTUNE,
        ).cache()
    return Source(
        dataset,
        num_examples,
        tuple(features["label"].names),
        file_names=file_names if "file_name" in features else None,
    )


def import_tfds():
    """Return `tensorflow_datasets`.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "Reading TFDS data sets and splits needs tensorflow-datasets: "
            "pip install 'keras-mixer[data]'"
        ) from error
    return tfds


def _no_split(split, known):
    return ValueError(
        f"`split` must be one of {', '.join(known)}, or a slice of one that has "
        f'examples, such as "train[:98%]". Received: split={split!r}'
    )


def _check_pixels(images):
    if images.ndim != 4 or not images.size or images.dtype.kind not in "uif":
        raise ValueError(
            "`images` must be numbers, (examples, height, width, channels). Received: "
            f"shape={images.shape}, dtype={images.dtype}"
        )
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 255):  # false for NaN, too
        raise ValueError(
            f"`images` must be pixels in [0, 255]. Received: values from {low} to "
            f"{high}"
        )
    if images.dtype.kind == "f" and 0 < high <= 1:
        raise ValueError(
            "`images` must be pixels in [0, 255]. Received: floats in [0, 1], which "
            "have probably been scaled already. Pass `255 * images`."
        )
