"""How fast Mixers compute here, alone and beside what one would take instead.

Every number is the median of many calls on random images, each waited for until its
device is done. Whatever is compared takes turns call by call, and the product of large
matrices on the same device says what is possible.
"""

import math
import time

import keras
import numpy as np

from keras_mixer.benchmark.compiled_steps import ForwardPass, TrainingStep
from keras_mixer.benchmark.flops import matrix_product_ceiling
from keras_mixer.benchmark.machine import describe_machine
from keras_mixer.benchmark.peak_memory import device_peak, host_peak, reset_peaks
from keras_mixer.benchmark.records import Report, Result
from keras_mixer.benchmark.timing import (
    alternate,
    speed_ratio,
    timed,
    wait,
)
from keras_mixer.checks import check_dim, check_image_shape
from keras_mixer.models import CONSTRUCTORS
from keras_mixer.training import finetune_optimizer

OURS = "keras_mixer"
_LOOP_SECONDS = 1.0  # `fit` and `predict` are timed over as many batches as take this


def run(cases, *, weights=None, rounds=20, peers=None, loop=False, layers=False):
    """Measure every case.

    Args:
        cases: Sequence of `Case`.
        weights: As in the family's constructors; `None` for random ones. The head is
            new unless it has 1000 classes.
        rounds: Timed calls of everything. Positive.
        peers: What to compare with, by name: a function of a `Case` that returns a
            function without arguments, which runs one batch and returns its results.
        loop: Whether to measure `predict` and `fit` against a bare loop.
        layers: Whether to measure each kind of layer alone, where a case is inference.

    Returns:
        A `Report`.

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
    options = {
        "weights": weights,
        "rounds": rounds,
        "peers": peers or {},
        "loop": loop,
        "layers": layers,
    }
    results = [_measure(case, ceilings[case.dtype], **options) for case in cases]
    return Report(describe_machine(), tuple(results))


def _check(case):
    if case.variant not in CONSTRUCTORS:
        raise ValueError(
            f"`variant` must be one of {', '.join(CONSTRUCTORS)}. "
            f"Received: {case.variant!r}"
        )
    check_dim("batch_size", case.batch_size)
    check_image_shape(case.sizes["input_shape"], case.sizes["patch_size"])


def _measure(case, ceiling, *, weights, rounds, peers, loop, layers):
    reset_peaks()
    start = time.perf_counter()
    model = _model(case, weights)
    wait([variable.value for variable in model.variables])
    build_seconds = time.perf_counter() - start

    images, labels = _batch(case)
    step = TrainingStep(model) if case.training else ForwardPass(model)
    on_device = [keras.ops.convert_to_tensor(array) for array in (images, labels)]
    arguments = on_device if case.training else on_device[:1]

    def ours():
        return step(*arguments)

    first = timed(ours)
    peaks = {"host_peak": host_peak(), "device_peak": device_peak()}
    calls = {OURS: ours} | {name: make(case) for name, make in peers.items()}
    timings = alternate(calls, rounds=rounds)
    timing = timings.pop(OURS)

    loop_ratio = None
    if loop:
        count = min(max(math.ceil(_LOOP_SECONDS / timing.median), 4), 200)
        compare = _fit_against_bare if case.training else _predict_against_bare
        loop_ratio = compare(model, step, _Repeated(images, labels, count), rounds)
    return Result(
        case=case,
        timing=timing,
        build_seconds=build_seconds,
        compile_seconds=max(first - timing.median, 0.0),
        ceiling=ceiling,
        loop=loop_ratio,
        peers={name: speed_ratio(timing, other) for name, other in timings.items()},
        layers=_layer_seconds(model, case, rounds) if layers else {},
        **peaks,
    )


def _model(case, weights):
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


def _batch(case):
    """Return random pixels and labels on the host."""
    rng = np.random.default_rng(0)
    shape = (case.batch_size, *case.sizes["input_shape"])
    images = rng.integers(0, 256, shape, "uint8")
    return images, rng.integers(0, case.sizes["num_classes"], case.batch_size, "int32")


class _Repeated(keras.utils.PyDataset):
    """The same batch on the host, `count` times."""

    def __init__(self, images, labels, count):
        super().__init__()
        self.batch = images, labels
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.batch

    def tensors(self):
        """Yield the batches as a loop written by hand would send them."""
        for index in range(self.count):
            yield [keras.ops.convert_to_tensor(array) for array in self[index]]


def _predict_against_bare(model, compute, batches, rounds):
    def bare():
        compute.release()  # `predict` gave the model's variables new arrays
        outputs = [compute(images) for images, _ in batches.tensors()]
        return np.concatenate([keras.ops.convert_to_numpy(y) for y in outputs])

    timings = alternate(
        {"predict": lambda: model.predict(batches, verbose=0), "bare": bare},
        rounds=rounds,
        warmup=1,
    )
    return speed_ratio(timings["predict"], timings["bare"])


def _fit_against_bare(model, step, batches, rounds):
    def fit():
        model.fit(batches, shuffle=False, verbose=0)
        return [variable.value for variable in model.trainable_variables]

    def bare():
        for images, labels in batches.tensors():
            step(images, labels)
        step.release()
        return [variable.value for variable in model.trainable_variables]

    step.release()
    timings = alternate({"fit": fit, "bare": bare}, rounds=rounds, warmup=1)
    return speed_ratio(timings["fit"], timings["bare"])


def _layer_seconds(model, case, rounds):
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
