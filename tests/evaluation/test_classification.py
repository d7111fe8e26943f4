import json
from dataclasses import replace

import numpy as np
import pytest
from drawn import LABELS, drawn_model

import keras_mixer
from keras_mixer.evaluation.classification import evaluate

pytest.importorskip("tensorflow")

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 32, 24, 3), "uint8")
TRUE = RNG.integers(0, 7, 40)
NAMES = tuple("abcdefg")


def named_model(names=NAMES):
    model = drawn_model(num_classes=7, num_blocks=3)
    model.labels = names
    return model


@pytest.fixture(scope="module")
def model():
    return named_model()


@pytest.fixture(scope="module")
def scores(model):
    images = keras_mixer.preprocess(list(IMAGES), model)
    return model.predict(images, verbose=0)


def source(labels=TRUE, names=NAMES):
    return keras_mixer.data.from_arrays(IMAGES, labels, label_names=names)


def test_accuracies_are_counted_image_by_image(model, scores):
    evaluation = evaluate(model, source(), batch_size=16)
    best = np.argsort(-scores, axis=1)
    found = [list(row).index(label) for row, label in zip(best, TRUE, strict=True)]
    assert evaluation.num_examples == 40
    assert evaluation.top_1 == np.mean(np.array(found) == 0)
    assert evaluation.top_5 == np.mean(np.array(found) < 5)
    assert 0 < evaluation.top_1 < evaluation.top_5 < 1
    assert evaluation.real is None
    expected = np.zeros((7, 7))
    for label, row in zip(TRUE, best, strict=True):
        expected[label, row[0]] += 1
    np.testing.assert_array_equal(evaluation.confusion_matrix, expected)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_any_batch_size_gives_the_same(model, batch_size):
    one, other = (
        evaluate(model, source(), batch_size=size) for size in (40, batch_size)
    )
    np.testing.assert_array_equal(one.confusion_matrix, other.confusion_matrix)
    assert one.top_5 == other.top_5


def test_classes_are_found_and_rightly_named():
    matrix = np.array([[3, 1, 0], [2, 0, 0], [0, 0, 0]])
    evaluation = keras_mixer.evaluation.Evaluation(("a", "b", "c"), matrix, 1.0)
    first, second, third = evaluation.classes
    assert first == ("a", 4, 0.75, 0.6)
    assert second == ("b", 2, 0.0, 0.0)
    assert third[:2] == ("c", 0) and np.isnan(third[2:]).all()
    assert evaluation.top_1 == 0.5


def test_equal_scores_are_no_success():
    untrained = named_model()
    for weight in untrained.get_layer("head").weights:
        weight.assign(np.zeros(weight.shape))
    evaluation = evaluate(untrained, source())
    assert evaluation.top_1 == np.mean(TRUE == 0)
    assert evaluation.top_5 == np.mean(TRUE < 5)


def test_a_score_that_is_no_number_is_an_error():
    broken = named_model()
    broken.get_layer("head").bias.assign(np.full(7, np.nan))
    with pytest.raises(ValueError, match="Received: NaN for image 0"):
        evaluate(broken, source())


@pytest.mark.backend_free
def test_classes_are_told_by_their_names(scores):
    named = named_model()
    order = RNG.permutation(7)
    renamed = source(np.argsort(order)[TRUE], [NAMES[i] for i in order])
    one, other = evaluate(named, source()), evaluate(named, renamed)
    np.testing.assert_array_equal(one.confusion_matrix, other.confusion_matrix)
    assert other.label_names == NAMES

    few = np.flatnonzero(TRUE < 2)
    part = keras_mixer.data.from_arrays(IMAGES[few], TRUE[few], label_names=NAMES[:2])
    evaluation = evaluate(named, part)
    assert evaluation.top_1 == np.mean(scores[few].argmax(axis=1) == TRUE[few])
    assert evaluation.confusion_matrix.shape == (7, 7)


@pytest.mark.backend_free
def test_numbers_are_the_names_of_a_model_without_labels(model):
    unnamed = drawn_model(num_classes=7, num_blocks=3)
    numbered = keras_mixer.data.from_arrays(IMAGES, TRUE)
    one, other = evaluate(unnamed, numbered), evaluate(model, source())
    np.testing.assert_array_equal(one.confusion_matrix, other.confusion_matrix)
    assert one.label_names == tuple("0123456")
    with pytest.raises(ValueError, match="7 of 7 .* a, b, .*only numbers"):
        evaluate(unnamed, source())
    # Fewer classes, and numbers that are no class of the model.
    few = TRUE[TRUE < 3]
    part = keras_mixer.data.from_arrays(IMAGES[TRUE < 3], few)
    assert evaluate(unnamed, part).num_examples == len(few)
    with pytest.raises(ValueError, match="1 of 7 .* not the model's: 7. The 7"):
        evaluate(unnamed, source(names=tuple("7654321")))


@pytest.mark.backend_free
def test_a_name_in_another_form_of_its_accents_is_the_same():
    composed, split = (
        "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
        "cafe\N{COMBINING ACUTE ACCENT}",
    )
    named = named_model((composed, *NAMES[1:]))
    other = evaluate(named, source(names=(split, *NAMES[1:])))
    assert other.top_1 == evaluate(named_model(), source()).top_1


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "names", [tuple(map(str, range(1, 8))), tuple("abcdefz"), tuple("ABCDEFG")]
)
def test_classes_are_never_matched_by_position_unless_asked(model, names):
    unknown = [name for name in names if name not in NAMES]
    message = (
        f"{len(unknown)} of 7 classes that are not the model's: {', '.join(unknown)}. "
        'The 7 classes of the model are a, b, c, d, e, f, g.*`match="position"`'
    )
    with pytest.raises(ValueError, match=message):
        evaluate(model, source(names=names))
    by_position = evaluate(model, source(names=names), match="position")
    expected = evaluate(model, source())
    np.testing.assert_array_equal(
        by_position.confusion_matrix, expected.confusion_matrix
    )
    assert by_position.label_names == NAMES


def test_position_ignores_names_that_are_in_another_order(model, scores):
    backwards = source(names=NAMES[::-1])
    found = evaluate(model, backwards, match="position")
    assert found.top_1 == np.mean(scores.argmax(axis=1) == TRUE)
    with pytest.raises(ValueError, match="`match` must be 'name' or 'position'.*'by'"):
        evaluate(model, backwards, match="by")


@pytest.mark.backend_free
def test_names_that_repeat_match_only_as_a_whole(model):
    crane = ("crane", *NAMES[1:6], "crane")
    named = named_model(crane)
    one, other = evaluate(named, source(names=crane)), evaluate(model, source())
    np.testing.assert_array_equal(one.confusion_matrix, other.confusion_matrix)
    with pytest.raises(ValueError, match="names that repeat"):
        evaluate(named, source(names=(*crane[:5], "crane", "f")))


def test_real_labels_are_any_of_several(model, scores):
    first = scores.argmax(axis=1)
    real = [[] for _ in IMAGES]
    real[3] = [int(first[3])]
    real[5] = [(int(first[5]) + 1) % 7, int(first[5])]
    real[8] = [(int(first[8]) + 1) % 7]
    assert evaluate(model, source(), real_labels=real).real == 2 / 3


@pytest.mark.backend_free
def test_real_labels_are_numbers_of_the_data_set(scores):
    named = named_model()
    backwards = source(6 - TRUE, NAMES[::-1])
    real = [[6 - int(first)] for first in scores.argmax(axis=1)]
    assert evaluate(named, backwards, real_labels=real).real == 1.0


@pytest.mark.backend_free
def test_real_labels_follow_the_sorted_file_names(model, scores):
    order = np.random.default_rng(1).permutation(40)
    names = [f"val_{i:04}.png" for i in order]
    named = replace(source(), file_names=lambda: names)
    real = [[] for _ in IMAGES]
    for image in range(10):
        real[order[image]] = [int(scores[image].argmax())]
    assert evaluate(model, named, real_labels=real).real == 1.0
    assert evaluate(model, source(), real_labels=real).real < 1.0
    same = replace(source(), file_names=lambda: ["0.png"] * 40)
    with pytest.raises(ValueError, match="files of different names"):
        evaluate(model, same, real_labels=real)


def test_everything_can_be_written_as_json(model):
    evaluation = evaluate(model, source(), real_labels=[[0]] * 40)
    numbers = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert numbers["top_1"] == evaluation.top_1
    assert numbers["real"] == evaluation.real
    assert numbers["confusion_matrix"] == evaluation.confusion_matrix.tolist()
    assert [c["name"] for c in numbers["classes"]] == list(NAMES)
    empty = replace(evaluation, confusion_matrix=np.diag([1, 0, 0, 0, 0, 0, 0]))
    assert empty.to_dict()["classes"][1] == {
        "name": "b",
        "num_examples": 0,
        "recall": None,
        "precision": None,
    }


@pytest.mark.parametrize(
    ("real", "message"),
    [
        ([[0]] * 39, "one entry for each of the 40 images. Received: 39"),
        ([[7]] * 40, r"classes in \[0, 7\). Received: \[7\]"),
        ([[-1]] * 40, r"Received: \[-1\]"),
        ([[]] * 40, "a label for one image at least"),
    ],
)
def test_real_labels_must_fit(model, real, message):
    with pytest.raises(ValueError, match="`real_labels` must .*" + message):
        evaluate(model, source(), real_labels=real)


def test_a_model_of_other_classes_is_an_error():
    other = drawn_model()
    message = "a model of 5 classes, a data set of 7.*`num_classes=7`"
    with pytest.raises(ValueError, match=message):
        evaluate(other, source(), match="position")
    other.labels = LABELS
    with pytest.raises(ValueError, match="7 of 7 classes that are not the model's"):
        evaluate(other, source())


def test_a_model_without_a_head_is_an_error():
    with pytest.raises(ValueError, match="must have a head.*`fewshot.evaluate`"):
        evaluate(drawn_model(num_classes=0), source())
    with pytest.raises(ValueError, match="`model` must be a Keras model"):
        evaluate(None, source())
