import json

import pytest

from keras_mixer import benchmark
from keras_mixer.benchmark import measure
from keras_mixer.cli.main import main

TINY = ("--variants", "Ti/4", "--batch-sizes", "2", "--rounds", "2")


@pytest.fixture(autouse=True)
def no_ceiling(monkeypatch):
    monkeypatch.setattr(measure, "matrix_product_ceiling", lambda dtype: 1e12)
    monkeypatch.setenv("COLUMNS", "160")


def test_it_prints_writes_and_draws(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    plot, numbers = tmp_path / "speed.png", tmp_path / "speed.json"
    arguments = ("--image-sizes", "8", "16", "--plot", plot, "--json", numbers)
    assert main(["benchmark", *TINY, *map(str, arguments)]) == 0
    out = capsys.readouterr().out
    written = json.loads(numbers.read_text())
    assert written["machine"]["backend"] in out
    exponent = written["growth"][0]["exponent"]
    assert f"grows with patches to the power {exponent:.3f}" in out
    sizes = [result["case"]["image_size"] for result in written["results"]]
    assert sizes == [8, 16]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert len([line for line in out.splitlines() if "Ti/4" in line]) == 2 * 2 + 1


def test_its_options_reach_the_measurement(monkeypatch, capsys):
    asked = {}

    def run(cases, **arguments):
        asked.update(arguments, cases=cases)
        return benchmark.Report({"backend": "none"}, ())

    monkeypatch.setattr(benchmark, "run", run)
    options = "--train --loop --layers --weights gsam --dtypes float32 mixed_bfloat16"
    options += " --variants B/16 S/16 --batch-sizes 4 --rounds 7"
    assert main(["benchmark", *options.split()]) == 0
    cases = asked.pop("cases")
    assert asked == {"weights": "gsam", "rounds": 7, "loop": True, "layers": True}
    assert len(cases) == len(set(cases)) == 8
    assert benchmark.Case("S/16", 4, None, "mixed_bfloat16", True) in cases


def test_by_default_models_are_random_and_not_trained(monkeypatch, capsys):
    asked = {}

    def run(cases, **arguments):
        asked.update(arguments, cases=cases)
        return benchmark.Report({}, ())

    monkeypatch.setattr(benchmark, "run", run)
    assert main(["benchmark"]) == 0
    assert asked["cases"] == [benchmark.Case("B/16", 1), benchmark.Case("B/16", 16)]
    assert asked["weights"] is None


def test_a_wrong_variant_is_one_sentence(capsys):
    assert main(["benchmark", "--variants", "XL/4"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("keras-mixer benchmark: `variant` must be one of Ti/4")
    assert len(err.splitlines()) == 1
