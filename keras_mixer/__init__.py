"""MLP-Mixer for Keras 3: the official models, exact on TensorFlow, JAX and torch.

A wing is imported when one of its names is first used, so that the command line answers
at once. The layers are the exception: Keras finds the classes of a saved model only
once they are registered, so they come as soon as Keras itself is imported.
"""

import importlib
import importlib.abc
import importlib.util
import sys
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
    from keras_mixer.hub import from_pretrained, push_to_hub
    from keras_mixer.labels import decode_predictions
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
        mlp_mixer,
        resize,
        save_official,
    )
    from keras_mixer.preprocessing import preprocess

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
    "mlp_mixer",
    "models",
    "preprocess",
    "push_to_hub",
    "resize",
    "save_official",
    "training",
    "visualize",
]

# Public name -> the module that defines it; a name that is not here is a wing.
_HOMES = {
    "decode_predictions": "labels",
    "from_pretrained": "hub",
    "list_checkpoints": "checkpoints",
    "preprocess": "preprocessing",
    "push_to_hub": "hub",
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
        "mlp_mixer",
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


class _AfterKeras(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Registers the classes right after the first import of Keras."""

    def find_spec(self, name, path=None, target=None):
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _register_classes()


if "keras" in sys.modules:
    _register_classes()
else:
    sys.meta_path.insert(0, _AfterKeras())
