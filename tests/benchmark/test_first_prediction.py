import importlib
import io

import pytest

from keras_mixer import benchmark
from keras_mixer.benchmark import Case, FirstPrediction, Report

CASE = Case("Ti/4")
SECONDS = {"import Keras": 2.0, "build": 0.5, "compile": 0.25, "run": 0.25}


@pytest.mark.backend_free
def test_a_new_process_times_every_phase():
    first = benchmark.first_prediction(CASE, "cifar10")
    assert list(first.seconds) == [
        *("import Keras", "import keras_mixer", "build", "read weights"),
        *("run", "compile"),
    ]
    assert all(seconds >= 0 for seconds in first.seconds.values())
    assert first.seconds["import Keras"] > 0.1


def test_an_error_of_the_process_is_told(monkeypatch, tmp_path):
    script = tmp_path / "broken.py"
    script.write_text("raise OSError('no disk')")
    # The door gives the function of that name.
    module = importlib.import_module("keras_mixer.benchmark.first_prediction")
    monkeypatch.setattr(module, "_SCRIPT", script)
    with pytest.raises(RuntimeError, match="OSError: no disk"):
        benchmark.first_prediction(CASE)


def test_the_report_compares_the_phases_with_the_import():
    from rich.console import Console

    first = FirstPrediction(CASE, SECONDS)
    assert first.multiple_of_import == pytest.approx(1.5)
    report = Report({}, (), (first,))
    assert report.to_dict()["first_predictions"][0]["multiple_of_import"] == 1.5
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(benchmark.tables(report)[-1])
    row = next(line for line in console.export_text().splitlines() if "Ti/4" in line)
    assert row.split()[-6:] == ["2.00", "0.50", "0.25", "0.25", "3.00", "1.50"]
