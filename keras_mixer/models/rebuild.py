"""The weights of a model in one that was built with other arguments."""

from collections.abc import Sequence
from typing import Any

from keras_mixer.layers import zero_kernels
from keras_mixer.models.mixer import MLPMixer, mlp_mixer, model_weights, set_weights


def rebuilt(
    model: MLPMixer,
    *,
    labels: Sequence[str] | None = None,
    dtype: Any = None,
    **changes: Any,
) -> MLPMixer:
    """Return the same body built anew; `model` is left as it is.

    For a new head before training, and after it for a plain model of what was trained:
    without adapters (LoRA's are merged into their kernels), dropout and half precision.

    Args:
        model: An `MLPMixer` that is not quantized.
        labels: Names of the classes. Others than the model's own give a new zero head,
            as the paper fine-tunes; `None` keeps both.
        dtype: Dtype policy of the new model, for example `"mixed_bfloat16"`.
        **changes: Arguments of `mlp_mixer` that are to differ and leave the shapes of
            the weights: `classifier_activation`, `dropout_rate`,
            `stochastic_depth_rate`.

    Returns:
        An `MLPMixer`.

    Raises:
        ValueError: If the model is quantized or a change does not fit its weights.
    """
    labels = model.labels if labels is None else tuple(labels)
    new_head = labels != model.labels
    config: dict[str, Any] = {**model.config, **changes}
    if new_head and labels is not None:
        config["num_classes"] = len(labels)
    with zero_kernels():
        new = mlp_mixer(
            **config,
            preprocessing=model.preprocessing,
            name=model.name,
            dtype=dtype,
        )
    arrays = model_weights(model)
    if new_head:
        arrays = {k: a for k, a in arrays.items() if not k.startswith("head/")}
    set_weights(new, arrays, new_head=new_head)
    new.labels = labels
    return new
