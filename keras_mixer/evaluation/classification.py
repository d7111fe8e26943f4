"""How good a classifier is on a data set: top-1, top-5, per class, ReaL.

Source: paper, section 3; ReaL labels: Beyer et al. 2020, "Are we done with ImageNet?",
section 4, evaluated as in `big_vision/evaluators/classification.py`.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from numpy.typing import NDArray

from keras_mixer.data import Source
from keras_mixer.evaluation.inference import outputs
from keras_mixer.models import find_mixer
from keras_mixer.preprocessing import Preprocessing


class ClassResult(NamedTuple):
    """One class: its name, number of images, recall and precision.

    `recall` is the fraction of its images that were classified as it, in [0, 1];
    `precision` the fraction of the images classified as it that really are. NaN where
    there is no such image.
    """

    name: str
    num_examples: int
    recall: float
    precision: float


@dataclass(frozen=True)
class Evaluation:
    """How a model classified a data set.

    Attributes:
        label_names: One name per class of the model.
        confusion_matrix: `(classes, classes)` numbers of images; rows are true classes,
            columns predicted ones.
        top_5: Fraction of the images whose class is among the five best, in [0, 1].
        real: Fraction of the images whose best class is one of their ReaL labels, of
            the images that have any; `None` without ReaL labels.
    """

    label_names: tuple[str, ...]
    confusion_matrix: NDArray[np.int64]
    top_5: float
    real: float | None = None

    @property
    def num_examples(self) -> int:
        """Number of images."""
        return int(self.confusion_matrix.sum())

    @property
    def top_1(self) -> float:
        """Fraction of the images whose class has the best score, in [0, 1]."""
        return float(np.trace(self.confusion_matrix) / self.num_examples)

    @property
    def classes(self) -> list[ClassResult]:
        """One `ClassResult` per class of the model."""
        right = np.diag(self.confusion_matrix)
        counts, taken = (self.confusion_matrix.sum(axis=axis) for axis in (1, 0))
        return [
            ClassResult(name, int(counts[i]), _share(right[i], counts[i]), precision)
            for i, (name, precision) in enumerate(
                zip(self.label_names, map(_share, right, taken), strict=True)
            )
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types, with `None` in place of NaN."""
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
    model: keras.Model,
    source: Source,
    *,
    match: Literal["name", "position"] = "name",
    real_labels: Sequence[Sequence[int]] | None = None,
    batch_size: int = 64,
    preprocessing: Preprocessing | None = None,
    progress: bool = False,
) -> Evaluation:
    """Return the `Evaluation` of a model on a data set.

    Of equal scores the one of the lower class counts as the better.

    Args:
        model: A Keras model with classes that is a Mixer or holds one at any depth.
        source: The `data.Source` of the examples.
        match: How a class of the data set is found among those of the model. `"name"`:
            by its name in `model.labels`; the data set may have fewer classes, in any
            order. The names of a model without labels are its class numbers, "0", "1",
            ..., as those of arrays without names are. `"position"`: class i of the data
            set is class i of the model, whatever their names.
        real_labels: One sequence of class numbers of the data set per image, in the
            order of the sorted file names, as in the published ReaL list; for a source
            without files (arrays, most of TFDS), in its order. An image with an empty
            sequence does not count for `real`.
        batch_size: Images per step. Positive.
        preprocessing: See `inference.outputs`.
        progress: Whether to show a progress bar.

    Raises:
        ImportError: If TensorFlow, which reads the images, is not installed.
        ValueError: If a class of the data set is not one of the model, the ReaL labels
            do not fit, an argument is out of its range, or a score is NaN.
    """
    class_of, label_names = _classes(model, source, match)
    if real_labels is not None:
        real_labels = _real_of_images(real_labels, source)
    batches: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
    for scores, numbers in outputs(
        model,
        source,
        batch_size=batch_size,
        preprocessing=preprocessing,
        progress=progress,
    ):
        broken = np.isnan(scores).any(axis=1)
        if broken.any():
            row = sum(len(batch[0]) for batch in batches)
            row += int(broken.argmax())
            raise ValueError(
                f"`model` must give numbers. Received: NaN for image {row}. Look at "
                "its weights and its dtype policy."
            )
        labels = class_of[numbers]
        batches.append((scores.argmax(axis=1), labels, _ranks(scores, labels)))
    columns = zip(*batches, strict=True)
    predicted, labels, ranks = (np.concatenate(column) for column in columns)

    matrix = np.zeros((len(label_names), len(label_names)), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    real = None
    if real_labels is not None:
        real = _real_accuracy(real_labels, predicted, class_of)
    return Evaluation(label_names, matrix, float(np.mean(ranks < 5)), real)


def _classes(
    model: keras.Model, source: Source, match: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the model's class of every class of `source`, and the model's names."""
    if match not in ("name", "position"):
        raise ValueError(
            f"`match` must be 'name' or 'position'. Received: match={match!r}"
        )
    found = find_mixer(model)
    num_classes = found.num_classes
    if not num_classes:
        raise ValueError(
            "`model` must have a head to be evaluated. Received: num_classes=0. "
            "`fewshot.evaluate` measures features."
        )
    if match == "name":
        return _by_name(found.labels, num_classes, source.label_names)
    if source.num_classes != num_classes:
        raise ValueError(
            '`match="position"` needs a model of as many classes as the data set. '
            f"Received: a model of {num_classes} classes, a data set of "
            f"{source.num_classes}. Fine-tune with `num_classes={source.num_classes}`."
        )
    return np.arange(num_classes), tuple(found.labels or source.label_names)


def _by_name(
    labels: Sequence[str] | None, num_classes: int, names: Sequence[str]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the model's class of every name, and the names of the model."""
    own = tuple(labels or map(str, range(num_classes)))
    if own == tuple(names):  # also where names repeat, as ImageNet's "crane" does
        return np.arange(num_classes), own
    numbers = {_composed(name): number for number, name in enumerate(own)}
    unknown = [name for name in names if _composed(name) not in numbers]
    if unknown or _repeats(own) or _repeats(names):
        what = (
            f"{len(unknown)} of {len(names)} classes that are not the model's: "
            f"{_some(unknown)}"
            if unknown
            else "names that repeat, which do not identify a class"
        )
        which = _some(own) if labels else "only numbers, since `model.labels` is None"
        raise ValueError(
            f"The data set must have classes of the model. Received: {what}. The "
            f"{num_classes} classes of the model are {which}. Rename the data set's "
            'classes, set `model.labels`, or pass `match="position"` if class i of the '
            "data set is class i of the model."
        )
    return np.array([numbers[_composed(name)] for name in names]), own


def _composed(name: str) -> str:
    """Return a name in one form of its accents: macOS stores file names in another."""
    return unicodedata.normalize("NFC", name)


def _some(names: Sequence[str], count: int = 10) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def _repeats(names: Sequence[str]) -> bool:
    return len(set(names)) < len(names)


def _ranks(scores: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    """Return how many classes score better than the true one, for each image."""
    true = np.take_along_axis(scores, labels[:, None], axis=1)
    lower = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > true) | (scores == true) & lower).sum(axis=1)


def _real_of_images(
    real_labels: Sequence[Sequence[int]], source: Source
) -> Sequence[Sequence[int]]:
    """Return the ReaL labels in the order of the source."""
    if len(real_labels) != source.num_examples:
        raise ValueError(
            f"`real_labels` must have one entry for each of the {source.num_examples} "
            f"images. Received: {len(real_labels)}"
        )
    given = {label for labels in real_labels for label in labels}
    outside = given - set(range(source.num_classes))
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
            "`real_labels` must belong to files of different names. Received: a source "
            "in which several files have the same name."
        )
    of_name = dict(zip(sorted(names), real_labels, strict=True))
    return [of_name[name] for name in names]


def _real_accuracy(
    real_labels: Sequence[Sequence[int]],
    predicted: NDArray[Any],
    class_of: NDArray[Any],
) -> float:
    right = [
        first in class_of[list(labels)]
        for first, labels in zip(predicted, real_labels, strict=True)
        if len(labels)
    ]
    return float(np.mean(right))


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
