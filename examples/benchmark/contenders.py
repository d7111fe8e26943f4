"""The models that `compare.py` lets run, each as a function without arguments."""

import functools
import tempfile
from pathlib import Path

import numpy as np

# Pixels to [-1, 1], as Google's weights take them.
_SCALE, _OFFSET = 1 / 127.5, -1.0
_EXPORTED = ("ours-onnx", "ours-openvino")
_RATE, _MOMENTUM, _CLIP_NORM = 0.03, 0.9, 1.0  # the official fine-tuning


def contender(name, case, images, labels):
    """Return a function that runs one batch, or one training step, of a contender.

    Args:
        name: One of `compare.CONTENDERS`.
        case: A `keras_mixer.benchmark.Case`.
        images: Pixels `(batch, height, width, 3)`, uint8.
        labels: Numbers of classes `(batch,)`.
    """
    frozen = name.startswith((*_EXPORTED, "timm-traced"))
    half = case.dtype != "float32"
    if frozen and (case.training or (half and name != "ours-openvino")):
        raise ValueError(f"{name} is for inference from a float32 model")
    if name == "flax":
        return _flax(case, images, labels)
    if name.startswith("timm"):
        return _timm(name, case, images, labels)
    if name.startswith(_EXPORTED):
        return _exported(name, case, images)
    return _keras(name, case, images, labels)


def _keras(name, case, images, labels):
    import keras

    import keras_mixer
    from keras_mixer.benchmark import ForwardPass, TrainingStep

    if name.startswith("naive"):
        from naive_mixer import naive_mixer

        model = naive_mixer(**case.sizes, dtype=case.dtype)
    else:
        model = keras_mixer.mlp_mixer(
            **case.sizes, classifier_activation=None, dtype=case.dtype
        )
        keras_mixer.training.set_remat(model, name.endswith("-remat"))
    if name.endswith("-compiled"):
        model.jit_compile = True
    images = keras.ops.convert_to_tensor(images)
    if not case.training:
        return functools.partial(ForwardPass(model), images)
    model.compile(
        keras_mixer.training.finetune_optimizer(total_steps=1_000_000),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=model.jit_compile,
    )
    labels = keras.ops.convert_to_tensor(labels)
    return functools.partial(TrainingStep(model), images, labels)


def _exported(name, case, images):
    import keras_mixer

    _, runtime, *int8 = name.split("-")
    ending = {"onnx": ".onnx", "openvino": ".xml"}[runtime]
    model = keras_mixer.mlp_mixer(**case.sizes, classifier_activation=None)
    # A head of zeros has one answer for every image, in int8 and in float32.
    head = model.get_layer("head").kernel
    rng = np.random.default_rng(0)
    head.assign(rng.normal(0, 0.02, head.shape))
    pixels = images.astype("float32")
    calibration = rng.uniform(0, 255, (8, *pixels.shape[1:])).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{ending}"
        keras_mixer.export.export(
            model, path, calibration_images=calibration if int8 else None
        )
        precision = "float32" if case.dtype == "float32" else "bfloat16"
        run = keras_mixer.export.load(path, precision)
    return functools.partial(run, pixels)


def _flax(case, images, labels):
    import jax
    import jax.numpy as jnp
    from flax_mixer import MlpMixer

    sizes = dict(case.sizes)
    del sizes["input_shape"]
    mixer = MlpMixer(**sizes, dtype=_compute_dtype(case))
    images, labels = jnp.asarray(images), jnp.asarray(labels)

    def logits(params, images):
        x = images.astype(jnp.float32) * _SCALE + _OFFSET
        return mixer.apply({"params": params}, x).astype(jnp.float32)

    shape = jax.ShapeDtypeStruct(images.shape, jnp.float32)
    params = jax.jit(lambda key: mixer.init(key, jnp.zeros(shape.shape))["params"])(
        jax.random.key(0)
    )
    if not case.training:
        return functools.partial(jax.jit(logits), params, images)
    return _flax_training(logits, params, images, labels)


def _flax_training(logits, params, images, labels):
    import jax
    import optax

    optimizer = optax.chain(
        optax.clip_by_global_norm(_CLIP_NORM), optax.sgd(_RATE, momentum=_MOMENTUM)
    )

    def loss(params):
        scores = logits(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state):
        params, slots = state
        updates, slots = optimizer.update(jax.grad(loss)(params), slots, params)
        return optax.apply_updates(params, updates), slots

    state = (params, jax.jit(optimizer.init)(params))

    def call():
        nonlocal state
        state = step(state)
        return state

    return call


def _timm(name, case, images, labels):
    import torch
    from timm.models.mlp_mixer import MlpMixer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = case.sizes
    width = sizes["hidden_dim"]
    model = MlpMixer(
        num_classes=sizes["num_classes"],
        img_size=sizes["input_shape"][0],
        patch_size=sizes["patch_size"],
        num_blocks=sizes["num_blocks"],
        embed_dim=width,
        mlp_ratio=(sizes["tokens_mlp_dim"] / width, sizes["channels_mlp_dim"] / width),
    ).to(device)
    images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)
    labels = torch.from_numpy(labels).to(device)
    autocast = torch.autocast(device, torch.bfloat16, case.dtype != "float32")

    def logits(images):
        with autocast:
            return model(images.float() * _SCALE + _OFFSET).float()

    modes = {"timm-compiled": "default", "timm-autotuned": "max-autotune"}
    if name in modes:
        logits = torch.compile(logits, mode=modes[name])
    if not case.training:
        model.eval()
        if name == "timm-traced":
            model = torch.jit.freeze(torch.jit.trace(model, images.float()))
        return torch.inference_mode()(lambda: logits(images))
    optimizer = torch.optim.SGD(model.parameters(), _RATE, _MOMENTUM)

    def step():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits(images), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
        optimizer.step()
        return loss.detach()

    return step


def _compute_dtype(case):
    import jax.numpy as jnp

    return jnp.float32 if case.dtype == "float32" else jnp.bfloat16
