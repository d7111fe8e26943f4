"""The optimizers of the paper: plain Keras optimizers for any `compile`/`fit`.

Source: paper, section 3 and appendix B; `vit_jax/train.py`;
`big_vision/configs/mlp_mixer_i1k.py`.
"""

import keras


@keras.saving.register_keras_serializable("keras_mixer")
class MomentumSGD(keras.optimizers.Optimizer):
    """SGD with momentum as the official code makes its steps.

    `trace = gradient + momentum * trace`, `w = w - learning_rate * trace`. Keras's
    own SGD puts the learning rate inside the momentum (`v = momentum * v -
    learning_rate * gradient`), which is not the same under a changing learning rate:
    an old gradient keeps its old rate there.

    Args:
        learning_rate: Number or Keras schedule.
        momentum: Share of the trace that is kept, in [0, 1).
        name: Name of the optimizer.
        **kwargs: Keras's own optimizer arguments, such as `global_clipnorm`.

    Reference: `optax.sgd`, as used in `vit_jax/train.py`.
    """

    def __init__(self, learning_rate=0.03, momentum=0.9, name="momentum_sgd", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        if not 0 <= momentum < 1:
            raise ValueError(
                f"`momentum` must lie in [0, 1). Received: momentum={momentum!r}"
            )
        self.momentum = momentum

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.traces = self.add_optimizer_variables(variables, "trace")

    def update_step(self, gradient, variable, learning_rate):
        trace = self.traces[self._get_variable_index(variable)]
        gradient = keras.ops.cast(gradient, variable.dtype)
        new = gradient + keras.ops.cast(self.momentum, variable.dtype) * trace
        self.assign(trace, new)
        step = keras.ops.cast(learning_rate, variable.dtype) * new
        self.assign_sub(variable, step)

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum}


def finetune_optimizer(
    *,
    total_steps,
    base_learning_rate=0.03,
    warmup_steps=500,
    momentum=0.9,
    clip_norm=1.0,
):
    """Return the optimizer of the paper's fine-tuning.

    SGD with momentum, gradients clipped to a global norm, linear warm-up and cosine
    decay to zero, no weight decay.

    Args:
        total_steps: Optimizer steps of the whole run, warm-up included.
        base_learning_rate: Peak learning rate.
        warmup_steps: Steps from 0 to the peak.
        momentum: Momentum, in [0, 1).
        clip_norm: Largest global norm of the gradients.

    Raises:
        ValueError: If the steps do not fit together or `momentum` is out of range.

    Reference: paper, section 3 and appendix C; `vit_jax/configs/common.py`.
    """
    return MomentumSGD(
        warmup_schedule(
            total_steps=total_steps,
            base_learning_rate=base_learning_rate,
            warmup_steps=warmup_steps,
            schedule="cosine",
        ),
        momentum=momentum,
        global_clipnorm=clip_norm,
    )


def pretrain_optimizer(
    *,
    total_steps,
    base_learning_rate=0.001,
    warmup_steps=10_000,
    weight_decay=0.1,
    clip_norm=1.0,
    schedule="linear",
):
    """Return the AdamW of the paper's pre-training.

    Adam with b1 = 0.9, b2 = 0.999, epsilon = 1e-8; gradients clipped to a global norm;
    decoupled weight decay `learning_rate * weight_decay * w` on kernels only; linear
    warm-up, then linear (the paper) or cosine decay to zero.

    Args:
        total_steps: Optimizer steps of the whole run, warm-up included.
        base_learning_rate: Peak learning rate.
        warmup_steps: Steps from 0 to the peak.
        weight_decay: Decay per unit of learning rate (the paper's convention; 0.1 here
            is the 1e-4 of big_vision's config).
        clip_norm: Largest global norm of the gradients.
        schedule: `"linear"` or `"cosine"`.

    Raises:
        ValueError: If the steps do not fit together or `schedule` is unknown.
    """
    optimizer = keras.optimizers.AdamW(
        warmup_schedule(
            total_steps=total_steps,
            base_learning_rate=base_learning_rate,
            warmup_steps=warmup_steps,
            schedule=schedule,
        ),
        weight_decay=weight_decay,
        epsilon=1e-8,
        global_clipnorm=clip_norm,
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def warmup_schedule(*, total_steps, base_learning_rate, warmup_steps, schedule):
    """Return a Keras schedule: 0 to the peak over the warm-up, then down to zero."""
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            "`warmup_steps` must lie in [0, total_steps). Received: "
            f"warmup_steps={warmup_steps}, total_steps={total_steps}"
        )
    decay_steps = total_steps - warmup_steps
    if schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps,
            warmup_target=base_learning_rate,
            warmup_steps=warmup_steps,
        )
    if schedule == "linear":
        return LinearWarmupLinearDecay(base_learning_rate, warmup_steps, total_steps)
    raise ValueError(
        f'`schedule` must be "linear" or "cosine". Received: schedule={schedule!r}'
    )


@keras.saving.register_keras_serializable("keras_mixer")
class LinearWarmupLinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """`base * min(step / warmup, (total - step) / (total - warmup))`, at least 0."""

    def __init__(self, base_learning_rate, warmup_steps, total_steps):
        self.base_learning_rate = base_learning_rate
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        up = step / max(self.warmup_steps, 1)
        down = (self.total_steps - step) / (self.total_steps - self.warmup_steps)
        if not self.warmup_steps:
            up = keras.ops.ones_like(down)
        factor = keras.ops.clip(keras.ops.minimum(up, down), 0.0, 1.0)
        return self.base_learning_rate * factor

    def get_config(self):
        return {
            "base_learning_rate": self.base_learning_rate,
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
        }
