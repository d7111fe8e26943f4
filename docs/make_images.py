"""Draw the pictures of the documentation with the package itself.

    KERAS_BACKEND=jax python docs/make_images.py

needs the extra `demo`. Writes `docs/images/*.png`: filters of the embedded checkpoint,
and what the demo shows after its fine-tuning on scikit-learn's handwritten digits.
"""

import io
from pathlib import Path

import keras
from matplotlib.figure import Figure
from PIL import Image

from keras_mixer import MixerTi4, visualize
from keras_mixer.cli.demo import EPOCHS, LABELS, finetune, load_digits

FOLDER = Path(__file__).parent / "images"


def main() -> None:
    """Draw every picture; the fine-tuning takes a minute on two CPU cores."""
    keras.utils.set_random_seed(0)
    model = MixerTi4(weights="cifar10")
    write("filters.png", visualize.token_mixing_filters(model))
    write("stem.png", visualize.stem_filters(model))

    model = MixerTi4(weights="cifar10", num_classes=10)
    train, test = load_digits(model)
    finetune(model, train, test, EPOCHS)
    model.labels = LABELS
    images, labels = test
    scores = model.predict(images, verbose=0)
    right = scores.argmax(axis=1) == labels
    eight = next(i for i in range(len(labels)) if labels[i] == 8 and right[i])
    write("evidence.png", visualize.evidence_figure(model, images[eight], 8))
    figure = visualize.predictions(
        images[:6], scores[:6], LABELS, true_labels=labels[:6]
    )
    write("predictions.png", figure)


def write(name: str, figure: Figure) -> None:
    """Write a figure with 256 colours: a third of the size, and no difference seen."""
    pixels = io.BytesIO()
    figure.savefig(pixels, format="png", dpi=100)
    picture = Image.open(pixels).convert("RGB").quantize(256)
    FOLDER.mkdir(exist_ok=True)
    picture.save(FOLDER / name, optimize=True)
    print(f"{FOLDER / name}: {(FOLDER / name).stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
