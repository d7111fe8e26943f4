"""How long a step of SAM and of GSAM takes beside a plain one.

    KERAS_BACKEND=jax python examples/benchmark/sam_step.py --variant S/16 --batch 16

Prints one row of a table: medians of calls that take turns, and their ratios to the
plain step. Expected: a little less than twice the time. A minute for Ti/4 on two cores.
"""

import argparse
import platform
import statistics
import time
from datetime import date

import keras
import numpy as np

from keras_mixer import models, training


def compiled(variant: str, sharpness: training.Sharpness | None) -> keras.Model:
    """Return a model that trains with the optimizer of the pre-training."""
    model = models.create(variant, num_classes=1000, classifier_activation=None)
    training.set_sam(model, sharpness)
    model.compile(
        training.pretrain_optimizer(total_steps=100_000),
        keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    return model


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", default="Ti/4")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    contenders = {
        "plain": compiled(options.variant, None),
        "SAM": compiled(options.variant, training.Sharpness(rho=0.1)),
        "GSAM": compiled(options.variant, training.Sharpness(rho=0.1, gsam_alpha=0.6)),
    }
    rng = np.random.default_rng(0)
    shape = contenders["plain"].input_shape[1:]
    images = rng.uniform(0, 255, (options.batch, *shape)).astype("float32")
    labels = np.eye(1000, dtype="float32")[rng.integers(0, 1000, options.batch)]
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(options.rounds + 2):
        for name, model in contenders.items():
            start = time.perf_counter()
            model.train_on_batch(images, labels)  # returns the loss: it has been made
            if round_number >= 2:  # the first calls compile
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"{options.variant}, batch {options.batch}, {keras.config.backend()}, "
        f"Keras {keras.version()}, {platform.machine()}, {date.today()}"
    )
    for name, median in medians.items():
        print(f"{name}: {median * 1e3:.0f} ms, {median / medians['plain']:.2f} x")


if __name__ == "__main__":
    main()
