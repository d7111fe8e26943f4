"""Fine-tune on all devices of all hosts with JAX: a TPU slice or a cluster of GPUs.

On a TPU slice, or under Slurm or Open MPI, the same command on every host:

    KERAS_BACKEND=jax python examples/multihost_jax.py --coordinator auto

Elsewhere each is told of the others (here two processes play two hosts):
    export KERAS_BACKEND=jax XLA_FLAGS=--xla_force_host_platform_device_count=2
    for i in 0 1; do python examples/multihost_jax.py --steps 20 \
        --coordinator 127.0.0.1:1234 --num-processes 2 --process-id $i & done; wait

All must see `--output-dir`; if one dies, all end; started again, they go on. (71.26 %
with `--steps 10`, two shared CPU cores, Keras 3.15.1, JAX 0.10.2, 2026-11-22.)
"""

import argparse

import keras_mixer
from keras_mixer import data, distribution, training


def main():
    """Train, and evaluate by all hosts together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coordinator", help='"address:port" of process 0, or auto')
    for name in ("--num-processes", "--process-id"):
        parser.add_argument(name, type=int)
    parser.add_argument("--data-dir", help="where TFDS has prepared it")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--output-dir", default="multihost")
    options = parser.parse_args()

    devices = distribution.start(
        "data",  # or "model:N"
        coordinator=options.coordinator,
        num_processes=options.num_processes,
        process_id=options.process_id,
    )
    train = data.from_tfds("cifar10", "train", data_dir=options.data_dir)
    test = data.from_tfds("cifar10", "test", data_dir=options.data_dir)
    with devices.scope():
        model = keras_mixer.MixerTi4(weights="cifar10", classifier_activation=None)
    history = training.finetune(
        model,
        train,
        test,
        output_dir=options.output_dir,
        total_steps=options.steps,
        save_every=10,
        warmup_steps=options.steps // 10,
        batch_size=512,  # of all hosts together
        resume=True,
        distribution=devices,
    )
    if devices.is_chief:
        print(f"accuracy on the test images: {history.history['val_accuracy'][-1]:.2%}")


if __name__ == "__main__":
    main()
