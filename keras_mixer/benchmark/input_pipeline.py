"""How many images a second the input pipeline gives, without a model.

A run is bound by its input where this is less than its images per second.
"""

import time

from keras_mixer.data import Augmentation, Source, training_batches

# What is measured, by its name in the output.
AUGMENTATIONS = {
    "crop and flip": Augmentation(crop="inception"),
    "crop, flip, RandAugment(2, 15)": Augmentation(
        crop="inception", randaugment=(2, 15)
    ),
}


def input_speed(
    source: Source,
    *,
    image_size: int = 224,
    batch_size: int = 64,
    seconds: float = 10.0,
) -> dict[str, float]:
    """Return images per second of `data.training_batches`, by the augmentation.

    The clock starts after two batches, when all buffers are filled.

    Args:
        source: The `data.Source` of the examples.
        image_size: Edge of the square images in pixels.
        batch_size: Images per batch.
        seconds: How long each augmentation is measured, at least. Positive.

    Raises:
        ValueError: If an argument is out of its range.
    """
    if not seconds > 0:
        raise ValueError(f"`seconds` must be positive. Received: seconds={seconds!r}")
    return {
        name: _speed(source, augmentation, image_size, batch_size, seconds)
        for name, augmentation in AUGMENTATIONS.items()
    }


def _speed(
    source: Source,
    augmentation: Augmentation,
    image_size: int,
    batch_size: int,
    seconds: float,
) -> float:
    batches = iter(
        training_batches(
            source,
            image_size=image_size,
            batch_size=batch_size,
            augmentation=augmentation,
        )
    )
    for _ in range(2):
        next(batches)
    start, images = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        next(batches)
        images += batch_size
    return images / elapsed
