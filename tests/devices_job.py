"""What `test_distribution.py` runs in other processes: one of several hosts.

    python devices_job.py FOLDER NAME INDEX

starts the devices NAME, makes the run below, writes what it found to
`FOLDER/INDEX.npz`, and then trains on until process 1 is killed.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402

from keras_mixer import data, distribution  # noqa: E402
from keras_mixer.models.mixer import mlp_mixer  # noqa: E402
from keras_mixer.training import resumable_fit  # noqa: E402
from keras_mixer.training.optimizers import finetune_optimizer  # noqa: E402
from keras_mixer.training.run_options import RunOptions  # noqa: E402

STEPS = 8
BATCH = 8
CONFIG = {
    "patch_size": 4,
    "hidden_dim": 12,
    "num_blocks": 2,
    "tokens_mlp_dim": 8,
    "channels_mlp_dim": 16,
    "input_shape": (16, 16, 3),
    "num_classes": 5,
}


def compiled_model(total_steps=STEPS, **arguments):
    """The gradients' norm is several times what the clip leaves of it."""
    keras.utils.set_random_seed(7)
    model = mlp_mixer(**CONFIG, classifier_activation=None, **arguments)
    model.compile(
        finetune_optimizer(
            total_steps=total_steps,
            warmup_steps=1,
            base_learning_rate=0.5,
            clip_norm=0.2,
        ),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def examples(count=32, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *CONFIG["input_shape"])).astype("uint8")
    return images, rng.integers(0, CONFIG["num_classes"], count)


def source(count=32, seed=0):
    names = [str(i) for i in range(CONFIG["num_classes"])]
    return data.from_arrays(*examples(count, seed), label_names=names)


def train(devices, folder, *, total_steps=STEPS, save_every=4):
    """Two epochs of four steps, validated on 13 examples: nothing divides them."""
    with devices.scope():
        model = compiled_model(total_steps)
    options = RunOptions(
        output_dir=folder,
        total_steps=total_steps,
        batch_size=BATCH,
        save_every=save_every,
        quiet=True,
    )
    history = resumable_fit.fit(
        model, source(), source(13, seed=1), options=options, distribution=devices
    )
    return model, history.history


def evaluated(devices, model):
    batches = data.evaluation_batches(
        source(13, seed=1), image_size=16, batch_size=BATCH, shard=devices.shard
    )
    return devices.evaluate(model, batches, return_dict=True)


def predicted(devices, model):
    return devices.predict(model, examples(13, seed=1)[0].astype("float32"))


def findings(devices, model, history):
    """Arrays by name, to compare with those of other devices."""
    found = {f"weights/{v.path}": v.numpy() for v in model.weights if v.trainable}
    if devices.is_chief:  # who writes the log
        for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
            found[f"history/{name}"] = history[name]
    found |= {f"evaluated/{n}": v for n, v in evaluated(devices, model).items()}
    found["predicted"] = predicted(devices, model)
    return found


def die_after(checkpoint):
    while not checkpoint.exists():
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder, name, index):
    folder = Path(folder)
    devices = distribution.start(name, timeout=20)
    model, history = train(devices, folder / "run")
    found = findings(devices, model, history)
    found["shard"] = devices.shard
    found["replicas"] = devices.num_replicas
    found["chief"] = devices.is_chief
    np.savez(folder / f"{index}.npz", **found)
    if index == "1":
        first = folder / "endless" / "checkpoints" / f"step-{2:09}.npz"
        threading.Thread(target=die_after, args=[first], daemon=True).start()
    train(devices, folder / "endless", total_steps=100_000, save_every=2)


if __name__ == "__main__":
    main(*sys.argv[1:])
