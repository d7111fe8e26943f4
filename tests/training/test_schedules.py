import json

import keras
import numpy as np
import pytest

from keras_mixer.training.schedules import per_real_step, warmup_schedule


def rates(schedule, steps):
    return [float(keras.ops.convert_to_numpy(schedule(step))) for step in steps]


def again(schedule):
    """The schedule after a trip through JSON."""
    config = keras.optimizers.schedules.serialize(schedule)
    return keras.optimizers.schedules.deserialize(json.loads(json.dumps(config)))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [0, 0.5, 1, 0.5 + np.sqrt(0.125), 0.5, 0.5 - np.sqrt(0.125), 0]),
    ],
)
def test_up_and_down(schedule, expected):
    rate = warmup_schedule(
        total_steps=6, base_learning_rate=2.0, warmup_steps=2, schedule=schedule
    )
    found = rates(rate, range(7))
    np.testing.assert_allclose(found, 2 * np.array(expected), atol=1e-6)
    assert rates(again(rate), range(7)) == found


@pytest.mark.parametrize(
    ("total_steps", "warmup_steps", "linear_end"),
    [(7, 0, 0.0), (13, 5, 0.3), (101, 10, 1e-5), (9, 8, 0.0)],
)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_as_the_official_formula(schedule, total_steps, warmup_steps, linear_end):
    """`create_learning_rate_schedule` of both official repositories, in NumPy."""
    step = np.arange(total_steps + 3, dtype="float64")
    progress = np.clip((step - warmup_steps) / (total_steps - warmup_steps), 0, 1)
    if schedule == "linear":
        expected = linear_end + (1 - linear_end) * (1 - progress)
    else:
        expected = 0.5 * (1 + np.cos(np.pi * progress))
    if warmup_steps:
        expected = expected * np.minimum(1, step / warmup_steps)
    found = rates(
        warmup_schedule(
            total_steps=total_steps,
            base_learning_rate=0.06,
            warmup_steps=warmup_steps,
            schedule=schedule,
            linear_end=linear_end,
        ),
        range(total_steps + 3),
    )
    np.testing.assert_allclose(found, 0.06 * expected, rtol=1e-5, atol=1e-8)


def test_the_rate_of_a_real_step_holds_for_all_its_micro_steps():
    schedule = warmup_schedule(
        total_steps=4, base_learning_rate=1.0, warmup_steps=1, schedule="linear"
    )
    accumulated = again(per_real_step(schedule, 3))
    assert rates(accumulated, range(12)) == list(
        np.repeat(rates(schedule, range(4)), 3)
    )
    assert per_real_step(schedule, 1) is schedule


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup_steps": 9}, "warmup_steps=9, total_steps=9"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"schedule": "step"}, "schedule='step'"),
        ({"linear_end": 2.0}, "linear_end=2.0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    valid = {"total_steps": 9, "warmup_steps": 1, "schedule": "linear"}
    with pytest.raises(ValueError, match=message):
        warmup_schedule(base_learning_rate=1.0, **valid | arguments)
