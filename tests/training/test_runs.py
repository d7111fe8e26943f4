import keras
import numpy as np
import pytest
from drawn_run import drawn_mixer, drawn_source

from keras_mixer import data
from keras_mixer.models.mixer import mlp_mixer
from keras_mixer.training import runs
from keras_mixer.training.losses import SigmoidCrossentropy

pytest.importorskip("tensorflow")

RUN = {"batch_size": 8, "warmup_steps": 1, "quiet": True, "crop": "none", "seed": 3}


def finetune(model, folder, **arguments):
    given = {**RUN, "total_steps": 4, "base_learning_rate": 0.1}
    source = drawn_source()
    return runs.finetune(
        model, source, source, output_dir=folder, **{**given, **arguments}
    )


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


def test_a_linear_probe_trains_the_head_alone(tmp_path):
    model = drawn_mixer()
    before = weights_of(model)
    finetune(model, tmp_path, train_only="head")
    assert changed(model, before) == {"head/kernel", "head/bias"}


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_only": "body"}, "train_only='body'"),
        ({"loss": "hinge"}, "loss='hinge'"),
        ({"total_steps": 1}, "total_steps=1"),
        ({"batch_size": 9, "accumulation_steps": 2}, "accumulation_steps=2"),
        ({"base_learning_rates": ()}, "must not be empty"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_written(
    tmp_path, arguments, message
):
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        if "base_learning_rates" in arguments:
            runs.finetune_rates(None, None, None, output_dir=folder, **arguments)
        finetune(drawn_mixer(), folder, **arguments)
    assert not folder.exists()


def test_model_and_data_must_have_the_same_classes(tmp_path):
    with pytest.raises(ValueError, match="num_classes=5"):
        finetune(drawn_mixer(num_classes=6), tmp_path)
