"""A model's forward pass and training step, each as one compiled function.

They are what `predict` and `fit` run for one batch, without the loops around it: the
speed that a loop written by hand can reach.
"""

from collections.abc import Callable, Iterable
from typing import Any

import keras

from keras_mixer.models import MLPMixer

Compute = Callable[..., Any]


def compiled(function: Compute, jit_compile: bool = True) -> Compute:
    """Return a function of tensors compiled by the backend, for inference.

    Args:
        function: Takes and returns tensors; made of `keras.ops`.
        jit_compile: Whether TensorFlow uses XLA and torch `torch.compile`. JAX compiles
            in any case.
    """
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=jit_compile)
    import torch

    compute = torch.compile(function) if jit_compile else function

    def call(*tensors: Any) -> Any:
        with torch.no_grad():
            return compute(*tensors)

    return call


class ForwardPass:
    """`forward(images)`: a model's outputs, compiled as `predict` compiles it.

    Weights that change later may or may not be seen, until `release`.

    Args:
        model: A model, or any layer with weights.
        jit_compile: As in `compiled`; `None` for what `predict` would choose.
    """

    def __init__(self, model: keras.Layer, jit_compile: bool | None = None) -> None:
        self._model = model
        self._weights: tuple[list[Any], ...] | None = None
        if keras.config.backend() == "jax":
            # Arguments, not constants of the program, which would hold them twice.
            def outputs(weights: Any, images: Any) -> Any:
                return model.stateless_call(*weights, images)[0]

            self._compute = compiled(outputs)
        else:
            choice = model.jit_compile if jit_compile is None else jit_compile
            if keras.config.backend() == "torch" and isinstance(model, MLPMixer):
                choice = False  # it compiles itself
            self._compute = compiled(lambda images: model(images), choice)

    def __call__(self, images: Any) -> Any:
        """Return the outputs, which the device may still be computing."""
        if keras.config.backend() != "jax":
            return self._compute(images)
        if self._weights is None:
            model = self._model
            self._weights = _values(
                model.trainable_variables, model.non_trainable_variables
            )
        return self._compute(self._weights, images)

    def release(self) -> None:
        """Drop the weights: the next call takes those that the model has then."""
        self._weights = None


class TrainingStep:
    """`step(images, labels)`: one training step, compiled as `fit` compiles it.

    On JAX a step reuses the memory of the model's variables, as `fit` does: call
    `release` before the model is used again.

    Args:
        model: A model after `compile`.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._state: Any = None
        self._step: Compute
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        if keras.config.backend() == "jax":
            import jax

            self._step = jax.jit(model.train_step, donate_argnums=0)
            self._variables = (
                model.trainable_variables,
                model.non_trainable_variables,
                model.optimizer.variables,
                model.metrics_variables,
            )
        elif keras.config.backend() == "tensorflow":
            import tensorflow as tf

            self._step = tf.function(model.train_step, jit_compile=model.jit_compile)
        else:
            self._step = model.train_step  # a Mixer compiles its own part of it

    def __call__(self, images: Any, labels: Any) -> Any:
        """Make one step and return the arrays that it changed."""
        batch = (images, labels)
        if keras.config.backend() == "jax":
            state = self._state or _values(*self._variables)
            _, self._state = self._step(state, batch)
            return self._state
        self._step(batch)
        return [variable.value for variable in self._model.trainable_variables]

    def release(self) -> None:
        """Assign the result of the steps to the model's variables."""
        if self._state is None:
            return
        for variables, values in zip(self._variables, self._state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        self._state = None


def _values(*groups: Iterable[keras.Variable]) -> tuple[list[Any], ...]:
    return tuple([variable.value for variable in group] for group in groups)
