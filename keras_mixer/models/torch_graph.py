"""A model on torch as one graph of torch's own operations, for its compiler.

`torch.compile` of a Keras model follows the Python code of every layer, breaks the
graph there, and compiles again and again. Here that code runs once, and the operations
that it called are the program: one for inference and one for training, for any batch
size.
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ReferenceType, WeakKeyDictionary, ref

import keras

from keras_mixer.layers import for_compiler, is_for_compiler, nested_layers

if TYPE_CHECKING:
    import torch

_called_by_compiler = ContextVar("called_by_compiler", default=False)

_Compiled = Callable[..., "torch.Tensor"]


class _Program(NamedTuple):
    """A compiled program, and the variables whose values it takes, in their order."""

    run: _Compiled
    variables: "list[ReferenceType[keras.Variable]]"

    def takes(self, variables: Sequence[keras.Variable]) -> bool:
        """Whether these are its variables, not others that got their ids later."""
        return all(
            known() is variable
            for known, variable in zip(self.variables, variables, strict=True)
        )


# Not attributes of the models, where Keras would take the graphs for layers.
_programs: WeakKeyDictionary[keras.Model, dict[Any, _Program]] = WeakKeyDictionary()

_disabled: Callable[..., Any] | None = None


def is_traced_by_compiler() -> bool:
    """Return whether `torch.compile` of the caller follows this call."""
    import torch

    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def can_run(model: keras.Model, images: Any, training: bool | None) -> bool:
    """Return whether `run` can compute a call of the model.

    Not in training with dropout, whose masks Keras draws in Python, or with remat,
    which acts on eager gradients only.
    """
    import torch

    if type(images) is not torch.Tensor or images.device.type == "meta":
        return False
    if is_for_compiler() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not training or not any(map(_is_drawn_or_repeated, nested_layers(model)))


def _is_drawn_or_repeated(layer: keras.layers.Layer) -> bool:
    return bool(getattr(layer, "remat", False) or getattr(layer, "rate", 0))


def run(model: keras.Model, images: "torch.Tensor", training: bool | None) -> Any:
    """Return the model's output, computed by the compiled program."""
    groups = model.trainable_variables, model.non_trainable_variables
    variables = [variable for group in groups for variable in group]
    identity = [tuple(map(id, group)) for group in groups]
    key = (bool(training), images.dtype, images.shape[1:], *identity)
    values = [[variable.value for variable in group] for group in groups]
    programs = _programs.setdefault(model, {})
    if key not in programs or not programs[key].takes(variables):
        run = _compiled(model, values, images, bool(training))
        programs[key] = _Program(run, [ref(variable) for variable in variables])
    return programs[key].run(*values, images)


def is_called_by_compiler() -> bool:
    """Return whether the model is called by `outside_compiler`."""
    return _called_by_compiler.get()


def outside_compiler() -> Callable[..., Any]:
    """Return the function that `torch.compile` calls as it is, instead of a model."""
    global _disabled
    if _disabled is None:  # not at import: that would import the compiler
        import torch

        _disabled = torch.compiler.disable(_call)
    return _disabled


def _call(model: keras.Model, *args: Any, **kwargs: Any) -> Any:
    token = _called_by_compiler.set(True)
    try:
        return model(*args, **kwargs)
    finally:
        _called_by_compiler.reset(token)


def _compiled(
    model: keras.Model,
    values: Sequence[list["torch.Tensor"]],
    images: "torch.Tensor",
    training: bool,
) -> _Compiled:
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    def outputs(trainable: Any, others: Any, images: Any) -> Any:
        return model.stateless_call(trainable, others, images, training=training)[0]

    # A batch of one would be taken for a fixed size.
    example = images[:1].expand(2, *images.shape[1:]).clone()
    with torch.no_grad(), for_compiler():
        graph = make_fx(outputs, tracing_mode="symbolic")(*values, example)
    return torch.compile(graph)
