import sys
import types

import pytest

from keras_mixer.training.log import TrainingLog
from keras_mixer.training.run_options import RunOptions
from keras_mixer.training.trackers import trackers

SETTINGS = {"total_steps": 10, "batch_size": 4, "seed": 3}
ROWS = {5: {"loss": 0.5, "val_loss": 0.25}, 10: {"loss": 0.125}}


def track(folder, name):
    """Two rows, the second in a run that goes on."""
    for step, row in ROWS.items():
        options = RunOptions(
            output_dir=folder, total_steps=10, batch_size=4, **{name: 1}
        )
        (tracker,) = trackers(options)
        tracker.start(SETTINGS)
        log = TrainingLog(folder / "log.csv", trackers=[tracker])
        log.append(step, row)
        tracker.close()


@pytest.mark.backend_free
def test_tensorboard_gets_the_rows(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    track(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    values = {
        name: [
            (e.step, float(make_ndarray(e.tensor_proto))) for e in events.Tensors(name)
        ]
        for name in events.Tags()["tensors"]
    }
    assert values == {"loss": [(5, 0.5), (10, 0.125)], "val_loss": [(5, 0.25)]}


@pytest.mark.backend_free
def test_wandb_goes_on_with_the_run_it_began(tmp_path, monkeypatch):
    begun, logged = [], []

    def init(**arguments):
        begun.append(arguments)
        return types.SimpleNamespace(
            id="the-run",
            log=logged.append,
            define_metric=lambda name, step_metric: None,
            finish=lambda: logged.append("finished"),
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    track(tmp_path, "wandb")
    assert [arguments["id"] for arguments in begun] == [None, "the-run"]
    assert begun[0]["config"] == SETTINGS and begun[0]["dir"] == str(tmp_path)
    assert logged == [
        {"step": 5, "loss": 0.5, "val_loss": 0.25},
        "finished",
        {"step": 10, "loss": 0.125},
        "finished",
    ]


@pytest.mark.backend_free
def test_mlflow_goes_on_with_the_run_it_began(tmp_path, monkeypatch):
    calls = []

    class Client:
        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            calls.append(("experiment", name))
            return "7"

        def create_run(self, experiment, run_name):
            calls.append(("run", experiment, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))

        def log_param(self, run, key, value):
            calls.append((run, key, value))

        def log_metric(self, run, key, value, step):
            calls.append((run, key, value, step))

        def set_terminated(self, run):
            calls.append((run, "terminated"))

    monkeypatch.setitem(
        sys.modules, "mlflow", types.SimpleNamespace(MlflowClient=Client)
    )
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mixers")
    track(tmp_path, "mlflow")
    assert calls == [
        ("experiment", "mixers"),
        ("run", "7", tmp_path.name),
        *(("abc", *setting) for setting in SETTINGS.items()),
        ("abc", "loss", 0.5, 5),
        ("abc", "val_loss", 0.25, 5),
        ("abc", "terminated"),
        ("abc", "loss", 0.125, 10),
        ("abc", "terminated"),
    ]


@pytest.mark.backend_free
@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("tensorboard", "tensorboard.summary"),
        ("wandb", "wandb"),
        ("mlflow", "mlflow"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_written(
    name, module, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    options = RunOptions(
        output_dir=tmp_path / "run", total_steps=10, batch_size=4, **{name: True}
    )
    with pytest.raises(ImportError, match=rf"keras-mixer\[{name}\]"):
        trackers(options)
    assert not (tmp_path / "run").exists()
