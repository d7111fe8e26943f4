"""Fine-tune on the GPUs of several machines with TensorFlow.

Every machine runs the same command, with its own index in TF_CONFIG:

    export TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]},
        "task": {"type": "worker", "index": 0}}'
    KERAS_BACKEND=tensorflow python examples/gpu_cluster_tensorflow.py

Without GPUs, two processes of one machine play the cluster:

    export KERAS_BACKEND=tensorflow
    for i in 0 1; do TF_CONFIG='{"cluster": {"worker": ["127.0.0.1:2222",
        "127.0.0.1:2223"]}, "task": {"type": "worker", "index": '$i'}}' \
        python examples/gpu_cluster_tensorflow.py --steps 20 & done; wait

One machine with several GPUs needs no TF_CONFIG: `--devices mirrored`. All must see
`--output-dir`. If one dies, the others end with an error; started again, they go on.
"""

import argparse

import keras_mixer
from keras_mixer import data, distribution, training


def main():
    """Train, and evaluate by all machines together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", default="multiworker", help="or mirrored")
    parser.add_argument("--data-dir", help="where TFDS has prepared it")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--output-dir", default="gpu-cluster")
    options = parser.parse_args()

    devices = distribution.start(options.devices)  # before anything else
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
        batch_size=512,  # of all machines together
        resume=True,
        distribution=devices,
    )
    if devices.is_chief:
        print(f"accuracy on the test images: {history.history['val_accuracy'][-1]:.2%}")


if __name__ == "__main__":
    main()
