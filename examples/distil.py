r"""Distil B/16 into S/32: the student learns from the labels and from a teacher.

    KERAS_BACKEND=jax python examples/distil.py --data imagenet2012 --output distilled

B/16 with its ImageNet-1k weights teaches an S/32 with random ones, on the same
augmented pixels. Killed and started again, the run goes on. ImageNet was not trained
here.

On a CPU, a student of 170,000 weights and the embedded teacher show the mechanism:

    python examples/distil.py --data cifar10 --teacher Ti/4:cifar10 --student tiny \
        --steps 300 --batch-size 64 --crop pad --output distilled
"""

import argparse

import keras

import keras_mixer
from keras_mixer import data, evaluation, training
from keras_mixer.models import CONSTRUCTORS


def student_of(name, num_classes):
    """Return the student: a variant of the family, or a tiny one for 32 x 32 pixels."""
    arguments = {"num_classes": num_classes, "classifier_activation": None}
    if name != "tiny":
        return CONSTRUCTORS[name](**arguments)
    return keras_mixer.mlp_mixer(
        patch_size=4,
        hidden_dim=96,
        num_blocks=4,
        tokens_mlp_dim=48,
        channels_mlp_dim=192,
        input_shape=(32, 32, 3),
        **arguments,
    )


def main():
    """Train the student, measuring it at every checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="imagenet2012")
    parser.add_argument("--data-dir", help="where TFDS has prepared the data set")
    parser.add_argument("--teacher", default="B/16:imagenet1k", help="VARIANT:WEIGHTS")
    parser.add_argument("--student", default="S/32", choices=[*CONSTRUCTORS, "tiny"])
    parser.add_argument("--alone", action="store_true", help="train without a teacher")
    parser.add_argument("--weight", type=float, default=0.9)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=93_000)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--crop", default="inception")
    parser.add_argument("--output", default="distilled")
    options = parser.parse_args()

    train = data.open_source(options.data, "train", data_dir=options.data_dir)
    split = "validation" if options.data.startswith("imagenet") else "test"
    test = data.open_source(options.data, split, data_dir=options.data_dir)
    keras.utils.set_random_seed(0)
    student = student_of(options.student, train.num_classes)
    student.labels = train.label_names
    teacher = None
    if not options.alone:
        variant, weights = options.teacher.split(":")
        teacher = CONSTRUCTORS[variant](weights=weights)
        found = evaluation.evaluate(teacher, test, match="position", batch_size=256)
        print(f"Teacher: {found.top_1:.2%}", flush=True)
    history = training.pretrain(
        student,
        train,
        test,
        output_dir=options.output,
        total_steps=options.steps,
        batch_size=options.batch_size,
        warmup_steps=min(10_000, options.steps // 10),
        schedule="cosine",
        crop=options.crop,
        mixup=0.2,
        teacher=teacher,
        distillation_weight=options.weight,
        distillation_temperature=options.temperature,
        resume=True,
    )
    print(f"Student: {history.history['val_accuracy'][-1]:.2%}")
    student.save(f"{options.output}/model.keras")
    print(f"Written: {options.output}/model.keras")


if __name__ == "__main__":
    main()
