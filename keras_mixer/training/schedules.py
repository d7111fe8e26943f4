"""Learning rates over the steps of a run: linear warm-up, then a decay.

Source: paper, section 3; `vit_jax/utils.py`; `big_vision/utils.py`.
"""

from numbers import Integral
from typing import Any, Literal, TypeAlias

import keras
from keras import ops

Schedule: TypeAlias = keras.optimizers.schedules.LearningRateSchedule


def warmup_schedule(
    *,
    total_steps: int,
    base_learning_rate: float,
    warmup_steps: int,
    schedule: Literal["linear", "cosine"],
    linear_end: float = 0.0,
) -> Schedule:
    """Return a Keras schedule: 0 to the peak over the warm-up, then down.

    Args:
        total_steps: Steps until the end of the decay, warm-up included.
        base_learning_rate: Peak.
        warmup_steps: Steps from 0 to the peak, in [0, total_steps).
        schedule: `"linear"` or `"cosine"`, the form of the decay.
        linear_end: Where the linear decay ends, as a share of the peak, in [0, 1].

    Raises:
        ValueError: If the steps do not fit together or an argument is out of range.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            "`warmup_steps` must lie in [0, total_steps). Received: "
            f"warmup_steps={warmup_steps}, total_steps={total_steps}"
        )
    if not 0 <= linear_end <= 1:
        raise ValueError(
            "`linear_end` is a share of the peak and must lie in [0, 1]. "
            f"Received: linear_end={linear_end!r}"
        )
    if schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(
            0.0,
            total_steps - warmup_steps,
            warmup_target=base_learning_rate,
            warmup_steps=warmup_steps,
        )
    if schedule == "linear":
        return LinearWarmupLinearDecay(
            base_learning_rate, warmup_steps, total_steps, linear_end
        )
    raise ValueError(
        f'`schedule` must be "linear" or "cosine". Received: schedule={schedule!r}'
    )


def per_real_step(schedule: Schedule, accumulation_steps: int) -> Schedule:
    """Return the schedule for an optimizer that makes one step of several batches.

    Raises:
        ValueError: If `accumulation_steps` is not a positive integer.
    """
    if not isinstance(accumulation_steps, Integral) or accumulation_steps < 1:
        raise ValueError(
            "`accumulation_steps` must be a positive integer. "
            f"Received: accumulation_steps={accumulation_steps!r}"
        )
    if accumulation_steps == 1:
        return schedule
    return AccumulatedSchedule(schedule, accumulation_steps)


@keras.saving.register_keras_serializable("keras_mixer")
class LinearWarmupLinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a line from the peak to `linear_end` times the peak.

    `base * min(step / warmup, 1) * (end + (1 - end) * left)` with `left` falling from
    1 at the end of the warm-up to 0 at `total_steps`.

    Reference: `create_learning_rate_schedule` in `big_vision/utils.py`.
    """

    def __init__(
        self,
        base_learning_rate: float,
        warmup_steps: int,
        total_steps: int,
        linear_end: float = 0.0,
    ) -> None:
        self.base_learning_rate = base_learning_rate
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.linear_end = linear_end

    def __call__(self, step: keras.KerasTensor) -> keras.KerasTensor:
        step = ops.cast(step, "float32")
        left = (self.total_steps - step) / (self.total_steps - self.warmup_steps)
        factor = self.linear_end + (1 - self.linear_end) * ops.clip(left, 0.0, 1.0)
        if self.warmup_steps:
            factor = factor * ops.minimum(step / self.warmup_steps, 1.0)
        return self.base_learning_rate * factor

    def get_config(self) -> dict[str, Any]:
        return {
            "base_learning_rate": self.base_learning_rate,
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
            "linear_end": self.linear_end,
        }


@keras.saving.register_keras_serializable("keras_mixer")
class AccumulatedSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """`schedule(step // accumulation_steps)`: Keras asks once per micro-step."""

    def __init__(self, schedule: Schedule, accumulation_steps: int) -> None:
        self.schedule = schedule
        self.accumulation_steps = int(accumulation_steps)

    def __call__(self, step: keras.KerasTensor) -> keras.KerasTensor:
        return self.schedule(ops.floor_divide(step, self.accumulation_steps))

    def get_config(self) -> dict[str, Any]:
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "accumulation_steps": self.accumulation_steps,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "AccumulatedSchedule":
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(schedule, config["accumulation_steps"])
