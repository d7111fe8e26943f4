"""The official optimizers in NumPy and float64: `optax.sgd` and `optax.adamw`."""

import keras
import numpy as np

SHAPES = {"kernel": (5, 3), "bias": (3,), "gamma": (3,)}


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def drawn(steps, scale=1.0, seed=3):
    """First weights, and one gradient per step and weight."""
    rng = np.random.default_rng(seed)
    first = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    gradients = [
        {name: scale * rng.normal(size=shape) for name, shape in SHAPES.items()}
        for _ in range(steps)
    ]
    return first, gradients


def trained(optimizer, first, gradients):
    variables = [
        keras.Variable(value.astype("float32"), name=name)
        for name, value in first.items()
    ]
    for gradient in gradients:
        optimizer.apply(
            [keras.ops.convert_to_tensor(g, "float32") for g in gradient.values()],
            variables,
        )
    return {variable.name: numpy(variable) for variable in variables}, variables


def clipped(gradient, clip_norm):
    norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
    factor = min(1, clip_norm / norm) if clip_norm else 1
    return {name: factor * g for name, g in gradient.items()}


def official_sgd(weights, gradients, rates, momentum, clip_norm):
    trace = dict.fromkeys(weights, 0.0)
    history = []
    for gradient, rate in zip(gradients, rates, strict=True):
        gradient = clipped(gradient, clip_norm)
        trace = {n: gradient[n] + momentum * trace[n] for n in weights}
        weights = {n: weights[n] - rate * trace[n] for n in weights}
        history.append(weights)
    return history


def official_adamw(weights, gradients, rates, decay, clip_norm, epsilon=1e-8):
    m, v = dict.fromkeys(weights, 0.0), dict.fromkeys(weights, 0.0)
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        gradient = clipped(gradient, clip_norm)
        m = {n: 0.9 * m[n] + 0.1 * gradient[n] for n in weights}
        v = {n: 0.999 * v[n] + 0.001 * gradient[n] ** 2 for n in weights}
        step = {
            n: m[n] / (1 - 0.9**t) / (np.sqrt(v[n] / (1 - 0.999**t)) + epsilon)
            for n in weights
        }
        step["kernel"] = step["kernel"] + decay * weights["kernel"]
        weights = {n: weights[n] - rate * step[n] for n in weights}
    return weights


def assert_same(found, expected, atol=2e-6):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=atol)
