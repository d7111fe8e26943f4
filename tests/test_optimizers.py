import json

import keras
import numpy as np
import oracle
import pytest
from golden import golden_arrays, load_golden

from keras_mixer.convert import OFFICIAL, match_names
from keras_mixer.model import mlp_mixer, model_weights
from keras_mixer.optimizers import (
    MomentumSGD,
    finetune_optimizer,
    pretrain_optimizer,
    warmup_schedule,
)


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def test_fine_tuning_makes_the_official_steps():
    golden = load_golden("sgd_training")
    config = golden["config"]
    final = golden_arrays(golden, "params")
    names = match_names(final, OFFICIAL)
    weights = oracle.draw_official(
        int(golden["weights_seed"]), {name: v.shape for name, v in final.items()}
    )
    image_shape = config.pop("image_shape")
    model = mlp_mixer(
        **config,
        input_shape=image_shape,
        classifier_activation=None,
        include_preprocessing=False,
    )
    for variable in model.weights:
        variable.assign(weights[names[variable.path]])
    steps, batch_size = golden["labels"].shape
    images = oracle.draw_images(
        int(golden["images_seed"]), steps * batch_size, image_shape
    ).reshape(steps, batch_size, *image_shape)
    model.compile(
        finetune_optimizer(
            total_steps=steps,
            base_learning_rate=float(golden["base_learning_rate"]),
            warmup_steps=int(golden["warmup_steps"]),
            momentum=float(golden["momentum"]),
            clip_norm=float(golden["clip_norm"]),
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    losses, rates = [], []
    for batch, labels in zip(images, golden["labels"], strict=True):
        rates.append(float(numpy(model.optimizer.learning_rate)))
        losses.append(model.train_on_batch(batch, labels))
    np.testing.assert_allclose(rates, golden["learning_rates"], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(losses, golden["losses"], atol=5e-6)
    for path, value in model_weights(model).items():
        np.testing.assert_allclose(value, final[names[path]], atol=2e-6, err_msg=path)


def test_the_momentum_is_not_that_of_keras():
    """Under a changing learning rate the two forms differ; this is the official one."""
    variable = keras.Variable([1.0])
    optimizer = MomentumSGD(
        keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 0.1]), momentum=0.5
    )
    gradient = keras.ops.convert_to_tensor([1.0])
    for expected in (0.0, -0.15):  # 1 - 1 * 1; 0 - 0.1 * (1 + 0.5 * 1)
        optimizer.apply([gradient], [variable])
        np.testing.assert_allclose(numpy(variable), [expected], atol=1e-6)


def test_the_optimizer_survives_saving(tmp_path, tiny, tiny_images):
    model = mlp_mixer(**tiny)
    model.compile(
        finetune_optimizer(total_steps=10, warmup_steps=2),
        "sparse_categorical_crossentropy",
    )
    model.fit(tiny_images, np.arange(4), epochs=3, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, again):
        each.fit(tiny_images, np.arange(4), epochs=2, verbose=0, shuffle=False)
    for now, before in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(now, before, atol=1e-6)


def test_only_kernels_decay():
    weights = [
        keras.Variable([1.0], name=name) for name in ("kernel", "bias", "gamma", "beta")
    ]
    optimizer = pretrain_optimizer(
        total_steps=10, warmup_steps=0, base_learning_rate=0.1, weight_decay=0.5
    )
    optimizer.apply([keras.ops.zeros(1)] * 4, weights)
    assert [float(numpy(w)[0]) for w in weights] == pytest.approx([0.95, 1, 1, 1])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [0, 0.5, 1, 0.5 + np.sqrt(0.125), 0.5, 0.5 - np.sqrt(0.125), 0]),
    ],
)
def test_schedules(schedule, expected):
    rate = warmup_schedule(
        total_steps=6, base_learning_rate=2.0, warmup_steps=2, schedule=schedule
    )
    rates = [float(numpy(rate(step))) for step in range(7)]
    np.testing.assert_allclose(rates, 2 * np.array(expected), atol=1e-6)
    again = keras.optimizers.schedules.deserialize(
        json.loads(json.dumps(keras.optimizers.schedules.serialize(rate)))
    )
    assert float(numpy(again(3))) == rates[3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: finetune_optimizer(total_steps=500), "warmup_steps=500"),
        (
            lambda: pretrain_optimizer(total_steps=9, warmup_steps=1, schedule="step"),
            "schedule='step'",
        ),
        (lambda: MomentumSGD(momentum=1.0), "momentum=1.0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
