"""How one step changes the weights: SGD with momentum and AdamW, as in the paper.

Source: `optax`, as `vit_jax/train.py` and `big_vision/optax.py` use it.
"""

import re

import keras
from keras import ops

from keras_mixer.layers import path_below_model


class _Optimizer(keras.optimizers.Optimizer):
    """What both optimizers add to Keras's own.

    Learning rates by depth, a clip that means the same on several replicas, and a
    moving average that moves on real steps.
    """

    def __init__(self, learning_rate, *, layer_decay=None, name=None, **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        if layer_decay is not None and not 0 < layer_decay <= 1:
            raise ValueError(
                "`layer_decay` must lie in (0, 1]. "
                f"Received: layer_decay={layer_decay!r}"
            )
        self.layer_decay = layer_decay

    def build(self, variables):
        if self.gradient_accumulation_steps and _num_replicas() > 1:
            raise ValueError(
                "Keras cannot accumulate gradients under a TensorFlow strategy of "
                "several replicas. Received: accumulation_steps="
                f"{self.gradient_accumulation_steps} on {_num_replicas()} replicas. "
                "Use `accumulation_steps=1` with more replicas, or `remat`."
            )
        super().build(variables)
        self._rate_factors = _rate_factors(variables, self.layer_decay)

    def apply(self, grads, trainable_variables=None):
        grads = list(grads)
        if self.global_clipnorm and _num_replicas() > 1:
            grads = _clip_over_replicas(grads, self.global_clipnorm)
        super().apply(grads, trainable_variables)

    def _update_model_variables_moving_average(self, trainable_variables):
        # Keras averages after every micro-step, and so counts each value of the
        # weights `gradient_accumulation_steps` times.
        if not self.gradient_accumulation_steps:
            super()._update_model_variables_moving_average(trainable_variables)
            return
        moves = ops.equal((self._iterations + 1) % self.gradient_accumulation_steps, 0)
        first = ops.equal(self.iterations, 0)
        kept = ops.where(first, 0.0, self.ema_momentum)
        for variable, average in zip(
            trainable_variables, self._model_variables_moving_average, strict=True
        ):
            share = ops.cast(ops.where(moves, 1.0 - kept, 0.0), variable.dtype)
            average.assign(average + share * (variable - average))

    def finalize_variable_values(self, var_list):
        super().finalize_variable_values(var_list)
        if self.use_ema and keras.config.backend() == "jax":
            # Keras lets weights and means share their buffers, and the next `fit`
            # would give each buffer away twice.
            for variable in var_list:
                variable.assign(ops.copy(variable))

    def get_config(self):
        return {**super().get_config(), "layer_decay": self.layer_decay}


@keras.saving.register_keras_serializable("keras_mixer")
class MomentumSGD(_Optimizer):
    """SGD with momentum as the official code makes its steps.

    `trace = gradient + momentum * trace`, `w = w - learning_rate * trace`. Keras's
    own SGD puts the learning rate inside the momentum (`v = momentum * v -
    learning_rate * gradient`), which is not the same under a changing learning rate:
    an old gradient keeps its old rate there.

    Args:
        learning_rate: Number or Keras schedule.
        momentum: Share of the trace that is kept, in [0, 1).
        layer_decay: Factor of the learning rate per layer below the head, in (0, 1];
            `None` for one rate.
        name: Name of the optimizer.
        **kwargs: Keras's own optimizer arguments, such as `global_clipnorm`.

    Raises:
        ValueError: If an argument is out of its range.

    Reference: `optax.sgd`, as used in `vit_jax/train.py`.
    """

    def __init__(
        self,
        learning_rate=0.03,
        momentum=0.9,
        *,
        layer_decay=None,
        name="momentum_sgd",
        **kwargs,
    ):
        super().__init__(learning_rate, layer_decay=layer_decay, name=name, **kwargs)
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
        index = self._get_variable_index(variable)
        trace = self.traces[index]
        gradient = ops.cast(gradient, variable.dtype)
        new = gradient + ops.cast(self.momentum, variable.dtype) * trace
        self.assign(trace, new)
        rate = ops.cast(learning_rate * self._rate_factors[index], variable.dtype)
        self.assign_sub(variable, rate * new)

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum}


@keras.saving.register_keras_serializable("keras_mixer")
class KernelAdamW(_Optimizer):
    """AdamW as the official code makes its steps: only kernels decay.

    With `m` and `v` the running means of the gradient and of its square, and `t` the
    number of this step, from 1:

        w = w - learning_rate * (m / (1 - beta_1^t) / (sqrt(v / (1 - beta_2^t))
                                 + epsilon) + weight_decay * w)

    where the last term is there for kernels, not for biases and norms. Keras's own
    AdamW adds `epsilon` to the uncorrected `sqrt(v)`, which makes it 30 times larger
    in the first step, and decays everything.

    Args:
        learning_rate: Number or Keras schedule.
        kernel_decay: `weight_decay` above, per unit of learning rate. Not negative.
        beta_1: Share of `m` that is kept, in [0, 1).
        beta_2: Share of `v` that is kept, in [0, 1).
        epsilon: Keeps the division finite. Positive.
        layer_decay: As in `MomentumSGD`; the decay shrinks with the rate.
        name: Name of the optimizer.
        **kwargs: Keras's own optimizer arguments, such as `global_clipnorm`.

    Raises:
        ValueError: If an argument is out of its range.

    Reference: `optax.adamw`; `big_vision/optax.py`.
    """

    def __init__(
        self,
        learning_rate=0.001,
        kernel_decay=0.1,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        *,
        layer_decay=None,
        name="kernel_adamw",
        **kwargs,
    ):
        super().__init__(learning_rate, layer_decay=layer_decay, name=name, **kwargs)
        if kernel_decay < 0:
            raise ValueError(
                "The weight decay must not be negative. "
                f"Received: kernel_decay={kernel_decay!r}"
            )
        self.kernel_decay = kernel_decay
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.means, self.squares = self.add_optimizer_variables(
            variables, ["mean", "square"]
        )
        self._decays = [
            self.kernel_decay if variable.name == "kernel" else 0.0
            for variable in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        mean, square = self.means[index], self.squares[index]
        dtype = variable.dtype
        gradient = ops.cast(gradient, dtype)
        t = ops.cast(self.iterations + 1, dtype)

        m = self.beta_1 * mean + (1 - self.beta_1) * gradient
        v = self.beta_2 * square + (1 - self.beta_2) * ops.square(gradient)
        self.assign(mean, m)
        self.assign(square, v)

        m = m / (1 - ops.power(ops.cast(self.beta_1, dtype), t))
        v = v / (1 - ops.power(ops.cast(self.beta_2, dtype), t))
        step = m / (ops.sqrt(v) + self.epsilon)
        if self._decays[index]:
            step = step + self._decays[index] * variable
        rate = ops.cast(learning_rate * self._rate_factors[index], dtype)
        self.assign_sub(variable, rate * step)

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_decay": self.kernel_decay,
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }


def _rate_factors(variables, layer_decay):
    """Return one factor of the learning rate per variable.

    With N blocks: 1 for the head and the norm before it, `layer_decay ** (N - i)` for
    block `i`, `layer_decay ** (N + 1)` for the stem.
    """
    if layer_decay is None:
        return [1.0] * len(variables)
    paths = [path_below_model(variable.path) for variable in variables]
    blocks = [re.match(r"block_(\d+)/", path) for path in paths]
    num_blocks = max((int(match[1]) + 1 for match in blocks if match), default=0)
    factors = []
    for path, block in zip(paths, blocks, strict=True):
        if block:
            layers_above = num_blocks - int(block[1])
        else:
            layers_above = num_blocks + 1 if path.startswith("stem/") else 0
        factors.append(layer_decay**layers_above)
    return factors


def _num_replicas():
    """Return the number of replicas that share one optimizer step."""
    if keras.config.backend() != "tensorflow":
        return 1  # JAX and torch hand over gradients of the whole batch
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def _clip_over_replicas(gradients, clip_norm):
    """Return gradients whose sum over the replicas has at most the global norm.

    Keras clips what each replica has, before it sums: N small gradients whose sum may
    be N times as long. Here they are summed first; the share of each replica is then
    too short for Keras to clip it again, and its later sum gives the clipped gradient.
    """
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    present = [gradient for gradient in gradients if gradient is not None]
    summed = replica.all_reduce(tf.distribute.ReduceOp.SUM, present)
    clipped, _ = tf.clip_by_global_norm(summed, clip_norm)
    shares = iter(clipped)
    return [
        None if gradient is None else next(shares) / replica.num_replicas_in_sync
        for gradient in gradients
    ]
