"""Labelled images as batches, through tf.data.

A `Source` is where examples come from (arrays, TFDS, a folder of pictures);
`training_batches` and `evaluation_batches` turn one into an endless augmented stream
and into one plain pass. Batches are pixels in [0, 255] (the model normalises them) with
one-hot labels.

Every random decision is drawn from the seed and the position in the stream and from
nothing else, so a run can stop anywhere and go on with the same images, on another
number of hosts too.

Needs TensorFlow for the pipeline, whatever backend trains: `pip install
'keras_mixer[data]'`.
"""

from numbers import Integral
from pathlib import Path

from keras_mixer.data.augmentation import mixup as mix
from keras_mixer.data.augmentation import randaugment as randaugmented
from keras_mixer.data.decoding import (
    decoded,
    fitted,
    random_area,
    to_size,
)
from keras_mixer.data.image_folder import from_folder
from keras_mixer.data.sources import from_tfds
from keras_mixer.preprocessing import Preprocessing

CROPS = ("pad", "inception", "none")
# Of a source that can only be read in order, so many examples are shuffled at a time.
SHUFFLE_BUFFER = 50_000
# Evaluation images stay in memory if they take no more than this.
CACHE_BYTES = 2**30


def open_source(name_or_folder, split, *, data_dir=None, corrupt="raise"):
    """Return the `Source` of a folder of pictures or, if there is none, a TFDS name.

    Args:
        name_or_folder: See `from_folder` and `from_tfds`.
        split: Name of a split, slices included: `"train[:98%]"`.
        data_dir: Folder of prepared TFDS data sets; `None` for TFDS's own default.
        corrupt: What becomes of damaged files in a folder, see `from_folder`.

    Raises:
        ImportError: If a package that reads it is not installed.
        ValueError: If there is no such data set, folder or split, or it is unusable.
    """
    if Path(name_or_folder).expanduser().is_dir():
        return from_folder(name_or_folder, split, corrupt=corrupt)
    return from_tfds(str(name_or_folder), split, data_dir=data_dir)


def training_batches(
    source,
    *,
    image_size,
    batch_size,
    crop="pad",
    pad=4,
    area_range=(0.05, 1.0),
    flip=True,
    randaugment=None,
    mixup=0.0,
    seed=0,
    first_step=0,
    shard=(0, 1),
):
    """Return an endless, shuffled, augmented stream of batches.

    Each pass over the source has its own order. Each image is cropped and resized
    (bilinear, without antialiasing), flipped left to right with probability 1/2, and
    goes through RandAugment; each batch through mixup.

    Starting at `first_step` decodes nothing of what comes before. With `shard=(i, n)`
    the stream is the i-th of n hosts' equal parts of every batch, the same images as
    in the whole batch; only mixup blends within the part, as in the official code.

    Args:
        source: The `Source` of the examples.
        image_size: Edge of the square images in pixels, or `(height, width)`.
        batch_size: Images per batch of all hosts together; every batch is full.
        crop: `"inception"`, a random part of the image, of an aspect ratio in
            [0.75, 1.33], is resized; `"pad"`, the whole image is resized, if it has
            another size, and moved by up to `pad` pixels, zeros coming in; `"none"`,
            the whole image is resized.
        pad: Zero pixels on each side before the crop of `crop="pad"`.
        area_range: Smallest and largest share of the area for `crop="inception"`.
        flip: Whether half of the images are mirrored.
        randaugment: Number of operations and magnitude in [0, 20], for example
            `(2, 15)`; `None` for no RandAugment. RGB only.
        mixup: Parameter of mixup's Beta distribution, 0 for no mixup.
        seed: Seed of the order and of every augmentation, in [0, 2**31 - 2).
        first_step: Number of batches to leave out at the beginning of the stream.
        shard: Index of this host and number of hosts.

    Returns:
        A `tf.data.Dataset` of `(images, one-hot labels)`: uint8, with mixup float32,
        and float32.

    Raises:
        ValueError: If an argument is out of its range.

    Source: `big_vision/configs/mlp_mixer_i1k.py`, paper section 3.
    """
    import tensorflow as tf

    size = _check_size(image_size)
    host, local_size = _check_shard(shard, batch_size)
    _check_augmentation(crop, pad, area_range, randaugment, mixup)
    _check_integer("seed", seed, 0, 2**31 - 3)
    _check_integer("first_step", first_step, 0)

    def shuffled(epoch):
        # Of this function's graph only. Otherwise the global seed, which
        # `keras.utils.set_random_seed` sets, would be part of the order. (And 0 would
        # stand for no seed.)
        tf.random.set_seed(seed + 1)
        buffer = source.num_examples if source.read else SHUFFLE_BUFFER
        return source.dataset.shuffle(
            min(buffer, source.num_examples),
            seed=epoch,
            reshuffle_each_iteration=False,
        )

    def is_local(position, _):
        return position % batch_size // local_size == host

    def augmented(position, example):
        image, label = example
        image = source.read(image) if source.read else image
        # One draw for everything: on small images each takes as long as decoding does.
        draws = tf.random.stateless_uniform(
            (5,), (seed, position), minval=None, maxval=None, dtype=tf.int32
        )
        if crop == "inception":
            image = random_area(image, area_range, draws[:2])
        image = to_size(decoded(image), size)
        shape = (*size, image.shape[-1])  # the flip forgets it
        if crop == "pad":
            image = tf.pad(image, [(pad, pad), (pad, pad), (0, 0)])
            top, left = draws[0] % (2 * pad + 1), draws[1] % (2 * pad + 1)
            image = image[top : top + size[0], left : left + size[1]]
        if flip:
            image = image[:, :: tf.where(draws[2] < 0, -1, 1)]
        image = tf.ensure_shape(image, shape)
        if randaugment:
            layers, magnitude = randaugment
            image = randaugmented(image, draws[3:], layers=layers, magnitude=magnitude)
        return image, tf.one_hot(label, source.num_classes)

    first = first_step * batch_size
    epoch, position = divmod(first, source.num_examples)
    dataset = tf.data.Dataset.range(epoch, tf.int64.max).flat_map(shuffled)
    dataset = dataset.skip(position).enumerate(first)
    if local_size < batch_size:
        dataset = dataset.filter(is_local)
    dataset = dataset.map(augmented, tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(local_size, drop_remainder=True)
    if mixup:
        # Negative numbers are no position of an image.
        dataset = dataset.enumerate(first_step).map(
            lambda step, batch: mix(*batch, (seed, -1 - step), alpha=mixup)
        )
    return dataset.prefetch(tf.data.AUTOTUNE)


def evaluation_batches(
    source, *, image_size, batch_size, preprocessing=None, shard=(0, 1), pad=False
):
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

    def is_local(position, _):
        return position % batch_size // local_size == host

    def prepared(position, example):
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


def _check_size(image_size):
    size = (image_size,) * 2 if isinstance(image_size, Integral) else tuple(image_size)
    if len(size) != 2 or not all(
        isinstance(edge, Integral) and edge > 0 for edge in size
    ):
        raise ValueError(
            "`image_size` must be a positive integer, or (height, width). "
            f"Received: image_size={image_size!r}"
        )
    return size


def _check_shard(shard, batch_size):
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


def _check_augmentation(crop, pad, area_range, randaugment, mixup):
    if crop not in CROPS:
        raise ValueError(
            f"`crop` must be one of {', '.join(map(repr, CROPS))}. "
            f"Received: crop={crop!r}"
        )
    _check_integer("pad", pad, 0)
    if not 0 < area_range[0] <= area_range[1] <= 1:
        raise ValueError(
            "`area_range` must be two shares in (0, 1], the smaller one first. "
            f"Received: area_range={area_range!r}"
        )
    if randaugment and not (randaugment[0] >= 1 and 0 <= randaugment[1] <= 20):
        raise ValueError(
            "`randaugment` must be None, or a number of operations and a magnitude in "
            f"[0, 20]. Received: randaugment={randaugment!r}"
        )
    if not mixup >= 0:
        raise ValueError(f"`mixup` must not be negative. Received: mixup={mixup!r}")


def _check_integer(name, value, low, high=None):
    if not isinstance(value, Integral) or value < low or (high and value > high):
        limits = f"from {low}" + (f" to {high}" if high else "")
        raise ValueError(
            f"`{name}` must be an integer {limits}. Received: {name}={value!r}"
        )
