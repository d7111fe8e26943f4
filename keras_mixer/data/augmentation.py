"""What happens to training images: one record, checked in one place, and applied.

Cropping and flipping are the paper's; RandAugment and mixup those of the official code;
random erasing and CutMix, for small data sets, are not part of the paper.

Source: `big_vision/configs/mlp_mixer_i1k.py`, paper section 3.
"""

from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, get_args

from keras_mixer.checks import check_integer
from keras_mixer.data.decoding import decoded, random_area, to_size
from keras_mixer.data.erasing import random_erasing
from keras_mixer.data.mixing import cutmix, mixup, mixup_or_cutmix
from keras_mixer.data.randaugment import randaugment

if TYPE_CHECKING:
    import tensorflow as tf

Crop = Literal["pad", "inception", "none"]

# Random numbers that one image takes: two for the crop, one for the flip, two seeds of
# two each.
NUM_DRAWS = 7


@dataclass(frozen=True)
class Augmentation:
    """How training images are cropped, flipped, changed and mixed.

    Attributes:
        crop: `"inception"`, a random part of the image, of an aspect ratio in
            [0.75, 1.33], is resized; `"pad"`, the whole image is resized, if it has
            another size, and moved by up to `pad` pixels, zeros coming in; `"none"`,
            the whole image is resized.
        pad: Zero pixels on each side before the crop of `crop="pad"`.
        area_range: Smallest and largest share of the area for `crop="inception"`.
        flip: Whether half of the images are mirrored left to right.
        randaugment: Number of operations and magnitude in [0, 20], for example
            `(2, 15)`; `None` for no RandAugment. RGB only. Its strengths in pixels are
            made for images of 224; a third number, in (0, 1], is their factor:
            `(1, 10, 1 / 7)` for images of 32.
        random_erasing: Probability that a rectangle of an image becomes noise, in
            [0, 1].
        mixup: Parameter of mixup's Beta distribution, 0 for no mixup.
        cutmix: Parameter of CutMix's Beta distribution, 0 for no CutMix; 1 is its
            paper's. Where both are positive, each batch goes through one of the two,
            with probability 1/2.

    Raises:
        ValueError: If a value is out of its range.
    """

    crop: Crop = "pad"
    pad: int = 4
    area_range: tuple[float, float] = (0.05, 1.0)
    flip: bool = True
    randaugment: tuple[int, float] | tuple[int, float, float] | None = None
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.crop not in get_args(Crop):
            raise ValueError(
                f"`crop` must be one of {', '.join(map(repr, get_args(Crop)))}. "
                f"Received: crop={self.crop!r}"
            )
        check_integer("pad", self.pad, 0)
        _check_area_range(self.area_range)
        if self.randaugment:
            _check_randaugment(self.randaugment)
        if not 0 <= self.random_erasing <= 1:
            raise ValueError(
                "`random_erasing` must be a probability, in [0, 1]. "
                f"Received: random_erasing={self.random_erasing!r}"
            )
        for name in ("mixup", "cutmix"):
            if not getattr(self, name) >= 0:  # true for NaN, too
                raise ValueError(
                    f"`{name}` must not be negative. "
                    f"Received: {name}={getattr(self, name)!r}"
                )
        # JSON turns tuples to lists; equal records must stay equal and hashable.
        object.__setattr__(self, "area_range", tuple(self.area_range))
        if self.randaugment is not None:
            object.__setattr__(self, "randaugment", tuple(self.randaugment))

    def of_image(
        self, image: "tf.Tensor", size: tuple[int, int], draws: "tf.Tensor"
    ) -> "tf.Tensor":
        """Return one augmented image.

        Args:
            image: Bytes of a file or pixels, `(height, width, channels)`.
            size: `(height, width)` of the result.
            draws: `NUM_DRAWS` random int32 numbers, over their whole range.

        Returns:
            uint8 tensor `(*size, channels)`.
        """
        import tensorflow as tf

        if self.crop == "inception":
            image = random_area(image, self.area_range, draws[:2])
        image = to_size(decoded(image), size)
        shape = (*size, image.shape[-1])  # the flip forgets it
        if self.crop == "pad":
            image = tf.pad(image, [(self.pad, self.pad), (self.pad, self.pad), (0, 0)])
            places = 2 * self.pad + 1
            top, left = draws[0] % places, draws[1] % places
            image = image[top : top + size[0], left : left + size[1]]
        if self.flip:
            image = image[:, :: tf.where(draws[2] < 0, -1, 1)]
        image = tf.ensure_shape(image, shape)
        if self.randaugment:
            layers, magnitude, *scale = self.randaugment
            image = randaugment(
                image,
                draws[3:5],
                layers=layers,
                magnitude=magnitude,
                pixel_scale=scale[0] if scale else 1.0,
            )
        if self.random_erasing:
            image = random_erasing(image, draws[5:], probability=self.random_erasing)
        return image

    @property
    def mixes(self) -> bool:
        """Whether `of_batch` changes anything."""
        return self.mixup > 0 or self.cutmix > 0

    def of_batch(
        self, images: "tf.Tensor", labels: "tf.Tensor", seed: Any
    ) -> tuple["tf.Tensor", "tf.Tensor"]:
        """Return a batch after mixup or CutMix; `seed` is two integers."""
        if self.mixup and self.cutmix:
            return mixup_or_cutmix(
                images, labels, seed, mixup_alpha=self.mixup, cutmix_alpha=self.cutmix
            )
        if self.cutmix:
            return cutmix(images, labels, seed, alpha=self.cutmix)
        return mixup(images, labels, seed, alpha=self.mixup)


def _check_area_range(area_range: Any) -> None:
    if len(area_range) != 2 or not 0 < area_range[0] <= area_range[1] <= 1:
        raise ValueError(
            "`area_range` must be two shares in (0, 1], the smaller one first. "
            f"Received: area_range={area_range!r}"
        )


def _check_randaugment(randaugment: Any) -> None:
    if not (
        len(randaugment) in (2, 3)
        and isinstance(randaugment[0], Integral)
        and int(randaugment[0]) >= 1
        and 0 <= randaugment[1] <= 20
        and all(0 < scale <= 1 for scale in randaugment[2:])
    ):
        raise ValueError(
            "`randaugment` must be None, or a number of operations and a magnitude in "
            "[0, 20], and perhaps the factor of strengths in pixels, in (0, 1]. "
            f"Received: randaugment={randaugment!r}"
        )
