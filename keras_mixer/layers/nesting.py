"""Which layers lie inside a layer, and what a variable is called inside its model."""

import re
from collections.abc import Iterable, Iterator

import keras

# The named nodes of a Mixer that have weights.
_NODE = re.compile(r"stem|block_\d+|pre_head_layer_norm|head")


def inner_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return the layers that lie directly inside `layer`, in its own order."""
    if isinstance(layer, keras.Model):
        return list(layer.layers)
    found: dict[int, keras.layers.Layer] = {}
    for value in vars(layer).values():
        for inner in _layers_among(value):
            found.setdefault(id(inner), inner)
    found.pop(id(layer), None)
    return list(found.values())


def nested_layers(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """Yield every layer inside `layer`, at any depth, an outer before its inner ones.

    A layer that is held twice comes once.
    """
    seen = {id(layer)}
    waiting = inner_layers(layer)[::-1]
    while waiting:
        inner = waiting.pop()
        if id(inner) in seen:
            continue
        seen.add(id(inner))
        yield inner
        waiting.extend(inner_layers(inner)[::-1])


def path_below_model(path: str) -> str:
    """Return the path of a variable or layer of a Mixer without what lies above it.

    Keras puts the names of open scopes and of layers that build a model in front:
    `outer/stem/projection/kernel` becomes `stem/projection/kernel`. A path without a
    node of a Mixer is returned as it is.
    """
    names = path.split("/")
    for i in range(len(names) - 1, -1, -1):
        if _NODE.fullmatch(names[i]):
            return "/".join(names[i:])
    return path


def _layers_among(value: object) -> Iterable[keras.layers.Layer]:
    if isinstance(value, keras.layers.Layer):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _layers_among(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _layers_among(item)
