"""Where labelled images come from: arrays and the data sets of TFDS.

Photos are decoded after the examples are shuffled, so that shuffling, skipping and
caching handle bytes, and cropping can be part of decoding. Needs TensorFlow, whatever
backend trains: `pip install 'keras-mixer[data]'`.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from keras_mixer.data import fingerprint
from keras_mixer.data.decoding import decoded

if TYPE_CHECKING:
    import tensorflow as tf

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
        part: Returns `dataset` and `num_examples` of the i-th of n parts, for sources
            in many files of which each host should read only some; `None` where every
            host may read all.
        example_bytes: Mean size of an `image` of `dataset`, where that is known.
        digest: Returns what `fingerprint` says of the examples; `None` for a digest of
            the first ones.
    """

    dataset: "tf.data.Dataset"
    num_examples: int
    label_names: tuple[str, ...]
    read: Callable[[Any], "tf.Tensor"] | None = None
    file_names: Callable[[], list[str]] | None = None
    part: Callable[[int, int], tuple["tf.data.Dataset", int]] | None = None
    example_bytes: float | None = None
    digest: Callable[[], str] | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    def fingerprint(self) -> str:
        """Return a digest of the data: equal for equal data, wherever it lies.

        Names of files, sizes, labels and the order of the examples count in full; of
        the contents all in small sets and a sample in large ones. Cheap for any size,
        but of a large set one changed picture may go unnoticed.

        Returns:
            A sha256 in hex.
        """
        examples = (
            self.digest() if self.digest else fingerprint.of_examples(self.dataset)
        )
        return fingerprint.digest([self.num_examples, *self.label_names, examples])

    def labels(self) -> NDArray[np.int64]:
        """Return the labels of all examples, `(num_examples,)`; decodes no image."""
        labels = self.dataset.map(lambda _, label: label).batch(2**14)
        parts = [np.asarray(part, np.int64) for part in labels.as_numpy_iterator()]
        return np.concatenate(parts)


def hold_out(
    source: Source, share: float = 0.1, *, seed: int = 0
) -> tuple[Source, Source]:
    """Divide a source: a part to train on, and a part that is held out to measure on.

    Of each class `share` of the examples are held out, rounded, but at least one and
    not all, drawn from the seed. A class of one example stays with the first part.

    Args:
        source: The `Source` to divide.
        share: Share of the examples to hold out, in (0, 1).
        seed: Seed of the draw.

    Returns:
        The larger part and the part that was held out; `num_examples` counts them.

    Raises:
        ValueError: If `share` is out of its range or no class has two examples.
    """
    if not 0 < share < 1:
        raise ValueError(f"`share` must lie in (0, 1). Received: share={share!r}")
    labels = source.labels()
    held = np.zeros(len(labels), bool)
    rng = np.random.default_rng(seed)
    for label in range(source.num_classes):
        places = np.flatnonzero(labels == label)
        count = min(max(round(share * len(places)), 1), len(places) - 1)
        held[rng.permutation(places)[: max(count, 0)]] = True
    if not held.any():
        raise ValueError(
            "`source` must have two examples of some class, so that one can be held "
            f"out. Received: {len(labels)} examples of {source.num_classes} classes"
        )
    return _chosen(source, ~held), _chosen(source, held)


def _chosen(source: Source, chosen: NDArray[np.bool_]) -> Source:
    """Return the examples of `source` where `chosen` is true."""
    import tensorflow as tf

    def file_names() -> list[str]:
        names = source.file_names() if source.file_names else []
        return [name for name, one in zip(names, chosen, strict=True) if one]

    mask = tf.constant(chosen)
    dataset = source.dataset.enumerate().filter(lambda position, _: mask[position])
    num_examples = int(chosen.sum())
    # Keras warns of an end that it cannot foresee, and a filter hides it.
    counted = tf.data.experimental.assert_cardinality(num_examples)
    return replace(
        source,
        dataset=dataset.map(lambda _, example: example).apply(counted),
        num_examples=num_examples,
        file_names=file_names if source.file_names else None,
        part=None,
        digest=lambda: fingerprint.digest([source.fingerprint(), chosen]),
    )


def from_arrays(
    images: ArrayLike, labels: ArrayLike, *, label_names: Iterable[str] | None = None
) -> Source:
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
        label_names = (str(i) for i in range(int(labels.max()) + 1))
    label_names = tuple(label_names)
    if labels.min() < 0 or labels.max() >= len(label_names):
        raise ValueError(
            f"`labels` must lie in [0, {len(label_names)}), one name per class. "
            f"Received: labels from {labels.min()} to {labels.max()}"
        )
    with tf.device("CPU"):  # a data set does not belong in a GPU's memory
        pixels = tf.constant(images)
        dataset = tf.data.Dataset.from_tensor_slices(
            (np.arange(len(labels)), labels.astype("int64"))
        )
    return Source(
        dataset,
        len(labels),
        label_names,
        lambda index: pixels[index],
        digest=lambda: fingerprint.of_array(images) + fingerprint.of_array(labels),
    )


def from_tfds(
    name: str, split: str, *, data_dir: str | os.PathLike[str] | None = None
) -> Source:
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
    builder = _builder(tfds, name, data_dir)
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

    def file_names() -> list[str]:
        decoders = tfds.decode.PartialDecoding({"file_name": True})
        names = builder.as_dataset(split=split, decoders=decoders)
        return [os.fsdecode(e["file_name"]) for e in names.as_numpy_iterator()]

    def examples(split: Any) -> "tf.data.Dataset":
        decoders = tfds.decode.PartialDecoding(
            dict.fromkeys(kinds, True), {"image": tfds.decode.SkipDecoding()}
        )
        dataset = builder.as_dataset(split=split, decoders=decoders)
        return dataset.map(lambda example: (example["image"], example["label"]))

    def part(index: int, count: int) -> tuple["tf.data.Dataset", int]:
        own = tfds.even_splits(split, count, drop_remainder=True)[index]
        return examples(own), builder.info.splits[own].num_examples

    dataset = examples(split)
    shape = features["image"].shape
    stays_decoded = (
        None not in shape and num_examples * shape[0] * shape[1] * 3 <= CACHE_BYTES
    )
    if stays_decoded:
        dataset = _decoded(dataset, (*shape[:2], 3)).cache()
    stored = sum(info.num_bytes for info in builder.info.splits.values())
    count = sum(info.num_examples for info in builder.info.splits.values())
    return Source(
        dataset,
        num_examples,
        tuple(features["label"].names),
        file_names=file_names if "file_name" in features else None,
        part=None if stays_decoded or stored <= CACHE_BYTES else part,
        example_bytes=None if stays_decoded else stored / count,
        digest=lambda: _digest(builder, split),
    )


def _builder(
    tfds: ModuleType, name: str, data_dir: str | os.PathLike[str] | None
) -> Any:
    """Return the builder of a data set that is here or that this TFDS has code for.

    For other names TFDS would ask servers: an unknown name is an error before that.
    """
    plain = re.split("[/:]", name)[0]
    known = tfds.list_builders(with_community_datasets=False)
    folder = tfds.core.as_path(data_dir or tfds.core.constants.DATA_DIR)
    reason = f"TFDS {tfds.__version__} has no such name, and {folder} no such folder."
    if plain in known or (folder / plain).exists():
        try:
            return tfds.builder(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError as error:
            reason = f"TFDS says: {error}"
    near = difflib.get_close_matches(plain, known)
    raise ValueError(
        "`name` must be a data set of TFDS. Received: "
        f"name={name!r}, data_dir={data_dir!r}."
        + (f" Near names: {', '.join(near)}." if near else "")
        + f" {reason}"
    )


def _decoded(dataset: "tf.data.Dataset", shape: tuple[int, ...]) -> "tf.data.Dataset":
    import tensorflow as tf

    return dataset.map(
        lambda image, label: (tf.ensure_shape(decoded(image), shape), label),
        tf.data.AUTOTUNE,
    )


def _digest(builder: Any, split: str) -> str:
    """Return the digest of a split: its files and which examples of each."""
    parts = builder.info.splits[split].file_instructions
    files = [os.fspath(part.filename) for part in parts]
    ranges = [(part.skip, part.take) for part in parts]
    names = [os.fsencode(os.path.basename(file)) for file in files]
    contents = fingerprint.of_files(files.__getitem__, len(files), names)
    return fingerprint.digest([contents, *ranges])


def import_tfds() -> ModuleType:
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


def _no_split(split: str, known: Iterable[str]) -> ValueError:
    return ValueError(
        f"`split` must be one of {', '.join(known)}, or a slice of one that has "
        f'examples, such as "train[:98%]". Received: split={split!r}'
    )


def _check_pixels(images: NDArray[Any]) -> None:
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
