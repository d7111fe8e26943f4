import json

import pytest

import keras_mixer
from keras_mixer.benchmark import measure
from keras_mixer.cli.main import main, parser

pytestmark = pytest.mark.backend_free

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
        return measure.Report({"backend": "none"}, ())

    monkeypatch.setattr(keras_mixer.benchmark, "run", run)
    options = "--train --loop --layers --weights gsam --dtypes float32 mixed_bfloat16"
    options += " --variants B/16 S/16 --batch-sizes 4 --rounds 7"
    assert main(["benchmark", *options.split()]) == 0
    cases = asked.pop("cases")
    assert asked == {"weights": "gsam", "rounds": 7, "loop": True, "layers": True}
    assert len(cases) == len(set(cases)) == 8
    assert measure.Case("S/16", 4, None, "mixed_bfloat16", True) in cases


def test_by_default_models_are_random_and_not_trained(monkeypatch, capsys):
    asked = {}

    def run(cases, **arguments):
        asked.update(arguments, cases=cases)
        return measure.Report({}, ())

    monkeypatch.setattr(keras_mixer.benchmark, "run", run)
    assert main(["benchmark"]) == 0
    assert asked["cases"] == [measure.Case("B/16", 1), measure.Case("B/16", 16)]
    assert asked["weights"] is None


def test_tpu_compile_asks_for_one_step(monkeypatch, capsys):
    from keras_mixer.benchmark import tpu_compile
    from keras_mixer.cli import benchmark

    asked = []

    def check_backend(*names):
        asked.append(names)
        return "jax"

    monkeypatch.setattr(benchmark, "check_backend", check_backend)
    monkeypatch.setattr(benchmark, "check_packages", lambda *names: None)
    found = tpu_compile.Compiled(64, 4, 3 * 2**30, 2**20, 2**21, 1.5e12, 7)

    def compile_in_backends(step, batch_size, backends):
        asked.append((step, batch_size, backends))
        return dict.fromkeys(backends, found)

    monkeypatch.setattr(tpu_compile, "compile_in_backends", compile_in_backends)
    options = "--variant S/16 --topology v5e:16x16 --batch 64 --model-devices 2"
    options += " --image-size 32 --classes 10 --dtype float32 --remat"
    options += " --optimizer pretrain --evaluation"
    assert main(["tpu-compile", *options.split()]) == 0
    step = tpu_compile.SliceStep(
        "S/16", "v5e:16x16", 2, 32, 10, "float32", True, "pretrain", False
    )
    assert asked == [("jax", "tensorflow"), (step, 64, ["jax"])]
    assert capsys.readouterr().out == f"{tpu_compile.table(step, {'jax': found})}\n"
    # Nothing fits: that is no success.
    found = None
    both = ["jax", "tensorflow"]
    assert main(["tpu-compile", "--batch", "largest", "--backend", *both]) == 1
    assert asked[-1] == (tpu_compile.SliceStep(), None, both)
    assert "does not fit" in capsys.readouterr().out


def test_the_input_alone_is_measured(monkeypatch, capsys, tmp_path):
    asked = []

    def input_speed(source, *, image_size):
        asked.append((source, image_size))
        return {"crop and flip": 1234.4}

    monkeypatch.setattr(keras_mixer.benchmark, "input_speed", input_speed)
    monkeypatch.setattr(
        keras_mixer.data, "open_source", lambda name, split: (name, split)
    )
    numbers = tmp_path / "speed.json"
    command = ["benchmark", "--input", "photos", "--json", str(numbers)]
    assert main(command) == 0
    assert asked == [(("photos", "train"), 224)]
    assert "crop and flip, 224 x 224: 1,234 images/s" in capsys.readouterr().out
    speeds = json.loads(numbers.read_text())["images_per_second"]
    assert speeds == {"224": {"crop and flip": 1234.4}}


@pytest.mark.parametrize(
    ("words", "needed"), [(["--input", "cifar10"], True), ([], False)]
)
def test_tensorflow_can_be_imported_where_data_is_read(words, needed):
    options = parser().parse_args(["benchmark", *words])
    assert options.needs_tensorflow(options) is needed


def test_first_predictions_of_every_inference_come_into_the_report(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(
        keras_mixer.benchmark, "run", lambda *_, **options: measure.Report({}, ())
    )
    asked = []

    def first_prediction(case, weights):
        asked.append((case, weights))
        seconds = {"import Keras": 1.0, "run": 0.25}
        return keras_mixer.benchmark.FirstPrediction(case, seconds)

    monkeypatch.setattr(keras_mixer.benchmark, "first_prediction", first_prediction)
    file = tmp_path / "speed.json"
    arguments = ["benchmark", *TINY, "--train", "--first", "--json", str(file)]
    assert main([*arguments, "--weights", "cifar10"]) == 0
    assert asked == [(measure.Case("Ti/4", 2), "cifar10")]
    assert (
        json.loads(file.read_text())["first_predictions"][0]["seconds"]["run"] == 0.25
    )
    assert "until its first prediction" in capsys.readouterr().out
