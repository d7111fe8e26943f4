import keras
import numpy as np
import pytest

from keras_mixer.cli import demo
from keras_mixer.models.family import MixerTi4

pytest.importorskip("sklearn")


def test_digits_are_split_by_class_without_overlap():
    model = MixerTi4()
    (train, train_labels), (test, test_labels) = demo.load_digits(model)
    assert train.shape == (1437, 32, 32, 3) and test.shape == (360, 32, 32, 3)
    assert (train.min(), train.max()) == (0, 255)
    shares = np.bincount(test_labels) / (
        np.bincount(test_labels) + np.bincount(train_labels)
    )
    np.testing.assert_allclose(shares, 0.2, atol=0.005)


def test_one_epoch_of_the_demo_writes_what_it_says(tmp_path, capsys, monkeypatch):
    small = demo.load_digits(MixerTi4())
    monkeypatch.setattr(
        demo,
        "load_digits",
        lambda model: tuple((images[:64], labels[:64]) for images, labels in small),
    )
    accuracies = demo.run(tmp_path, epochs=1)
    assert set(accuracies) == {"pretrained", "from scratch"}
    out = capsys.readouterr().out
    for name, accuracy in accuracies.items():
        assert f"{name:<13}{accuracy:7.2%}" in out
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {
        "model.keras",
        "predictions.png",
        "training.png",
        "token_mixing.png",
        "stem.png",
    }
    model = keras.saving.load_model(tmp_path / "model.keras")
    assert model.labels == demo.LABELS
