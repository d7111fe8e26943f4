"""A small training run with everything that is drawn at random, also as a script.

    python tests/drawn_run.py FOLDER

runs it in FOLDER, or goes on with it there.
"""

import sys

import keras
import numpy as np

LABELS = 5


def drawn_source(examples=40, size=16):
    from keras_mixer import data

    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (examples, size, size, 3), "uint8")
    return data.from_arrays(images, np.arange(examples) % LABELS)


def drawn_mixer(**changes):
    from keras_mixer.models.mixer import mlp_mixer

    sizes = {
        "patch_size": 8,
        "hidden_dim": 12,
        "num_blocks": 2,
        "tokens_mlp_dim": 6,
        "channels_mlp_dim": 20,
        "input_shape": (16, 16, 3),
        "num_classes": LABELS,
        "classifier_activation": None,
    }
    return mlp_mixer(**{**sizes, **changes})


def run(folder, **arguments):
    """Make the run, whatever numbers were drawn in this process before."""
    from keras_mixer import training

    keras.utils.set_random_seed(1)
    model = drawn_mixer(dropout_rate=0.2, stochastic_depth_rate=0.2)
    source = drawn_source()
    given = {
        "output_dir": folder,
        "total_steps": 105,
        "batch_size": 8,
        "base_learning_rate": 0.1,
        "warmup_steps": 4,
        "mixup": 0.3,
        "accumulation_steps": 2,
        "ema_momentum": 0.9,
        "save_every": 10,
        "validate_every": 30,
        "seed": 7,
        "resume": True,
        "quiet": True,
    }
    history = training.finetune(model, source, source, **{**given, **arguments})
    return model, history


if __name__ == "__main__":
    run(sys.argv[1])
