"""Linear few-shot evaluation: closed-form ridge regression on frozen features.

How the paper measures representations ("linear 5-shot"): a few labelled examples per
class, features from the frozen model, one linear map, no training loop.
`evaluate` does it for a model and a data set, `linear_probe` for arrays of features.

The ridge is solved in float64, so an accuracy depends on the features alone. The
official code decomposes a float32 matrix. With its `l2` of 1024 both agree; beside an
`l2` of 1 its rounding, which differs between processors and with the order of the
examples, decides between scores closer than about 0.01.

Source: `big_vision/evaluators/fewshot_lsr.py`; Dosovitskiy et al. 2020, "An Image is
Worth 16x16 Words", section 4.1.
"""

from functools import partial
from numbers import Integral

import numpy as np

# Stands in for a bias: so large that the ridge hardly shrinks its weight.
BIAS_CONSTANT = 100.0


def linear_probe(
    features,
    labels,
    test_features,
    test_labels,
    *,
    num_classes,
    shots=5,
    seeds=(0, 1, 2),
    l2=1024.0,
):
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

    Reference: `fewshot_lsr.py` of big_vision, whose numbers these are.
    """
    _check_positive_integer("num_classes", num_classes)
    features, labels = _check_examples("", features, labels, num_classes)
    test_features, test_labels = _check_examples(
        "test_", test_features, test_labels, num_classes
    )
    if features.shape[1] != test_features.shape[1]:
        raise ValueError(
            "`features` and `test_features` must have the same width. "
            f"Received: shapes {features.shape} and {test_features.shape}. "
            "Compute both with the same model."
        )
    _check_l2(l2)

    accuracies = []
    for seed in seeds:
        chosen = support_set(labels, num_classes=num_classes, shots=shots, seed=seed)
        predicted = _predict(
            features[chosen], labels[chosen], test_features, num_classes, l2
        )
        accuracies.append(float(np.mean(predicted == test_labels)))
    return accuracies


def evaluate(
    model,
    train,
    test,
    *,
    shots=(1, 5, 10, 25),
    seeds=(0, 1, 2),
    l2=1024.0,
    batch_size=64,
    preprocessing=None,
    cache_dir=None,
    progress=False,
):
    """Return the linear few-shot accuracies of a frozen model on a data set.

    The features are `pre_logits`. Of `train` only the examples that some seed draws are
    sent through the model: the labels alone decide which.

    Args:
        model: An `MLPMixer`.
        train: The `data.Source` to draw the examples from. It is read whole, for its
            labels; a slice such as `"train[:65000]"` will do for ImageNet.
        test: The `data.Source` to classify, with the same classes.
        shots: Examples per class, several numbers. See `linear_probe`.
        seeds: One seed for each draw of the examples.
        l2: Weight of the ridge, not negative. 1024 is the official value.
        batch_size: Images per step. Positive.
        preprocessing: The `Preprocessing` record of the images; `None` for the model's
            own. The official evaluations resize to 256 x 256 and crop 224 x 224, which
            is the transform `"resize_crop"`.
        cache_dir: Folder to keep features in, see `features.extract`; `None` for none.
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
    for number in shots:
        _check_positive_integer("shots", number)
    _check_l2(l2)
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
    num_classes = train.num_classes
    options = {
        "batch_size": batch_size,
        "preprocessing": preprocessing,
        "cache_dir": cache_dir,
        "progress": progress,
    }
    labels = _check_labels("train", read_labels(train), num_classes)
    draw = partial(support_set, labels, num_classes=num_classes)
    # Fewer shots are among more: the largest number draws all that are needed.
    indices = np.unique([draw(shots=max(shots), seed=seed) for seed in seeds])
    features, _ = _check_examples(
        "train_",
        extract(model, train, indices=indices, **options),
        labels[indices],
        num_classes,
    )
    test_features, test_labels = _check_examples(
        "test_",
        extract(model, test, **options),
        read_labels(test),
        num_classes,
    )

    def accuracy(shots, seed):
        chosen = draw(shots=shots, seed=seed)
        x = features[np.searchsorted(indices, chosen)]
        predicted = _predict(x, labels[chosen], test_features, num_classes, l2)
        return float(np.mean(predicted == test_labels))

    return {number: [accuracy(number, seed) for seed in seeds] for number in shots}


def support_set(labels, *, num_classes, shots, seed):
    """Return the indices of the examples a seed draws, class after class.

    Of each class the first `shots` of one random permutation are taken, so the examples
    of fewer shots are among those of more.

    Args:
        labels: `(N,)` integers in `[0, num_classes)`.
        num_classes: Number of classes. Positive.
        shots: Examples per class. A class that has fewer gives all it has.
        seed: Seed of NumPy's default generator.

    Raises:
        ValueError: If an argument is out of range or there are no examples.
    """
    _check_positive_integer("num_classes", num_classes)
    _check_positive_integer("shots", shots)
    labels = _check_labels("labels", labels, num_classes)
    rng = np.random.default_rng(seed)
    return np.concatenate(
        [
            rng.permutation(np.flatnonzero(labels == cls))[:shots]
            for cls in range(num_classes)
        ]
    )


def _predict(x, labels, test_x, num_classes, l2):
    """Return the classes of `test_x` by the ridge fitted to `x` and `labels`."""
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
    y = 2.0 * np.eye(num_classes)[labels] - 1.0  # (n, num_classes)
    w = _ridge(_with_bias((x - mean) / std), y, l2)  # (D + 1, num_classes)
    return (_with_bias((test_x - mean) / std) @ w).argmax(axis=1)


def _with_bias(x):
    return np.pad(x, ((0, 0), (0, 1)), constant_values=BIAS_CONSTANT)


def _ridge(x, y, l2):
    """Return `(x^T x + l2 I)^-1 x^T y`, by the smaller of the two Gram matrices."""
    n, d = x.shape
    if n < d:
        return x.T @ _solve(x @ x.T + l2 * np.eye(n), y)
    return _solve(x.T @ x + l2 * np.eye(d), x.T @ y)


def _solve(gram, y):
    # Least squares, not `solve`: with `l2=0` a constant feature makes `gram` singular.
    return np.linalg.lstsq(gram, y, rcond=None)[0]


def _check_examples(prefix, features, labels, num_classes):
    """Return features in float64 and labels, if they are N examples of some classes."""
    labels = _check_labels(f"{prefix}labels", labels, num_classes)
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) != len(labels):
        raise ValueError(
            f"`{prefix}features` must have one row for each of the {len(labels)} "
            f"`{prefix}labels`. Received: shape {features.shape}"
        )
    if not np.isfinite(features).all():
        row = int(np.argmin(np.isfinite(features).all(axis=1)))
        raise ValueError(
            f"`{prefix}features` must be finite. Received: NaN or infinity in row "
            f"{row}. Look at the image of that row and at the model's dtype."
        )
    return features, labels


def _check_labels(name, labels, num_classes):
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0 or labels.dtype.kind not in "iu":
        raise ValueError(
            f"`{name}` must be a non-empty list of integers. Received: shape "
            f"{labels.shape}, dtype {labels.dtype}"
        )
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if outside.size:
        raise ValueError(
            f"`{name}` must lie in [0, num_classes). Received: {int(outside[0])} with "
            f"num_classes={num_classes}"
        )
    return labels


def _some(names, count=3):
    rest = ", ..." if len(names) > count else ""
    return f"{len(names)} classes ({', '.join(names[:count])}{rest})"


def _check_l2(l2):
    if not (np.isfinite(l2) and l2 >= 0):
        raise ValueError(f"`l2` must not be negative. Received: l2={l2!r}")


def _check_positive_integer(name, value):
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value!r}"
        )
