"""RandAugment, as in the official code, drawn from a seed.

RandAugment applies `layers` operations in a row to one uint8 RGB image, each chosen
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

if TYPE_CHECKING:
    import tensorflow as tf

FILL = 128  # what comes in where an operation moved or cut pixels away
CUTOUT_PIXELS = 40
TRANSLATE_PIXELS = 100
NUM_OPERATIONS = 16


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

    def operation(
        image: "tf.Tensor", sign: "tf.Tensor", center: "tf.Tensor", index: int
    ) -> "tf.Tensor":
        operations = _operations(
            image, magnitude / 10, sign=sign, center=center, pixel_scale=pixel_scale
        )
        return operations[index]()

    image = tf.convert_to_tensor(image)
    specs = (
        tf.TensorSpec(image.shape, tf.uint8),
        tf.TensorSpec((), tf.float32),
        tf.TensorSpec((2,), tf.int32),
    )
    # Functions of their own, not `tf.switch_case`: that would put all operations into
    # the graph of the caller, which takes longer than computing one of them.
    branches = [
        tf.function(operation).get_concrete_function(*specs, index=index)
        for index in range(NUM_OPERATIONS)
    ]
    draws = tf.random.stateless_uniform((layers, 4), seed)  # in [0, 1)
    sizes = tf.cast(tf.shape(image)[:2], tf.float32)
    signs = tf.where(draws[:, 1] < 0.5, -1.0, 1.0)
    centers = tf.cast(draws[:, 2:] * sizes, tf.int32)
    choices = tf.cast(draws[:, 0] * NUM_OPERATIONS, tf.int32)
    for layer in range(layers):
        (result,) = tf.raw_ops.StatelessCase(
            branch_index=choices[layer],
            input=[image, signs[layer], centers[layer]],
            Tout=[tf.uint8],
            branches=branches,
            output_shapes=[image.shape],
        )
        image = tf.ensure_shape(result, image.shape)
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

    # A row of the image as one axis: channels as the last one are slow.
    pixels = tf.cast(_as_rows(image), tf.float32)
    low, high = (
        _to_row(reduce(tf.reshape(reduce(pixels, 0), (-1, 3)), 0), image)
        for reduce in (tf.reduce_min, tf.reduce_max)
    )
    spread = high - low
    # Exact: integers below 2**24, and quotients that differ by a 255th at least.
    stretched = tf.floor((pixels - low) * 255 / tf.maximum(spread, 1))
    # One colour stays what it is.
    stretched += tf.where(spread > 0, 0.0, low)
    return tf.reshape(tf.cast(stretched, tf.uint8), tf.shape(image))


def equalize(image: "tf.Tensor") -> "tf.Tensor":
    """Make the histogram of each channel flat, as Pillow's `ImageOps.equalize`."""
    import tensorflow as tf

    places = tf.cast(_as_rows(image), tf.int32) + _to_row(
        tf.constant([0, 256, 512]), image
    )
    counts = tf.reshape(
        tf.math.bincount(places, minlength=768, maxlength=768), (3, 256)
    )
    values = tf.range(256)
    largest = tf.reduce_max(tf.where(counts > 0, values, 0), axis=1)
    last = tf.gather(counts, largest, batch_dims=1)
    step = (tf.reduce_sum(counts, axis=1, keepdims=True) - last[:, None]) // 255
    below = tf.cumsum(counts, axis=1, exclusive=True)
    table = (below + step // 2) // tf.maximum(step, 1)
    table = tf.where(step > 0, tf.minimum(table, 255), values)
    table = tf.reshape(tf.cast(table, tf.uint8), (-1,))
    return tf.reshape(tf.gather(table, places), tf.shape(image))


def invert(image: "tf.Tensor") -> "tf.Tensor":
    """Return 255 minus each value."""
    return 255 - image


def posterize(image: "tf.Tensor", bits: int) -> "tf.Tensor":
    """Keep the highest `bits` bits of each value, and at least one."""
    import tensorflow as tf

    lost = min(max(8 - bits, 0), 7)
    return tf.bitwise.bitwise_and(image, tf.constant(256 - 2**lost, tf.uint8))


def solarize(image: "tf.Tensor", threshold: int) -> "tf.Tensor":
    """Invert the values that are not below `threshold`, which is in [0, 255]."""
    import tensorflow as tf

    # All bits of the inverse differ; this is faster than `tf.where`.
    bits = tf.cast(image >= threshold, tf.uint8) * tf.constant(255, tf.uint8)
    return tf.bitwise.bitwise_xor(image, bits)


def solarize_add(image: "tf.Tensor", addition: int) -> "tf.Tensor":
    """Add to the values below 128, and clip."""
    import tensorflow as tf

    brighter = tf.minimum(255 - image, tf.constant(min(addition, 255), tf.uint8))
    return image + brighter * tf.cast(image < 128, tf.uint8)


def color(image: "tf.Tensor", factor: float) -> "tf.Tensor":
    """Move the colours away from grey; 0 is grey, 1 the image."""
    import tensorflow as tf

    # As `tf.image.rgb_to_grayscale`, but once per channel, so that nothing is spread.
    weights = tf.constant([[0.2989] * 3, [0.5870] * 3, [0.1140] * 3])
    pixels = tf.reshape(tf.cast(image, tf.float32) * (1.0 / 255), (-1, 3))
    grey = tf.floor(tf.matmul(pixels, weights) * 255.5)
    return _blend(tf.reshape(grey, tf.shape(image)), image, factor)


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
    # Divided by 13, exactly for sums of thirteen values.
    smooth = tf.bitwise.right_shift((box + 4 * pixels[1:-1, 1:-1]) * 5042, 16)
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
    if isinstance(x, float) and x == 0:
        return _shifted(image, y, 0)
    moved = _shifted(image, x, 1)
    return moved if isinstance(y, float) and y == 0 else _shifted(moved, y, 0)


def cutout(image: "tf.Tensor", center: "tf.Tensor", half: int) -> "tf.Tensor":
    """Fill the square of `2 * half` pixels around `center`, (row, column)."""
    import tensorflow as tf

    size = tf.shape(image)[:2]
    center = tf.convert_to_tensor(center)
    (top, left), (bottom, right) = (
        tf.unstack(tf.clip_by_value(edge, 0, size))
        for edge in (center - half, center + half)
    )
    hole = tf.fill((bottom - top, right - left, 3), tf.constant(FILL, tf.uint8))
    band = image[top:bottom]
    band = tf.concat([band[:, :left], hole, band[:, right:]], axis=1)
    return tf.concat([image[:top], band, image[bottom:]], axis=0)


def _blend(other: "tf.Tensor", image: "tf.Tensor", factor: float) -> "tf.Tensor":
    """Return `other + factor * (image - other)`, clipped and truncated to uint8."""
    import tensorflow as tf

    other = tf.cast(other, tf.float32)
    blended = other + factor * (tf.cast(image, tf.float32) - other)
    return tf.cast(tf.clip_by_value(blended, 0, 255), tf.uint8)


def _transform(image: "tf.Tensor", matrix: list[float]) -> "tf.Tensor":
    """Take the pixel at (x, y) from (a x + b y + c, d x + e y + f), the nearest one."""
    import tensorflow as tf

    # As `ImageProjectiveTransformV3`, which computes every place once per channel.
    a, b, c, d, e, f = matrix
    height, width = tf.unstack(tf.shape(image)[:2])
    x = tf.cast(tf.range(width), tf.float32)[None]
    y = tf.cast(tf.range(height), tf.float32)[:, None]
    from_x, is_x = _nearest(a * x + b * y + c, width)
    from_y, is_y = _nearest(d * x + e * y + f, height)
    place = tf.where(is_x & is_y, from_y * width + from_x, height * width)
    pixels = tf.concat(
        [tf.reshape(image, (-1, 3)), tf.fill((1, 3), tf.constant(FILL, tf.uint8))], 0
    )
    return tf.gather(pixels, place)


def _shifted(image: "tf.Tensor", amount: float, axis: int) -> "tf.Tensor":
    """Take rows (axis 0) or columns (axis 1) from `amount` further, the nearest."""
    import tensorflow as tf

    size = tf.shape(image)[axis]
    pixels = tf.cast(tf.floor(tf.convert_to_tensor(amount) + 0.5), tf.int32)
    before = tf.clip_by_value(-pixels, 0, size)
    after = tf.clip_by_value(pixels, 0, size)

    def filled(count: "tf.Tensor") -> "tf.Tensor":
        shape = tf.tensor_scatter_nd_update(tf.shape(image), [[axis]], [count])
        return tf.fill(shape, tf.constant(FILL, tf.uint8))

    kept = slice(after, size - before)
    part = image[kept] if axis == 0 else image[:, kept]
    return tf.concat([filled(before), part, filled(after)], axis=axis)


def _nearest(places: "tf.Tensor", size: "tf.Tensor") -> tuple["tf.Tensor", "tf.Tensor"]:
    """Return the nearest pixels of an axis, and which of them the image has."""
    import tensorflow as tf

    # Halves away from zero, as C rounds; those below zero are not in the image.
    nearest = tf.cast(tf.floor(places + 0.5), tf.int32)
    return nearest, (places > -0.5) & (nearest < size)


def _as_rows(image: "tf.Tensor") -> "tf.Tensor":
    """Return an image as `(height, width * 3)`."""
    import tensorflow as tf

    return tf.reshape(image, (tf.shape(image)[0], -1))


def _to_row(values: "tf.Tensor", image: "tf.Tensor") -> "tf.Tensor":
    """Return one value per channel as a row of `_as_rows`."""
    import tensorflow as tf

    return tf.tile(values, [tf.shape(image)[1]])
