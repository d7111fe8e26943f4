"""MLP-Mixer for Keras 3: the official models, exact on TensorFlow, JAX and torch.

A wing is imported when one of its names is first used, so that the command line answers
at once. The layers are the exception: Keras finds the classes of a saved model only
once they are registered, so they come as soon as Keras itself is imported.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keras_mixer import (
        benchmark,
        checkpoints,
        data,
        distribution,
        evaluation,
        export,
        fewshot,
        hub,
        layers,
        models,
        training,
        visualize,
    )
    from keras_mixer.checkpoints import list_checkpoints
    from keras_mixer.hub import from_pretrained, push_to_hub, save_timm
    from keras_mixer.models import (
        MixerB16,
        MixerB32,
        MixerH14,
        MixerL16,
        MixerL32,
        MixerS8,
        MixerS16,
        MixerS32,
        MixerTi4,
        MLPMixer,
        decode_predictions,
        list_models,
        mlp_mixer,
        preprocess,
        resize,
        save_official,
    )

    __version__: str

__all__ = [
    "MLPMixer",
    "MixerB16",
    "MixerB32",
    "MixerH14",
    "MixerL16",
    "MixerL32",
    "MixerS8",
    "MixerS16",
    "MixerS32",
    "MixerTi4",
    "benchmark",
    "checkpoints",
    "data",
    "decode_predictions",
    "distribution",
    "evaluation",
    "export",
    "fewshot",
    "from_pretrained",
    "hub",
    "layers",
    "list_checkpoints",
    "list_models",
    "mlp_mixer",
    "models",
    "preprocess",
    "push_to_hub",
    "resize",
    "save_official",
    "save_timm",
    "training",
    "visualize",
]

# Public name -> the module that defines it; a name that is not here is a wing.
_HOMES = {
    "from_pretrained": "hub",
    "list_checkpoints": "checkpoints",
    "push_to_hub": "hub",
    "save_timm": "hub",
} | dict.fromkeys(
    (
        "MLPMixer",
        "MixerB16",
        "MixerB32",
        "MixerH14",
        "MixerL16",
        "MixerL32",
        "MixerS16",
        "MixerS32",
        "MixerS8",
        "MixerTi4",
        "decode_predictions",
        "list_models",
        "mlp_mixer",
        "preprocess",
        "resize",
        "save_official",
    ),
    "models",
)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("keras-mixer")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _register_classes() -> None:
    """Import what Keras must know to load a saved model: layers, losses, optimizers."""
    importlib.import_module(f"{__name__}.models")
    importlib.import_module(f"{__name__}.training")


class _RegistersAfterKeras(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Registers the classes as soon as Keras is imported, and no wing half-imported.

    It loads Keras and the modules of this package as Python would, and looks after each
    of them whether it is time.
    """

    def __init__(self) -> None:
        self._loaders: dict[str, importlib.abc.Loader] = {}
        self._depth = 0

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "keras" and name.rpartition(".")[0] != __name__:
            return None
        if name == f"{__name__}.__main__":  # Python runs it, it does not import it
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            self._loaders[name], spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loaders[spec.name].create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        loader = self._loaders.pop(module.__name__)
        module.__loader__ = loader
        if module.__spec__ is not None:
            module.__spec__.loader = loader
        self._depth += 1
        try:
            loader.exec_module(module)
        finally:
            self._depth -= 1
        if not self._depth and "keras" in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            _register_classes()


if "keras" in sys.modules:
    _register_classes()
else:
    sys.meta_path.insert(0, _RegistersAfterKeras())
