"""Speed and memory of models on this machine; training steps compiled for TPU slices.

How good a model is does not belong here: see `keras_mixer.evaluation`.
"""

from keras_mixer.benchmark import tpu_compile
from keras_mixer.benchmark.compiled_steps import (
    ForwardPass,
    TrainingStep,
)
from keras_mixer.benchmark.first_prediction import (
    first_prediction,
)
from keras_mixer.benchmark.flops import (
    growth_exponent,
    matrix_flops,
    matrix_product_ceiling,
)
from keras_mixer.benchmark.input_pipeline import (
    input_speed,
)
from keras_mixer.benchmark.machine import (
    describe_machine,
)
from keras_mixer.benchmark.measure import (
    run,
)
from keras_mixer.benchmark.records import (
    Case,
    FirstPrediction,
    Report,
    Result,
    growth,
)
from keras_mixer.benchmark.report import (
    figure,
    tables,
)
from keras_mixer.benchmark.timing import (
    alternate,
    speed_ratio,
    timed,
    wait,
)

__all__ = [
    "Case",
    "FirstPrediction",
    "ForwardPass",
    "Report",
    "Result",
    "TrainingStep",
    "alternate",
    "describe_machine",
    "figure",
    "first_prediction",
    "growth",
    "growth_exponent",
    "input_speed",
    "matrix_flops",
    "matrix_product_ceiling",
    "run",
    "speed_ratio",
    "tables",
    "timed",
    "tpu_compile",
    "wait",
]
