"""What `test_sharpness_devices.py` runs in other processes: SAM on several devices.

    python sharpness_job.py FILE NAME

trains on the devices NAME and writes the weights to FILE.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from drawn_run import LABELS, drawn_mixer, drawn_source  # noqa: E402

from keras_mixer import distribution, training  # noqa: E402


def train(devices, folder, accumulation_steps=1):
    """Four steps of eight images; the clip bites."""
    with devices.scope():
        keras.utils.set_random_seed(7)
        model = drawn_mixer()
        head = model.get_layer("head")
        head.kernel.assign(np.random.default_rng(8).normal(0, 0.3, head.kernel.shape))
    training.finetune(
        model,
        drawn_source(),
        output_dir=folder,
        total_steps=4,
        warmup_steps=1,
        batch_size=8,
        base_learning_rate=0.3,
        clip_norm=0.2,
        crop="none",
        flip=False,
        sam_rho=(0.1, 0.6),
        gsam_alpha=0.5,
        accumulation_steps=accumulation_steps,
        quiet=True,
        distribution=devices,
    )
    assert model.output_shape[-1] == LABELS
    return {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}


def main(file, name):
    if keras.config.backend() == "tensorflow" and name == "mirrored":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )
    devices = distribution.start(name, timeout=60)
    file = Path(file)
    np.savez(file, **train(devices, file.parent / "run"))


if __name__ == "__main__":
    main(*sys.argv[1:3])
