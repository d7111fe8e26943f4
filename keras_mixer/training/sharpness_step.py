"""The training step of SAM and GSAM for any Keras model, on the three backends.

The perturbed weights are values, not assigned to the variables: an exception in the
middle of a step leaves the weights as they were, and a variable that is mirrored on
several devices is only read.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from keras_mixer.training.sharpness import Sharpness
from keras_mixer.training.update_rules import num_replicas


def set_sam(model: keras.Model, sharpness: Sharpness | None) -> None:
    """Let `compile` and `fit` train a model with SAM or GSAM, in place.

    The equations are those of `Sharpness`. Each batch takes two forward and two
    backward passes, about twice the time, and the optimizer makes one step. Whatever
    the optimizer does comes after: clipping, averaged weights, accumulation, loss
    scaling.

    - The norms are over all weights that are trained, frozen ones left out.
    - Both passes draw the same dropout masks and drop the same branches. The state that
      the model updates itself, such as the means of a batch normalization, is that of
      the first pass; so are the loss and the metrics.
    - With gradient accumulation every batch has a perturbation of its own, and so has
      every replica of a TensorFlow strategy and every process of torch, of its part of
      the batch: the m-sharpness of the paper. JAX's devices compute as one: the
      perturbation is that of the global batch.

    The step is no part of the model's config: a model that is loaded or cloned trains
    without it.

    Args:
        model: Any Keras model whose training step is Keras's own. Its loss may be
            anything, `compute_loss` of its own included.
        sharpness: The numbers; `None` gives Keras's own step back.

    Raises:
        ValueError: If the model has a training step of its own.

    Reference: arXiv:2010.01412, algorithm 1; arXiv:2203.08065, algorithm 1.
    """
    if type(model).train_step is not keras.Model.train_step:
        raise ValueError(
            "SAM replaces the training step, and this model has one of its own. "
            f"Received: {type(model).__name__} with `train_step`."
        )
    vars(model).pop("train_step", None)
    if sharpness is not None:
        model.train_step = SharpnessAwareStep(model, sharpness)
    model.train_function = None  # Keras keeps the step that it compiled last


def sharpness_of(model: keras.Model) -> Sharpness | None:
    """Return the numbers that `set_sam` gave the model, `None` for a plain step."""
    return getattr(model.train_step, "sharpness", None)


class SharpnessAwareStep:
    """What `set_sam` puts in the place of `model.train_step`.

    Args:
        model: The model.
        sharpness: The numbers.
    """

    def __init__(self, model: keras.Model, sharpness: Sharpness) -> None:
        self.model = model
        self.sharpness = sharpness

    def __call__(self, *arguments: Any) -> Any:
        """Make one step, as the `train_step` of this backend."""
        if keras.config.backend() == "jax":
            return self._on_jax(*arguments)
        return self._in_place(*arguments)

    def gradients(self, x: Any, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
        """Return the loss at the weights, the predictions, and the gradients to apply.

        Loops with several processes take these, and average them. Not on JAX.
        """
        model = self.model
        weights = model.trainable_variables
        others = model.non_trainable_variables
        before = [ops.copy(v) for v in others]  # the states of the seeds among them
        drawn = _torch_draws()

        def loss_here() -> tuple[Any, Any]:
            predictions = model(x, training=True)
            loss = _loss(model, x, y, predictions, sample_weight)
            return model.optimizer.scale_loss(loss), (loss, predictions)

        tensors = [v.value for v in weights]
        (loss, predictions), at_weights = _with_gradients(loss_here, tensors)
        perturbed = self.sharpness.perturbed(
            [_detached(t) for t in tensors], at_weights, model.optimizer.learning_rate
        )

        def loss_there(values: list[Any]) -> tuple[Any, None]:
            mapping = list(zip([*weights, *others], [*values, *before], strict=True))
            with keras.StatelessScope(mapping, collect_losses=True), _again(drawn):
                predictions = model(x, training=True)
                loss = _loss(model, x, y, predictions, sample_weight)
                return model.optimizer.scale_loss(loss), None

        _, at_perturbed = _with_gradients_of_values(loss_there, perturbed)
        return loss, predictions, self.sharpness.combined(at_weights, at_perturbed)

    def _in_place(self, batch: Any) -> dict[str, Any]:
        """TensorFlow's and torch's step: the variables change."""
        model = self.model
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        loss, predictions, gradients = self.gradients(x, y, sample_weight)
        with _no_gradients():
            model.optimizer.apply(gradients, model.trainable_variables)
            # Keras divides a replica's loss by their number.
            model.metrics[0].update_state(
                loss * num_replicas(), sample_weight=_batch_size(x)
            )
            return model.compute_metrics(x, y, predictions, sample_weight)

    def _on_jax(self, state: Any, batch: Any) -> tuple[dict[str, Any], Any]:
        """JAX's step: values in, values out."""
        import jax

        model, optimizer = self.model, self.model.optimizer
        weights, others, slots, metrics = state
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        gradients_at = jax.grad(model.compute_loss_and_updates, has_aux=True)

        def at(values: Any) -> Any:
            return gradients_at(
                values,
                others,  # the states of the seeds among them
                metrics,
                x,
                y,
                sample_weight,
                training=True,
                optimizer_variables=slots,
            )

        at_weights, (loss, predictions, new_others, metrics) = at(weights)
        with keras.StatelessScope(list(zip(optimizer.variables, slots, strict=True))):
            rate = optimizer.learning_rate
        at_perturbed, _ = at(self.sharpness.perturbed(weights, at_weights, rate))
        gradients = self.sharpness.combined(at_weights, at_perturbed)
        weights, slots = optimizer.stateless_apply(slots, gradients, weights)

        mapping = list(zip(model.metrics_variables, metrics, strict=True))
        with keras.StatelessScope(mapping) as scope:
            model.metrics[0].update_state(loss, sample_weight=_batch_size(x))
            logs = model.compute_metrics(x, y, predictions, sample_weight)
        metrics = [scope.get_current_value(v) for v in model.metrics_variables]
        return logs, (weights, new_others, slots, metrics)


def _loss(
    model: keras.Model, x: Any, y: Any, predictions: Any, sample_weight: Any
) -> Any:
    return model.compute_loss(x, y, predictions, sample_weight, training=True)


def _batch_size(x: Any) -> Any:
    return ops.shape(keras.tree.flatten(x)[0])[0]


def _with_gradients(
    compute: Callable[[], tuple[Any, Any]], tensors: list[Any]
) -> tuple[Any, list[Any]]:
    """Return what `compute` returns beside its loss, and the gradients of the loss."""
    if keras.config.backend() == "torch":
        import torch

        loss, beside = compute()
        return beside, list(torch.autograd.grad(loss, tensors, allow_unused=True))
    import tensorflow as tf

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tensors)
        loss, beside = compute()
    gradients = tape.gradient(loss, tensors)
    return beside, [None if g is None else tf.convert_to_tensor(g) for g in gradients]


def _with_gradients_of_values(
    compute: Callable[[list[Any]], tuple[Any, Any]], values: list[Any]
) -> tuple[Any, list[Any]]:
    if keras.config.backend() == "torch":
        values = [value.detach().requires_grad_() for value in values]
    return _with_gradients(lambda: compute(values), values)


def _detached(tensor: Any) -> Any:
    if keras.config.backend() == "torch":
        return tensor.detach()
    import tensorflow as tf

    return tf.convert_to_tensor(tensor)


def _no_gradients() -> contextlib.AbstractContextManager[Any]:
    if keras.config.backend() == "torch":
        import torch

        return torch.no_grad()
    return contextlib.nullcontext()


def _torch_draws() -> tuple[Any, ...]:
    """Return the states of torch's own random numbers, which its dropout draws from.

    Empty on the other backends, whose draws depend on the seeds' variables alone.
    """
    if keras.config.backend() != "torch":
        return ()
    import torch

    cpu = torch.get_rng_state()
    return (cpu, torch.cuda.get_rng_state()) if torch.cuda.is_available() else (cpu,)


@contextlib.contextmanager
def _again(draws: tuple[Any, ...]) -> Iterator[None]:
    """Draw what was drawn after `_torch_draws`, then go on as if nothing was drawn."""
    if not draws:
        yield
        return
    import torch

    on_gpu = len(draws) > 1
    devices = [torch.cuda.current_device()] if on_gpu else []
    with torch.random.fork_rng(devices):
        torch.set_rng_state(draws[0])
        if on_gpu:
            torch.cuda.set_rng_state(draws[1])
        yield
