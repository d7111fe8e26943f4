"""How fast Mixers compute on this machine, alone and beside other implementations.

Every number is the median of many calls on random images, each timed until the device
has finished. What is compared takes turns, call by call. The product of large matrices
on the same device says what is possible.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_mixer.benchmark.compiled_steps import ForwardPass, TrainingStep
from keras_mixer.benchmark.flops import matrix_product_ceiling
from keras_mixer.benchmark.machine import (
    describe_machine,
    device_peak,
    host_peak,
    reset_peaks,
)
from keras_mixer.benchmark.records import Case, Report, Result
from keras_mixer.benchmark.timing import (
    Ratio,
    alternate,
    speed_ratio,
    timed,
    wait,
)
from keras_mixer.checks import check_dim, check_image_shape
from keras_mixer.models import CONSTRUCTORS, MLPMixer
from keras_mixer.training import finetune_optimizer

OURS = "keras_mixer"
_LOOP_SECONDS = 1.0  # `fit` and `predict` are timed over as many batches as take this


# Makes, for a case, a function that runs one batch and returns its results.
Peer = Callable[[Case], Callable[[], object]]


@dataclass(frozen=True)
class _Options:
    """The arguments of `run` that hold for every case."""

    weights: str | None
    rounds: int
    peers: Mapping[str, Peer]
    loop: bool
    layers: bool


def run(
    cases: Iterable[Case],
    *,
    weights: str | None = None,
    rounds: int = 20,
    peers: Mapping[str, Peer] | None = None,
    loop: bool = False,
    layers: bool = False,
) -> Report:
    """Measure every case.

    Args:
        cases: What to measure.
        weights: As in the family's constructors; `None` for random ones. The head is
            new unless the weights have one of 1000 classes.
        rounds: Timed calls per case and peer. Positive.
        peers: What to compare with, by name: a function of a `Case` that returns a
            function without arguments, which runs one batch and returns its results.
        loop: Whether to compare `predict` and `fit` with a hand-written loop.
        layers: Whether to measure each kind of layer alone, for inference only.

    Returns:
        A `Report` with one `Result` per case, in their order.

    Raises:
        ValueError: If a case names no model of the family or its sizes do not fit.
    """
    cases = list(cases)
    for case in cases:
        _check(case)
    check_dim("rounds", rounds)
    dtypes = {case.dtype: keras.dtype_policies.get(case.dtype) for case in cases}
    ceilings = {
        dtype: matrix_product_ceiling(policy.compute_dtype)
        for dtype, policy in dtypes.items()
    }
    options = _Options(weights, rounds, peers or {}, loop, layers)
    results = [_measure(case, ceilings[case.dtype], options) for case in cases]
    return Report(describe_machine(), tuple(results))


def _check(case: Case) -> None:
    if case.variant not in CONSTRUCTORS:
        raise ValueError(
            f"`variant` must be one of {', '.join(CONSTRUCTORS)}. "
            f"Received: {case.variant!r}"
        )
    check_dim("batch_size", case.batch_size)
    check_image_shape(case.sizes["input_shape"], case.sizes["patch_size"])


def _measure(case: Case, ceiling: float, options: _Options) -> Result:
    reset_peaks()
    start = time.perf_counter()
    model = _model(case, options.weights)
    wait([variable.value for variable in model.variables])
    build_seconds = time.perf_counter() - start

    images, labels = _batch(case)
    step = TrainingStep(model) if case.training else ForwardPass(model)
    on_device = [keras.ops.convert_to_tensor(array) for array in (images, labels)]
    arguments = on_device if case.training else on_device[:1]

    def ours() -> object:
        return step(*arguments)

    first = timed(ours)
    peaks = {"host_peak": host_peak(), "device_peak": device_peak()}
    others = {name: make(case) for name, make in options.peers.items()}
    timings = alternate({OURS: ours} | others, rounds=options.rounds)
    timing = timings.pop(OURS)

    loop_ratio = None
    if options.loop:
        count = min(max(math.ceil(_LOOP_SECONDS / timing.median), 4), 200)
        batches = _Repeated(images, labels, count)
        if isinstance(step, TrainingStep):
            loop_ratio = _compare_fit(model, step, batches, options.rounds)
        else:
            loop_ratio = _compare_predict(model, step, batches, options.rounds)
    return Result(
        case=case,
        timing=timing,
        build_seconds=build_seconds,
        compile_seconds=max(first - timing.median, 0.0),
        ceiling=ceiling,
        loop=loop_ratio,
        peers={name: speed_ratio(timing, other) for name, other in timings.items()},
        layers=_layer_seconds(model, case, options.rounds) if options.layers else {},
        **peaks,
    )


def _model(case: Case, weights: str | None) -> MLPMixer:
    model = CONSTRUCTORS[case.variant](
        weights=weights,
        input_shape=case.sizes["input_shape"],
        num_classes=case.sizes["num_classes"],
        classifier_activation=None,
        dtype=case.dtype,
    )
    if case.training:
        model.compile(
            finetune_optimizer(total_steps=1_000_000),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    return model


def _batch(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return random pixels and labels on the host."""
    rng = np.random.default_rng(0)
    shape = (case.batch_size, *case.sizes["input_shape"])
    images = rng.integers(0, 256, shape, "uint8")
    return images, rng.integers(0, case.sizes["num_classes"], case.batch_size, "int32")


class _Repeated(keras.utils.PyDataset):
    """The same batch on the host, `count` times."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, count: int) -> None:
        super().__init__()
        self.batch = images, labels
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.batch

    def tensors(self) -> Iterator[list[Any]]:
        """Yield the batches as tensors, as a hand-written loop sends them."""
        for index in range(self.count):
            yield [keras.ops.convert_to_tensor(array) for array in self[index]]


def _compare_predict(
    model: MLPMixer, compute: ForwardPass, batches: _Repeated, rounds: int
) -> Ratio:
    def by_hand() -> np.ndarray:
        compute.release()  # `predict` gave the model's variables new arrays
        outputs = [compute(images) for images, _ in batches.tensors()]
        return np.concatenate([keras.ops.convert_to_numpy(y) for y in outputs])

    timings = alternate(
        {"predict": lambda: model.predict(batches, verbose=0), "by hand": by_hand},
        rounds=rounds,
        warmup=1,
    )
    return speed_ratio(timings["predict"], timings["by hand"])


def _compare_fit(
    model: MLPMixer, step: TrainingStep, batches: _Repeated, rounds: int
) -> Ratio:
    def fit() -> list[Any]:
        model.fit(batches, shuffle=False, verbose=0)
        return [variable.value for variable in model.trainable_variables]

    def by_hand() -> list[Any]:
        for images, labels in batches.tensors():
            step(images, labels)
        step.release()
        return [variable.value for variable in model.trainable_variables]

    step.release()
    timings = alternate({"fit": fit, "by hand": by_hand}, rounds=rounds, warmup=1)
    return speed_ratio(timings["fit"], timings["by hand"])


def _layer_seconds(model: MLPMixer, case: Case, rounds: int) -> dict[str, float]:
    """Return the time of each kind of layer, alone, times how many there are."""
    if case.training:
        return {}
    blocks, stem = model.blocks, model.get_layer("stem")
    batch, width = case.batch_size, stem.hidden_dim
    tokens = keras.random.normal((batch, case.num_patches, width), seed=0)
    images = keras.random.uniform((batch, *case.sizes["input_shape"]), -1, 1, seed=0)
    parts = {
        "stem": (stem, images, 1),
        "norms": (blocks[0].norm_0, tokens, 2 * len(blocks) + 1),
        "token mixing": (blocks[0].token_mixing, tokens, len(blocks)),
        "channel mixing": (blocks[0].channel_mixing, tokens, len(blocks)),
    }
    calls = {}
    for name, (layer, inputs, _) in parts.items():
        compute = ForwardPass(layer, jit_compile=model.jit_compile)
        calls[name] = lambda compute=compute, inputs=inputs: compute(inputs)
    timings = alternate(calls, rounds=rounds)
    return {name: timings[name].median * parts[name][2] for name in parts}
