"""A rectangle of an image, and random erasing, drawn from a seed.

Source: Zhong et al. 2017 (arXiv:1708.04896).
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf

# Share of the image that random erasing fills, and height over width of its rectangle.
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)
_LOG_ASPECT = (math.log(ERASED_ASPECT[0]), math.log(ERASED_ASPECT[1]))


def random_erasing(
    image: "tf.Tensor", seed: "tf.Tensor", *, probability: float
) -> "tf.Tensor":
    """Return `image`, with `probability` a random rectangle of it full of noise.

    The rectangle covers a share from [0.02, 1/3] of the area, uniform, with a height
    over width from [0.3, 1/0.3], uniform in the logarithm, everywhere in the image with
    the same probability. An edge longer than the image's becomes that, where the paper
    draws again. Each value in it is uniform in [0, 255].

    Args:
        image: uint8 tensor `(height, width, channels)`.
        seed: Integer tensor `(2,)`; the same seed gives the same image.
        probability: In [0, 1].

    Source: Zhong et al. 2017 (arXiv:1708.04896), algorithm 1; the logarithm:
    `timm/data/random_erasing.py`.
    """
    import tensorflow as tf

    place_seed, noise_seed = tf.unstack(tf.random.split(seed, 2))
    draws = tf.unstack(tf.random.stateless_uniform((5,), place_seed))  # in [0, 1)
    chance, area, aspect, row, column = draws

    def erased() -> "tf.Tensor":
        edges = tf.cast(tf.shape(image)[:2], tf.float32)
        share = _between(ERASED_AREA, area)
        ratio = tf.exp(_between(_LOG_ASPECT, aspect))
        ratios = tf.stack([ratio, 1 / ratio])
        sides = tf.round(tf.sqrt(share * tf.reduce_prod(edges) * ratios))
        sides = tf.clip_by_value(sides, 1, edges)
        corner = tf.floor(tf.stack([row, column]) * (edges - sides + 1))
        (top, left), (height, width) = tf.unstack(corner), tf.unstack(sides)
        hole = rectangle(image, top=top, left=left, height=height, width=width)
        noise = tf.random.stateless_uniform(
            tf.shape(image), noise_seed, maxval=256, dtype=tf.int32
        )
        return tf.where(hole, tf.cast(noise, tf.uint8), image)

    return tf.cond(chance < probability, erased, lambda: tf.identity(image))


def rectangle(
    image: "tf.Tensor",
    *,
    top: "tf.Tensor",
    left: "tf.Tensor",
    height: "tf.Tensor",
    width: "tf.Tensor",
) -> "tf.Tensor":
    """Return where the rectangle covers `image`: bool `(height, width, 1)`."""
    import tensorflow as tf

    def inside(axis: int, start: "tf.Tensor", length: "tf.Tensor") -> "tf.Tensor":
        places = tf.range(tf.shape(image)[axis])
        start, length = tf.cast(start, tf.int32), tf.cast(length, tf.int32)
        return (places >= start) & (places < start + length)

    return inside(0, top, height)[:, None, None] & inside(1, left, width)[None, :, None]


def _between(limits: tuple[float, float], share: "tf.Tensor") -> "tf.Tensor":
    return limits[0] + (limits[1] - limits[0]) * share
