import math

import keras
import numpy as np
import pytest

from keras_mixer.training.log import IntervalMeans, TrainingLog, keras_history


@pytest.mark.backend_free
def test_rows_are_written_one_by_one(tmp_path):
    path = tmp_path / "log.csv"
    log = TrainingLog(path)
    log.append(5, {"accuracy": 0.25, "loss": 2.0})
    assert path.read_text().split() == ["step,loss,accuracy", "5,2.0,0.25"]
    log.append(10, {"accuracy": 0.5, "loss": 1.0, "val_loss": 0.1})
    log.flush()  # a file is not written anew more often than once a second
    assert path.read_text().split() == [
        "step,loss,accuracy,val_loss",
        "5,2.0,0.25,",
        "10,1.0,0.5,0.1",
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["log.csv"]


@pytest.mark.backend_free
def test_a_run_that_goes_on_drops_later_rows(tmp_path):
    path = tmp_path / "log.csv"
    log = TrainingLog(path)
    values = np.random.default_rng(0).uniform(size=3)
    for step, value in zip((5, 10, 15), values, strict=True):
        log.append(step, {"loss": float(value)})
    log.flush()
    again = TrainingLog(path)
    again.go_on_from(10)
    again.append(15, {"loss": 7.0})
    assert [(row["step"], row["loss"]) for row in again.rows] == [
        (5, values[0]),
        (10, values[1]),
        (15, 7.0),
    ]
    assert path.read_text().count("\n") == 4


@pytest.mark.backend_free
def test_without_a_file_there_are_no_rows(tmp_path):
    log = TrainingLog(tmp_path / "log.csv")
    log.go_on_from(100)
    assert log.rows == []


@pytest.mark.backend_free
def test_history_has_one_entry_per_interval():
    entries = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5, "val_loss": 0.25}]
    history = keras_history(keras.Sequential(), entries)
    assert isinstance(history, keras.callbacks.History)
    assert history.epoch == [0, 1]
    assert history.history["step"] == [1, 2]
    assert math.isnan(history.history["val_loss"][0])
    assert history.history["val_loss"][1] == 0.25


def running(losses):
    """What Keras reports after each batch: the mean of the epoch so far."""
    return [
        (made, {"loss": float(np.mean(losses[:made])), "area": float(made)})
        for made in range(1, len(losses) + 1)
    ]


@pytest.mark.backend_free
@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_hold_the_means_since_the_row_before(shuffle):
    losses = np.random.default_rng(0).uniform(size=10)
    means = IntervalMeans(4, 10, frozenset({"loss"}))
    reports = running(losses)
    if shuffle:  # as threads may
        reports = [reports[i] for i in (1, 0, 4, 3, 2, 7, 6, 5, 9, 8)]
    rows = [row for report in reports for row in means.add(*report)]
    rows.append((10, means.last(*running(losses)[-1])))
    assert [made for made, _ in rows] == [4, 8, 10]
    expected = [losses[:4].mean(), losses[4:8].mean(), losses[8:].mean()]
    np.testing.assert_allclose([row["loss"] for _, row in rows], expected)
    assert [row["area"] for _, row in rows] == [4, 8, 10]  # no mean: as it is


@pytest.mark.backend_free
def test_rows_wait_for_the_reports_of_several_steps():
    means = IntervalMeans(4, 20, frozenset({"loss"}), step=3)
    made = [3, 6, 9, 12, 15, 18, 20]
    rows = [row for n in made for row in means.add(n, {"loss": float(n)})]
    # The first report after each fourth step.
    assert [n for n, _ in rows] == [6, 9, 12, 18]


@pytest.mark.backend_free
def test_of_several_processes_one_writes(tmp_path):
    log = TrainingLog(tmp_path / "log.csv", is_writer=False)
    log.append(5, {"loss": 0.5})
    assert log.rows == [{"step": 5, "loss": 0.5}]
    assert not list(tmp_path.iterdir())
