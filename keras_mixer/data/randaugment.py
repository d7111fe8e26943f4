"""RandAugment, as in the official code, drawn from a seed.

RandAugment applies to one uint8 RGB image so many operations in a row, each chosen
uniformly from the sixteen below and always applied. All strengths follow from one
magnitude; 10 is the nominal maximum, and the paper goes up to 20. Strengths in pixels
(translation, cutout) are made for images of 224 pixels, and official runs keep them on
smaller ones; `pixel_scale` shrinks them.

The layers of Keras choose one operation for the whole batch and compute all of them;
here every image has its own, and only that one is computed.

Source: Cubuk et al. 2019 (arXiv:1909.13719); `big_vision/pp/archive/autoaugment.py`.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from keras_mixer.data.erasing import rectangle

if TYPE_CHECKING:
    import tensorflow as tf

FILL = 128  # what comes in where an operation moved or cut pixels away
CUTOUT_PIXELS = 40
TRANSLATE_PIXELS = 100


def randaugment(
    image: "tf.Tensor",
    seed: "tf.Tensor",
    *,
    layers: int,
    magnitude: float,
    pixel_scale: float = 1.0,
) -> "tf.Tensor":
    """Return `image` after `layers` random operations.

    Args:
        image: uint8 tensor `(height, width, 3)`.
        seed: Integer tensor `(2,)`; the same seed gives the same image.
        layers: Number of operations.
        magnitude: Their strength, in [0, 20].
        pixel_scale: Factor of the strengths in pixels, in (0, 1]; `edge / 224` moves
            and covers as large a part of an image of `edge` pixels as of one of 224.
    """
    import tensorflow as tf

    shape = image.shape
    draws = tf.random.stateless_uniform((layers, 4), seed)  # in [0, 1)
    for choice, sign, row, column in map(tf.unstack, tf.unstack(draws)):
        operations = _operations(
            image,
            magnitude / 10,
            pixel_scale=pixel_scale,
            sign=tf.where(sign < 0.5, -1.0, 1.0),
            center=tf.cast(
                (row, column) * tf.cast(tf.shape(image)[:2], "float32"), "int32"
            ),
        )
        image = tf.switch_case(tf.cast(choice * len(operations), tf.int32), operations)
        image = tf.ensure_shape(image, shape)
    return image


def _operations(
    image: "tf.Tensor",
    level: float,
    *,
    sign: "tf.Tensor",
    center: "tf.Tensor",
    pixel_scale: float = 1.0,
) -> list[Callable[[], "tf.Tensor"]]:
    """Return the sixteen operations at `level`, the magnitude over ten."""
    factor = 1.8 * level + 0.1
    degrees = 30.0 * level * sign
    shift = TRANSLATE_PIXELS * pixel_scale * level * sign
    slope = 0.3 * level * sign
    return [
        lambda: autocontrast(image),
        lambda: equalize(image),
        lambda: invert(image),
        lambda: rotate(image, degrees),
        lambda: posterize(image, int(4 * level)),
        # A magnitude of 10 and more is a threshold above 255, which NumPy wrapped
        # around when the official checkpoints were trained: 15 means 128.
        lambda: solarize(image, int(256 * level) % 256),
        lambda: color(image, factor),
        lambda: contrast(image, factor),
        lambda: brightness(image, factor),
        lambda: sharpness(image, factor),
        lambda: shear(image, x=slope),
        lambda: shear(image, y=slope),
        lambda: translate(image, x=shift),
        lambda: translate(image, y=shift),
        lambda: cutout(image, center, int(CUTOUT_PIXELS * pixel_scale * level)),
        lambda: solarize_add(image, int(110 * level)),
    ]


def autocontrast(image: "tf.Tensor") -> "tf.Tensor":
    """Stretch each channel linearly, so that it reaches from 0 to 255."""
    import tensorflow as tf

    pixels = tf.cast(image, tf.int32)
    low = tf.reduce_min(pixels, axis=(0, 1))
    spread = tf.reduce_max(pixels, axis=(0, 1)) - low
    stretched = (pixels - low) * 255 // tf.maximum(spread, 1)
    return tf.where(spread > 0, tf.cast(stretched, tf.uint8), image)


def equalize(image: "tf.Tensor") -> "tf.Tensor":
    """Make the histogram of each channel flat, as Pillow's `ImageOps.equalize`."""
    import tensorflow as tf

    def channel(values: "tf.Tensor") -> "tf.Tensor":
        counts = tf.math.bincount(values, minlength=256, maxlength=256)
        step = (tf.size(values) - counts[tf.reduce_max(values)]) // 255
        below = tf.cumsum(counts, exclusive=True)
        table = (below + step // 2) // tf.maximum(step, 1)
        table = tf.where(step > 0, tf.minimum(table, 255), tf.range(256))
        return tf.gather(table, values)

    channels = tf.unstack(tf.cast(image, tf.int32), axis=-1, num=3)
    return tf.cast(tf.stack([channel(values) for values in channels], -1), tf.uint8)


def invert(image: "tf.Tensor") -> "tf.Tensor":
    """Return 255 minus each value."""
    return 255 - image


def posterize(image: "tf.Tensor", bits: int) -> "tf.Tensor":
    """Keep the highest `bits` bits of each value; of none, one."""
    import tensorflow as tf

    lost = min(max(8 - bits, 0), 7)
    return tf.bitwise.left_shift(tf.bitwise.right_shift(image, lost), lost)


def solarize(image: "tf.Tensor", threshold: int) -> "tf.Tensor":
    """Invert the values that are not below `threshold`, which is in [0, 255]."""
    import tensorflow as tf

    return tf.where(image < threshold, image, 255 - image)


def solarize_add(image: "tf.Tensor", addition: int) -> "tf.Tensor":
    """Add to the values below 128, and clip."""
    import tensorflow as tf

    brighter = tf.minimum(tf.cast(image, tf.int32) + addition, 255)
    return tf.where(image < 128, tf.cast(brighter, tf.uint8), image)


def color(image: "tf.Tensor", factor: float) -> "tf.Tensor":
    """Move the colours away from grey; 0 is grey, 1 the image."""
    import tensorflow as tf

    return _blend(tf.image.rgb_to_grayscale(image), image, factor)


def contrast(image: "tf.Tensor", factor: float) -> "tf.Tensor":
    """Move the values away from the mean grey; 0 is the mean, 1 the image."""
    import tensorflow as tf

    grey = tf.cast(tf.image.rgb_to_grayscale(image), tf.int32)
    return _blend(tf.reduce_sum(grey) // tf.size(grey), image, factor)


def brightness(image: "tf.Tensor", factor: float) -> "tf.Tensor":
    """Multiply the values."""
    return _blend(0, image, factor)


def sharpness(image: "tf.Tensor", factor: float) -> "tf.Tensor":
    """Move the values away from their mean over 3 x 3 pixels, its centre five times.

    The outermost pixels have no such mean and stay what they are.
    """
    import tensorflow as tf

    pixels = tf.cast(image, tf.int32)
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    smooth = (box + 4 * pixels[1:-1, 1:-1]) // 13
    inner = _blend(smooth, image[1:-1, 1:-1], factor)
    rows = tf.concat([image[1:-1, :1], inner, image[1:-1, -1:]], axis=1)
    return tf.concat([image[:1], rows, image[-1:]], axis=0)


def rotate(image: "tf.Tensor", degrees: "tf.Tensor") -> "tf.Tensor":
    """Turn about the centre of the image, the nearest pixel for each."""
    import tensorflow as tf

    radians = tf.constant(math.pi / 180) * degrees
    cos, sin = tf.cos(radians), tf.sin(radians)
    bottom, right = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32) - 1)
    x = (right - (cos * right - sin * bottom)) / 2
    y = (bottom - (sin * right + cos * bottom)) / 2
    return _transform(image, [cos, -sin, x, sin, cos, y])


def shear(image: "tf.Tensor", x: float = 0.0, y: float = 0.0) -> "tf.Tensor":
    """Take each pixel from `x` further right per row, `y` further down per column."""
    return _transform(image, [1.0, x, 0.0, y, 1.0, 0.0])


def translate(image: "tf.Tensor", x: float = 0.0, y: float = 0.0) -> "tf.Tensor":
    """Take each pixel from `x` pixels further right and `y` further down."""
    return _transform(image, [1.0, 0.0, x, 0.0, 1.0, y])


def cutout(image: "tf.Tensor", center: "tf.Tensor", half: int) -> "tf.Tensor":
    """Fill the square of `2 * half` pixels around `center`, (row, column)."""
    import tensorflow as tf

    hole = rectangle(
        image,
        top=center[0] - half,
        left=center[1] - half,
        height=2 * half,
        width=2 * half,
    )
    return tf.where(hole, tf.constant(FILL, tf.uint8), image)


def _blend(other: "tf.Tensor", image: "tf.Tensor", factor: float) -> "tf.Tensor":
    """Return `other + factor * (image - other)`, clipped and truncated to uint8."""
    import tensorflow as tf

    other = tf.cast(other, tf.float32)
    blended = other + factor * (tf.cast(image, tf.float32) - other)
    return tf.cast(tf.clip_by_value(blended, 0, 255), tf.uint8)


def _transform(image: "tf.Tensor", matrix: list[float]) -> "tf.Tensor":
    """Take the pixel at (x, y) from (a x + b y + c, d x + e y + f), the nearest one."""
    import tensorflow as tf

    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=tf.stack([*matrix, 0.0, 0.0])[None],
        output_shape=tf.shape(image)[:2],
        fill_value=float(FILL),
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )
    return moved[0]
