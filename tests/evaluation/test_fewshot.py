import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn import drawn_model
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_mixer.evaluation import features, fewshot
from keras_mixer.evaluation.features import extract
from keras_mixer.evaluation.fewshot import linear_probe, support_set

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "fewshot.npz")
CASES = ("wide", "tall", "uneven")  # N < D, N > D, classes with too few examples
SEEDS = (0, 1, 2)
ARRAYS = ("features", "labels", "test_features", "test_labels")


def golden(case, key):
    return GOLDEN[f"{case}/{key}"]


def easy(num_classes=3, per_class=8, width=4):
    """Well separated classes: features, labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_classes), per_class)
    centres = 10.0 * rng.normal(size=(num_classes, width))
    return centres[labels] + rng.normal(size=(len(labels), width)), labels


@pytest.mark.parametrize("case", CASES)
def test_support_sets_are_the_official_ones(case):
    for seed in SEEDS:
        chosen = support_set(
            golden(case, "labels"),
            num_classes=int(golden(case, "num_classes")),
            shots=int(golden(case, "shots")),
            seed=seed,
        )
        np.testing.assert_array_equal(chosen, golden(case, f"support/seed{seed}"))


def accuracies_and_official(case, l2):
    accuracies = linear_probe(
        *(golden(case, name) for name in ARRAYS),
        num_classes=int(golden(case, "num_classes")),
        shots=int(golden(case, "shots")),
        seeds=SEEDS,
        l2=l2,
    )
    official = [golden(case, f"accuracy/seed{seed}/l2_{l2:.0f}") for seed in SEEDS]
    return accuracies, official


@pytest.mark.parametrize("case", CASES)
def test_accuracies_are_the_official_ones(case):
    accuracies, official = accuracies_and_official(case, l2=1024.0)
    # The official accuracies are rounded to float32.
    np.testing.assert_allclose(accuracies, official, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_accuracies_with_a_weak_ridge_are_the_official_ones_up_to_rounding(case):
    # The official code decomposes x x^T in float32, where rounding moves scores by up
    # to 1e-2 beside so small an `l2`: that decides one test example of "wide", whose
    # two best scores are 1.4e-3 apart. The same float32 sequence on another processor,
    # or with the examples in another order, gives one success more or less itself.
    accuracies, official = accuracies_and_official(case, l2=1.0)
    wrong = np.abs(np.subtract(accuracies, official)) * len(golden(case, "test_labels"))
    assert wrong.max() < 1.01
    assert np.count_nonzero(wrong > 0.5) == (case == "wide")


def test_accuracies_follow_the_order_of_seeds():
    case = [golden("wide", name) for name in ARRAYS]
    one = {seed: linear_probe(*case, num_classes=7, seeds=[seed]) for seed in SEEDS}
    assert len({tuple(accuracy) for accuracy in one.values()}) == 3
    assert linear_probe(*case, num_classes=7, seeds=(2, 0)) == one[2] + one[0]


def test_fewer_shots_are_among_more():
    labels = golden("tall", "labels")
    few = support_set(labels, num_classes=5, shots=3, seed=1)
    many = support_set(labels, num_classes=5, shots=10, seed=1)
    np.testing.assert_array_equal(few.reshape(5, 3), many.reshape(5, 10)[:, :3])


def test_a_class_with_fewer_examples_gives_all_and_one_without_gives_none():
    labels = np.array([2, 0, 2, 2, 0, 2])
    chosen = support_set(labels, num_classes=4, shots=3, seed=0)
    assert sorted(chosen[:2]) == [1, 4]
    assert set(chosen[2:]) <= {0, 2, 3, 5}
    assert len(chosen) == 5


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 12), d=st.integers(1, 12), l2=st.floats(1e-3, 1e4))
def test_both_forms_of_the_ridge_solve_the_normal_equations(n, d, l2):
    rng = np.random.default_rng(n * 100 + d)
    x, y = rng.normal(size=(n, d)), rng.normal(size=(n, 3))
    w = fewshot._ridge(x, y, l2)
    np.testing.assert_allclose((x.T @ x + l2 * np.eye(d)) @ w, x.T @ y, atol=1e-9)


def test_a_constant_feature_changes_nothing_even_without_ridge():
    x, y = easy(per_class=20)
    constant = np.concatenate([x, np.full((len(x), 1), 7.0)], axis=1)
    for l2 in (0.0, 1.0):
        kwargs = {"num_classes": 3, "shots": 10, "l2": l2}
        plain = linear_probe(x, y, x, y, **kwargs)
        assert linear_probe(constant, y, constant, y, **kwargs) == plain
        assert min(plain) > 0.9


def test_the_probe_sees_the_chosen_examples_only():
    x, y = easy()
    chosen = support_set(y, num_classes=3, shots=2, seed=0)
    kwargs = {"num_classes": 3, "shots": 2, "seeds": [0], "l2": 1.0}
    expected = linear_probe(x, y, x, y, **kwargs)
    others = np.setdiff1d(np.arange(len(x)), chosen)
    spoiled = x.copy()
    spoiled[others] = 1e6
    assert linear_probe(spoiled, y, x, y, **kwargs) == expected


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"features": np.zeros(24)}, r"`features` must have one row.*shape \(24,\)"),
        ({"test_features": np.zeros((3, 4))}, r"`test_features` must have one row"),
        ({"features": np.zeros((24, 9))}, r"same width.*\(24, 9\) and \(24, 4\)"),
        ({"features": np.full((24, 4), np.nan)}, "`features` must be finite.*row 0"),
        ({"test_features": np.full((24, 4), np.inf)}, "`test_features` must be finite"),
        ({"labels": np.zeros((24, 3), int)}, "`labels` must be a non-empty list"),
        ({"labels": np.zeros(24)}, "list of integers.*dtype float64"),
        ({"labels": np.zeros(0, int)}, "non-empty"),
        ({"labels": np.full(24, 3)}, r"`labels` must lie in.*Received: 3"),
        ({"test_labels": np.full(24, -1)}, r"`test_labels` must lie in.*Received: -1"),
        ({"num_classes": 0}, "`num_classes` must be a positive integer"),
        ({"shots": 0}, "`shots` must be a positive integer. Received: shots=0"),
        ({"shots": True}, "`shots` must be a positive integer"),
        ({"l2": -1.0}, "`l2` must be finite and not negative. Received: l2=-1.0"),
        ({"l2": float("nan")}, "`l2` must be finite and not negative"),
    ],
)
def test_errors_name_the_argument(changes, message):
    x, y = easy()
    arguments = {"features": x, "labels": y, "test_features": x, "test_labels": y}
    with pytest.raises(ValueError, match=message):
        linear_probe(**{**arguments, "num_classes": 3, **changes})


def test_the_file_needs_numpy_only():
    code = (
        "import importlib.util as u, sys;"
        f"s = u.spec_from_file_location('fewshot', {fewshot.__file__!r});"
        "m = u.module_from_spec(s); s.loader.exec_module(m);"
        "assert 'numpy' in sys.modules and 'keras' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# A model and a data set


@pytest.fixture(scope="module")
def sets():
    """A model and the sources of its train and test images, four uneven classes."""
    data = pytest.importorskip("keras_mixer.data")
    pytest.importorskip("tensorflow")
    rng = np.random.default_rng(0)
    names = ("ant", "bee", "cat", "dog")
    centres = rng.uniform(60, 190, (4, 4, 3, 3)).repeat(8, 1).repeat(8, 2)

    def source(count):
        labels = np.minimum(rng.integers(0, 6, count), 3)
        images = centres[labels] + rng.normal(0, 60, (count, 32, 24, 3))
        images = np.clip(images, 0, 255).astype("uint8")
        return data.from_arrays(images, labels, label_names=names), labels

    return drawn_model(), source(60), source(40)


def test_a_model_is_measured_by_its_features(sets):
    model, (train, labels), (test, test_labels) = sets
    found = fewshot.evaluate(model, train, test, shots=(1, 3), batch_size=16)
    features, test_features = extract(model, train), extract(model, test)
    for shots in (1, 3):
        assert found[shots] == linear_probe(
            features,
            labels,
            test_features,
            test_labels,
            num_classes=4,
            shots=shots,
        )
    assert list(found) == [1, 3] and 0.25 < np.mean(found[3]) < 1


def test_arguments_reach_the_ridge_and_the_draws(sets):
    model, (train, labels), (test, test_labels) = sets
    arguments = {"seeds": (5, 3), "l2": 1.0}
    found = fewshot.evaluate(model, train, test, shots=[2], **arguments)
    case = extract(model, train), labels, extract(model, test), test_labels
    expected = linear_probe(*case, num_classes=4, shots=2, **arguments)
    assert found == {2: expected}


@pytest.mark.backend_free
def test_only_the_examples_that_are_drawn_go_through_the_model(sets, monkeypatch):
    model, (train, labels), (test, _) = sets
    seen = []

    def counted(model, source, **arguments):
        seen.append(source.num_examples)
        return outputs(model, source, **arguments)

    outputs = features.outputs
    monkeypatch.setattr(features, "outputs", counted)
    fewshot.evaluate(model, train, test, shots=(1, 2), seeds=(0, 7))
    drawn = [support_set(labels, num_classes=4, shots=2, seed=seed) for seed in (0, 7)]
    assert seen == [len(set(np.concatenate(drawn))), 40]
    assert seen[0] < 17


@pytest.mark.backend_free
def test_a_second_evaluation_reads_the_cache(sets, monkeypatch, tmp_path):
    model, (train, _), (test, _) = sets
    arguments = {"shots": (1, 2), "cache_dir": tmp_path}
    first = fewshot.evaluate(model, train, test, **arguments)
    monkeypatch.setattr(features, "outputs", None)
    assert fewshot.evaluate(model, train, test, **arguments, l2=1024) == first
    assert fewshot.evaluate(model, train, test, **arguments, l2=0.1) != first


@pytest.mark.backend_free
def test_seeds_may_draw_sets_of_a_class_without_examples(sets):
    model, (train, _), (test, _) = sets
    names = (*train.label_names, "elk")
    train, test = (replace(source, label_names=names) for source in (train, test))
    found = fewshot.evaluate(model, train, test, shots=(1000,))
    assert len(set(found[1000])) == 1  # every example, whatever the seed


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"shots": (1, 0)}, "`shots` must be a positive integer. Received: shots=0"),
        ({"shots": ()}, r"`shots` and `seeds` must hold one.*shots=\(\)"),
        ({"seeds": []}, "`shots` and `seeds` must hold one"),
        ({"l2": -1}, "`l2` must be finite and not negative"),
    ],
)
def test_errors_of_evaluate_name_the_argument(sets, changes, message):
    model, (train, _), (test, _) = sets
    with pytest.raises(ValueError, match=message):
        fewshot.evaluate(model, train, test, **changes)


def test_train_and_test_must_have_the_same_classes(sets):
    model, (train, _), (test, _) = sets
    other = replace(test, label_names=("bee", "ant", "cat", "dog"))
    with pytest.raises(ValueError, match=r"4 classes \(ant, bee, cat, ...\) and 4"):
        fewshot.evaluate(model, train, other)
