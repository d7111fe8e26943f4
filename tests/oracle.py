"""A Mixer in plain NumPy, float64, written from the paper: what every backend must say.

Also the drawn weights in the official layout whose outputs the golden files hold.
"""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x, approximate):
    if approximate:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def layer_norm(x, gamma, beta):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * gamma + beta


def mlp(x, weights, name, approximate):
    w = {k: weights[f"{name}/{k}"] for k in _DENSE_WEIGHTS}
    x = gelu(x @ w["dense_0/kernel"] + w["dense_0/bias"], approximate)
    return x @ w["dense_1/kernel"] + w["dense_1/bias"]


_DENSE_WEIGHTS = ("dense_0/kernel", "dense_0/bias", "dense_1/kernel", "dense_1/bias")


def patches(images, patch_size):
    """`(batch, S, patch_size * patch_size * channels)`, patches row by row."""
    batch, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    x = images.reshape(batch, rows, patch_size, columns, patch_size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)


def mixer(weights, images, approximate_gelu=True):
    """Return `(pre_logits, logits)`; `weights` by our names, `images` normalised.

    `logits` is `None` for weights without a head.
    """
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    kernel = w["stem/projection/kernel"]
    x = patches(np.asarray(images, np.float64), kernel.shape[0])
    x = x @ kernel.reshape(-1, kernel.shape[-1]) + w["stem/projection/bias"]
    block = 0
    while f"block_{block}/norm_0/gamma" in w:
        b = f"block_{block}"
        y = layer_norm(x, w[f"{b}/norm_0/gamma"], w[f"{b}/norm_0/beta"])
        y = mlp(y.swapaxes(1, 2), w, f"{b}/token_mixing", approximate_gelu)
        x = x + y.swapaxes(1, 2)
        y = layer_norm(x, w[f"{b}/norm_1/gamma"], w[f"{b}/norm_1/beta"])
        x = x + mlp(y, w, f"{b}/channel_mixing", approximate_gelu)
        block += 1
    x = layer_norm(x, w["pre_head_layer_norm/gamma"], w["pre_head_layer_norm/beta"])
    pre_logits = x.mean(1)
    if "head/kernel" not in w:
        return pre_logits, None
    return pre_logits, pre_logits @ w["head/kernel"] + w["head/bias"]


def draw_official(seed, shapes):
    """Draw weights for `official name -> shape`, as the golden files did."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in sorted(shapes.items()):
        value = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("kernel"):
            value *= np.float32(1 / np.sqrt(np.prod(shape[:-1])))
        elif name.endswith("scale"):
            value = np.float32(1) + np.float32(0.1) * value
        else:
            value *= np.float32(0.1)
        params[name] = value
    return params


def draw_images(seed, count, image_shape):
    """Images in [-1, 1]."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (count, *image_shape)).astype(np.float32)


def random_weights(shapes, seed=0):
    """Weights by our names, large enough that every one matters."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(
            1.0 if name.endswith("gamma") else 0.0,
            1 / np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 0.3,
            shape,
        ).astype(np.float32)
        for name, shape in shapes.items()
    }
