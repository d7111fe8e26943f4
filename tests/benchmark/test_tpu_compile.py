"""The steps compile for TPU slices: most tests need the extra `tpu-compile`."""

import importlib.util
import os
from concurrent.futures import Future
from dataclasses import replace

import keras
import pytest

from keras_mixer.benchmark import replica_program, tpu_compile
from keras_mixer.models.mixer import mlp_mixer
from keras_mixer.training.optimizers import finetune_optimizer

BACKEND = keras.config.backend()


def needs_libtpu(backend):
    """Marks of tests that compile a step of the backend for TPUs."""
    absent = BACKEND != backend or not importlib.util.find_spec("libtpu")
    reason = f"compiles for TPUs: {backend} and the extra tpu-compile"
    return [pytest.mark.tpu_compile, pytest.mark.skipif(absent, reason=reason)]


@pytest.fixture
def model():
    return compiled_model()


def compiled_model(**optimizer):
    model = mlp_mixer(
        patch_size=16,
        hidden_dim=256,
        num_blocks=2,
        tokens_mlp_dim=128,
        channels_mlp_dim=1024,
        input_shape=(64, 64, 3),
        num_classes=10,
        classifier_activation=None,
        dtype="mixed_bfloat16",
    )
    model.compile(
        finetune_optimizer(total_steps=10, warmup_steps=1, **optimizer),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


class TestSlice:
    pytestmark = needs_libtpu("jax")

    @pytest.mark.parametrize(
        ("topology", "model_devices", "devices"),
        [("v5e:2x2", 1, 4), ("v5e:2x2", 2, 4), ("v6e:16x16", 4, 256)],
    )
    def test_the_step_compiles(self, model, topology, model_devices, devices):
        found = tpu_compile.topology(topology)
        assert len(found) == devices
        step = tpu_compile.compile_step(
            model, found, 2 * devices, model_devices=model_devices
        )
        weights = 4 * model.count_params()
        assert step.batch_size == 2 * devices
        assert step.collectives > 0
        # Weights and traces; cut in two or four, most of them lie elsewhere.
        if model_devices == 1:
            assert 2 * weights < step.state < 2.5 * weights
        else:
            assert 2 * weights / model_devices < step.state < 2 * weights

    def test_the_largest_batch_fits_and_its_double_does_not(self, model, monkeypatch):
        devices = tpu_compile.topology("v5e:2x2")
        full = tpu_compile.compile_step

        def small_memory(model, devices, batch_size, **how):
            return None if batch_size > 24 else full(model, devices, batch_size)

        monkeypatch.setattr(tpu_compile, "compile_step", small_memory)
        assert tpu_compile.largest_batch(model, devices, first=2).batch_size == 16
        assert tpu_compile.largest_batch(model, devices, first=8).batch_size == 16

    def test_a_batch_that_does_not_fit_is_none(self, model):
        devices = tpu_compile.topology("v5e:2x2")
        assert tpu_compile.compile_step(model, devices, 2**20) is None

    def test_an_unknown_slice_is_an_error(self):
        with pytest.raises(ValueError, match="topology='v9:2x2'"):
            tpu_compile.topology("v9:2x2")

    def test_a_model_of_the_family_gives_a_table(self):
        step = tpu_compile.SliceStep("Ti/4", image_size=32, num_classes=10)
        found = tpu_compile.compile_for_slice(step, 64)
        assert (found.batch_size, found.num_devices) == (64, 4)
        assert found.flops > 0

    def test_evaluation_has_no_optimizer(self, model):
        devices = tpu_compile.topology("v5e:2x2")
        step = tpu_compile.compile_step(model, devices, 8, training=False)
        weights = 4 * model.count_params()
        assert weights < step.state < 1.5 * weights


class TestTensorFlow:
    """Keras's step of one replica, as `TPUStrategy` lets every core run it."""

    pytestmark = needs_libtpu("tensorflow")

    @pytest.mark.parametrize("training", [True, False])
    def test_the_step_compiles(self, training):
        devices = tpu_compile.topology("v6e:2x2")
        with replica_program.replicas(4).scope():
            model = compiled_model(ema_momentum=0.99)
        step = tpu_compile.compile_step(model, devices, 8, training=training)
        weights = 4 * model.count_params()
        assert (step.batch_size, step.num_devices) == (8, 4)
        # Weights, traces and averages; the gradients are the devices' only exchange.
        if training:
            assert 3 * weights < step.state < 3.5 * weights
            assert step.collectives > 0
        else:
            assert weights < step.state < 1.5 * weights
            assert step.collectives == 0

    @pytest.mark.parametrize("remat", [False, True])
    def test_it_takes_what_that_of_jax_takes(self, remat):
        step = tpu_compile.SliceStep("Ti/4", image_size=32, num_classes=10, remat=remat)
        found = tpu_compile.compile_in_backends(step, 256, ("tensorflow", "jax"))
        ours, jax = found["tensorflow"], found["jax"]
        assert ours.flops == pytest.approx(jax.flops, rel=0.1)
        assert ours.state == pytest.approx(jax.state, rel=0.05)
        assert ours.temporary == pytest.approx(jax.temporary, rel=0.3)

    def test_a_batch_that_does_not_fit_is_none(self):
        devices = tpu_compile.topology("v5e:2x2")
        with replica_program.replicas(4).scope():
            model = compiled_model()
        assert tpu_compile.compile_step(model, devices, 2**20) is None

    def test_an_operation_that_a_tpu_refuses_is_an_error(self):
        import tensorflow as tf

        class Spectrum(keras.layers.Layer):
            def call(self, x):
                spectrum = tf.signal.fft(tf.cast(x, tf.complex128))
                return tf.cast(tf.math.real(spectrum), x.dtype)

            def compute_output_shape(self, input_shape):
                return input_shape

        devices = tpu_compile.topology("v5e:2x2")
        with replica_program.replicas(4).scope():
            model = keras.Sequential(
                [keras.Input((4,)), Spectrum(), keras.layers.Dense(3)]
            )
            model.compile("sgd", keras.losses.CategoricalCrossentropy())
        with pytest.raises(ValueError, match="no TPU can run.*compiler says.*FFT"):
            tpu_compile.compile_step(model, devices, 8)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's replicas")
def test_what_tensorflow_cannot_share_is_an_error(model):
    with pytest.raises(ValueError, match=r"scope of.*replicas\(4\).*of 1 replicas"):
        tpu_compile.compile_step(model, [None] * 4, 8)
    with pytest.raises(ValueError, match="`model_devices` must be 1 on TensorFlow"):
        tpu_compile.compile_for_slice(tpu_compile.SliceStep(model_devices=2))


def test_every_backend_has_a_process_of_its_own(monkeypatch):
    called = []

    def compile_for_slice(step, batch_size):
        called.append((step, batch_size))
        return os.environ.get("KERAS_BACKEND")

    class Pool:
        def __init__(self, *arguments, **named):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def submit(self, function, *arguments):
            future = Future()
            future.set_result(function(*arguments))
            return future

    monkeypatch.setattr(tpu_compile, "compile_for_slice", compile_for_slice)
    monkeypatch.setattr(tpu_compile, "ProcessPoolExecutor", Pool)
    monkeypatch.setenv("KERAS_BACKEND", BACKEND)
    step = tpu_compile.SliceStep()
    found = tpu_compile.compile_in_backends(step, 8, ("tensorflow", "jax"))
    assert found == {"tensorflow": "tensorflow", "jax": "jax"}
    assert called == [(step, 8)] * 2
    assert os.environ["KERAS_BACKEND"] == BACKEND


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's compiler")
def test_a_batch_that_does_not_divide_is_an_error(model):
    with pytest.raises(ValueError, match="multiple of the 4 copies.*batch_size=30"):
        tpu_compile.compile_step(model, [None] * 8, 30, model_devices=2)


@pytest.mark.skipif(
    bool(importlib.util.find_spec("libtpu")), reason="libtpu is installed"
)
def test_no_libtpu_is_a_clear_error():
    with pytest.raises(ImportError, match="tpu-compile"):
        tpu_compile.topology("v5e:2x2")


@pytest.mark.skipif(BACKEND != "torch", reason="what others can do")
def test_another_backend_is_a_clear_error():
    with pytest.raises(ValueError, match="KERAS_BACKEND=jax"):
        tpu_compile.compile_for_slice(tpu_compile.SliceStep())


@pytest.mark.skipif(BACKEND == "torch", reason="what others can do")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "XL/4"}, "`variant` must be one of Ti/4, .*'XL/4'"),
        ({"optimizer": "adam"}, "`optimizer` must be one of finetune, pretrain.*adam"),
    ],
)
def test_words_are_checked_before_anything_is_built(changes, message):
    with pytest.raises(ValueError, match=message):
        tpu_compile.compile_for_slice(tpu_compile.SliceStep(**changes))


def test_the_table_names_the_step_and_every_number():
    step = tpu_compile.SliceStep("H/14", "v5e:2x2", 2, remat=True)
    found = tpu_compile.Compiled(64, 4, 3 * 2**30, 2**20, 2**21, 1.5e12, 7)
    both = {"jax": found, "tensorflow": replace(found, temporary=5 * 2**20)}
    first, titles, *rows = tpu_compile.table(step, both).splitlines()
    assert first == (
        "H/14 at 224, mixed_bfloat16, v5e:2x2, remat "
        "(4 devices, 2 per model); per device:"
    )
    assert titles.split() == ["jax", "tensorflow"]
    assert [row.split()[-2:] for row in rows] == [
        *(["64", "64"], ["3,072", "3,072"], ["1", "5"], ["2", "2"]),
        *(["1.500", "1.500"], ["7", "7"]),
    ]
    none = tpu_compile.table(replace(step, training=False), {"jax": None})
    assert "v5e:2x2, remat, evaluation (2 per model)" in none
    assert "does not fit" in none
