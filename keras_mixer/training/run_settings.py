"""What must be the same when a run goes on: arguments, model, data, first weights."""

import hashlib
import json
import weakref
from dataclasses import asdict
from typing import Any

import keras

from keras_mixer.data import Augmentation, Source
from keras_mixer.host_values import host_value
from keras_mixer.training.run_checkpoints import Checkpoint
from keras_mixer.training.run_options import RunOptions
from keras_mixer.training.sharpness import Sharpness

Settings = dict[str, Any]

# Older checkpoints do not have these settings; there they are not compared.
_LATER = (
    "image_record",
    "training_data",
    "validation_data",
    "starting_weights",
    "shuffle_bytes",
)
_HINTS = {
    "training_data": "the training images, their labels or their split",
    "validation_data": "the validation images, their labels or their split",
    "starting_weights": "the weights of the model before the first step (random ones "
    "are the same after `keras.utils.set_random_seed` with the same number)",
    "image_record": "how the model's images are prepared",
    "teacher": "the teacher's weights or file, and how its images are prepared",
}

# Model -> its weights as a run of this process left them, and those the run began with.
_LEFT: "weakref.WeakKeyDictionary[keras.Model, tuple[str, str]]"
_LEFT = weakref.WeakKeyDictionary()


def run_settings(
    model: keras.Model,
    train: Source,
    validation: Source | None,
    *,
    augmentation: Augmentation,
    options: RunOptions,
    optimizer: keras.Optimizer,
    loss: Any,
    sharpness: Sharpness | None = None,
    teacher: str | None = None,
) -> Settings:
    """Return the settings of a run, as in JSON. The model has its first weights.

    `teacher` is the fingerprint of a teacher.
    """
    settings = {
        "model": model.config,
        "dtype": model.blocks[0].dtype_policy.name,
        "optimizer": keras.optimizers.serialize(optimizer),
        "loss": keras.losses.serialize(keras.losses.get(loss)),
        "examples": train.num_examples,
        "labels": train.label_names,
        "augmentation": asdict(augmentation),
        "total_steps": options.total_steps,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "shuffle_bytes": options.shuffle_bytes,
        "save_every": options.save_every,
        "image_record": model.preprocessing.to_dict(),
        "training_data": train.fingerprint(),
        "validation_data": validation and validation.fingerprint(),
        "starting_weights": starting_weights(model),
    }
    if teacher is not None:
        settings["teacher"] = teacher
    if sharpness is not None:  # files of plain training have no such entry
        settings["sam"] = asdict(sharpness)
    return json.loads(json.dumps(settings))


def starting_weights(model: keras.Model) -> str:
    """Return a short text for the weights with which the run of this model began.

    For a model that a run of this process has left, they are that run's.
    """
    now = weights_text(model)
    left, began = _LEFT.get(model, ("", ""))
    return began if now == left else now


def remember_as_left(model: keras.Model, settings: Settings) -> None:
    """Keep in mind that the model's weights are what a run left in it."""
    _LEFT[model] = (weights_text(model), settings["starting_weights"])


def check_settings(checkpoint: Checkpoint, settings: Settings) -> None:
    """Raise a `ValueError` with all differences, if there are any.

    Raises:
        ValueError: If the checkpoint is of a run with other settings.
    """
    before, now = _comparable(checkpoint.settings), _comparable(settings)
    for name in _LATER:
        if name not in checkpoint.settings:
            for key in [key for key in now if key.split(".")[0] == name]:
                del now[key]
    lines = [
        f"  {_named(name)}: {before.get(name)!r} there, {now.get(name)!r} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if lines:
        raise ValueError(
            f"{checkpoint.path} is of a run with other arguments. Give the same, or "
            "choose another folder.\n" + "\n".join(lines)
        )


def weights_text(model: keras.Model) -> str:
    """Return a short text that is the same for the same weights."""
    digest = hashlib.sha256()
    for weight in model.weights:
        array = host_value(weight)
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _comparable(settings: Settings) -> Settings:
    """Return the settings as one dictionary with dotted names, in the present form."""
    settings = dict(settings)
    optimizer = settings["optimizer"].get("config", {})
    if inner := optimizer.get("inner_optimizer"):  # Keras wraps it under float16
        settings["optimizer"] = inner
    # Older checkpoints leave out what was not given; the defaults were the same.
    defaults = json.loads(json.dumps(asdict(Augmentation())))
    settings["augmentation"] = {**defaults, **settings["augmentation"]}
    # The module of a class is no setting: it changes when a file is moved.
    flat = _flat(settings)
    return {n: v for n, v in flat.items() if n.rpartition(".")[2] != "module"}


def _flat(value: Any, prefix: str = "") -> Settings:
    """Return nested dictionaries as one, with dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: Settings = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{name}" if prefix else name)
    return flat


def _named(name: str) -> str:
    hint = _HINTS.get(name.split(".")[0])
    return f"{name} ({hint})" if hint else name
