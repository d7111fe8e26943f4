"""Batches blended with themselves, images and labels alike: mixup and CutMix.

Source: mixup: Zhang et al. 2017 (arXiv:1710.09412), `big_vision/utils.py`; CutMix: Yun
et al. 2019 (arXiv:1905.04899).
"""

from typing import TYPE_CHECKING

from keras_mixer.data.erasing import rectangle

if TYPE_CHECKING:
    import tensorflow as tf


def mixup(
    images: "tf.Tensor", labels: "tf.Tensor", seed: "tf.Tensor", *, alpha: float
) -> tuple["tf.Tensor", "tf.Tensor"]:
    """Return a batch blended with itself rolled by one.

        a x + (1 - a) roll(x),    a = max(b, 1 - b),    b ~ Beta(alpha, alpha)

    with one `a` for the whole batch, images and labels alike.

    Args:
        images: Tensor `(batch, height, width, channels)`.
        labels: Float tensor `(batch, classes)`.
        seed: Integer tensor `(2,)`.
        alpha: Parameter of the Beta distribution. Positive.

    Returns:
        Images and labels, float32.
    """
    import tensorflow as tf

    share = _beta(seed, alpha)
    share = tf.maximum(share, 1 - share)

    def blend(batch: "tf.Tensor") -> "tf.Tensor":
        batch = tf.cast(batch, tf.float32)
        return share * batch + (1 - share) * tf.roll(batch, 1, axis=0)

    return blend(images), blend(labels)


def cutmix(
    images: "tf.Tensor", labels: "tf.Tensor", seed: "tf.Tensor", *, alpha: float
) -> tuple["tf.Tensor", "tf.Tensor"]:
    """Return a batch with a rectangle of each image from the one before it.

        a y + (1 - a) roll(y),    a = 1 - area of the rectangle / area of the image

    for the labels y. The rectangle, the same in the whole batch, has the aspect ratio
    of the image and a share b of its area, b ~ Beta(alpha, alpha). Its centre is
    uniform over the image; what lies outside is cut off, and `a` counts what is left.

    Args:
        images: Tensor `(batch, height, width, channels)`.
        labels: Float tensor `(batch, classes)`.
        seed: Integer tensor `(2,)`.
        alpha: Parameter of the Beta distribution. Positive.

    Returns:
        Images, of the type they had, and labels, float32.

    Source: Yun et al. 2019 (arXiv:1905.04899), algorithm A1.
    """
    import tensorflow as tf

    size_seed, center_seed = tf.unstack(tf.random.split(seed, 2))
    side = tf.sqrt(_beta(size_seed, alpha))
    center = tf.random.stateless_uniform((2,), center_seed)
    height, width = tf.unstack(tf.cast(tf.shape(images)[1:3], tf.float32))
    hole = rectangle(
        images[0],
        top=tf.floor(center[0] * height) - tf.floor(side * height / 2),
        left=tf.floor(center[1] * width) - tf.floor(side * width / 2),
        height=tf.floor(side * height),
        width=tf.floor(side * width),
    )
    mixed = tf.where(hole, tf.roll(images, 1, axis=0), images)
    share = 1 - tf.reduce_mean(tf.cast(hole, tf.float32))
    labels = tf.cast(labels, tf.float32)
    return mixed, share * labels + (1 - share) * tf.roll(labels, 1, axis=0)


def mixup_or_cutmix(
    images: "tf.Tensor",
    labels: "tf.Tensor",
    seed: "tf.Tensor",
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
) -> tuple["tf.Tensor", "tf.Tensor"]:
    """Return a batch after one of the two, each with probability 1/2.

    Args:
        images: Tensor `(batch, height, width, channels)`.
        labels: Float tensor `(batch, classes)`.
        seed: Integer tensor `(2,)`.
        mixup_alpha: Parameter of mixup's Beta distribution. Positive.
        cutmix_alpha: Parameter of CutMix's Beta distribution. Positive.

    Returns:
        Images and labels, float32.

    Source: `timm/data/mixup.py`, `switch_prob=0.5`, `mode="batch"`.
    """
    import tensorflow as tf

    choice, seed = tf.unstack(tf.random.split(seed, 2))

    def blended() -> tuple["tf.Tensor", "tf.Tensor"]:
        return mixup(images, labels, seed, alpha=mixup_alpha)

    def pasted() -> tuple["tf.Tensor", "tf.Tensor"]:
        mixed, shares = cutmix(images, labels, seed, alpha=cutmix_alpha)
        return tf.cast(mixed, tf.float32), shares

    return tf.cond(tf.random.stateless_uniform((), choice) < 0.5, blended, pasted)


def _beta(seed: "tf.Tensor", alpha: float) -> "tf.Tensor":
    """Draw from Beta(alpha, alpha), as a ratio of two Gamma(alpha) draws."""
    import tensorflow as tf

    gammas = tf.random.stateless_gamma((2,), seed, alpha)
    return gammas[0] / tf.maximum(gammas[0] + gammas[1], 1e-20)
