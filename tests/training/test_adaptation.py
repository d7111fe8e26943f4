import keras
import numpy as np
import pytest

from keras_mixer.models import rebuilt
from keras_mixer.models.mixer import mlp_mixer, save_official
from keras_mixer.training.adaptation import (
    add_lora,
    freeze_body,
    set_head_bias,
    set_remat,
)


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def values(model):
    return {v.path: numpy(v).copy() for v in model.weights}


def fit_once(model, images, **arguments):
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **arguments,
    )
    return model.fit(images, np.arange(4), epochs=2, shuffle=False, verbose=0)


@pytest.fixture
def model(tiny):
    """Logits, and a head that passes a gradient on to the body."""
    model = mlp_mixer(**tiny, classifier_activation=None)
    kernel = model.get_layer("head").kernel
    kernel.assign(np.random.default_rng(4).normal(size=kernel.shape))
    return model


def test_a_linear_probe_trains_the_head_alone(model, tiny_images):
    before = values(model)
    freeze_body(model)
    fit_once(model, tiny_images)
    changed = {
        path for path, value in values(model).items() if (value != before[path]).any()
    }
    assert changed == {"head/kernel", "head/bias"}


def test_lora_trains_adapters_and_head(model, tiny_images, tmp_path):
    before = values(model)
    outputs = model.predict(tiny_images, verbose=0)
    add_lora(model, 2)
    np.testing.assert_allclose(
        model.predict(tiny_images, verbose=0), outputs, atol=1e-5
    )
    trained = {v.path for v in model.trainable_weights}
    dense = [
        f"block_{i}/{mixing}_mixing/dense_{j}/lora_kernel_{half}"
        for i in range(2)
        for mixing in ("token", "channel")
        for j in (0, 1)
        for half in "ab"
    ]
    assert trained == {"head/kernel", "head/bias", *dense}
    fit_once(model, tiny_images)
    after = values(model)
    assert all((after[path] == before[path]).all() for path in before.keys() - trained)
    assert all((after[path] != 0).any() for path in trained)

    outputs = model.predict(tiny_images, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_allclose(
        again.predict(tiny_images, verbose=0), outputs, atol=1e-5
    )
    assert {v.path for v in again.trainable_weights} == trained
    plain = rebuilt(again)
    np.testing.assert_allclose(
        plain.predict(tiny_images, verbose=0), outputs, atol=1e-5
    )
    assert not any("lora" in v.path for v in plain.weights)
    save_official(model, tmp_path / "model.npz")
    official = mlp_mixer(
        **{k: v for k, v in model.config.items()}, weights=tmp_path / "model.npz"
    )
    np.testing.assert_allclose(
        official.predict(tiny_images, verbose=0), outputs, atol=1e-5
    )


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_remat_changes_no_number(tiny, tiny_images, tmp_path, run_eagerly):
    """Losses, weights and the states of the seeds, with both kinds of dropout."""
    runs = []
    for enabled in (False, True):
        keras.utils.set_random_seed(0)
        model = mlp_mixer(
            **tiny,
            classifier_activation=None,
            dropout_rate=0.2,
            stochastic_depth_rate=0.3,
        )
        model.get_layer("head").kernel.assign(np.eye(16, 5))
        set_remat(model, enabled)
        history = fit_once(model, tiny_images, run_eagerly=run_eagerly)
        runs.append([*history.history["loss"], *map(numpy, model.variables)])
    assert runs[0][0] != runs[0][1]
    for kept, again in zip(*runs, strict=True):
        np.testing.assert_allclose(again, kept, atol=1e-6)
    model.save(tmp_path / "model.keras")
    saved = keras.saving.load_model(tmp_path / "model.keras")
    assert all(block.remat for block in saved.blocks)


def test_a_block_saved_before_there_was_remat(tiny):
    block = mlp_mixer(**tiny).blocks[0]
    config = block.get_config()
    del config["remat"]
    assert not type(block).from_config(config).remat


def test_the_bias_of_the_head(model):
    set_head_bias(model, -6.9)
    np.testing.assert_allclose(numpy(model.get_layer("head").bias), -6.9, rtol=1e-6)


def test_wrong_arguments_are_named(model, tiny):
    headless = mlp_mixer(**{**tiny, "num_classes": 0})
    with pytest.raises(ValueError, match="ends in 'pre_logits'"):
        freeze_body(headless)
    with pytest.raises(ValueError, match="value=nan"):
        set_head_bias(model, float("nan"))
    with pytest.raises(ValueError, match=r"in \[1, 12\].*rank=13"):
        add_lora(model, 13)
    add_lora(model, 1)
    with pytest.raises(ValueError, match="adapters already"):
        add_lora(model, 1)
