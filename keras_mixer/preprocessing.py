"""From images to the pixels a model takes.

How to prepare an image belongs to a checkpoint: `Preprocessing` is that record. Images
for Google's are resized in NumPy, equal to the official evaluations' `tf.image.resize(
..., antialias=False)`, images for timm's by Pillow: every backend sees the same pixels.

Source: paper, appendix C; `big_vision/pp/ops_image.py` of google-research/big_vision.
"""

import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Range = tuple[float, float]

TRANSFORMS = ("resize_crop", "resmall_crop", "resize")
INTERPOLATIONS = ("bilinear", "area")

# What there is of each, by the library whose resizing it is.
_TRANSFORMS = {"tensorflow": TRANSFORMS, "pillow": (*TRANSFORMS, "resize_pad")}
_INTERPOLATIONS = {
    "tensorflow": INTERPOLATIONS,
    "pillow": ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"),
}

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# What a file becomes for a model of so many channels.
_PIL_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for one checkpoint.

    Attributes:
        value_range: What the pixel values 0 and 255 become. Google's files take
            (-1, 1), MIIL's (0, 1). One such pair, or one for each channel.
        transform: `"resize_crop"`, resize without keeping the aspect ratio, then crop
            the centre (paper, appendix C, (i); "squash" in timm); `"resmall_crop"`,
            resize the shorter side, then crop the centre ((ii); "center" in timm);
            `"resize_pad"`, resize the longer side, then crop or pad to the model's size
            ("border" in timm); `"resize"`, resize to the model's size.
        interpolation: `"bilinear"` or `"area"`, neither with antialiasing; for Pillow
            `"bilinear"`, `"bicubic"`, `"lanczos"`, `"box"` or `"hamming"`, all with
            antialiasing, or `"nearest"`.
        crop_fraction: Edge of the crop over the edge it is cropped from, 224 / 256.
        library: Whose resizing it is: `"tensorflow"`, of the official evaluations,
            with values between the grey levels; `"pillow"`, of timm and torchvision,
            rounded to whole grey levels. Only Pillow knows `"resize_pad"`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    value_range: Range | tuple[Range, ...] = (-1.0, 1.0)
    transform: str = "resmall_crop"
    interpolation: str = "bilinear"
    crop_fraction: float = 0.875
    library: str = "tensorflow"

    def __post_init__(self) -> None:
        ranges = _as_ranges(self.value_range)
        _check_choice("library", self.library, tuple(_TRANSFORMS))
        where = f" with library={self.library!r}"
        _check_choice("transform", self.transform, _TRANSFORMS[self.library], where)
        _check_choice(
            "interpolation", self.interpolation, _INTERPOLATIONS[self.library], where
        )
        if not _is_real(self.crop_fraction) or not 0 < self.crop_fraction <= 1:
            raise ValueError(
                "`crop_fraction` must lie in (0, 1]. "
                f"Received: crop_fraction={self.crop_fraction!r}"
            )
        # JSON turns tuples to lists; equal records must stay equal and hashable.
        one = len(set(ranges)) == 1
        object.__setattr__(self, "value_range", ranges[0] if one else ranges)
        object.__setattr__(self, "crop_fraction", float(self.crop_fraction))

    @property
    def ranges(self) -> tuple[Range, ...]:
        """`value_range` as pairs: one for all channels, or one for each."""
        return _as_ranges(self.value_range)

    @property
    def scale(self) -> float | tuple[float, ...]:
        """The factor in `pixels * scale + offset`, which maps to `value_range`."""
        scales = tuple((high - low) / 255 for low, high in self.ranges)
        return scales[0] if len(scales) == 1 else scales

    @property
    def offset(self) -> float | tuple[float, ...]:
        """The summand in `pixels * scale + offset`."""
        offsets = tuple(low for low, _ in self.ranges)
        return offsets[0] if len(offsets) == 1 else offsets

    @property
    def rescaling(self) -> dict[str, Any]:
        """The arguments of the layer `keras.layers.Rescaling` that normalises."""
        # Of three axes: Keras takes one alone for that of images with channels first
        # wherever that is its setting, but a Mixer's images never have them first.
        return {
            name: value if isinstance(value, float) else [[list(value)]]
            for name, value in (("scale", self.scale), ("offset", self.offset))
        }

    @property
    def mean(self) -> tuple[float, ...]:
        """What is subtracted from pixels in [0, 1], as PyTorch puts it.

        `(pixels / 255 - mean) / std` is `pixels * scale + offset`.
        """
        return tuple(_rounded(-low / (high - low)) for low, high in self.ranges)

    @property
    def std(self) -> tuple[float, ...]:
        """By what pixels in [0, 1] are divided, see `mean`."""
        return tuple(_rounded(1 / (high - low)) for low, high in self.ranges)

    @property
    def fill(self) -> tuple[int, ...]:
        """The grey levels that `"resize_pad"` pads with: those nearest to the mean."""
        return tuple(min(max(round(255 * mean), 0), 255) for mean in self.mean)

    def normalize(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Return floats in [0, 255] `(..., channels)` mapped to `value_range`."""
        scale, offset = (
            np.asarray(value, pixels.dtype) for value in (self.scale, self.offset)
        )
        return pixels * scale + offset

    def check_channels(self, channels: int) -> None:
        """Raise a `ValueError` unless the record is for images of so many channels."""
        if len(self.ranges) not in (1, channels):
            raise ValueError(
                "`preprocessing` must have one value range, or one per channel. "
                f"Received: {len(self.ranges)} ranges for {channels} channels"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a dictionary of JSON types."""
        ranges = [list(pair) for pair in self.ranges]
        config = {**asdict(self), "value_range": ranges}
        if len(ranges) == 1:
            config["value_range"] = ranges[0]
        if self.library == "tensorflow":  # older versions know no other
            del config["library"]
        return config

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "Preprocessing":
        """Return the record that `to_dict` wrote; missing entries take the default."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(config) - known):
            raise ValueError(
                f"`config` has entries that `Preprocessing` does not know: {unknown}. "
                f"Received: {config}. The entries are {sorted(known)}."
            )
        return cls(**config)


def prepare_images(
    images: Any,
    record: Preprocessing,
    image_shape: tuple[int, int, int],
    value_range: Range | tuple[Range, ...] = (0.0, 255.0),
) -> NDArray[np.float32]:
    """Return images resized and cropped as a record says, as one batch.

    Args:
        images: As in `keras_mixer.preprocess`.
        record: How they are resized and cropped.
        image_shape: `(height, width, channels)` of the result.
        value_range: What the pixel values 0 and 255 become, for all channels or each.

    Returns:
        Float32 array `(batch, height, width, channels)`.

    Raises:
        FileNotFoundError: If a path does not exist.
        ImportError: If a file is to be read and Pillow is not installed.
        ValueError: If an image is none, or its values or channels do not fit.
    """
    height, width, channels = image_shape
    images = _as_list(images)
    _check_values([image for image in images if isinstance(image, np.ndarray)])
    pixels: NDArray[np.float32] = np.stack(
        [fit(_to_array(image, channels), (height, width), record) for image in images]
    )
    if value_range == (0, 255):
        return pixels
    return Preprocessing(value_range).normalize(pixels)


def printable(path: str | bytes | os.PathLike[str]) -> str:
    r"""Return a path as text that any terminal and any log takes.

    Bytes that are not UTF-8 and control characters become escapes: `caf\xe9.jpg`.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(
        letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text
    )


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the paths of all image files in `folder` and the folders below, sorted.

    Files count by their suffix: bmp, gif, jpeg, jpg, png, tif, tiff, webp. Hidden files
    are left out. So are files without a suffix, broken links and linked folders; one
    warning counts them, because a person may miss them.

    Raises:
        FileNotFoundError: If `folder` does not exist.
        ValueError: If it is not a folder or has no images.
    """
    root = _existing(folder)
    if not root.is_dir():
        raise ValueError(f"`folder` must be a folder. Received: {printable(root)!r}")
    left_out: dict[str, list[str]] = {}
    paths = sorted(Path(path) for path in walk_images(str(root), left_out))
    warn_of_left_out(root, left_out)
    if not paths:
        raise ValueError(
            f"`folder` has no images ({', '.join(SUFFIXES)}). "
            f"Received: {printable(root)!r}"
        )
    return paths


def walk_images(folder: str, left_out: dict[str, list[str]]) -> Iterator[str]:
    """Yield the image files in `folder` and below, in no order.

    Args:
        folder: Path of the folder.
        left_out: Takes the paths that a person may miss, by the reason.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            if entry.is_dir():
                if entry.is_symlink():  # may be a circle
                    left_out.setdefault("linked folder(s)", []).append(entry.path)
                else:
                    yield from walk_images(entry.path, left_out)
            elif entry.is_symlink() and not os.path.exists(entry.path):
                left_out.setdefault("broken link(s)", []).append(entry.path)
            elif name.lower().endswith(SUFFIXES) and entry.is_file():
                yield entry.path
            elif "." not in name:
                left_out.setdefault("file(s) without a suffix", []).append(entry.path)


def warn_of_left_out(
    folder: str | os.PathLike[str], left_out: dict[str, list[str]]
) -> None:
    """Say, once, what `walk_images` left out of `folder`."""
    if not left_out:
        return
    kinds = [
        f"{len(paths)} {reason}, {printable(os.path.relpath(min(paths), folder))}"
        for reason, paths in left_out.items()
    ]
    warnings.warn(
        f"Not used as images in {printable(folder)!r}: {'; '.join(kinds)}.",
        stacklevel=3,
    )


def _as_list(images: Any) -> list[Any]:
    """Return `images` as a list of paths, PIL images and arrays of one image each."""
    if isinstance(images, (str, os.PathLike)) and _existing(images).is_dir():
        images = list_images(images)
    elif not isinstance(images, (list, tuple)):
        images = [images]
        if getattr(images[0], "ndim", None) == 4:
            images = list(_to_numpy(images[0]))
    if not images:
        raise ValueError("`images` must hold at least one image. Received: none")
    return [_as_image(image) for image in images]


def _as_image(image: Any) -> Any:
    if isinstance(image, (str, os.PathLike)):
        return _existing(image)
    if _is_pil(image):
        return image
    if not hasattr(image, "__array__"):
        raise ValueError(
            "`images` must be paths, PIL images or arrays. Received: an object of "
            f"{type(image)}"
        )
    image = _to_numpy(image)
    if image.ndim not in (2, 3) or not image.size or image.dtype.kind not in "uif":
        raise ValueError(
            "`images` must be arrays of numbers, (height, width) or (height, width, "
            f"channels) each. Received: shape={image.shape}, dtype={image.dtype}"
        )
    return image


def _check_values(arrays: list[Any]) -> None:
    """Raise a `ValueError` unless the values of all arrays are pixels in [0, 255]."""
    if not arrays:
        return
    low = np.min([array.min() for array in arrays])
    high = np.max([array.max() for array in arrays])
    if not (low >= 0 and high <= 255):  # false for NaN, too
        raise ValueError(
            "`images` must be pixels in [0, 255]. Received: values from "
            f"{low} to {high}. Undo any normalisation, or clip what resizing overshot."
        )
    high = max([array.max() for array in arrays if array.dtype.kind == "f"], default=0)
    if 0 < high <= 1:
        raise ValueError(
            "`images` must be pixels in [0, 255]. Received: floats in [0, 1], which "
            "have probably been scaled already. Pass `255 * images`, or uint8 if the "
            "images are really that dark."
        )


def _to_array(image: Any, channels: int) -> NDArray[Any]:
    """Return `image` as an array `(height, width, channels)`."""
    if not isinstance(image, np.ndarray):
        image = decode_image(image, channels)
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[2] == 1 and channels == 3:
        image = np.repeat(image, 3, axis=2)
    if image.shape[2] != channels:
        raise ValueError(
            f"`images` must have {channels} channels for this model. Received: "
            f"shape={image.shape}. A batch is (batch, height, width, channels); an "
            "alpha channel goes with `images[..., :3]`."
        )
    return image


def decode_image(image: Any, channels: int = 3) -> NDArray[np.uint8]:
    """Return a file or a PIL image as pixels, upright and without alpha channel.

    The orientation is that of the EXIF or XMP data, wherever in the file they are. Of
    16 bits per channel the upper eight count. What is transparent keeps the colour that
    lies below, as in the official code: a black drawing on a transparent ground is all
    black.

    Args:
        image: Path to an image file, or a PIL image.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8 array, `(height, width, 3)`, or `(height, width)` for grey.

    Raises:
        ImportError: If Pillow is not installed.
        ValueError: If it cannot be decoded, or has more than 16 bits per channel.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError(
            "Reading image files needs Pillow: pip install 'keras-mixer[plot]'"
        ) from error

    source = image if _is_pil(image) else printable(image)
    if channels not in _PIL_MODES:
        raise ValueError(
            f"`images` must be arrays for a model of {channels} channels. "
            f"Received: {source}"
        )
    try:
        if not _is_pil(image):
            with Image.open(image) as image:
                image.load()
        file_format = image.format
        image = _eight_bits(ImageOps.exif_transpose(image), file_format)
        if image is not None:
            if image.mode == "P":  # the direct way warns about palettes with alpha
                image = image.convert("RGBA")
            return np.asarray(image.convert(_PIL_MODES[channels]))
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # each of Pillow's readers has its own
        reason = printable(str(error)) or type(error).__name__
        raise ValueError(
            f"`images` must be image files. Received: {source}, which cannot be read "
            f"({reason})"
        ) from error
    raise ValueError(
        "`images` must have 8 or 16 bits per channel. Received: "
        f"{source}, whose values Pillow would cut off at 255. "
        "Pass an array scaled to [0, 255]."
    )


def _eight_bits(image: Any, file_format: str | None) -> Any:
    """Return a PIL image without the lower eight of 16 bits; of more bits, `None`."""
    from PIL import Image

    # Pillow 10 reads some files of 16 bits as 32.
    if image.mode.startswith("I;16") or (
        image.mode == "I" and file_format in ("PNG", "PPM")
    ):
        return Image.fromarray((np.asarray(image) >> 8).astype("uint8"))
    return None if image.mode.startswith(("I", "F")) else image


def fit(
    image: NDArray[Any], size: tuple[int, int], record: Preprocessing
) -> NDArray[np.float32]:
    """Return `image` `(height, width, channels)` as `record` fits it to `size`."""
    if record.library == "pillow":
        return _fit_like_timm(image, size, record)
    return _fit_like_tensorflow(image, size, record)


def _fit_like_tensorflow(
    image: NDArray[Any], size: tuple[int, int], record: Preprocessing
) -> NDArray[np.float32]:
    resized: tuple[int, ...] = size
    if record.transform != "resize":
        resized = tuple(round(edge / record.crop_fraction) for edge in size)
    if record.transform == "resmall_crop":
        # In float32 and half to even, because TensorFlow's size decides the crop.
        edges = np.array(image.shape[:2], "float32")
        factor = np.max(np.array(resized, "float32") / edges)
        resized = tuple(int(edge) for edge in np.round(edges * factor))

    matrix = {"bilinear": _bilinear_matrix, "area": _area_matrix}[record.interpolation]
    rows, columns = (
        matrix(image.shape[axis], resized[axis], start, start + size[axis])
        for axis, start in enumerate((np.array(resized) - size) // 2)
    )
    # Pixels without weight, most of a large photo, are left out before the products.
    used_rows, used_columns = rows.any(axis=0), columns.any(axis=0)
    pixels = image[used_rows][:, used_columns].astype("float32")
    return np.einsum(
        "yi,xj,ijc->yxc",
        rows[:, used_rows],
        columns[:, used_columns],
        pixels,
        optimize=True,
    )


def _bilinear_matrix(
    in_size: int, out_size: int, start: int = 0, stop: int | None = None
) -> NDArray[Any]:
    """Return rows `start` to `stop` of the `(out_size, in_size)` bilinear weights."""
    rows = np.arange(start, out_size if stop is None else stop, dtype="float32")
    # float32 throughout, as in TensorFlow's kernel, whose rounding shows in big images.
    scale = np.float32(in_size) / np.float32(out_size)
    centers = (rows + np.float32(0.5)) * scale - np.float32(0.5)
    centers = np.clip(centers, np.float32(0), np.float32(in_size - 1))
    distances = np.abs(centers[:, None] - np.arange(in_size, dtype="float32"))
    return np.maximum(1 - distances, 0)


def _area_matrix(
    in_size: int, out_size: int, start: int = 0, stop: int | None = None
) -> NDArray[Any]:
    """Return rows `start` to `stop` of the `(out_size, in_size)` area weights."""
    scale = in_size / out_size
    edges = np.arange(start, (out_size if stop is None else stop) + 1) * scale
    pixels = np.arange(in_size)
    ends = np.minimum(edges[1:, None], pixels + 1)
    overlaps = ends - np.maximum(edges[:-1, None], pixels)
    return (np.maximum(overlaps, 0) / scale).astype("float32")


def _fit_like_timm(
    image: NDArray[Any], size: tuple[int, int], record: Preprocessing
) -> NDArray[np.float32]:
    """Return `image` as timm fits it to `size`: whole grey levels stay whole.

    Source: `CenterCropOrPad` in `timm/data/transforms.py`; torchvision's `CenterCrop`.
    """
    resized = _pillow_size(
        (image.shape[0], image.shape[1]), size, record.transform, record.crop_fraction
    )
    pixels = _resize_with_pillow(image, resized, record.interpolation)
    result = np.full((*size, pixels.shape[2]), record.fill, "float32")
    rows, columns = map(_overlap, resized, size)
    result[rows[1], columns[1]] = pixels[rows[0], columns[0]]
    return result


def _pillow_size(
    image_size: tuple[int, int],
    size: tuple[int, int],
    transform: str,
    crop_fraction: float,
) -> tuple[int, int]:
    """Return the `(height, width)` to which timm resizes before it crops to `size`.

    Source: `transforms_imagenet_eval` in `timm/data/transforms_factory.py`;
    `ResizeKeepRatio` in `timm/data/transforms.py`; `Resize` of torchvision.
    """
    if transform == "resize":
        return size
    height, width = (math.floor(edge / crop_fraction) for edge in size)
    if transform == "resize_crop":
        return height, width
    rows, columns = image_size
    if transform == "resmall_crop" and height == width:  # torchvision's `Resize`
        longer = int(height * max(image_size) / min(image_size))
        return (height, longer) if rows <= columns else (longer, height)
    ratios = rows / height, columns / width
    ratio = max(ratios) if transform == "resize_pad" else min(ratios)
    return max(round(rows / ratio), 1), max(round(columns / ratio), 1)


def _overlap(resized: int, edge: int) -> tuple[slice, slice]:
    """Return what is taken of a resized edge, and where it goes in the result."""
    if resized < edge:
        start = (edge - resized) // 2
        return slice(None), slice(start, start + resized)
    start = round((resized - edge) / 2)
    return slice(start, start + edge), slice(None)


def _resize_with_pillow(
    image: NDArray[Any], size: tuple[int, int], interpolation: str
) -> NDArray[Any]:
    """Return the image at another size, uint8 if its values are whole numbers."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "The images of this checkpoint are resized by Pillow, as in timm: "
            "pip install 'keras-mixer[plot]'"
        ) from error

    def resize(picture: "Image.Image") -> NDArray[Any]:
        method = Image.Resampling[interpolation.upper()]
        return np.asarray(picture.resize(size[::-1], method))

    whole = image.dtype.kind != "f" or np.array_equal(image, np.rint(image))
    image = image.astype("uint8" if whole else "float32", copy=False)
    if whole and image.shape[2] == 3:
        return resize(Image.fromarray(np.ascontiguousarray(image)))
    channels = [
        resize(Image.fromarray(np.ascontiguousarray(channel)))
        for channel in np.moveaxis(image, 2, 0)
    ]
    # Cubic and Lanczos weights are negative in part: floats may leave the range.
    return np.clip(np.stack(channels, axis=2), 0, 255)


def _to_numpy(array: Any) -> NDArray[Any]:
    if isinstance(array, np.ndarray):
        return array
    import keras

    if keras.ops.is_tensor(array):
        return keras.ops.convert_to_numpy(array)
    return np.asarray(array)


def _existing(path: Any) -> Path:
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {str(path)!r}")
    return path


def _is_pil(image: Any) -> bool:
    return hasattr(image, "convert") and hasattr(image, "getexif")


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _as_ranges(value_range: Any) -> tuple[Range, ...]:
    """Return pairs of floats: one for all channels, or one for each."""

    def is_range(pair: Any) -> bool:
        return (
            isinstance(pair, (tuple, list))
            and len(pair) == 2
            and all(_is_real(value) for value in pair)
            and bool(-np.inf < pair[0] < pair[1] < np.inf)
        )

    pairs = [value_range] if is_range(value_range) else value_range
    if (
        not isinstance(pairs, (tuple, list))
        or not pairs
        or not all(is_range(pair) for pair in pairs)
    ):
        raise ValueError(
            "`value_range` must be two finite numbers, the lower one first, or one "
            f"such pair for each channel. Received: value_range={value_range!r}"
        )
    return tuple((float(low), float(high)) for low, high in pairs)


def _rounded(number: float) -> float:
    """Return a number as it was written, before float arithmetic touched it."""
    return float(f"{number:.12g}") + 0.0  # no negative zero


def _check_choice(
    name: str, value: object, choices: tuple[str, ...], where: str = ""
) -> None:
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, choices))}{where}. "
            f"Received: {name}={value!r}"
        )
