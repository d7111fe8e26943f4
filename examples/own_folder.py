"""Fine-tune on pictures of your own: FOLDER/class/*.jpg, and classify new ones.

    KERAS_BACKEND=tensorflow python examples/own_folder.py FOLDER new.jpg

Where the folder has `train/` and `test/`, those are used; else every tenth or so of the
images is held out, by a hash of the names: the same ones in every run. A damaged image
ends the run with its name before training; `--corrupt skip` leaves it out and says so.
"""

import argparse
from pathlib import Path

import keras_mixer
from keras_mixer import data, training
from keras_mixer.models.rebuild import rebuilt


def main():
    """Fine-tune, save, and classify."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("images", nargs="*", help="to classify afterwards")
    parser.add_argument("--corrupt", default="raise", choices=("raise", "skip"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", default="own-folder")
    options = parser.parse_args()

    splits = ("train", "test")
    if not (options.folder / "test").is_dir():
        splits = ("train[:90%]", "train[90%:]")
    train, test = (
        data.from_folder(options.folder, split, corrupt=options.corrupt)
        for split in splits
    )
    model = rebuilt(
        keras_mixer.MixerTi4(weights="cifar10"),
        labels=train.label_names,
        classifier_activation=None,
    )
    history = training.finetune(
        model,
        train,
        test,
        output_dir=options.output,
        total_steps=options.steps,
        warmup_steps=options.steps // 10,
        batch_size=32,
        save_every=50,
        resume=True,
    )
    print(f"Accuracy: {history.history['val_accuracy'][-1]:.2%}")
    trained = rebuilt(model, classifier_activation="softmax")
    trained.save(f"{options.output}/model.keras")
    for image in options.images:
        scores = trained.predict(keras_mixer.preprocess(image, trained), verbose=0)
        print(image, keras_mixer.decode_predictions(scores, trained.labels, top=3)[0])


if __name__ == "__main__":
    main()
