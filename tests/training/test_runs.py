import keras
import numpy as np
import pytest
from drawn_run import drawn_mixer, drawn_source
from left_by_runs import last_step

from keras_mixer import data
from keras_mixer.models.mixer import mlp_mixer
from keras_mixer.training import runs
from keras_mixer.training.losses import SigmoidCrossentropy

pytest.importorskip("tensorflow")

RUN = {"batch_size": 8, "warmup_steps": 1, "quiet": True, "crop": "none", "seed": 3}


def finetune(model, folder, **arguments):
    source = drawn_source()
    given = {
        **RUN,
        "total_steps": 4,
        "base_learning_rate": 0.1,
        "validation": source,
    }
    return runs.finetune(model, source, output_dir=folder, **{**given, **arguments})


def copy_of(model):
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def changed(model, before):
    """Paths of the weights that are no longer what they were."""
    return {
        weight.path
        for weight in model.weights
        if not np.array_equal(
            keras.ops.convert_to_numpy(weight), before.get(weight.path)
        )
    }


def weights_of(model):
    return {w.path: keras.ops.convert_to_numpy(w).copy() for w in model.weights}


def test_training_needs_logits(tiny):
    with pytest.raises(ValueError, match="classifier_activation=None"):
        runs.check_logits(mlp_mixer(**tiny))
    runs.check_logits(mlp_mixer(**tiny, classifier_activation=None))


def test_fine_tuning_is_the_official_step_on_the_stream_of_batches(tmp_path):
    model = drawn_mixer()
    bare = copy_of(model)
    finetune(model, tmp_path, total_steps=6, save_every=3)
    bare.compile(
        runs.finetune_optimizer(total_steps=6, warmup_steps=1, base_learning_rate=0.1),
        keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    batches = data.training_batches(
        drawn_source(), image_size=16, batch_size=8, crop="none", seed=3
    )
    for batch in batches.take(6).as_numpy_iterator():
        bare.train_on_batch(*batch)
    for one, other in zip(model.get_weights(), bare.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


@pytest.mark.backend_free
def test_a_linear_probe_trains_the_head_alone(tmp_path):
    model = drawn_mixer()
    before = weights_of(model)
    finetune(model, tmp_path, train_only="head")
    assert changed(model, before) == {"head/kernel", "head/bias"}


@pytest.mark.backend_free
def test_adapters_train_beside_the_kernels(tmp_path):
    model = drawn_mixer()
    before = weights_of(model)
    finetune(model, tmp_path, lora_rank=2, resume=True)
    assert {path for path in changed(model, before) if path in before} == {
        "head/kernel",
        "head/bias",
    }
    state = weights_of(model)
    # The adapters' first values come out of the checkpoint, too.
    again = drawn_mixer()
    again.set_weights(list(before.values()))
    finetune(again, tmp_path, lora_rank=2, resume=True)
    assert not changed(again, state)


def test_remat_changes_nothing(tmp_path):
    model = drawn_mixer()
    other = copy_of(model)
    finetune(model, tmp_path / "plain")
    finetune(other, tmp_path / "remat", remat=True)
    assert all(block.remat for block in other.blocks)
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_pretraining_is_its_optimizer_and_loss(tmp_path):
    model = drawn_mixer()
    source = drawn_source()
    run = {**RUN, "total_steps": 5, "save_every": 5, "mixup": 0.4}
    history = runs.pretrain(
        model, source, output_dir=tmp_path, loss="sigmoid", label_smoothing=0.1, **run
    )
    optimizer = model.optimizer
    assert isinstance(model.loss, SigmoidCrossentropy)
    assert model.loss.label_smoothing == 0.1
    expected = runs.pretrain_optimizer(total_steps=5, warmup_steps=1)
    assert keras.optimizers.serialize(optimizer) == keras.optimizers.serialize(expected)
    # A zero head: log 2 per class at first, and it can only learn a little by now.
    assert history.history["loss"][0] == pytest.approx(5 * np.log(2), rel=0.05)


@pytest.mark.backend_free
def test_the_best_learning_rate_is_that_of_the_best_accuracy(tmp_path, monkeypatch):
    calls = []

    def measured(model, train, development, *, base_learning_rate, output_dir, **run):
        calls.append((model, base_learning_rate, output_dir.name, run))
        history = keras.callbacks.History()
        accuracy = {0.003: 0.5, 0.01: 0.9, 0.03: 0.7}[base_learning_rate]
        history.history = {"val_accuracy": [1.0, accuracy]}
        return history

    monkeypatch.setattr(runs, "finetune", measured)
    models = iter("abc")
    best, accuracies = runs.finetune_rates(
        lambda: next(models),
        None,
        None,
        base_learning_rates=(0.003, 0.01, 0.03),
        output_dir=tmp_path,
        total_steps=7,
    )
    assert best == 0.01
    assert accuracies == {0.003: 0.5, 0.01: 0.9, 0.03: 0.7}
    assert calls == [
        ("a", 0.003, "rate-0.003", {"total_steps": 7}),
        ("b", 0.01, "rate-0.01", {"total_steps": 7}),
        ("c", 0.03, "rate-0.03", {"total_steps": 7}),
    ]


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_only": "body"}, "train_only='body'"),
        ({"loss": "hinge"}, "loss='hinge'"),
        ({"total_steps": 1}, "total_steps=1"),
        ({"batch_size": 9, "accumulation_steps": 2}, "accumulation_steps=2"),
        ({"base_learning_rates": ()}, "must not be empty"),
        ({"lora_rank": 99}, "lora_rank=99"),
        ({"crop": "middle"}, "crop='middle'"),
        ({"randaugment": (2, 99)}, "randaugment="),
        ({"label_smoothing": 1.5}, "label_smoothing=1.5"),
        ({"ema_momentum": 2.0}, "ema_momentum=2.0"),
        ({"seed": -1}, "seed=-1"),
        ({"shuffle_bytes": 0}, "shuffle_bytes=0"),
        ({"log_every": 0}, "log_every=0"),
        ({"callbacks": ["early"]}, "callbacks"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_written(
    tmp_path, arguments, message
):
    folder = tmp_path / "run"
    model = drawn_mixer()
    with pytest.raises(ValueError, match=message):
        if "base_learning_rates" in arguments:
            runs.finetune_rates(None, None, None, output_dir=folder, **arguments)
        finetune(model, folder, **{"lora_rank": 2, "remat": True, **arguments})
    assert not folder.exists()
    # Nor is the model changed.
    assert all(layer.trainable for layer in model.layers)
    assert not any(block.token_mixing.dense_0.lora_enabled for block in model.blocks)
    assert not any(block.remat for block in model.blocks)


@pytest.mark.backend_free
def test_the_shuffle_buffer_is_that_of_the_run(tmp_path, monkeypatch):
    seen = []
    plain = data.training_batches

    def noted(*args, shuffle_bytes, **kwargs):
        seen.append(shuffle_bytes)
        return plain(*args, shuffle_bytes=shuffle_bytes, **kwargs)

    monkeypatch.setattr(data, "training_batches", noted)
    finetune(drawn_mixer(), tmp_path, shuffle_bytes=12345)
    assert set(seen) == {12345}
    with pytest.raises(ValueError, match="shuffle_bytes: 12345 there, 99 now"):
        finetune(drawn_mixer(), tmp_path, shuffle_bytes=99, resume=True)


@pytest.mark.backend_free
def test_model_and_data_must_have_the_same_classes(tmp_path):
    with pytest.raises(ValueError, match="num_classes=5"):
        finetune(drawn_mixer(num_classes=6), tmp_path)


class Calls(keras.callbacks.Callback):
    """Writes down what Keras tells a callback."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.seen, self.stop_after = [], stop_after

    def on_train_begin(self, logs=None):
        self.seen.append("train")

    def on_epoch_begin(self, epoch, logs=None):
        self.seen.append(("epoch", epoch))

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(batch)

    def on_test_begin(self, logs=None):
        self.seen.append("test")

    def on_test_end(self, logs=None):
        self.seen.append(sorted(logs))

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(("end", epoch, "val_loss" in logs, "loss" in logs))
        if epoch == self.stop_after:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        self.seen.append("over")


@pytest.mark.backend_free
def test_callbacks_are_called_as_in_fit_and_their_epochs_go_on(tmp_path):
    def epoch(number, batches):
        test = ["test", ["accuracy", "loss"]]
        end = ("end", number, True, True)
        return [("epoch", number), *range(batches), *test, end]

    run = {"total_steps": 7, "save_every": 3, "accumulation_steps": 2}
    first = Calls(stop_after=0)
    history = finetune(drawn_mixer(), tmp_path, callbacks=[first], **run)
    assert first.seen == ["train", *epoch(0, 6), "over"]
    assert history.history["step"] == [3]
    keras.utils.set_random_seed(0)
    second = Calls()
    history = finetune(drawn_mixer(), tmp_path, callbacks=[second], resume=True, **run)
    assert second.seen == ["train", *epoch(1, 6), *epoch(2, 2), "over"]
    assert history.history["step"] == [3, 6, 7]


@pytest.mark.backend_free
def test_a_callback_may_stop_in_the_middle_of_an_interval(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 1

    history = finetune(
        drawn_mixer(), tmp_path, callbacks=[Stop()], total_steps=8, save_every=4
    )
    assert history.history["step"] == [2]
    # There is no checkpoint of a part of an interval.
    assert last_step(tmp_path) == 0


def test_half_precision_trains(tmp_path):
    for dtype in ("bfloat16", "mixed_bfloat16", "mixed_float16"):
        model = drawn_mixer(num_blocks=1, dtype=dtype)  # each is compiled anew
        before = weights_of(model)
        history = finetune(model, tmp_path / dtype, ema_momentum=0.5, validation=None)
        assert np.isfinite(history.history["loss"]).all()
        assert "head/kernel" in changed(model, before)
