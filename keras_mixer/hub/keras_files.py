"""`.keras` files of unknown origin: looked at before Keras opens them.

Keras builds whatever the config says and opens whatever the archive holds. So the
entries are bounded and taken out one by one, and a child process looks at the weights
(`checkpoints/hdf5_files.py`). Then Keras builds the model, and is stopped as soon as
its variables need more than the weights that come with it.
"""

import contextlib
import json
import math
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_mixer.checkpoints import (
    CONFIG,
    MAX_CONFIG_SIZE,
    METADATA,
    WEIGHTS,
    look_at,
    open_archive,
)
from keras_mixer.files import open_regular, reason_of
from keras_mixer.models import as_mixer, find_mixer

if TYPE_CHECKING:
    import keras

_MAX_BYTES = 32 * 2**30  # four times the largest Mixer, as with an optimizer
# Keras stores weights as they are; deflated ones shrink by a tenth. Zeros shrink more.
_MAX_INFLATION, _ANY_SIZE = 4, 64 * 2**20
_MAX_DEPTH = 64
_MAX_OBJECTS, _OBJECTS_PER_ARRAY = 4000, 20  # layers, dtypes, initializers, tensors
_NO_SIZE = re.compile("seed|shared_object_id")
_MAX_SIZE = 2**24  # of an image's edge, a layer's width, ...
_ANY_BUILT = 2**24  # numbers beside those of the weights
_one_reader = threading.Lock()
_MAX_OUTPUT = 2**24  # numbers that one layer gives for one image


def read_keras(path: Path) -> "keras.Model":
    """Return the model in a `.keras` file, not compiled: a Mixer, or one around it.

    Raises:
        OSError: If there is no such file, or it cannot be opened.
        ValueError: If it is damaged, too large for what it says, or holds no Mixer.
    """
    import keras

    with open_regular(path) as file, tempfile.TemporaryDirectory() as folder:
        try:
            _unpack(file, Path(folder))
            arrays = look_at(Path(folder) / WEIGHTS).arrays.values()
            _check_config(Path(folder) / CONFIG, len(arrays))
            with _variables_within(sum(math.prod(a.shape) for a in arrays)):
                model = keras.saving.load_model(folder, compile=False, safe_mode=True)
        except MemoryError as error:
            raise MemoryError(
                f"There is not enough memory for the model in {str(path)!r}"
            ) from error
        except Exception as error:  # a damaged file can make Keras raise anything
            raise ValueError(
                f"{str(path)!r} cannot be read: {reason_of(error)}"
            ) from error
    try:
        find_mixer(model)
    except Exception as error:  # a layer may hold anything that its class did not check
        raise ValueError(
            f"{str(path)!r} must hold a Mixer of this package. {reason_of(error)}"
        ) from error
    if not _is_small(model):
        return model
    try:
        return as_mixer(model)
    except ValueError:  # quantized, or of more layers than a Mixer has
        return model


def _unpack(file: BufferedReader, folder: Path) -> None:
    """Write the entries that Keras reads, and no others, to a folder."""
    with open_archive(file) as archive:
        entries = archive.infolist()
        limits = {CONFIG: MAX_CONFIG_SIZE, METADATA: MAX_CONFIG_SIZE}
        for name, limit in {**limits, WEIGHTS: _MAX_BYTES}.items():
            found = [entry for entry in entries if entry.filename == name]
            if len(found) != 1:
                raise ValueError(
                    f"it has {len(found)} entries {name!r}: it is not a whole model "
                    "that Keras saved"
                )
            size, packed = found[0].file_size, found[0].compress_size
            if size > min(limit, _MAX_INFLATION * packed + _ANY_SIZE):
                raise ValueError(
                    f"its entry {name!r} claims {size} bytes and takes {packed}"
                )
            with archive.open(found[0]) as source, open(folder / name, "xb") as target:
                shutil.copyfileobj(source, target, 2**20)


def _check_config(path: Path, num_arrays: int) -> None:
    """Bound what a config makes Keras do, as far as the text alone tells."""
    text = path.read_text(encoding="utf-8")
    config = json.loads(text)
    if not isinstance(config, dict):
        raise ValueError("its config is no object")
    if '"keras_mixer>' not in text:
        raise ValueError(
            "it must hold a Mixer of this package. Received: "
            f"{str(config.get('class_name'))[:100]}"
        )
    limit = _MAX_OBJECTS + _OBJECTS_PER_ARRAY * num_arrays
    for count, _ in enumerate(_objects(config)):
        if count > limit:
            raise ValueError(
                f"its config has more than {limit} objects for {num_arrays} arrays"
            )


def _objects(value: Any, key: str = "", depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield every object of a config."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"its config is nested deeper than {_MAX_DEPTH}")
    if isinstance(value, dict):
        yield value
        for name, item in value.items():
            if name != "compile_config":  # Keras does not read it here
                yield from _objects(item, name, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _objects(item, key, depth + 1)
    elif type(value) is int and abs(value) > _MAX_SIZE and not _NO_SIZE.search(key):
        raise ValueError(f"its config says {key}={value}, far too large for a size")


@contextlib.contextmanager
def _variables_within(declared: int) -> Iterator[None]:
    """Stop Keras where the variables of layers get larger than declared.

    Args:
        declared: Numbers in the arrays of the weights.
    """
    import keras

    limit = declared + _ANY_BUILT
    reader, built = threading.get_ident(), 0

    def bounded(layer: "keras.Layer", *args: Any, **kwargs: Any) -> Any:
        nonlocal built
        if threading.get_ident() == reader:
            shape = kwargs.get("shape") or (args[0] if args else ())
            built += math.prod((shape,) if isinstance(shape, int) else shape)
            if built > limit:
                raise ValueError(
                    f"its config makes a model of more than {limit} numbers, its "
                    f"weights are {declared}"
                )
        return add_weight(layer, *args, **kwargs)

    with _one_reader:
        add_weight = keras.Layer.add_weight
        keras.Layer.add_weight = bounded
        try:
            yield
        finally:
            keras.Layer.add_weight = add_weight


def _is_small(model: "keras.Model") -> bool:
    """Whether it can be run on an image: layers around a Mixer may inflate it."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            if not _is_small(layer):
                return False
            continue
        for output in keras.tree.flatten(getattr(layer, "output", None)):
            sizes = output.shape[1:]
            if None in sizes or math.prod(sizes) > _MAX_OUTPUT:
                return False
    return True
