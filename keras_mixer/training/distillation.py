"""Distillation: the loss against labels and a teacher, and its targets in the stream.

The teacher's logits are part of the targets, `(batch, 2 classes)`: labels, then logits.
So the step is that of any other loss, under every distribution, with accumulation,
averages and mixed precision, and no checkpoint or optimizer knows the teacher. Keras's
`Distiller`, which calls the teacher in the step, would carry its weights in both.

Source: Hinton et al. 2015 (arXiv:1503.02531).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_mixer.training.teacher import Teacher

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What a run is asked to learn from another model.

    Attributes:
        teacher: A Keras model, an exported file or its path; `None` for no teacher.
        distillation_weight: Share of the teacher's part in the loss, in (0, 1].
        distillation_temperature: What both logits are divided by. Positive.

    Raises:
        ValueError: If a number is out of its range.
    """

    teacher: Any = None
    distillation_weight: float = 0.5
    distillation_temperature: float = 3.0

    def __post_init__(self) -> None:
        _check(self.distillation_weight, self.distillation_temperature, "distillation_")


@keras.saving.register_keras_serializable("keras_mixer")
class DistillationLoss(keras.losses.Loss):
    """The loss against the labels, and the divergence from the teacher's softened ones.

    For the labels `y`, the student's logits `z` and the teacher's `t`, each of shape
    `(batch, classes)`, with weight `w` and temperature `T`, per image

        loss = (1 - w) label_loss(y, z)
             + w T^2 sum_c p_c (log p_c - log q_c),
               p = softmax(t / T),  q = softmax(z / T)

    The factor `T^2` keeps the gradients of the second part as large as at T = 1.

    The second part is the value of `keras.distillation.LogitsDistillation(T,
    keras.losses.KLDivergence())`, and the whole that of `keras.distillation.Distiller`
    with `student_loss_weight=1 - w`. It is computed from logarithms: Keras cuts
    probabilities off at 1e-7, where the gradient ends. (Without its second argument
    `LogitsDistillation` of Keras 3.15 takes the logits for probabilities.)

    Args:
        label_loss: The Keras loss against the labels, from logits.
        weight: `w` above, in (0, 1].
        temperature: `T` above. Positive.
        reduction: As in Keras.
        name: Name of the loss.
        **kwargs: Keras's own loss arguments.

    Targets are `y` and `t` side by side, `(batch, 2 classes)`. Targets of `(batch,
    classes)` are labels alone: the loss is then `label_loss`, so that a model can be
    evaluated without its teacher.

    Raises:
        ValueError: If a number is out of its range.

    Reference: Hinton et al. 2015 (arXiv:1503.02531), section 2.
    """

    def __init__(
        self,
        label_loss: keras.losses.Loss,
        weight: float = 0.5,
        temperature: float = 3.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "distillation",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, reduction=reduction, **kwargs)
        _check(weight, temperature)
        self.label_loss = label_loss
        self.weight = weight
        self.temperature = temperature

    def call(
        self, y_true: keras.KerasTensor, y_pred: keras.KerasTensor
    ) -> keras.KerasTensor:
        classes = y_pred.shape[-1]
        own = self.label_loss.call(y_true[..., :classes], y_pred)
        if y_true.shape[-1] == classes:
            return own
        teacher = y_true[..., classes:] / self.temperature
        log_p = ops.log_softmax(teacher, axis=-1)
        log_q = ops.log_softmax(y_pred / self.temperature, axis=-1)
        divergence = ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)
        scaled = self.weight * self.temperature**2 * divergence
        return (1 - self.weight) * own + scaled

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "label_loss": keras.saving.serialize_keras_object(self.label_loss),
            "weight": self.weight,
            "temperature": self.temperature,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "DistillationLoss":
        label_loss = keras.saving.deserialize_keras_object(config["label_loss"])
        return cls(**{**config, "label_loss": label_loss})


@keras.saving.register_keras_serializable("keras_mixer")
class LabelAccuracy(keras.metrics.CategoricalAccuracy):
    """The accuracy against the labels of targets that may hold a teacher's logits."""

    def update_state(
        self, y_true: Any, y_pred: keras.KerasTensor, sample_weight: Any = None
    ) -> Any:
        labels = y_true[..., : y_pred.shape[-1]]
        return super().update_state(labels, y_pred, sample_weight)


def with_teacher(batches: "tf.data.Dataset", teacher: Teacher) -> "tf.data.Dataset":
    """Return the batches with the teacher's logits beside their labels.

    The teacher gets the very pixels of the student, augmented and mixed, resized
    (bilinear, with antialiasing) if it takes another size, and in its own range.

    Args:
        batches: What `data.training_batches` gives: pixels in [0, 255] and labels.
        teacher: The `Teacher`.

    Returns:
        A `tf.data.Dataset` of `(images, (batch, 2 classes))`.
    """
    import tensorflow as tf

    size = teacher.image_shape[:2]

    def targets(images: "tf.Tensor", labels: "tf.Tensor") -> tuple["tf.Tensor", ...]:
        pixels = tf.cast(images, tf.float32)
        if tuple(images.shape[1:3]) != size:
            pixels = tf.image.resize(pixels, size, antialias=True)
        pixels = pixels * teacher.scale + teacher.offset
        logits = tf.numpy_function(teacher.logits, [pixels], tf.float32, stateful=False)
        logits = tf.ensure_shape(logits, labels.shape)
        return images, tf.concat([labels, logits], axis=-1)

    # One batch after the other: the teacher uses the whole machine for each.
    return batches.map(targets).prefetch(1)


def _check(weight: float, temperature: float, prefix: str = "") -> None:
    if not 0 < weight <= 1:
        raise ValueError(
            f"`{prefix}weight` must lie in (0, 1]. Received: {prefix}weight={weight!r}"
        )
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"`{prefix}temperature` must be positive. "
            f"Received: {prefix}temperature={temperature!r}"
        )
