"""The optimizers of the paper: plain Keras optimizers for any `compile`/`fit`.

Steps are real steps everywhere: with `accumulation_steps=8`, eight batches make one.

Source: paper, section 3 and appendix B; `vit_jax/train.py`;
`big_vision/configs/mlp_mixer_i1k.py`.
"""

from typing import Any, Literal

from keras_mixer.training.schedules import per_real_step, warmup_schedule
from keras_mixer.training.update_rules import KernelAdamW, MomentumSGD


def finetune_optimizer(
    *,
    total_steps: int,
    base_learning_rate: float = 0.03,
    warmup_steps: int = 500,
    momentum: float = 0.9,
    clip_norm: float | None = 1.0,
    accumulation_steps: int = 1,
    ema_momentum: float | None = None,
    layer_decay: float | None = None,
) -> MomentumSGD:
    """Return the optimizer of the paper's fine-tuning.

    SGD with momentum, gradients clipped to a global norm, linear warm-up and cosine
    decay to zero, no weight decay.

    Args:
        total_steps: Optimizer steps of the whole run, warm-up included.
        base_learning_rate: Peak learning rate.
        warmup_steps: Steps from 0 to the peak.
        momentum: Momentum, in [0, 1).
        clip_norm: Largest global norm of the gradients; `None` does not clip. Under a
            TensorFlow strategy the norm is that of the global batch.
        accumulation_steps: Batches whose mean gradient makes one step, at least 1.
            All steps here are these.
        ema_momentum: Share of a running mean of the weights that is kept per step, in
            [0, 1]; `fit` ends with the mean. `None`: no mean.
        layer_decay: Factor of the learning rate per layer below the head, in (0, 1]:
            `layer_decay ** (N - i)` for block `i` of N, one more for the stem, 1 for
            the head and the norm before it. `None`: one rate.

    Raises:
        ValueError: If the steps do not fit together or an argument is out of range.

    Reference: paper, section 3 and appendix C; `vit_jax/configs/common.py`.
    """
    schedule = warmup_schedule(
        total_steps=total_steps,
        base_learning_rate=base_learning_rate,
        warmup_steps=warmup_steps,
        schedule="cosine",
    )
    return MomentumSGD(
        per_real_step(schedule, accumulation_steps),
        momentum=momentum,
        global_clipnorm=clip_norm,
        layer_decay=layer_decay,
        **_keras_extras(accumulation_steps, ema_momentum),
    )


def pretrain_optimizer(
    *,
    total_steps: int,
    base_learning_rate: float = 0.001,
    warmup_steps: int = 10_000,
    weight_decay: float = 0.1,
    clip_norm: float | None = 1.0,
    schedule: Literal["linear", "cosine"] = "linear",
    linear_end: float = 1e-5,
    accumulation_steps: int = 1,
    ema_momentum: float | None = None,
    layer_decay: float | None = None,
) -> KernelAdamW:
    """Return the AdamW of the paper's pre-training.

    Adam with b1 = 0.9, b2 = 0.999, epsilon = 1e-8; gradients clipped to a global norm;
    decoupled weight decay `learning_rate * weight_decay * w` on kernels only, those of
    the stem and the head too; linear warm-up, then linear (the paper) or cosine decay.

    Args:
        total_steps: Optimizer steps of the whole run, warm-up included.
        base_learning_rate: Peak learning rate.
        warmup_steps: Steps from 0 to the peak.
        weight_decay: Decay per unit of learning rate (the paper's convention; 0.1 here
            is the 1e-4 of big_vision's config).
        clip_norm: As in `finetune_optimizer`.
        schedule: `"linear"` or `"cosine"`.
        linear_end: Where the linear decay ends, as a share of the peak. The cosine
            ends at zero.
        accumulation_steps: As in `finetune_optimizer`.
        ema_momentum: As in `finetune_optimizer`.
        layer_decay: As in `finetune_optimizer`; it shrinks the weight decay too.

    Raises:
        ValueError: If the steps do not fit together or an argument is out of range.

    Reference: paper, section 3 and table 4; `big_vision/configs/mlp_mixer_i1k.py`.
    """
    learning_rate = warmup_schedule(
        total_steps=total_steps,
        base_learning_rate=base_learning_rate,
        warmup_steps=warmup_steps,
        schedule=schedule,
        linear_end=linear_end,
    )
    return KernelAdamW(
        per_real_step(learning_rate, accumulation_steps),
        kernel_decay=weight_decay,
        global_clipnorm=clip_norm,
        layer_decay=layer_decay,
        **_keras_extras(accumulation_steps, ema_momentum),
    )


def _keras_extras(
    accumulation_steps: int, ema_momentum: float | None
) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if accumulation_steps > 1:
        arguments["gradient_accumulation_steps"] = accumulation_steps
    if ema_momentum is not None:
        arguments.update(use_ema=True, ema_momentum=ema_momentum)
    return arguments
