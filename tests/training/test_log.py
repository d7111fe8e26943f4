import math
import sys

import keras
import numpy as np
import pytest

from keras_mixer.training.log import TrainingLog


def test_rows_are_written_one_by_one(tmp_path):
    path = tmp_path / "log.csv"
    log = TrainingLog(path)
    log.append(5, {"accuracy": 0.25, "loss": 2.0})
    assert path.read_text().split() == ["step,loss,accuracy", "5,2.0,0.25"]
    log.append(10, {"accuracy": 0.5, "loss": 1.0, "val_loss": 0.1})
    assert path.read_text().split() == [
        "step,loss,accuracy,val_loss",
        "5,2.0,0.25,",
        "10,1.0,0.5,0.1",
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["log.csv"]


def test_a_run_that_goes_on_drops_later_rows(tmp_path):
    path = tmp_path / "log.csv"
    log = TrainingLog(path)
    values = np.random.default_rng(0).uniform(size=3)
    for step, value in zip((5, 10, 15), values, strict=True):
        log.append(step, {"loss": float(value)})
    again = TrainingLog(path)
    again.go_on_from(10)
    again.append(15, {"loss": 7.0})
    history = again.history(keras.Sequential()).history
    assert history == {"step": [5, 10, 15], "loss": [values[0], values[1], 7.0]}
    assert path.read_text().count("\n") == 4


def test_without_a_file_there_are_no_rows(tmp_path):
    log = TrainingLog(tmp_path / "log.csv")
    log.go_on_from(100)
    assert log.rows == []


def test_history_has_one_entry_per_row(tmp_path):
    log = TrainingLog(tmp_path / "log.csv")
    log.append(1, {"loss": 1.0})
    log.append(2, {"loss": 0.5, "val_loss": 0.25})
    history = log.history(keras.Sequential())
    assert isinstance(history, keras.callbacks.History)
    assert history.epoch == [0, 1]
    assert math.isnan(history.history["val_loss"][0])
    assert history.history["val_loss"][1] == 0.25


def test_tensorboard_gets_the_rows(tmp_path):
    pytest.importorskip("tensorboard")
    log = TrainingLog(tmp_path / "log.csv", tensorboard=tmp_path / "events")
    log.append(5, {"loss": 0.5, "val_loss": 0.25})
    log.append(10, {"loss": 0.125})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "events")).Reload()
    values = {
        name: [(event.step, tensor_value(event)) for event in events.Tensors(name)]
        for name in events.Tags()["tensors"]
    }
    assert values == {"loss": [(5, 0.5), (10, 0.125)], "val_loss": [(5, 0.25)]}


def tensor_value(event):
    from tensorboard.util.tensor_util import make_ndarray

    return float(make_ndarray(event.tensor_proto))


def test_without_tensorboard_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with pytest.raises(ImportError, match=r"keras-mixer\[tensorboard\]"):
        TrainingLog(tmp_path / "log.csv", tensorboard=tmp_path / "events")


def test_of_several_processes_one_writes(tmp_path):
    log = TrainingLog(tmp_path / "log.csv", is_writer=False)
    log.append(5, {"loss": 0.5})
    assert log.rows == [{"step": 5, "loss": 0.5}]
    assert not list(tmp_path.iterdir())
