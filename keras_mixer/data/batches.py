"""Labelled images as batches, through tf.data.

A `Source` is where examples come from (arrays, TFDS, a folder of pictures);
`training_batches` and `evaluation_batches` turn one into an endless augmented stream
and into one plain pass. Batches are pixels in [0, 255] (the model normalises them) with
one-hot labels.

Every random decision is drawn from the seed and the position in the stream and from
nothing else, so a run can stop anywhere and go on with the same images, on another
number of hosts too.

Needs TensorFlow for the pipeline, whatever backend trains: `pip install
'keras-mixer[data]'`.
"""

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

from keras_mixer.checks import check_integer
from keras_mixer.data.augmentation import NUM_DRAWS, Augmentation
from keras_mixer.data.decoding import decoded, fitted
from keras_mixer.data.sources import Source
from keras_mixer.preprocessing import Preprocessing

if TYPE_CHECKING:
    import tensorflow as tf

# Size of the shuffle buffer of a source that can only be read in order.
SHUFFLE_BYTES = 2**30
# Evaluation images stay in memory if they take no more than this.
CACHE_BYTES = 2**30


def training_batches(
    source: Source,
    *,
    image_size: int | tuple[int, int],
    batch_size: int,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    first_step: int = 0,
    shard: tuple[int, int] = (0, 1),
    shuffle_bytes: int = SHUFFLE_BYTES,
    **fields: Any,
) -> "tf.data.Dataset":
    """Return an endless, shuffled, augmented stream of batches.

    Each pass over the source has its own order. Each image is cropped and resized
    (bilinear, without antialiasing), flipped left to right with probability 1/2, and
    goes through RandAugment and random erasing; each batch through mixup or CutMix.

    Starting at `first_step` decodes nothing of what comes before. With `shard=(i, n)`
    the stream is the i-th of n hosts' equal parts of every batch, the same images as
    in the whole batch; only mixup and CutMix blend within the part, as in the official
    code. Of arrays and folders a host reads its own images only. Of a TFDS data set
    that does not fit into memory (`Source.part`) it reads its own n-th: then the order
    depends on the number of hosts, too, and up to n - 1 examples are in no host's part.

    Args:
        source: The `Source` of the examples.
        image_size: Edge of the square images in pixels, or `(height, width)`.
        batch_size: Images per batch of all hosts together; every batch is full.
        augmentation: What happens to the images; `None` for `Augmentation()`: padding
            by 4 pixels, a random crop, flips.
        seed: Seed of the order and of every augmentation, in [0, 2**31 - 2).
        first_step: Number of batches to leave out at the beginning of the stream.
        shard: Index of this host and number of hosts.
        shuffle_bytes: Size of the buffer that shuffles a source which can only be read
            in order, such as TFDS: so many bytes of examples as stored. Arrays
            and folders are shuffled as a whole, without a buffer of images.
        **fields: Fields of `Augmentation` that replace those of `augmentation`, such as
            `crop="none"`.

    Returns:
        A `tf.data.Dataset` of `(images, one-hot labels)`: uint8, with mixup float32,
        and float32.

    Raises:
        ValueError: If an argument is out of its range.

    Source: `big_vision/configs/mlp_mixer_i1k.py`, paper section 3.
    """
    import tensorflow as tf

    record = replace(augmentation or Augmentation(), **fields)
    size = _check_size(image_size)
    host, local_size = _check_shard(shard, batch_size)
    check_integer("seed", seed, 0, 2**31 - 3)
    check_integer("first_step", first_step, 0)

    check_integer("shuffle_bytes", shuffle_bytes, 1)
    own = None
    if source.part and local_size < batch_size:
        own = source.part(host, batch_size // local_size)
    examples, num_examples = own or (source.dataset, source.num_examples)
    buffer = min(num_examples, _buffer_size(source, shuffle_bytes))

    def shuffled(epoch: "tf.Tensor") -> "tf.data.Dataset":
        # Sets the seed of this function's graph only. Without it the global seed,
        # which `keras.utils.set_random_seed` sets, would change the order. (A seed of
        # 0 would mean no seed.)
        tf.random.set_seed(seed + 1)
        return examples.shuffle(buffer, seed=epoch, reshuffle_each_iteration=False)

    def is_local(position: "tf.Tensor", _: Any) -> "tf.Tensor":
        return position % batch_size // local_size == host

    def in_whole_batches(
        position: "tf.Tensor", example: Any
    ) -> tuple["tf.Tensor", Any]:
        step, place = position // local_size, position % local_size
        return step * batch_size + host * local_size + place, example

    def augmented(position: "tf.Tensor", example: Any) -> tuple["tf.Tensor", ...]:
        image, label = example
        image = source.read(image) if source.read else image
        # One draw for everything: on small images each takes as long as decoding does.
        draws = tf.random.stateless_uniform(
            (NUM_DRAWS,), (seed, position), minval=None, maxval=None, dtype=tf.int32
        )
        image = record.of_image(image, size, draws)
        return image, tf.one_hot(label, source.num_classes)

    first = first_step * (local_size if own else batch_size)
    epoch, position = divmod(first, num_examples)
    dataset = tf.data.Dataset.range(epoch, tf.int64.max).flat_map(shuffled)
    dataset = dataset.skip(position).enumerate(first)
    if own:
        dataset = dataset.map(in_whole_batches)
    elif local_size < batch_size:
        dataset = dataset.filter(is_local)
    dataset = dataset.map(augmented, tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(local_size, drop_remainder=True)
    if record.mixes:
        # Negative numbers are no position of an image.
        dataset = dataset.enumerate(first_step).map(
            lambda step, batch: record.of_batch(batch[0], batch[1], (seed, -1 - step))
        )
    return dataset.prefetch(tf.data.AUTOTUNE)


def evaluation_batches(
    source: Source,
    *,
    image_size: int | tuple[int, int],
    batch_size: int,
    preprocessing: Preprocessing | None = None,
    shard: tuple[int, int] = (0, 1),
    pad: bool = False,
) -> "tf.data.Dataset":
    """Return one pass over `source` in its own order, images as `preprocess` has them.

    TensorFlow resizes them: to within 0.001 grey levels, 0.01 for `"area"`.
    Small sets (`CACHE_BYTES`) stay in memory after the first pass.

    Args:
        source: The `Source` of the examples.
        image_size: Edge of the square images in pixels, or `(height, width)`.
        batch_size: Images per batch of all hosts together.
        preprocessing: The `Preprocessing` record of the model; `None` to resize
            (bilinear) to `image_size` and no more.
        shard: Index of this host and number of hosts: the batches are this host's
            equal parts of the whole ones. Their number differs by host if `pad` is
            false.
        pad: Whether the last batch is filled up to the full size, and the batches have
            sample weights: 1, and 0 for what was filled in.

    Returns:
        A `tf.data.Dataset` of `(images, one-hot labels)` or `(images, one-hot labels,
        weights)`, all float32. Without `pad` the last batch may be short.

    Raises:
        ValueError: If an argument is out of its range.
    """
    import tensorflow as tf

    size = _check_size(image_size)
    host, local_size = _check_shard(shard, batch_size)
    record = preprocessing or Preprocessing(transform="resize")

    def is_local(position: "tf.Tensor", _: Any) -> "tf.Tensor":
        return position % batch_size // local_size == host

    def prepared(position: "tf.Tensor", example: Any) -> tuple["tf.Tensor", ...]:
        image, label = example
        image = source.read(image) if source.read else image
        image = fitted(decoded(image), size, record)
        label = tf.one_hot(label, source.num_classes)
        if not pad:
            return image, label
        return image, label, tf.cast(position < source.num_examples, tf.float32)

    dataset = source.dataset
    if pad:
        more = -source.num_examples % batch_size
        dataset = dataset.concatenate(dataset.take(1).cache().repeat(more))
    dataset = dataset.enumerate()
    if local_size < batch_size:
        dataset = dataset.filter(is_local)
    dataset = dataset.map(prepared, tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(local_size, drop_remainder=pad)
    num_images = source.num_examples * local_size // batch_size
    if num_images * size[0] * size[1] * 3 * 4 <= CACHE_BYTES:
        dataset = dataset.cache()
    return dataset.prefetch(tf.data.AUTOTUNE)


def _buffer_size(source: Source, shuffle_bytes: int) -> int:
    """Return how many examples of `source` take `shuffle_bytes` in a buffer."""
    if source.read:  # holds no images
        return source.num_examples
    size = source.example_bytes
    if size is None:
        image, _ = source.dataset.element_spec
        values = image.shape.num_elements()  # `None` where it is not known
        size = values * image.dtype.size if values and image.shape.rank else 2**17
    return max(int(shuffle_bytes / max(size, 1)), 1)


def _check_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    size = image_size if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(size) != 2 or not all(
        isinstance(edge, Integral) and edge > 0 for edge in size
    ):
        raise ValueError(
            "`image_size` must be a positive integer, or (height, width). "
            f"Received: image_size={image_size!r}"
        )
    return size[0], size[1]


def _check_shard(shard: tuple[int, int], batch_size: int) -> tuple[int, int]:
    """Return the index of this host and the images it has in each batch."""
    index, hosts = shard
    if not 0 <= index < hosts:
        raise ValueError(
            "`shard` must be (index, number of hosts), the index from 0. "
            f"Received: shard={shard!r}"
        )
    if not isinstance(batch_size, Integral) or batch_size < 1 or batch_size % hosts:
        raise ValueError(
            "`batch_size` must be a positive integer and, because it counts the images "
            f"of all hosts, a multiple of their number, {hosts}. "
            f"Received: batch_size={batch_size!r}"
        )
    return index, batch_size // hosts
