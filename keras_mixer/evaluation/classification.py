"""How good a classifier is on a data set: top-1, top-5, per class, ReaL.

Source: paper, section 3; ReaL labels: Beyer et al. 2020, "Are we done with ImageNet?",
section 4, evaluated as in `big_vision/evaluators/classification.py`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from keras_mixer.evaluation.inference import outputs
from keras_mixer.models import check_mixer


class ClassResult(NamedTuple):
    """One class: how many images have it, and how often it was found.

    `recall` is the share of its images that were taken for it, `precision` the share of
    what was taken for it that has it; NaN where there is nothing to share out.
    """

    name: str
    num_examples: int
    recall: float
    precision: float


@dataclass(frozen=True)
class Evaluation:
    """What a model made of a data set.

    Attributes:
        label_names: One name per class of the model.
        confusion_matrix: `(classes, classes)` numbers of images, true class by
            predicted class.
        top_5: Share of the images whose class is among the five best, in [0, 1].
        real: Share of the images whose first class is among their ReaL labels, of those
            that have any; `None` without ReaL labels.
    """

    label_names: tuple[str, ...]
    confusion_matrix: np.ndarray
    top_5: float
    real: float | None = None

    @property
    def num_examples(self):
        """Number of images."""
        return int(self.confusion_matrix.sum())

    @property
    def top_1(self):
        """Share of the images whose class is the first, in [0, 1]."""
        return float(np.trace(self.confusion_matrix) / self.num_examples)

    @property
    def classes(self):
        """One `ClassResult` per class of the model."""
        right = np.diag(self.confusion_matrix)
        counts, taken = (self.confusion_matrix.sum(axis=axis) for axis in (1, 0))
        return [
            ClassResult(name, int(counts[i]), _share(right[i], counts[i]), precision)
            for i, (name, precision) in enumerate(
                zip(self.label_names, map(_share, right, taken), strict=True)
            )
        ]

    def to_dict(self):
        """Return everything as JSON types; `None` in place of NaN."""
        return {
            "num_examples": self.num_examples,
            "top_1": self.top_1,
            "top_5": self.top_5,
            "real": self.real,
            "classes": [
                {
                    key: None if value != value else value
                    for key, value in result._asdict().items()
                }
                for result in self.classes
            ],
            "confusion_matrix": self.confusion_matrix.tolist(),
        }


def evaluate(
    model,
    source,
    *,
    real_labels=None,
    batch_size=64,
    preprocessing=None,
    progress=False,
):
    """Return the `Evaluation` of a model on a data set.

    Classes are told by their names where the model knows all names of the data set,
    which then may have fewer classes or another order, and by their numbers otherwise.
    Between equal scores the lower class comes first.

    Args:
        model: An `MLPMixer` with a head.
        source: The `data.Source` of the examples.
        real_labels: One sequence of classes per image, by their numbers in the data
            set, in the order of the sorted names of the files, as ReaL's own list is;
            where the source has no files (arrays, most of TFDS), in its order. An image
            without any does not count for `real`.
        batch_size: Images per step. Positive.
        preprocessing: See `inference.outputs`.
        progress: Whether to show a progress bar.

    Raises:
        ImportError: If TensorFlow, which reads the images, is not installed.
        ValueError: If the model, the data set and the ReaL labels do not fit together,
            or a score is NaN.
    """
    check_mixer(model)
    class_of, label_names = _classes(model, source)
    if real_labels is not None:
        real_labels = _real_of_images(real_labels, source)
    predicted, labels, ranks = [], [], []
    for scores, numbers in outputs(
        model,
        source,
        batch_size=batch_size,
        preprocessing=preprocessing,
        progress=progress,
    ):
        if np.isnan(scores).any():
            row = sum(map(len, labels)) + int(np.isnan(scores).any(axis=1).argmax())
            raise ValueError(
                f"`model` must give numbers. Received: NaN for image {row}. Look at "
                "its weights and its dtype policy."
            )
        predicted.append(scores.argmax(axis=1))
        labels.append(class_of[numbers])
        ranks.append(_ranks(scores, labels[-1]))
    predicted, labels, ranks = map(np.concatenate, (predicted, labels, ranks))

    matrix = np.zeros((len(label_names), len(label_names)), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    real = None
    if real_labels is not None:
        real = _real_accuracy(real_labels, predicted, class_of)
    return Evaluation(label_names, matrix, float(np.mean(ranks < 5)), real)


def _classes(model, source):
    """Return the model's class of every class of `source`, and the model's names."""
    num_classes, labels = model.config["num_classes"], model.labels
    if not num_classes:
        raise ValueError(
            "`model` must have a head to be evaluated. Received: num_classes=0. "
            "`fewshot.evaluate` measures features."
        )
    if labels and set(source.label_names) <= set(labels) and not _repeats(labels):
        numbers = {name: number for number, name in enumerate(labels)}
        return np.array([numbers[name] for name in source.label_names]), tuple(labels)
    if source.num_classes != num_classes:
        raise ValueError(
            "`model` must have the classes of the data set. Received: a model of "
            f"{num_classes} classes, a data set of {source.num_classes}, and names "
            "that do not tell which is which. Fine-tune with "
            f"`num_classes={source.num_classes}`."
        )
    return np.arange(num_classes), tuple(labels or source.label_names)


def _repeats(names):
    return len(set(names)) < len(names)


def _ranks(scores, labels):
    """Return how many classes stand before the true one, for each image."""
    true = np.take_along_axis(scores, labels[:, None], axis=1)
    lower = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > true) | (scores == true) & lower).sum(axis=1)


def _real_of_images(real_labels, source):
    """Return the ReaL labels in the order of the source."""
    if len(real_labels) != source.num_examples:
        raise ValueError(
            f"`real_labels` must have one entry for each of the {source.num_examples} "
            f"images. Received: {len(real_labels)}"
        )
    outside = {label for labels in real_labels for label in labels}
    outside -= set(range(source.num_classes))
    if outside:
        raise ValueError(
            f"`real_labels` must be classes in [0, {source.num_classes}). "
            f"Received: {sorted(outside)[:3]}"
        )
    if not any(map(len, real_labels)):
        raise ValueError("`real_labels` must have a label for one image at least.")
    if source.file_names is None:
        return real_labels
    names = source.file_names()
    if _repeats(names):
        raise ValueError(
            "`real_labels` must belong to files of different names. Received a source "
            "in which several images have the same."
        )
    of_name = dict(zip(sorted(names), real_labels, strict=True))
    return [of_name[name] for name in names]


def _real_accuracy(real_labels, predicted, class_of):
    right = [
        first in class_of[list(labels)]
        for first, labels in zip(predicted, real_labels, strict=True)
        if len(labels)
    ]
    return float(np.mean(right))


def _share(part, whole):
    return float(part / whole) if whole else float("nan")
