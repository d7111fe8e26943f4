"""Pre-train from random weights with the paper's recipe, to be stopped at any moment.

    KERAS_BACKEND=jax python examples/pretrain.py --dtype mixed_bfloat16

B/16 on ImageNet-1k as `big_vision/configs/mlp_mixer_i1k.py` has it: sigmoid
cross-entropy summed over the classes, AdamW, RandAugment (2, 15), mixup 0.5, stochastic
depth 0.1, batch 4096. Its authors report 76.3 % after 300 epochs; not measured here.
`--data cifar10 --variant Ti/4 --steps 20 --batch-size 64` shows the mechanism on a CPU.
"""

import argparse
import math

from keras_mixer import data, training
from keras_mixer.models.family import CONSTRUCTORS
from keras_mixer.training.adaptation import set_head_bias


def main():
    """Pre-train; the same command goes on where it was stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="imagenet2012", help="TFDS name or folder")
    parser.add_argument("--data-dir", help="where TFDS has prepared it")
    parser.add_argument("--variant", default="B/16", choices=CONSTRUCTORS)
    parser.add_argument("--dtype", help='for example "mixed_bfloat16"')
    parser.add_argument("--steps", type=int, default=92_897)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--output", default="pretrain")
    options = parser.parse_args()

    train, held_out = (
        data.open_source(options.data, split, data_dir=options.data_dir)
        for split in ("train[:99%]", "train[99%:]")
    )
    model = CONSTRUCTORS[options.variant](
        num_classes=train.num_classes,
        classifier_activation=None,
        stochastic_depth_rate=0.1,
        dtype=options.dtype,
    )
    set_head_bias(model, -math.log(train.num_classes))
    history = training.pretrain(
        model,
        train,
        held_out,
        output_dir=options.output,
        total_steps=options.steps,
        batch_size=options.batch_size,
        warmup_steps=min(10_000, options.steps // 5),
        loss="sigmoid",
        randaugment=(2, 15),
        mixup=0.5,
        resume=True,
    )
    print(f"Accuracy on held-out images: {history.history['val_accuracy'][-1]:.2%}")


if __name__ == "__main__":
    main()
