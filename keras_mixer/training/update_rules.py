"""How one step changes the weights: SGD with momentum and AdamW, as in the paper.

Source: `optax`, as `vit_jax/train.py` and `big_vision/optax.py` use it.
"""

import re
from collections.abc import Iterable
from typing import Any

import keras
from keras import ops

from keras_mixer.layers import path_below_model
from keras_mixer.training import torch_updates


class _Optimizer(keras.optimizers.Optimizer):
    """What both optimizers add to Keras's own.

    Learning rates by depth, a clip that means the same on several replicas and for
    weights of several dtypes, and a moving average of the weights (`use_ema`) that
    moves once per step, not once per accumulated batch.

    Attributes:
        averages: The moving averages, one per trained weight; empty without `use_ema`.
    """

    def __init__(
        self,
        learning_rate: Any,
        *,
        layer_decay: float | None = None,
        use_ema: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        # Keras averages after every accumulated batch. `_average` does it instead.
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        if layer_decay is not None and not 0 < layer_decay <= 1:
            raise ValueError(
                "`layer_decay` must lie in (0, 1]. "
                f"Received: layer_decay={layer_decay!r}"
            )
        if not 0 <= self.ema_momentum <= 1:
            raise ValueError(
                "`ema_momentum` must lie in [0, 1]. "
                f"Received: ema_momentum={self.ema_momentum!r}"
            )
        self.layer_decay = layer_decay
        self.has_averages = bool(use_ema)
        self.averages: list[keras.Variable] = []

    def build(self, variables: list[keras.Variable]) -> None:
        if self.gradient_accumulation_steps and num_replicas() > 1:
            raise ValueError(
                "Keras cannot accumulate gradients under a TensorFlow strategy of "
                "several replicas. Received: accumulation_steps="
                f"{self.gradient_accumulation_steps} on {num_replicas()} replicas. "
                "Use `accumulation_steps=1` with more replicas, or `remat`."
            )
        if self.has_averages:  # the first variables, as in files that Keras wrote
            self.averages = self.add_optimizer_variables(variables, "average")
        super().build(variables)
        self._rate_factors = _rate_factors(variables, self.layer_decay)

    def apply(
        self,
        grads: list[keras.KerasTensor],
        trainable_variables: list[keras.Variable] | None = None,
    ) -> None:
        grads = list(grads)
        if self.global_clipnorm and num_replicas() > 1:
            grads = _clip_over_replicas(grads, self.global_clipnorm)
        super().apply(grads, trainable_variables)
        if self.averages and trainable_variables is not None:
            for variable, grad in zip(trainable_variables, grads, strict=True):
                if grad is None:  # no step moves it, and its average follows it
                    index = self._get_variable_index(variable)
                    self.assign(self.averages[index], variable)

    def _clip_gradients(self, grads: list[keras.KerasTensor]) -> Iterable[Any]:
        # A model in bfloat16 has a head in float32: TensorFlow adds no squares of two
        # dtypes, and a sum in bfloat16 would have three digits.
        wide = [None if g is None else ops.cast(g, "float32") for g in grads]
        on_torch = keras.config.backend() == "torch"
        if on_torch and (self.global_clipnorm or 0) > 0:
            clipped = torch_updates.clipped(wide, self.global_clipnorm)
        else:
            clipped = super()._clip_gradients(wide)
        narrow = (
            None if grad is None else ops.cast(new, grad.dtype)
            for grad, new in zip(grads, clipped, strict=True)
        )
        # On torch one at a time: an update finds its gradient in the caches.
        return narrow if on_torch else list(narrow)

    def stateless_apply(
        self,
        optimizer_variables: list[Any],
        grads: list[Any],
        trainable_variables: list[Any],
    ) -> tuple[list[Any], list[Any]]:
        """Return the trained weights and the optimizer's variables after one step."""
        if keras.config.backend() == "torch":  # a step there is made in place
            optimizer_variables = [ops.copy(value) for value in optimizer_variables]
            trainable_variables = [ops.copy(value) for value in trainable_variables]
        return super().stateless_apply(optimizer_variables, grads, trainable_variables)

    def _average(self, index: int, variable: keras.Variable) -> None:
        """Move the average of a weight, after the step that changed the weight.

        `average = momentum * average + (1 - momentum) * weight`; after the first step
        it is the weight.
        """
        if not self.averages:
            return
        average = self.averages[index]
        kept = ops.where(ops.equal(self.iterations, 0), 0.0, self.ema_momentum)
        kept = ops.cast(kept, average.dtype)
        if keras.config.backend() == "torch":
            torch_updates.move_average(average.value, variable.value, kept)
        else:
            self.assign(average, kept * average + (1 - kept) * variable)

    def finalize_variable_values(self, var_list: list[keras.Variable]) -> None:
        if self.averages:
            for variable in var_list:
                # A copy: on JAX the two would share a buffer, which the next `fit`
                # gives away twice.
                average = self.averages[self._get_variable_index(variable)]
                variable.assign(ops.copy(average))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "layer_decay": self.layer_decay,
            "use_ema": self.has_averages,
        }


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
        learning_rate: Any = 0.03,
        momentum: float = 0.9,
        *,
        layer_decay: float | None = None,
        name: str = "momentum_sgd",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, layer_decay=layer_decay, name=name, **kwargs)
        if not 0 <= momentum < 1:
            raise ValueError(
                f"`momentum` must lie in [0, 1). Received: momentum={momentum!r}"
            )
        self.momentum = momentum

    def build(self, variables: list[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        self.traces = self.add_optimizer_variables(variables, "trace")

    def update_step(
        self,
        gradient: keras.KerasTensor,
        variable: keras.Variable,
        learning_rate: keras.KerasTensor,
    ) -> None:
        index = self._get_variable_index(variable)
        trace = self.traces[index]
        gradient = ops.cast(gradient, variable.dtype)
        rate = ops.cast(learning_rate * self._rate_factors[index], variable.dtype)
        if keras.config.backend() == "torch":
            torch_updates.momentum_sgd(
                variable.value,
                trace.value,
                gradient,
                rate,
                momentum=self.momentum,
            )
        else:
            new = gradient + ops.cast(self.momentum, variable.dtype) * trace
            self.assign(trace, new)
            self.assign_sub(variable, rate * new)
        self._average(index, variable)

    def get_config(self) -> dict[str, Any]:
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
        learning_rate: Any = 0.001,
        kernel_decay: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        *,
        layer_decay: float | None = None,
        name: str = "kernel_adamw",
        **kwargs: Any,
    ) -> None:
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

    def build(self, variables: list[keras.Variable]) -> None:
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

    def update_step(
        self,
        gradient: keras.KerasTensor,
        variable: keras.Variable,
        learning_rate: keras.KerasTensor,
    ) -> None:
        index = self._get_variable_index(variable)
        mean, square = self.means[index], self.squares[index]
        dtype = variable.dtype
        gradient = ops.cast(gradient, dtype)
        rate = ops.cast(learning_rate * self._rate_factors[index], dtype)
        if keras.config.backend() == "torch":
            torch_updates.kernel_adamw(
                variable.value,
                mean.value,
                square.value,
                gradient,
                rate,
                ops.convert_to_tensor(self.iterations) + 1,
                betas=(self.beta_1, self.beta_2),
                epsilon=self.epsilon,
                decay=self._decays[index],
            )
        else:
            # 1 - beta^t. In bfloat16 a beta of 0.999 would be 1.
            wide = keras.backend.result_type(dtype, "float32")
            t = ops.cast(self.iterations + 1, wide)
            correction_1, correction_2 = (
                ops.cast(1 - ops.power(ops.cast(beta, wide), t), dtype)
                for beta in (self.beta_1, self.beta_2)
            )
            m = self.beta_1 * mean + (1 - self.beta_1) * gradient
            v = self.beta_2 * square + (1 - self.beta_2) * ops.square(gradient)
            self.assign(mean, m)
            self.assign(square, v)
            step = m / correction_1 / (ops.sqrt(v / correction_2) + self.epsilon)
            if self._decays[index]:
                step = step + self._decays[index] * variable
            self.assign_sub(variable, rate * step)
        self._average(index, variable)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kernel_decay": self.kernel_decay,
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }


def _rate_factors(
    variables: list[keras.Variable], layer_decay: float | None
) -> list[float]:
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


def num_replicas() -> int:
    """Return the number of replicas that share one optimizer step."""
    if keras.config.backend() != "tensorflow":
        return 1  # JAX and torch hand over gradients of the whole batch
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def _clip_over_replicas(
    gradients: list[keras.KerasTensor], clip_norm: float
) -> list[Any]:
    """Return gradients whose sum over the replicas has at most the global norm.

    Keras clips what each replica has, before it sums: N small gradients whose sum may
    be N times as long. Here they are summed first; the share of each replica is then
    too short for Keras to clip it again, and its later sum gives the clipped gradient.
    """
    import tensorflow as tf

    replica = tf.distribute.get_replica_context()
    present = [gradient for gradient in gradients if gradient is not None]
    summed = replica.all_reduce(tf.distribute.ReduceOp.SUM, present)
    summed = [tf.cast(gradient, "float32") for gradient in summed]
    clipped, _ = tf.clip_by_global_norm(summed, clip_norm)
    shares = iter(clipped)
    return [
        None
        if gradient is None
        else tf.cast(next(shares) / replica.num_replicas_in_sync, gradient.dtype)
        for gradient in gradients
    ]
