"""The models of the demo: which there are, and the few that are loaded."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Literal, get_args

from keras_mixer.checkpoints import find_checkpoint, parse_address
from keras_mixer.hub import read_model
from keras_mixer.models import (
    CONSTRUCTORS,
    MLPMixer,
    as_mixer,
    list_models,
    rebuilt,
)

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
EMBEDDED = "MixerTi4:cifar10"

_POLICIES = {"bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
_KEPT = 2  # models in memory


class Shelf:
    """Loads models by the name that somebody chose, and keeps the last two.

    Args:
        first: The model that is chosen at the start.
        any_source: Whether paths of this machine and addresses of the Hub may be asked
            for. Not for a demo that strangers see: they could read and fill the disk.
    """

    def __init__(self, first: str, *, any_source: bool) -> None:
        self.first, self.any_source = first, any_source
        self.names = list_models(pretrained=True)
        if first not in self.names:
            self.names.insert(0, first)
        self._loaded: OrderedDict[tuple[str, Precision], MLPMixer] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, source: str, precision: Precision) -> MLPMixer:
        """Return a model with probabilities as its output, loaded if need be.

        Raises:
            OSError: If it cannot be read or downloaded.
            ValueError: If there is no such model, or it cannot be shown.
        """
        source = self._checked(source)
        if precision not in PRECISIONS:
            raise ValueError(
                f"The precision must be one of {', '.join(PRECISIONS)}. Received: "
                f"{precision!r}."
            )
        key = (source, precision)
        with self._lock:
            if key not in self._loaded:
                model = _load(source, precision)
                while len(self._loaded) >= _KEPT:
                    self._loaded.popitem(last=False)
                self._loaded[key] = model
            self._loaded.move_to_end(key)
            return self._loaded[key]

    def _checked(self, source: object) -> str:
        source = str(source or "").strip()
        if source in self.names:
            return source
        if not self.any_source:
            raise ValueError(
                "Choose a model of the list: this demo takes no other. Received: "
                f"{source[:200]!r}."
            )
        if source.startswith("hf://"):
            parse_address(source)
        elif not source or not Path(source).expanduser().exists():
            raise ValueError(
                "Choose a model of the list, or give hf://owner/name or the path of a "
                f"file or folder on this machine. Received: {source[:200]!r}."
            )
        else:
            source = str(Path(source).expanduser())
        return source


def _load(source: str, precision: Precision) -> MLPMixer:
    named = {f.__name__: f for f in CONSTRUCTORS.values()}
    constructor, _, weights = source.partition(":")
    if constructor in named:
        model = named[constructor](weights=weights)
    else:
        model = as_mixer(read_model(source))
    config = model.config
    if not config["num_classes"]:
        raise ValueError(f"{source} has no classes: it gives features. Choose another.")
    if config["input_shape"][-1] not in (1, 3):
        raise ValueError(
            f"{source} takes images of {config['input_shape'][-1]} channels. Pictures "
            "have 1 or 3."
        )
    if precision != "float32" or config["classifier_activation"] != "softmax":
        model = rebuilt(
            model, classifier_activation="softmax", dtype=_POLICIES.get(precision)
        )
    return model


def about(source: str, model: MLPMixer, precision: Precision) -> str:
    """Return what a model is, in one line."""
    height, width, _ = model.config["input_shape"]
    facts = [
        f"{model.count_params() / 1e6:,.1f} M parameters",
        f"{len(model.blocks)} blocks",
        f"images of {height} x {width}",
        f"{model.config['num_classes']:,} classes",
        precision,
    ]
    constructor, _, weights = source.partition(":")
    for variant, function in CONSTRUCTORS.items():
        if function.__name__ == constructor:
            facts.append(f"licence {find_checkpoint(variant, weights).licence}")
    return ", ".join(facts)
