"""The training step compiles for TPU slices: needs the extra `tpu-compile`."""

import importlib.util

import keras
import pytest

from keras_mixer.benchmark import tpu_compile
from keras_mixer.models.mixer import mlp_mixer
from keras_mixer.training.optimizers import finetune_optimizer

needs_libtpu = [
    pytest.mark.tpu_compile,
    pytest.mark.skipif(
        keras.config.backend() != "jax" or not importlib.util.find_spec("libtpu"),
        reason="compiles for TPUs: JAX and the extra tpu-compile",
    ),
]


@pytest.fixture
def model():
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
        finetune_optimizer(total_steps=10, warmup_steps=1),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


class TestSlice:
    pytestmark = needs_libtpu

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

        def small_memory(model, devices, batch_size, *, model_devices):
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


@pytest.mark.skipif(keras.config.backend() != "jax", reason="JAX's compiler")
def test_a_batch_that_does_not_divide_is_an_error(model):
    with pytest.raises(ValueError, match="multiple of the 4 copies.*batch_size=30"):
        tpu_compile.compile_step(model, [None] * 8, 30, model_devices=2)


@pytest.mark.skipif(
    bool(importlib.util.find_spec("libtpu")), reason="libtpu is installed"
)
def test_no_libtpu_is_a_clear_error():
    with pytest.raises(ImportError, match="tpu-compile"):
        tpu_compile.topology("v5e:2x2")


@pytest.mark.skipif(keras.config.backend() == "jax", reason="what JAX can do")
def test_another_backend_is_a_clear_error():
    with pytest.raises(ValueError, match="KERAS_BACKEND=jax"):
        tpu_compile.compile_for_slice(tpu_compile.SliceStep())


@pytest.mark.skipif(keras.config.backend() != "jax", reason="JAX's compiler")
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
    first, *rows = tpu_compile.table(step, found).splitlines()
    assert first == (
        "H/14 at 224, mixed_bfloat16, v5e:2x2, remat "
        "(4 devices, 2 per model); per device:"
    )
    assert [row.split()[-1] for row in rows] == ["64", "3,072", "1", "2", "1.500", "7"]
    assert tpu_compile.table(step, None).endswith(
        "does not fit into the memory of a device"
    )
