"""The loss of big_vision's pre-training; the softmax one is Keras's own.

Source: `big_vision/utils.py`; Beyer et al. 2020, "Are we done with ImageNet?".
"""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_mixer")
class SigmoidCrossentropy(keras.losses.Loss):
    """One binary cross-entropy per class, summed over the classes.

    For logits `z` and targets `y`, both of shape `(batch, num_classes)`,

        loss = mean over the batch of
            sum_c -y_c log(sigmoid(z_c)) - (1 - y_c) log(1 - sigmoid(z_c))

    Keras's `BinaryCrossentropy` is the mean over the classes instead: `num_classes`
    times smaller, which changes what the clipping of gradients does.

    Args:
        label_smoothing: Share of each target that is moved to 1/2, in [0, 1):
            `y (1 - s) + s / 2`.
        reduction: As in Keras.
        name: Name of the loss.
        **kwargs: Keras's own loss arguments.

    Raises:
        ValueError: If `label_smoothing` is out of its range.

    Reference: `sigmoid_xent` of `big_vision/utils.py`.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "sigmoid_crossentropy",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, reduction=reduction, **kwargs)
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                "`label_smoothing` must lie in [0, 1). "
                f"Received: label_smoothing={label_smoothing!r}"
            )
        self.label_smoothing = label_smoothing

    def call(
        self, y_true: keras.KerasTensor, y_pred: keras.KerasTensor
    ) -> keras.KerasTensor:
        targets = ops.cast(y_true, y_pred.dtype)
        targets = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
        # -y log(sigmoid(z)) - (1 - y) log(sigmoid(-z)), and softplus(z) is the latter.
        return ops.sum(ops.softplus(y_pred) - targets * y_pred, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "label_smoothing": self.label_smoothing}
