import keras
import numpy as np
import pytest
from drawn_run import drawn_mixer, drawn_source, run
from left_by_runs import assert_same
from official_steps import numpy, official_adamw, official_sgd

from keras_mixer import training
from keras_mixer.training import Sharpness, set_sam
from keras_mixer.training.run_checkpoints import state_of
from keras_mixer.training.sharpness_step import sharpness_of
from keras_mixer.training.update_rules import KernelAdamW, MomentumSGD

CLASSES = 3
RATE = 0.1


def examples(steps, batch_size=8, seed=5):
    """One `(images, one-hot labels)` per step, of five features."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        labels = np.eye(CLASSES)[rng.integers(0, CLASSES, batch_size)]
        yield rng.normal(size=(batch_size, 5)), labels


def first_weights():
    rng = np.random.default_rng(4)
    return {"kernel": rng.normal(size=(5, CLASSES)), "bias": rng.normal(size=CLASSES)}


def softmax_loss(weights, x, y):
    scores = x @ weights["kernel"] + weights["bias"]
    scores -= scores.max(-1, keepdims=True)
    log_p = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    error = (np.exp(log_p) - y) / len(x)
    gradient = {"kernel": x.T @ error, "bias": error.sum(0)}
    return -(y * log_p).sum(-1).mean(), gradient


def dot(one, other):
    return sum((one[n] * other[n]).sum() for n in one)


def oracle_gradient(weights, x, y, rho, alpha=0.0, loss=softmax_loss, fixed=()):
    """The papers' equations in float64; `fixed` weights are not trained."""

    def gradient(weights):
        found = loss(weights, x, y)[1]
        return {n: g for n, g in found.items() if n not in fixed}

    g = gradient(weights)
    length = np.sqrt(dot(g, g))
    moved = {n: weights[n] + rho * g[n] / length for n in g}
    g_p = gradient({**weights, **moved})
    g_orth = {n: g[n] - dot(g, g_p) / dot(g_p, g_p) * g_p[n] for n in g}
    return {n: g_p[n] - alpha * g_orth[n] for n in g}


def linear_model(optimizer, loss=None, dtype=None, **compiled):
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(CLASSES, name="head", dtype=dtype)]
    )
    model.set_weights(list(first_weights().values()))
    model.compile(
        optimizer,
        loss or keras.losses.CategoricalCrossentropy(from_logits=True),
        **compiled,
    )
    return model


def trained(model, batches):
    losses = []
    for batch in batches:
        model.reset_metrics()  # or the loss is the mean so far, on some backends
        losses.append(model.train_on_batch(*batch))
    found = {w.name: numpy(w) for w in model.weights}
    return found, losses


def oracle_sgd(steps, rhos, alpha=0.0, rates=None, clip_norm=None, **given):
    """The weights after each step of SGD with momentum, and the losses before it."""
    weights = first_weights()
    batches = list(examples(steps, **given))
    gradients, losses = [], []
    for step, (x, y) in enumerate(batches):
        losses.append(softmax_loss(weights, x, y)[0])
        gradients.append(oracle_gradient(weights, x, y, rhos[step], alpha))
        weights = official_sgd(
            first_weights(),
            gradients,
            (rates or [RATE] * steps)[: step + 1],
            0.9,
            clip_norm,
        )[-1]
    return weights, losses


@pytest.mark.parametrize(
    ("rho", "alpha", "clip_norm"),
    [(0.0, 0.0, None), (0.5, 0.0, None), (0.5, 0.4, None), (2.0, 1.0, 0.2)],
)
def test_steps_are_those_of_the_papers(rho, alpha, clip_norm):
    model = linear_model(MomentumSGD(RATE, global_clipnorm=clip_norm))
    set_sam(model, Sharpness(rho=rho, gsam_alpha=alpha))
    found, losses = trained(model, examples(6))
    expected, expected_losses = oracle_sgd(6, [rho] * 6, alpha, clip_norm=clip_norm)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-6, err_msg=name)
    # Those at the weights themselves, not at the perturbed ones.
    np.testing.assert_allclose(losses, expected_losses, atol=2e-6)


def test_they_are_far_from_plain_steps():
    plain, _ = oracle_sgd(6, [0.0] * 6)
    sam, _ = oracle_sgd(6, [0.5] * 6)
    gsam, _ = oracle_sgd(6, [0.5] * 6, 0.4)
    assert np.abs(plain["kernel"] - sam["kernel"]).max() > 1e-2
    assert np.abs(gsam["kernel"] - sam["kernel"]).max() > 1e-2


def test_adamw_takes_the_same_gradients():
    model = linear_model(KernelAdamW(0.01, kernel_decay=0.1))
    set_sam(model, Sharpness(rho=0.5, gsam_alpha=0.4))
    found, _ = trained(model, examples(5))
    gradients, weights = [], first_weights()
    for x, y in examples(5):
        gradients.append(oracle_gradient(weights, x, y, 0.5, 0.4))
        weights = official_adamw(
            first_weights(), gradients, [0.01] * len(gradients), 0.1, None
        )
    for name, value in weights.items():
        np.testing.assert_allclose(found[name], value, atol=2e-6, err_msg=name)


def test_rho_follows_the_learning_rate_but_not_below_its_lowest():
    steps, peak = 9, 0.2
    optimizer = training.pretrain_optimizer(
        total_steps=steps, base_learning_rate=peak, warmup_steps=3, linear_end=0.1
    )
    schedule = optimizer._learning_rate
    rates = [float(numpy(schedule(step))) for step in range(steps)]
    assert rates[0] == 0 and max(rates) == pytest.approx(peak)
    model = linear_model(MomentumSGD(schedule))
    set_sam(
        model,
        Sharpness(rho=(0.1, 0.6), gsam_alpha=0.6, learning_rates=(0.1 * peak, peak)),
    )
    found, _ = trained(model, examples(steps))
    rhos = [0.1 + 0.5 * (max(r, 0.1 * peak) - 0.1 * peak) / (0.9 * peak) for r in rates]
    assert rhos[0] == pytest.approx(0.1) and max(rhos) == pytest.approx(0.6)
    expected, _ = oracle_sgd(steps, rhos, 0.6, rates)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-6, err_msg=name)


def test_steps_are_those_of_optax():
    optax = pytest.importorskip("optax")
    if keras.config.backend() != "jax":
        pytest.skip("optax computes with JAX")
    import jax
    from optax import contrib

    ascent = optax.chain(contrib.normalize(), optax.sgd(0.5))
    optimizer = contrib.sam(optax.sgd(RATE, momentum=0.9), ascent, opaque_mode=True)
    weights = {n: np.float32(w) for n, w in first_weights().items()}
    state = optimizer.init(weights)
    for batch in examples(6):
        x, y = (np.float32(part) for part in batch)

        def loss(weights, _=None, x=x, y=y):
            scores = x @ weights["kernel"] + weights["bias"]
            return optax.softmax_cross_entropy(scores, y).mean()

        gradient = jax.grad(loss)
        updates, state = optimizer.update(
            gradient(weights), state, weights, grad_fn=gradient
        )
        weights = optax.apply_updates(weights, updates)
    model = linear_model(MomentumSGD(RATE))
    set_sam(model, Sharpness(rho=0.5))
    found, _ = trained(model, examples(6))
    for name, value in weights.items():
        np.testing.assert_allclose(found[name], value, atol=2e-6, err_msg=name)


def test_each_accumulated_batch_has_its_own_perturbation():
    model = linear_model(MomentumSGD(RATE, gradient_accumulation_steps=2))
    set_sam(model, Sharpness(rho=0.5, gsam_alpha=0.4))
    found, _ = trained(model, examples(6, batch_size=4))
    batches = list(examples(6, batch_size=4))
    gradients, weights = [], first_weights()
    for pair in zip(batches[::2], batches[1::2], strict=True):
        each = [oracle_gradient(weights, x, y, 0.5, 0.4) for x, y in pair]
        gradients.append({n: (each[0][n] + each[1][n]) / 2 for n in weights})
        weights = official_sgd(
            first_weights(), gradients, [RATE] * len(gradients), 0.9, None
        )[-1]
    for name, value in weights.items():
        np.testing.assert_allclose(found[name], value, atol=2e-6, err_msg=name)


def test_what_is_frozen_has_no_part_in_the_norm():
    model = linear_model(MomentumSGD(RATE, momentum=0.0))
    model.layers[-1].bias.trainable = False
    model.compile(MomentumSGD(RATE, momentum=0.0), model.loss)
    set_sam(model, Sharpness(rho=0.5))
    found, _ = trained(model, examples(3))
    weights = first_weights()
    for x, y in examples(3):
        step = oracle_gradient(weights, x, y, 0.5, fixed={"bias"})
        weights = {**weights, "kernel": weights["kernel"] - RATE * step["kernel"]}
    for name, value in weights.items():
        np.testing.assert_allclose(found[name], value, atol=2e-6, err_msg=name)


class Penalized(keras.layers.Layer):
    """Adds the mean square of what comes to the loss."""

    def call(self, x):
        self.add_loss(keras.ops.mean(keras.ops.square(x)))
        return x


def penalized_loss(weights, x, y):
    loss, gradient = softmax_loss(weights, x, y)
    scores = x @ weights["kernel"] + weights["bias"]
    loss += (scores**2).mean() + 0.01 * (weights["kernel"] ** 2).sum()
    error = 2 * scores / scores.size
    kernel = gradient["kernel"] + x.T @ error + 0.02 * weights["kernel"]
    return loss, {"kernel": kernel, "bias": gradient["bias"] + error.sum(0)}


def test_the_losses_of_layers_are_perturbed_too():
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(CLASSES, kernel_regularizer=keras.regularizers.L2(0.01)),
            Penalized(),
        ]
    )
    model.set_weights(list(first_weights().values()))
    model.compile(
        MomentumSGD(RATE, momentum=0.0),
        keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    set_sam(model, Sharpness(rho=0.5))
    found, _ = trained(model, examples(3))
    weights = first_weights()
    for x, y in examples(3):
        step = oracle_gradient(weights, x, y, 0.5, loss=penalized_loss)
        weights = {n: weights[n] - RATE * step[n] for n in weights}
    for name, value in weights.items():
        np.testing.assert_allclose(found[name], value, atol=2e-6, err_msg=name)


def test_the_running_means_of_a_model_are_those_of_the_first_pass():
    def normalized():
        keras.utils.set_random_seed(2)
        model = keras.Sequential(
            [
                keras.Input((5,)),
                keras.layers.Dense(4),
                keras.layers.BatchNormalization(momentum=0.5),
                keras.layers.Dense(CLASSES),
            ]
        )
        model.compile(
            MomentumSGD(RATE), keras.losses.CategoricalCrossentropy(from_logits=True)
        )
        return model

    plain, sharp = normalized(), normalized()
    set_sam(sharp, Sharpness(rho=2.0))
    trained(plain, examples(1))
    trained(sharp, examples(1))
    for one, other in zip(
        plain.non_trainable_weights, sharp.non_trainable_weights, strict=True
    ):
        np.testing.assert_allclose(numpy(one), numpy(other), atol=1e-6)
    assert not np.allclose(plain.get_weights()[0], sharp.get_weights()[0], atol=1e-3)


def images_and_labels(count=8):
    rng = np.random.default_rng(6)
    images = rng.uniform(0, 255, (count, 16, 16, 3)).astype("float32")
    return images, np.eye(5)[np.arange(count) % 5]


def compiled_mixer(rate=RATE, scaled=False, **arguments):
    keras.utils.set_random_seed(0)
    model = drawn_mixer(**arguments)
    rng = np.random.default_rng(8)
    head = model.get_layer("head")
    head.kernel.assign(rng.normal(0, 0.3, head.kernel.shape))
    optimizer = MomentumSGD(rate, momentum=0.0)
    model.compile(
        keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer,
        keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    # Or TensorFlow traces the first step twice.
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture(scope="module")
def gradient_of():
    """The gradient at `weights`, by one plain step of SGD at a rate of 1."""
    model = compiled_mixer(1.0)

    def gradient(weights, batch):
        model.set_weights(weights)
        model.train_on_batch(*batch)
        return [w - v for w, v in zip(weights, model.get_weights(), strict=True)]

    return gradient


@pytest.mark.parametrize(
    ("alpha", "remat"),
    [
        pytest.param(0.0, False, marks=pytest.mark.nightly),
        (0.5, False),
        (0.5, True),
    ],
)
def test_a_mixer_takes_the_gradient_at_the_perturbed_weights(alpha, remat, gradient_of):
    batch, rho = images_and_labels(), 0.3
    model = compiled_mixer()
    training.set_remat(model, remat)
    weights = model.get_weights()
    g = gradient_of(weights, batch)
    length = np.sqrt(sum((a**2).sum() for a in g))
    moved = [w + rho * a / length for w, a in zip(weights, g, strict=True)]
    g_p = gradient_of(moved, batch)
    share = sum((a * b).sum() for a, b in zip(g, g_p, strict=True))
    share /= sum((b**2).sum() for b in g_p)
    step = [b - alpha * (a - share * b) for a, b in zip(g, g_p, strict=True)]
    assert max(np.abs(a - b).max() for a, b in zip(g, g_p, strict=True)) > 1e-2
    set_sam(model, Sharpness(rho=rho, gsam_alpha=alpha))
    model.fit(*batch, batch_size=8, epochs=1, verbose=0)
    for weight, start, change in zip(model.weights, weights, step, strict=True):
        np.testing.assert_allclose(
            numpy(weight), start - RATE * change, atol=2e-6, err_msg=weight.path
        )


@pytest.mark.parametrize(
    "remat", [pytest.param(False, marks=pytest.mark.nightly), True]
)
def test_both_passes_draw_the_same_masks_and_the_seeds_move_on_once(remat):
    found = []
    for sharpness in (None, Sharpness(rho=0.0)):
        model = compiled_mixer(dropout_rate=0.5, stochastic_depth_rate=0.5)
        training.set_remat(model, remat)
        set_sam(model, sharpness)
        for _ in range(3):
            model.train_on_batch(*images_and_labels())
        found.append(model.get_weights())
    # Without a perturbation the gradient of the second pass is that of the first.
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


@pytest.mark.parametrize(
    "dtype",
    ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.nightly)],
)
def test_half_precision_takes_the_step_of_float32(dtype):
    found = []
    for policy in ("float32", dtype):
        model = compiled_mixer(dtype=policy, scaled=policy == "mixed_float16")
        start = model.get_weights()
        set_sam(model, Sharpness(rho=0.3, gsam_alpha=0.5))
        model.train_on_batch(*images_and_labels())
        now = model.get_weights()
        found.append(
            np.concatenate([(a - b).ravel() for a, b in zip(now, start, strict=True)])
        )
    full, half = found
    error = np.linalg.norm(half - full) / np.linalg.norm(full)
    assert 0 < error < 0.1


def test_a_scaled_loss_that_overflows_makes_no_step():
    model = compiled_mixer(dtype="mixed_float16", scaled=True)
    set_sam(model, Sharpness(rho=0.3, gsam_alpha=0.5))
    model.optimizer.build(model.trainable_variables)
    model.optimizer.dynamic_scale.assign(2.0**60)
    before = model.get_weights()
    model.train_on_batch(*images_and_labels())
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert float(numpy(model.optimizer.dynamic_scale)) == 2.0**59


def test_without_a_gradient_nothing_moves():
    model = compiled_mixer()
    set_sam(model, Sharpness(rho=0.3, gsam_alpha=0.5))
    images, labels = images_and_labels()
    before = model.get_weights()
    model.train_on_batch(images, labels, sample_weight=np.zeros(len(images)))
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_plain_step_comes_back(gradient_of):
    model = compiled_mixer()
    set_sam(model, Sharpness(rho=0.3))
    model.train_on_batch(*images_and_labels())
    assert sharpness_of(model) == Sharpness(rho=0.3)
    set_sam(model, None)
    assert sharpness_of(model) is None
    weights = model.get_weights()
    model.train_on_batch(*images_and_labels())
    expected = gradient_of(weights, images_and_labels())
    for now, start, g in zip(model.get_weights(), weights, expected, strict=True):
        np.testing.assert_allclose(now, start - RATE * g, atol=2e-6)


def test_metrics_are_those_of_the_first_pass():
    model = linear_model(MomentumSGD(RATE), metrics=["accuracy"])
    set_sam(model, Sharpness(rho=5.0))
    (batch,) = examples(1, batch_size=64)
    loss, accuracy = model.train_on_batch(*batch)
    weights = first_weights()
    scores = batch[0] @ weights["kernel"] + weights["bias"]
    assert loss == pytest.approx(softmax_loss(weights, *batch)[0], abs=2e-6)
    assert accuracy == pytest.approx((scores.argmax(-1) == batch[1].argmax(-1)).mean())


def test_a_step_of_its_own_is_not_replaced():
    class Own(keras.Model):
        def train_step(self, *arguments):
            return {}

    with pytest.raises(ValueError, match="Own with `train_step`"):
        set_sam(Own(), Sharpness(rho=0.1))


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": -0.1}, "-0.1"),
        ({"rho": float("nan")}, "nan"),
        ({"rho": float("inf")}, "inf"),
        ({"rho": "big"}, "'big'"),
        ({"rho": (0.6, 0.1), "learning_rates": (0, 1)}, r"\(0.6, 0.1\)"),
        ({"rho": (0.1,)}, r"\(0.1,\)"),
        ({"rho": (0.1, 0.6)}, "learning_rates=None"),
        ({"rho": (0.1, 0.6), "learning_rates": (1, 0.5)}, "learning_rates="),
        ({"rho": 0.1, "gsam_alpha": -1.0}, "gsam_alpha=-1.0"),
        ({"rho": 0.1, "gsam_alpha": float("nan")}, "gsam_alpha=nan"),
        ({"rho": 0.0, "gsam_alpha": 0.5}, "`gsam_alpha` needs a perturbation"),
    ],
)
def test_wrong_numbers_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sharpness(**arguments)


class TestRuns:
    """`finetune` and `pretrain`."""

    @pytest.fixture(autouse=True)
    def _needs_tensorflow(self):
        pytest.importorskip("tensorflow")

    def test_a_run_is_a_bare_loop_of_such_steps(self, tmp_path):
        from keras_mixer import data

        model = drawn_mixer()
        bare = keras.models.clone_model(model)
        bare.set_weights(model.get_weights())
        run = {"batch_size": 8, "crop": "none", "seed": 3}
        recipe = {"total_steps": 4, "warmup_steps": 1, "base_learning_rate": 0.1}
        training.pretrain(
            model,
            drawn_source(),
            output_dir=tmp_path,
            sam_rho=(0.1, 0.6),
            gsam_alpha=0.6,
            linear_end=0.25,
            quiet=True,
            **recipe,
            **run,
        )
        numbers = {"rho": (0.1, 0.6), "learning_rates": (0.025, 0.1)}
        assert sharpness_of(model) == Sharpness(gsam_alpha=0.6, **numbers)
        set_sam(bare, Sharpness(gsam_alpha=0.6, **numbers))
        bare.compile(
            training.pretrain_optimizer(linear_end=0.25, **recipe),
            keras.losses.CategoricalCrossentropy(from_logits=True),
        )
        batches = data.training_batches(drawn_source(), image_size=16, **run)
        for batch in batches.take(4).as_numpy_iterator():
            bare.train_on_batch(*batch)
        for one, other in zip(model.get_weights(), bare.get_weights(), strict=True):
            np.testing.assert_allclose(one, other, atol=5e-6)

    @pytest.mark.skipif(
        keras.config.backend() == "torch", reason="promised on JAX and TensorFlow"
    )
    def test_a_run_that_is_resumed_ends_with_the_same_bits(self, tmp_path):
        """Dropout, stochastic depth, mixup, accumulation and averages included."""
        given = {
            "total_steps": 8,
            "save_every": 2,
            "validate_every": 8,
            "sam_rho": (0.05, 0.2),
            "gsam_alpha": 0.3,
        }

        class Stop(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                if epoch == 1:
                    raise KeyboardInterrupt

        whole, _ = run(tmp_path / "whole", **given)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", callbacks=[Stop()], **given)
        again, _ = run(tmp_path / "cut", **given)
        assert_same(state_of(again), state_of(whole))

    @pytest.mark.backend_free
    def test_the_numbers_are_settings_of_the_run(self, tmp_path):
        given = {"total_steps": 2, "save_every": 2, "validate_every": 2}
        given["warmup_steps"] = 1
        run(tmp_path, sam_rho=0.1, **given)
        with pytest.raises(ValueError, match=r"sam.rho: 0.1 there, 0.2 now"):
            run(tmp_path, sam_rho=0.2, **given)
        with pytest.raises(ValueError, match=r"sam.rho: 0.1 there, None now"):
            run(tmp_path, **given)

    def test_a_model_that_was_trained_with_sam_trains_without(self, tmp_path):
        model = compiled_mixer()
        set_sam(model, Sharpness(rho=0.3))
        training.finetune(
            model,
            drawn_source(),
            output_dir=tmp_path,
            total_steps=2,
            warmup_steps=1,
            batch_size=8,
            quiet=True,
        )
        assert sharpness_of(model) is None

    @pytest.mark.backend_free
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"sam_rho": -1.0}, "sam_rho"),
            ({"sam_rho": (0.2, 0.1)}, "sam_rho"),
            ({"gsam_alpha": 0.5}, "`gsam_alpha` needs a perturbation"),
        ],
    )
    def test_errors_come_before_anything_is_written(self, tmp_path, arguments, message):
        with pytest.raises(ValueError, match=message):
            run(tmp_path / "run", **arguments)
        assert not (tmp_path / "run").exists()
