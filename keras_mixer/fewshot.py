"""Linear few-shot evaluation: closed-form ridge regression on frozen features.

How the paper measures representations ("linear 5-shot"): a few labelled examples per
class, features from the frozen model, one linear map, no training loop.

Source: `big_vision/evaluators/fewshot_lsr.py`; Dosovitskiy et al. 2020, "An Image is
Worth 16x16 Words", section 4.1.
"""

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
    if not (np.isfinite(l2) and l2 >= 0):
        raise ValueError(f"`l2` must not be negative. Received: l2={l2!r}")

    accuracies = []
    for seed in seeds:
        chosen = support_set(labels, num_classes=num_classes, shots=shots, seed=seed)
        mean = features[chosen].mean(axis=0)
        std = features[chosen].std(axis=0) + 1e-5
        x = _with_bias((features[chosen] - mean) / std)  # (n, D + 1)
        y = 2.0 * np.eye(num_classes)[labels[chosen]] - 1.0  # (n, num_classes)
        scores = _with_bias((test_features - mean) / std) @ _ridge(x, y, l2)
        accuracies.append(float(np.mean(scores.argmax(axis=1) == test_labels)))
    return accuracies


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


def _check_positive_integer(name, value):
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value!r}"
        )
