"""Fine-tune on CIFAR-10 with the official recipe; killed and started again, it goes on.

    KERAS_BACKEND=jax python examples/finetune_cifar10.py --dtype mixed_bfloat16

B/16 from ImageNet-21k: SGD with momentum, batch 512, cosine decay over 10,000 steps,
500 of them warm-up, gradients clipped to norm 1, a new zero head, inception crops. The
official code reports 96.82 % (google-research/vision_transformer, README); not measured
here. On a CPU, `--variant Ti/4 --weights cifar10 --steps 20 --batch-size 64` shows the
mechanism.
"""

import argparse

from keras_mixer import data, training
from keras_mixer.models.family import CONSTRUCTORS


def main():
    """Fine-tune, measuring on the test images at every checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="B/16", choices=CONSTRUCTORS)
    parser.add_argument("--weights", default="imagenet21k")
    parser.add_argument("--dtype", help='for example "mixed_bfloat16"')
    parser.add_argument("--data-dir", help="where TFDS has prepared CIFAR-10")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=0.03)
    parser.add_argument("--output", default="finetune-cifar10")
    options = parser.parse_args()

    train, test = (
        data.open_source("cifar10", split, data_dir=options.data_dir)
        for split in ("train", "test")
    )
    model = CONSTRUCTORS[options.variant](
        weights=options.weights,
        num_classes=train.num_classes,
        classifier_activation=None,
        dtype=options.dtype,
    )
    model.labels = train.label_names
    history = training.finetune(
        model,
        train,
        test,
        output_dir=options.output,
        total_steps=options.steps,
        batch_size=options.batch_size,
        base_learning_rate=options.learning_rate,
        warmup_steps=min(500, options.steps // 5),
        resume=True,
    )
    print(f"Accuracy: {history.history['val_accuracy'][-1]:.2%}")
    model.save(f"{options.output}/model.keras")
    print(f"Written: {options.output}/model.keras")


if __name__ == "__main__":
    main()
