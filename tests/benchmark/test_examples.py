"""The models beside which ours is measured compute what they claim to."""

import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from golden import golden_arrays, golden_model, load_golden

from keras_mixer.benchmark.records import Case
from keras_mixer.processor import multiplies

EXAMPLES = Path(__file__).parents[2] / "examples" / "benchmark"


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.mark.parametrize("name", ["tiny_square", "tiny_rectangular"])
def test_flax_is_the_official_model(name):
    pytest.importorskip("flax")
    from flax.traverse_util import unflatten_dict
    from flax_mixer import MlpMixer

    golden = load_golden(name)
    config = dict(golden["config"])
    del config["image_shape"]
    params = unflatten_dict(golden_arrays(golden, "params"), sep="/")
    logits = MlpMixer(**config).apply({"params": params}, golden["images"])
    np.testing.assert_allclose(logits, golden["logits"], atol=2e-6)


def test_the_naive_model_is_a_mixer(tmp_path):
    from naive_mixer import naive_mixer

    golden = load_golden("tiny_rectangular")
    ours = golden_model(golden, tmp_path, include_preprocessing=True)
    sizes = {k: ours.config[k] for k in golden["config"] if k != "image_shape"}
    naive = naive_mixer(input_shape=ours.input_shape[1:], **sizes)
    naive.set_weights(ours.get_weights())
    pixels = (golden["images"] + 1) * 127.5
    outputs = naive.predict(pixels, verbose=0)
    # Keras's own epsilon and exact GELU: near, not equal.
    np.testing.assert_allclose(outputs, golden["logits"], atol=0.1)
    assert abs(outputs - golden["logits"]).max() > 1e-5


BACKEND = keras.config.backend()
CONTENDERS = [f"ours-{BACKEND}", f"naive-{BACKEND}"]
CONTENDERS += {"jax": ["flax"], "torch": ["timm"]}.get(BACKEND, [])


@pytest.mark.parametrize(
    "training", [False, pytest.param(True, marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize("name", CONTENDERS)
def test_a_contender_runs(name, training):
    if name in ("flax", "timm"):
        pytest.importorskip(name)
    from contenders import contender

    case = Case("Ti/4", batch_size=2, image_size=8, training=training)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), "uint8")
    call = contender(name, case, images, np.array([1, 2]))
    first, second = call(), call()
    if not training:
        assert tuple(second.shape) == (2, 1000)
        assert keras.backend.standardize_dtype(second.dtype) == "float32"
    assert first is not second


@pytest.mark.parametrize("name", ["ours-onnx-int8", "ours-openvino"])
def test_an_exported_contender_runs(name):
    pytest.importorskip(name.split("-")[1].replace("onnx", "onnxruntime"))
    from contenders import contender

    case = Case("Ti/4", batch_size=2, image_size=8)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), "uint8")
    keras.utils.set_random_seed(0)
    logits = contender(name, case, images, np.array([1, 2]))()
    assert logits.shape == (2, 1000)
    assert not np.allclose(logits[0], logits[1])
    half = replace(case, dtype="mixed_bfloat16")
    if name == "ours-openvino" and multiplies("bfloat16"):
        keras.utils.set_random_seed(0)
        found = contender(name, half, images, np.array([1, 2]))()
        np.testing.assert_allclose(found, logits, atol=0.05)
        assert not np.array_equal(found, logits)
    elif name != "ours-openvino":
        with pytest.raises(ValueError, match="float32 model"):
            contender(name, half, images, np.array([1, 2]))
    with pytest.raises(ValueError, match="inference"):
        contender(name, replace(case, training=True), images, np.array([1, 2]))


@pytest.mark.nightly
@pytest.mark.backend_free
def test_the_processes_take_turns(monkeypatch, capsys):
    import compare

    name = f"ours-{BACKEND}"
    arguments = (
        f"--variant Ti/4 --batch-size 1 --image-size 8 --rounds 2 --contenders {name}"
    )
    monkeypatch.setattr(sys, "argv", [compare.__file__, *arguments.split()])
    compare.main()
    assert capsys.readouterr().out.startswith(name)


def test_account_counts_kernels_and_their_bytes():
    from kernels import account

    module = """HloModule jit_f

%fused (p: f32[9]) -> f32[9] {
  ROOT %tanh.1 = f32[9]{0} tanh(%p)
}

ENTRY %main.1 (x.1: bf16[4,8], w.1: f32[8]) -> bf16[4,16] {
  %x.1 = bf16[4,8]{1,0} parameter(0), metadata={op_name="x (%not, %these)"}
  %w.1 = f32[8]{0} parameter(1)
  %a.1 = (bf16[4,16]{1,0}, s8[999]{0}) custom-call(%x.1, %w.1), custom_call_target="m"
  %b.1 = bf16[4,16]{1,0} get-tuple-element(%a.1), index=0
  ROOT %c.1 = bf16[4,16]{1,0} fusion(%b.1), kind=kLoop, calls=%fused
}
"""
    assert account(module) == (2, (128 + 64 + 32) + (128 + 128))
