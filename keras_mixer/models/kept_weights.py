"""A model keeps its weights when Keras fails on JAX.

`predict` and `evaluate` take the values out of the variables there, and put them back
at the end alone: after an error, such as images of another size, or after Ctrl-C while
XLA compiles, the model would have none. What interrupts a step itself still takes them.
"""

import contextlib
from collections.abc import Iterator

import keras


@contextlib.contextmanager
def kept_weights(model: keras.Model) -> Iterator[None]:
    """Put the values of all variables back if what is inside fails before a step."""
    if keras.config.backend() != "jax":
        yield
        return
    values = [(variable, variable.value) for variable in model.variables]
    try:
        yield
    except BaseException:
        with contextlib.suppress(RuntimeError):  # a step was interrupted: they are gone
            model.jax_state_sync()  # those that the last step gave back
        for variable, value in values:
            if not value.is_deleted():  # a step takes the arrays that it is given
                variable.assign(value)
        raise
