"""How many augmented images a second come out of a folder: this package, or timm.

    python examples/benchmark/input_beside_timm.py ours photos/ --randaugment
    python examples/benchmark/input_beside_timm.py timm photos/ --randaugment

`photos/` has one folder of JPEGs per class. Both make the same of them: crops of 5 to
100 % of the area at 224 x 224, bilinear, half of them mirrored; with `--randaugment`
also two operations of magnitude 15. timm's loader has one worker per core. Its strings
such as `rand-m15-n2` leave out every second operation, which `--timm-probability 0.5`
does here; ours, as the official code, leaves out none.

Prints the images a second of every pass but the first, and their median.
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

IMAGE_SIZE = 224
BATCH_SIZE = 64


def ours(options: argparse.Namespace) -> Iterator[Any]:
    """Return the endless batches of `data.training_batches`."""
    from keras_mixer import data

    batches = data.training_batches(
        data.from_folder(options.folder),
        image_size=IMAGE_SIZE,
        batch_size=BATCH_SIZE,
        augmentation=data.Augmentation(
            randaugment=(2, 15) if options.randaugment else None
        ),
    )
    return iter(batches)


def timm(options: argparse.Namespace) -> Iterator[Any]:
    """Return the batches of torch's loader with timm's data set and transform."""
    from timm.data import create_dataset, create_transform
    from torch.utils.data import DataLoader

    operations = f"rand-m15-n2-p{options.timm_probability}"
    transform = create_transform(
        IMAGE_SIZE,
        is_training=True,
        scale=(0.05, 1.0),
        interpolation="bilinear",
        color_jitter=None,
        auto_augment=operations if options.randaugment else None,
    )
    loader: Iterable[Any] = DataLoader(
        create_dataset("", root=options.folder, transform=transform),
        batch_size=BATCH_SIZE,
        shuffle=True,
        drop_last=True,
        num_workers=os.cpu_count() or 1,
        persistent_workers=True,
    )
    while True:
        yield from loader


def main() -> None:
    """Time whole passes of one contender."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("contender", choices=("ours", "timm"))
    parser.add_argument("folder", help="one folder of JPEGs per class")
    parser.add_argument("--randaugment", action="store_true")
    parser.add_argument("--timm-probability", type=float, default=1.0)
    parser.add_argument("--batches", type=int, default=15, help="of a pass")
    parser.add_argument("--passes", type=int, default=6)
    options = parser.parse_args()

    batches = {"ours": ours, "timm": timm}[options.contender](options)
    speeds = []
    for _ in range(options.passes):
        start = time.perf_counter()
        count = sum(len(images) for images, _ in islice(batches, options.batches))
        speeds.append(count / (time.perf_counter() - start))
    speeds = speeds[1:]  # the first starts threads and workers
    print(
        f"{options.contender}: median {statistics.median(speeds):.0f} images/s of "
        f"{', '.join(f'{speed:.0f}' for speed in speeds)}"
    )


if __name__ == "__main__":
    main()
