import csv
import itertools

import keras
import numpy as np
import pytest
from drawn import drawn_model
from drawn_run import LABELS, drawn_mixer, drawn_source
from left_by_runs import assert_same

import keras_mixer
from keras_mixer import data, training
from keras_mixer.training.distillation import (
    DistillationLoss,
    LabelAccuracy,
    with_teacher,
)
from keras_mixer.training.losses import SigmoidCrossentropy
from keras_mixer.training.run_checkpoints import Checkpoints
from keras_mixer.training.teacher import open_teacher

BACKEND = keras.config.backend()
CROSSENTROPY = keras.losses.CategoricalCrossentropy(from_logits=True)


def drawn(seed=0, images=6, classes=7):
    rng = np.random.default_rng(seed)
    labels = rng.dirichlet(np.ones(classes), images).astype("float32")
    student, teacher = rng.normal(scale=4, size=(2, images, classes)).astype("float32")
    return labels, student, teacher


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def of_the_paper(labels, student, teacher, weight, temperature):
    """The equation of the docstring in float64."""
    y, z, t = (np.asarray(a, "float64") for a in (labels, student, teacher))
    own = -(y * np.log(softmax(z))).sum(-1)
    p, q = softmax(t / temperature), softmax(z / temperature)
    divergence = (p * np.log(p / q)).sum(-1)
    return ((1 - weight) * own + weight * temperature**2 * divergence).mean()


@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 3.0), (0.9, 1.0), (1, 8)])
def test_the_loss_is_the_equation(weight, temperature):
    labels, student, teacher = drawn()
    loss = DistillationLoss(CROSSENTROPY, weight, temperature)
    found = float(loss(np.concatenate([labels, teacher], -1), student))
    expected = of_the_paper(labels, student, teacher, weight, temperature)
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_the_teachers_part_is_that_of_keras():
    labels, student, teacher = drawn()
    targets = np.concatenate([labels, teacher], -1)
    found = DistillationLoss(CROSSENTROPY, 1.0, 4.0)(targets, student)
    of_keras = keras.distillation.LogitsDistillation(
        temperature=4.0, loss=keras.losses.KLDivergence()
    )
    expected = float(of_keras.compute_loss(teacher, student))
    np.testing.assert_allclose(float(found), expected, rtol=1e-5)


def test_a_confident_student_has_a_finite_loss():
    targets = np.array([[1.0, 0.0, 50.0, -50.0]], "float32")
    loss = DistillationLoss(CROSSENTROPY, 1.0, 1.0)
    found = float(loss(targets, np.array([[-100.0, 100.0]], "float32")))
    assert found == pytest.approx(200.0)


def test_labels_alone_give_the_loss_of_labels():
    labels, student, _ = drawn()
    loss = DistillationLoss(SigmoidCrossentropy(0.1), 0.7)
    assert float(loss(labels, student)) == pytest.approx(
        float(SigmoidCrossentropy(0.1)(labels, student))
    )


def test_the_accuracy_counts_labels_not_the_teacher():
    labels, student, teacher = drawn()
    metric, plain = LabelAccuracy(), keras.metrics.CategoricalAccuracy()
    metric.update_state(np.concatenate([labels, 100 * teacher], -1), student)
    plain.update_state(labels, student)
    assert float(metric.result()) == float(plain.result())


def test_it_survives_serialization():
    labels, student, teacher = drawn()
    loss = DistillationLoss(SigmoidCrossentropy(0.1), 0.3, 2.0)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    targets = np.concatenate([labels, teacher], -1)
    assert float(again(targets, student)) == float(loss(targets, student))


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"weight": 0}, "weight=0"), ({"temperature": float("inf")}, "temperature=inf")],
)
def test_wrong_numbers_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DistillationLoss(CROSSENTROPY, **arguments)


# ------------------------------------------------------------- the stream and the run

pytest.importorskip("tensorflow")


def teacher_model(seed=5, **changes):
    given = {"input_shape": (16, 16, 3), "num_classes": LABELS, **changes}
    return drawn_model(seed, **{"patch_size": 8, **given})


def opened(teacher, student=None, **changes):
    given = {"devices": keras_mixer.distribution.start(None), "batch_size": 4}
    names = [str(i) for i in range(LABELS)]
    return open_teacher(
        teacher, student or drawn_mixer(), names, **{**given, **changes}
    )


def batches(count=1, **fields):
    return data.training_batches(
        drawn_source(),
        image_size=16,
        batch_size=4,
        **{"crop": "none", "flip": True, "mixup": 0.3, **fields},
    ).take(count)


def logits_in_stream(teacher, **fields):
    """The images of one batch, its labels, and what stands beside them."""
    found = opened(teacher)
    plain = next(batches(**fields).as_numpy_iterator())
    images, targets = next(with_teacher(batches(**fields), found).as_numpy_iterator())
    np.testing.assert_array_equal(images, plain[0])
    np.testing.assert_array_equal(targets[:, :LABELS], plain[1])
    return images, targets[:, LABELS:]


def teacher_like(model, seed):
    """Drawn weights for a model, so that its head is not zero."""
    rng = np.random.default_rng(seed)
    return [rng.normal(scale=0.2, size=w.shape) for w in model.get_weights()]


def normalized(logits):
    return np.log(softmax(np.asarray(logits, "float64")))


@pytest.mark.parametrize("activation", [None, "softmax", "sigmoid"])
@pytest.mark.parametrize("include_preprocessing", [True, False])
def test_the_teacher_sees_the_students_pixels(activation, include_preprocessing):
    arguments = {"include_preprocessing": include_preprocessing}
    bare = teacher_model(classifier_activation=None, **arguments)
    teacher = teacher_model(classifier_activation=activation, **arguments)
    images, logits = logits_in_stream(teacher)
    record = bare.preprocessing
    given = images if include_preprocessing else images * record.scale + record.offset
    expected = keras.ops.convert_to_numpy(bare(given, training=False))
    np.testing.assert_allclose(normalized(logits), normalized(expected), atol=2e-5)


def test_a_teacher_of_another_size_gets_resized_images():
    import tensorflow as tf

    teacher = teacher_model(input_shape=(8, 24, 3), classifier_activation=None)
    images, logits = logits_in_stream(teacher)
    resized = tf.image.resize(images, (8, 24), antialias=True).numpy()
    expected = keras.ops.convert_to_numpy(teacher(resized, training=False))
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_a_mixer_inside_another_model_gets_its_own_range():
    inner = teacher_model(include_preprocessing=False, classifier_activation=None)
    whole = keras.Sequential(
        [keras.Input((16, 16, 3)), keras.layers.Rescaling(1 / 127.5, -1), inner]
    )
    images, logits = logits_in_stream(whole)
    expected = keras.ops.convert_to_numpy(inner(images / 127.5 - 1, training=False))
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_any_keras_model_teaches_and_its_dropout_rests():
    keras.utils.set_random_seed(0)
    teacher = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalMaxPooling2D(),
            keras.layers.Dropout(0.9),
            keras.layers.Dense(LABELS, activation="softmax"),
        ]
    )
    before = [keras.ops.convert_to_numpy(v) for v in teacher.variables]
    images, logits = logits_in_stream(teacher)
    expected = keras.ops.convert_to_numpy(teacher(images, training=False))
    np.testing.assert_allclose(softmax(logits), expected, atol=2e-6)
    for variable, value in zip(teacher.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


FILES = {"onnx": ("t.onnx", "onnxruntime"), "openvino": ("t.xml", "openvino")}
FILES |= {
    "torch": {"torch": ("t.pt2", "torch")},
    "tensorflow": {"saved": ("t", "tensorflow"), "litert": ("t.tflite", "litert")},
    "jax": {"saved": ("t", "tensorflow")},
}[BACKEND]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("format", FILES)
def test_an_exported_file_teaches(format, tmp_path):
    name, package = FILES[format]
    pytest.importorskip({"litert": "ai_edge_litert"}.get(package, package))
    model = teacher_model(input_shape=(8, 24, 3), classifier_activation="softmax")
    keras_mixer.export.export(model, tmp_path / name)
    file = keras_mixer.export.load(tmp_path / name, precision="auto")
    assert file.image_shape == (8, 24, 3)
    _, expected = logits_in_stream(model)
    _, of_path = logits_in_stream(tmp_path / name)
    np.testing.assert_allclose(softmax(of_path), softmax(expected), atol=2e-2)
    first = opened(file).fingerprint
    assert opened(str(tmp_path / name)).fingerprint == first
    keras_mixer.export.export(
        teacher_model(6, input_shape=(8, 24, 3)), tmp_path / name, overwrite=True
    )
    assert opened(tmp_path / name).fingerprint != first


def finetune(folder, teacher, steps=6, **arguments):
    keras.utils.set_random_seed(1)
    # Keras's dropout is not the same after a start on torch.
    student = drawn_mixer(dropout_rate=0.0 if BACKEND == "torch" else 0.1)
    given = {
        "total_steps": steps,
        "batch_size": 8,
        "base_learning_rate": 0.1,
        "warmup_steps": 1,
        "mixup": 0.3,
        "accumulation_steps": 2,
        "ema_momentum": 0.9,
        "save_every": 2,
        "seed": 7,
        "quiet": True,
        "teacher": teacher,
        "distillation_temperature": 2.0,
    }
    source = drawn_source()
    training.finetune(
        student, source, source, output_dir=folder, **{**given, **arguments}
    )
    return student


def test_steps_are_those_of_the_loss_on_both_targets(tmp_path):
    """A plain loop of Keras's own, with Keras's own loss of the teacher."""
    teacher = teacher_model(classifier_activation=None)
    keras.utils.set_random_seed(1)
    student = drawn_mixer()
    own = keras.models.clone_model(student)
    own.set_weights(student.get_weights())
    run = {"mixup": 0.3, "crop": "none", "seed": 7, "batch_size": 8}
    training.finetune(
        student,
        drawn_source(),
        output_dir=tmp_path,
        total_steps=4,
        warmup_steps=1,
        teacher=teacher,
        distillation_weight=0.7,
        distillation_temperature=2.0,
        quiet=True,
        **run,
    )
    distiller = keras.distillation.Distiller(
        teacher,
        own,
        keras.distillation.LogitsDistillation(2.0, keras.losses.KLDivergence()),
        student_loss_weight=0.3,
    )
    optimizer = training.finetune_optimizer(total_steps=4, warmup_steps=1)
    distiller.compile(optimizer, CROSSENTROPY)
    stream = data.training_batches(drawn_source(), image_size=16, **run)
    distiller.fit(stream, steps_per_epoch=4, shuffle=False, verbose=0)
    for one, other in zip(student.get_weights(), own.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def compiled_student(loss):
    keras.utils.set_random_seed(1)
    student = drawn_mixer()
    student.compile(
        optimizer=training.finetune_optimizer(total_steps=4, warmup_steps=1),
        loss=loss,
        metrics=[LabelAccuracy("accuracy")],
    )
    return student


def test_fit_with_an_optimizer_of_ones_own_makes_the_steps_of_the_recipe(tmp_path):
    teacher, source = teacher_model(), drawn_source()
    keras.utils.set_random_seed(1)
    by_recipe = drawn_mixer()
    training.finetune(
        by_recipe,
        source,
        source,
        output_dir=tmp_path / "recipe",
        total_steps=4,
        warmup_steps=1,
        batch_size=8,
        crop="pad",
        mixup=0.3,
        seed=7,
        teacher=teacher,
        distillation_temperature=2.0,
        quiet=True,
    )
    student = compiled_student(DistillationLoss(CROSSENTROPY, 0.5, 2.0))
    training.fit(
        student,
        source,
        source,
        options=training.RunOptions(
            output_dir=tmp_path / "own", total_steps=4, batch_size=8, seed=7, quiet=True
        ),
        augmentation=data.Augmentation(mixup=0.3),
        teacher=teacher,
    )
    for one, other in zip(by_recipe.get_weights(), student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.backend_free
def test_fit_takes_a_teacher_with_its_loss_alone(tmp_path):
    with pytest.raises(ValueError, match=r"DistillationLoss\(\.\.\.\).*loss=<"):
        training.fit(
            compiled_student(CROSSENTROPY),
            drawn_source(),
            options=training.RunOptions(
                output_dir=tmp_path / "run", total_steps=4, batch_size=8
            ),
            teacher=teacher_model(),
        )
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_exactly_and_holds_no_weight_of_the_teacher(tmp_path):
    teacher = teacher_model()
    finetune(tmp_path / "whole", teacher)

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(tmp_path / "parts", teacher, callbacks=[Stop()])
    student = finetune(tmp_path / "parts", teacher, resume=True)
    ends = [
        Checkpoints(tmp_path / name / "checkpoints").latest().arrays
        for name in ("whole", "parts")
    ]
    assert_same(*ends)
    finetune(tmp_path / "alone", None)
    alone = Checkpoints(tmp_path / "alone" / "checkpoints").latest().arrays
    assert alone.keys() == ends[0].keys()
    assert len(student.optimizer.variables) == sum(
        name.startswith("optimizer/") for name in alone
    )
    with open(tmp_path / "whole" / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)
    # After the run, with labels alone.
    images, labels = next(batches(mixup=0.0).as_numpy_iterator())
    logits = student.predict(images, verbose=0)
    plain = float(CROSSENTROPY(labels, logits))
    found = student.evaluate(images, labels, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(plain, rel=1e-4)


def test_sharpness_aware_steps_take_the_teacher_in_both_passes(tmp_path):
    """With one step, momentum makes no difference: a gradient at w + rho g / |g|."""
    teacher = teacher_model(classifier_activation=None)
    run = {"mixup": 0.0, "crop": "none", "seed": 7, "batch_size": 8}
    student = drawn_mixer()
    student.set_weights(teacher_like(student, 3))
    plain = keras.models.clone_model(student)
    plain.set_weights(student.get_weights())
    before = student.get_weights()

    def train(model, folder, **arguments):
        training.finetune(
            model,
            drawn_source(),
            output_dir=tmp_path / folder,
            total_steps=1,
            warmup_steps=0,
            base_learning_rate=0.1,
            clip_norm=None,
            teacher=teacher,
            quiet=True,
            **run,
            **arguments,
        )
        pairs = zip(before, model.get_weights(), strict=True)
        return [(old - new) / 0.1 for old, new in pairs]

    gradients = train(plain, "plain")
    norm = np.sqrt(sum((g.astype("float64") ** 2).sum() for g in gradients))
    pairs = zip(before, gradients, strict=True)
    plain.set_weights([w + 0.05 * g / norm for w, g in pairs])
    moved, before = before, plain.get_weights()
    expected = train(plain, "there")
    before = moved
    found = train(student, "sam", sam_rho=0.05)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "other"}, "teacher's weights"),
        ({"teacher": None}, "loss.class_name"),
        ({"distillation_temperature": 3.0}, "temperature: 2.0 there, 3.0 now"),
        ({"distillation_weight": 0.4}, "weight: 0.5 there, 0.4 now"),
    ],
)
def test_a_run_goes_on_with_the_same_teacher_only(tmp_path, changes, message):
    teacher = teacher_model()
    finetune(tmp_path, teacher, steps=4)
    if changes.get("teacher") == "other":
        changes = {"teacher": teacher_model(6)}
    with pytest.raises(ValueError, match=message):
        finetune(tmp_path, **{"teacher": teacher, "steps": 4, **changes}, resume=True)


def named(*labels):
    model = teacher_model()
    model.labels = labels
    return model


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (lambda: teacher_model(num_classes=6), "6 and 5"),
        (lambda: teacher_model(input_shape=(16, 16, 1)), "3 channels"),
        (lambda: named("a", "b", "c", "e", "d"), "another order.* class 3 is 'e'"),
        (lambda: named("a", "b", "c", "d", "dog"), "1 of 5 differ: class 4 is 'dog'"),
        (lambda: len, "must be a Keras model, or an exported file"),
        (lambda: "model.keras", "^`teacher` must be .*load_model.*no file"),
        (lambda: "B/16:imagenet1k", "^`teacher` must be .*MixerB16"),
        (lambda: keras.Sequential([keras.layers.Dense(5)]), "must be built"),
        (lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)]), "image"),
    ],
)
def test_a_wrong_teacher_is_named_before_anything_is_written(
    tmp_path, teacher, message
):
    source = drawn_source()
    names = ("a", "b", "c", "d", "e")
    source = data.from_arrays(
        np.zeros((8, 16, 16, 3), "uint8"), np.arange(8) % 5, label_names=names
    )
    folder = tmp_path / "run"
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        training.pretrain(
            drawn_mixer(),
            source,
            output_dir=folder,
            total_steps=2,
            warmup_steps=1,
            batch_size=4,
            teacher=teacher(),
        )
    assert not folder.exists()


@pytest.mark.backend_free
def test_a_model_does_not_teach_itself():
    student = drawn_mixer()
    with pytest.raises(ValueError, match="share weights"):
        opened(keras.Sequential([student]), student)


@pytest.mark.backend_free
def test_probabilities_that_are_no_softmax_are_refused():
    class File:
        path, image_shape, value_range = None, (16, 16, 3), (0, 255)

        def __call__(self, images):
            return np.full((len(images), LABELS), 0.7, "float32")

    file = File()
    file.path = __import__("pathlib").Path(__file__)
    with pytest.raises(ValueError, match="do not add up to 1"):
        opened(file)


@pytest.mark.backend_free
def test_accented_names_in_either_form_are_one(tmp_path):
    teacher = named("e\u0301", "b", "c", "d", "e")
    names = ("\u00e9", "b", "c", "d", "e")
    found = open_teacher(
        teacher,
        drawn_mixer(),
        names,
        devices=keras_mixer.distribution.start(None),
        batch_size=2,
    )
    assert found.image_shape == (16, 16, 3)
    assert len(list(itertools.islice(found.fingerprint, 20))) == 16
