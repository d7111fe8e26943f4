"""Measure a model on a data set: top-1, top-5, the hardest classes, what is confused.

    KERAS_BACKEND=tensorflow python examples/evaluate.py

    top-1 85.99%, top-5 99.44%
    cat: 69.7% found
    dog: 76.5% found
    bird: 79.7% found

That was on two shared CPU cores in 40 s, with Keras 3.15.1 and TensorFlow 2.20.0,
2026-11-28. The command `keras-mixer evaluate` prints the whole table.
"""

import argparse

from keras_mixer import data, evaluation, visualize
from keras_mixer.hub.model_files import read_model


def main():
    """Evaluate and draw the confusion matrix."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a .keras file, a folder or hf://owner/name")
    parser.add_argument("--data", default="cifar10", help="a TFDS name or a folder")
    parser.add_argument("--data-dir", help="where TFDS has prepared it")
    parser.add_argument("--split", default="test")
    parser.add_argument("--plot", default="confusion.png")
    options = parser.parse_args()

    if options.model:
        model = read_model(options.model)
    else:
        from keras_mixer import MixerTi4

        model = MixerTi4(weights="cifar10")
    source = data.open_source(options.data, options.split, data_dir=options.data_dir)
    result = evaluation.evaluate(model, source, progress=True)
    print(f"top-1 {result.top_1:.2%}, top-5 {result.top_5:.2%}")
    for record in sorted(result.classes, key=lambda c: c.recall)[:3]:
        print(f"{record.name}: {record.recall:.1%} found")
    figure = visualize.confusion_matrix(result.confusion_matrix, source.label_names)
    visualize.save(figure, options.plot)


if __name__ == "__main__":
    main()
