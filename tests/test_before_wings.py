"""Files that were written before the package had wings load unchanged."""

from pathlib import Path

import keras
import numpy as np
import pytest

import keras_mixer
from keras_mixer import data, training

DATA = Path(__file__).parent / "data" / "before_wings"


@pytest.fixture(scope="module")
def outputs():
    with np.load(DATA / "outputs.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", ["plain", "int8", "finetuned", "pretrained"])
def test_models_that_were_saved_before(name, outputs):
    model = keras.saving.load_model(DATA / f"{name}.keras")
    scores = model(outputs["images"][:4].astype("float32"))
    scores = keras.ops.convert_to_numpy(scores)
    # int8 rounds activations, and a backend's last bits can move one over an edge.
    tolerance = 2e-3 if name == "int8" else 5e-6
    np.testing.assert_allclose(scores, outputs[name], atol=tolerance)
    assert np.ptp(outputs[name]) > 1e-3
    if name in ("plain", "int8"):
        assert model.labels == tuple("abcde")


@pytest.mark.parametrize("name, steps", [("finetuned", 4), ("pretrained", 2)])
def test_their_optimizers_go_on(name, steps):
    model = keras.saving.load_model(DATA / f"{name}.keras")
    assert int(model.optimizer.iterations) == steps
    assert any(np.any(keras.ops.convert_to_numpy(v)) for v in model.optimizer.variables)


def test_a_run_from_before_goes_on(outputs, tmp_path):
    pytest.importorskip("tensorflow")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step-000000002.npz").write_bytes(
        (DATA / "step-000000002.npz").read_bytes()
    )
    keras.utils.set_random_seed(7)  # the checkpoint decides, not the seed
    model = keras_mixer.mlp_mixer(
        patch_size=8,
        hidden_dim=16,
        num_blocks=3,
        tokens_mlp_dim=12,
        channels_mlp_dim=20,
        input_shape=(32, 24, 3),
        num_classes=5,
        classifier_activation=None,
    )
    training.finetune(
        model,
        data.from_arrays(outputs["images"], np.arange(16) % 5),
        output_dir=tmp_path,
        total_steps=4,
        warmup_steps=1,
        batch_size=4,
        save_every=2,
        resume=True,
        quiet=True,
    )
    scores = model(outputs["images"][:4].astype("float32"))
    scores = keras.ops.convert_to_numpy(scores)
    np.testing.assert_allclose(scores, outputs["run"], atol=5e-5)
    assert np.ptp(outputs["run"]) > 0.01
