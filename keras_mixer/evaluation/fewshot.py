"""Linear few-shot evaluation: closed-form ridge regression on frozen features.

How the paper measures representations ("linear 5-shot"): a few labelled examples per
class, features from the frozen model, one linear map, no training loop.
`evaluate` does it for a model and a data set, `linear_probe` for arrays of features.

The ridge is solved in float64, so that an accuracy depends on the features alone. The
official code solves it in float32. With its `l2` of 1024 both give the same accuracies.
With an `l2` of 1 its rounding errors, which differ between processors and with the
order of the examples, decide between scores that are closer than about 0.01.

Source: `big_vision/evaluators/fewshot_lsr.py`; Dosovitskiy et al. 2020, "An Image is
Worth 16x16 Words", section 4.1.
"""

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from keras_mixer.checks import check_dim
from keras_mixer.preprocessing import Preprocessing

if TYPE_CHECKING:
    import keras

    from keras_mixer.data import Source

# A constant feature instead of a bias: so large that the ridge hardly shrinks its
# weight.
BIAS_CONSTANT = 100.0


def linear_probe(
    features: ArrayLike,
    labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    *,
    num_classes: int,
    shots: int = 5,
    seeds: Sequence[int] = (0, 1, 2),
    l2: float = 1024.0,
) -> list[float]:
    """Return the test accuracy of a linear few-shot classifier, once per seed.

    With `x` the standardised features of `shots` examples per class and a constant
    column, and `y` their labels as +1 (own class) and -1 (all others),

        w = (x^T x + l2 I)^-1 x^T y,    prediction = argmax(x_test w)

    Args:
        features: `(N, D)` frozen features of the examples to choose from, for example
            the outputs of a model with `num_classes=0`.
        labels: `(N,)` their classes, integers in `[0, num_classes)`.
        test_features: `(M, D)` features to classify.
        test_labels: `(M,)` their classes.
        num_classes: Number of classes. Positive.
        shots: Examples per class. A class that has fewer gives all it has.
        seeds: One seed for each draw of the examples.
        l2: Weight of the ridge, not negative. 1024 is the official value.

    Returns:
        A list of accuracies in [0, 1], in the order of `seeds`.

    Raises:
        ValueError: If the arrays do not fit together or an argument is out of range.

    Reference: `fewshot_lsr.py` of big_vision; the accuracies are the same.
    """
    check_dim("num_classes", num_classes)
    x, y = _check_examples("", features, labels, num_classes)
    test_x, test_y = _check_examples("test_", test_features, test_labels, num_classes)
    if x.shape[1] != test_x.shape[1]:
        raise ValueError(
            "`features` and `test_features` must have the same width. "
            f"Received: shapes {x.shape} and {test_x.shape}. "
            "Compute both with the same model."
        )
    _check_l2(l2)

    accuracies = []
    for seed in seeds:
        chosen = support_set(y, num_classes=num_classes, shots=shots, seed=seed)
        predicted = _predict(x[chosen], y[chosen], test_x, num_classes, l2)
        accuracies.append(float(np.mean(predicted == test_y)))
    return accuracies


def evaluate(
    model: "keras.Model",
    train: "Source",
    test: "Source",
    *,
    shots: Sequence[int] = (1, 5, 10, 25),
    seeds: Sequence[int] = (0, 1, 2),
    l2: float = 1024.0,
    batch_size: int = 64,
    preprocessing: Preprocessing | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> dict[int, list[float]]:
    """Return the linear few-shot accuracies of a frozen model on a data set.

    The features are `pre_logits`. The seeds and the labels alone decide which examples
    of `train` are drawn; only these are sent through the model.

    Args:
        model: An `MLPMixer`, or a Keras model around one (see `models.find_mixer`).
        train: The `data.Source` to draw the examples from. All its labels are read; for
            ImageNet a slice such as `"train[:65000]"` is enough.
        test: The `data.Source` to classify, with the same classes.
        shots: Examples per class, several numbers. See `linear_probe`.
        seeds: One seed for each draw of the examples.
        l2: Weight of the ridge, not negative. 1024 is the official value.
        batch_size: Images per step. Positive.
        preprocessing: The `Preprocessing` record of the images; `None` for the model's
            own. The official evaluations resize to 256 x 256 and crop 224 x 224, which
            is the transform `"resize_crop"`.
        cache_dir: Folder where features are kept and looked up, see `extract`; `None`
            for no cache.
        progress: Whether to show a progress bar.

    Returns:
        Number of shots -> list of accuracies in [0, 1], in the order of `seeds`.

    Raises:
        ImportError: If TensorFlow, which reads the images, is not installed.
        ValueError: If the data sets do not fit together or an argument is out of range.

    Reference: paper, section 3; `fewshot_lsr.py` of big_vision.
    """
    from keras_mixer.evaluation.features import extract
    from keras_mixer.evaluation.inference import read_labels

    shots, seeds = tuple(shots), tuple(seeds)
    _check_draws(train, test, shots, seeds)
    _check_l2(l2)
    num_classes = train.num_classes
    read = partial(
        extract,
        model,
        batch_size=batch_size,
        preprocessing=preprocessing,
        cache_dir=cache_dir,
        progress=progress,
    )
    labels = _check_labels("train", read_labels(train), num_classes)
    draw = partial(support_set, labels, num_classes=num_classes)
    # The examples of fewer shots are among those of more: the most shots draw all.
    indices = np.unique([draw(shots=max(shots), seed=seed) for seed in seeds])
    x, _ = _check_examples(
        "train_", read(train, indices=indices), labels[indices], num_classes
    )
    test_x, test_y = _check_examples(
        "test_", read(test), read_labels(test), num_classes
    )

    def accuracy(shots: int, seed: int) -> float:
        chosen = draw(shots=shots, seed=seed)
        drawn = x[np.searchsorted(indices, chosen)]
        predicted = _predict(drawn, labels[chosen], test_x, num_classes, l2)
        return float(np.mean(predicted == test_y))

    return {number: [accuracy(number, seed) for seed in seeds] for number in shots}


def support_set(
    labels: ArrayLike, *, num_classes: int, shots: int, seed: int
) -> NDArray[np.int64]:
    """Return the indices of the examples that a seed draws, class after class.

    Of each class the first `shots` of one random permutation are taken. So the examples
    of fewer shots are among those of more.

    Args:
        labels: `(N,)` integers in `[0, num_classes)`.
        num_classes: Number of classes. Positive.
        shots: Examples per class. A class that has fewer gives all it has.
        seed: Seed of NumPy's default generator.

    Raises:
        ValueError: If an argument is out of range or there are no examples.
    """
    check_dim("num_classes", num_classes)
    check_dim("shots", shots)
    numbers = _check_labels("labels", labels, num_classes)
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [
            rng.permutation(np.flatnonzero(numbers == cls))[:shots]
            for cls in range(num_classes)
        ]
    )


def _predict(
    x: NDArray[Any],
    labels: NDArray[Any],
    test_x: NDArray[Any],
    num_classes: int,
    l2: float,
) -> NDArray[Any]:
    """Return the classes of `test_x` by the ridge fitted to `x` and `labels`."""
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
    y = 2.0 * np.eye(num_classes)[labels] - 1.0  # (n, num_classes)
    w = _ridge(_with_bias((x - mean) / std), y, l2)  # (D + 1, num_classes)
    return (_with_bias((test_x - mean) / std) @ w).argmax(axis=1)


def _with_bias(x: NDArray[Any]) -> NDArray[Any]:
    return np.pad(x, ((0, 0), (0, 1)), constant_values=BIAS_CONSTANT)


def _ridge(x: NDArray[Any], y: NDArray[Any], l2: float) -> NDArray[Any]:
    """Return `(x^T x + l2 I)^-1 x^T y`, by the smaller of the two Gram matrices."""
    n, d = x.shape
    if n < d:
        return x.T @ _solve(x @ x.T + l2 * np.eye(n), y)
    return _solve(x.T @ x + l2 * np.eye(d), x.T @ y)


def _solve(gram: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    # Least squares, not `solve`: with `l2=0` a constant feature makes `gram` singular.
    return np.linalg.lstsq(gram, y, rcond=None)[0]


def _check_examples(
    prefix: str, features: ArrayLike, labels: ArrayLike, num_classes: int
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Return features in float64 and their labels, if they fit together."""
    y = _check_labels(f"{prefix}labels", labels, num_classes)
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or len(x) != len(y):
        raise ValueError(
            f"`{prefix}features` must have one row for each of the {len(y)} "
            f"`{prefix}labels`. Received: shape {x.shape}"
        )
    if not np.isfinite(x).all():
        row = int(np.argmin(np.isfinite(x).all(axis=1)))
        raise ValueError(
            f"`{prefix}features` must be finite. Received: NaN or infinity in row "
            f"{row}. Look at the image of that row and at the model's dtype."
        )
    return x, y


def _check_labels(name: str, labels: ArrayLike, num_classes: int) -> NDArray[Any]:
    y = np.asarray(labels)
    if y.ndim != 1 or y.size == 0 or y.dtype.kind not in "iu":
        raise ValueError(
            f"`{name}` must be a non-empty list of integers. Received: shape "
            f"{y.shape}, dtype {y.dtype}"
        )
    outside = y[(y < 0) | (y >= num_classes)]
    if outside.size:
        raise ValueError(
            f"`{name}` must lie in [0, num_classes). Received: {int(outside[0])} with "
            f"num_classes={num_classes}"
        )
    return y


def _check_draws(
    train: "Source", test: "Source", shots: Sequence[int], seeds: Sequence[int]
) -> None:
    for number in shots:
        check_dim("shots", number)
    if not shots or not seeds:
        raise ValueError(
            "`shots` and `seeds` must hold one number at least. Received: "
            f"shots={shots}, seeds={seeds}"
        )
    if train.label_names != test.label_names:
        raise ValueError(
            "`train` and `test` must have the same classes in the same order. "
            f"Received: {_some(train.label_names)} and {_some(test.label_names)}"
        )


def _some(names: Sequence[str], count: int = 3) -> str:
    rest = ", ..." if len(names) > count else ""
    return f"{len(names)} classes ({', '.join(names[:count])}{rest})"


def _check_l2(l2: float) -> None:
    if not (np.isfinite(l2) and l2 >= 0):
        raise ValueError(f"`l2` must be finite and not negative. Received: l2={l2!r}")
