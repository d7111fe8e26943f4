"""From the bytes of an image file to pixels of one size, in TensorFlow.

Bytes are those of a JPEG, PNG or still GIF file, and become RGB. Every function takes
pixels as well, uint8 or float `(height, width, channels)` in [0, 255], and then keeps
their channels.
"""

from typing import TYPE_CHECKING, Any

from keras_mixer.preprocessing import Preprocessing, fit

if TYPE_CHECKING:
    import tensorflow as tf

# Pillow's way, so that training, evaluation and `preprocess` see the same pixels.
_DCT = "INTEGER_ACCURATE"


def decoded(image: "tf.Tensor") -> "tf.Tensor":
    """Return the pixels of a file's bytes, `(height, width, 3)`; pixels as they are."""
    import tensorflow as tf

    if image.dtype != tf.string:
        return image
    # Decodes PNG and still GIF, too.
    return tf.io.decode_jpeg(image, channels=3, dct_method=_DCT)


def random_area(
    image: "tf.Tensor", area_range: tuple[float, float], seed: "tf.Tensor"
) -> "tf.Tensor":
    """Return a random part of an image; of a JPEG, only that part is decoded.

    Args:
        image: Bytes or pixels.
        area_range: Smallest and largest share of the area. The aspect ratio lies in
            [0.75, 1.33].
        seed: Integer tensor `(2,)`.
    """
    import tensorflow as tf

    def window(shape: "tf.Tensor") -> tuple["tf.Tensor", "tf.Tensor"]:
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.zeros((1, 0, 4)),
            seed,
            min_object_covered=0.0,
            aspect_ratio_range=(0.75, 1.33),
            area_range=area_range,
            use_image_if_no_bounding_boxes=True,
        )
        return begin, extent

    def of_jpeg() -> "tf.Tensor":
        begin, extent = window(tf.image.extract_jpeg_shape(image))
        corners = tf.concat([begin[:2], extent[:2]], 0)
        return tf.image.decode_and_crop_jpeg(
            image, corners, channels=3, dct_method=_DCT
        )

    def of_pixels(pixels: "tf.Tensor") -> "tf.Tensor":
        return tf.slice(pixels, *window(tf.shape(pixels)))

    if image.dtype != tf.string:
        return tf.ensure_shape(of_pixels(image), (None, None, image.shape[-1]))
    part = tf.cond(tf.io.is_jpeg(image), of_jpeg, lambda: of_pixels(decoded(image)))
    return tf.ensure_shape(part, (None, None, 3))


def to_size(image: "tf.Tensor", size: tuple[int, int]) -> "tf.Tensor":
    """Return pixels as uint8 of `size`, resized (bilinear, without antialiasing)."""
    import tensorflow as tf

    if image.shape[:2] != size:
        image = tf.round(tf.image.resize(image, size))
    return tf.cast(image, tf.uint8)


def fitted(
    image: "tf.Tensor", size: tuple[int, int], record: Preprocessing
) -> "tf.Tensor":
    """Return pixels as `preprocess` prepares them, float32.

    Args:
        image: Pixels.
        size: `(height, width)` of the result.
        record: The `Preprocessing` record.
    """
    import tensorflow as tf

    if record.library == "pillow":  # by Pillow itself, as `preprocess` does
        pixels = tf.numpy_function(
            lambda pixels: fit(pixels, size, record),
            [image],
            tf.float32,
            stateful=False,
        )
        return tf.ensure_shape(pixels, (*size, image.shape[-1]))
    resized: Any = size
    if record.transform != "resize":
        resized = [round(edge / record.crop_fraction) for edge in size]
    if record.transform == "resmall_crop":
        edges = tf.cast(tf.shape(image)[:2], tf.float32)
        factor = tf.reduce_max(tf.constant(resized, tf.float32) / edges)
        resized = tf.cast(tf.round(edges * factor), tf.int32)
    pixels = tf.image.resize(image, resized, method=record.interpolation)
    top, left = tf.unstack((tf.convert_to_tensor(resized) - size) // 2)
    pixels = pixels[top : top + size[0], left : left + size[1]]
    return tf.ensure_shape(tf.cast(pixels, tf.float32), (*size, image.shape[-1]))
