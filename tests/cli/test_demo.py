import keras
import numpy as np
import pytest

from keras_mixer import visualize
from keras_mixer.cli import demo
from keras_mixer.models.family import MixerTi4

pytest.importorskip("sklearn")


@pytest.mark.backend_free
def test_digits_are_split_by_class_without_overlap():
    model = MixerTi4()
    (train, train_labels), (test, test_labels) = demo.load_digits(model)
    assert train.shape == (1440, 32, 32, 3) and test.shape == (357, 32, 32, 3)
    assert len(train) % demo.BATCH_SIZE == 0  # one shape, one program
    assert (train.min(), train.max()) == (0, 255)
    shares = np.bincount(test_labels) / (
        np.bincount(test_labels) + np.bincount(train_labels)
    )
    np.testing.assert_allclose(shares, 0.2, atol=0.005)


@pytest.mark.backend_free
def test_a_curve_has_the_means_between_its_points():
    from keras_mixer.cli.demo_curve import Curve

    curve = Curve(interval=2)
    losses = [[8.0, 6.0, 4.0, 2.0, 1.0], [3.0, 3.0, 1.0, 1.0, 5.0]]
    for epoch, values in enumerate(losses):
        curve.on_epoch_begin(epoch)
        for i in range(5):
            mean = float(np.mean(values[: i + 1]))
            curve.on_train_batch_end(i, {"loss": mean, "accuracy": mean / 10})
        curve.on_epoch_end(epoch, {"val_loss": epoch + 0.5, "val_accuracy": 0.25})
    history = curve.history
    assert history["step"] == [2, 4, 5, 7, 9, 10]
    np.testing.assert_allclose(history["loss"], [7, 3, 1, 3, 1, 5])
    np.testing.assert_allclose(history["accuracy"], [0.7, 0.3, 0.1, 0.3, 0.1, 0.5])
    nan = np.nan
    np.testing.assert_array_equal(history["val_loss"], [nan, nan, 0.5, nan, nan, 1.5])


@pytest.mark.backend_free
def test_one_epoch_of_the_demo_writes_what_it_says(tmp_path, capsys, monkeypatch):
    small = demo.load_digits(MixerTi4())
    monkeypatch.setattr(
        demo,
        "load_digits",
        lambda model: tuple((images[:64], labels[:64]) for images, labels in small),
    )
    drawn = {}
    for name in ("predictions", "training_curves"):
        real = getattr(visualize, name)

        def draw(first, *others, name=name, real=real, **options):
            drawn[name] = first
            return real(first, *others, **options)

        monkeypatch.setattr(visualize, name, draw)
    accuracies = demo.run(tmp_path, epochs=1)
    assert drawn["predictions"].shape == (12, 8, 8)  # the digits at their own size
    assert len(drawn["training_curves"]["pretrained"]["step"]) >= 2
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
