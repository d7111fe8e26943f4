import json
from dataclasses import replace

import keras
import numpy as np
import pytest

from keras_mixer import benchmark
from keras_mixer.benchmark import Case, Report, Result, measure
from keras_mixer.benchmark.flops import matrix_flops
from keras_mixer.benchmark.timing import Ratio, Timing

CASE = Case("Ti/4", batch_size=2, image_size=8)
MACHINE = {"devices": "CPU", "processor": "abacus, 2 cores", "backend": "jax 1"}


@pytest.fixture(autouse=True)
def no_ceiling(monkeypatch):
    """Large products take long; `flops` has tests of its own."""
    seen = []

    def ceiling(dtype):
        seen.append(dtype)
        return 1e12

    monkeypatch.setattr(measure, "matrix_product_ceiling", ceiling)
    return seen


def result(case, *seconds, **changes):
    timing = Timing(seconds)
    return Result(
        case, timing, build_seconds=1.0, compile_seconds=2.0, ceiling=1e12, **changes
    )


def test_a_case_counts_its_patches():
    assert Case("B/16").num_patches == 196
    assert Case("B/16", image_size=448).num_patches == 784
    assert Case("Ti/4").num_patches == 64


def test_rates_follow_from_the_median():
    found = result(CASE, 0.5, 0.1, 9.0)
    flops = matrix_flops(**CASE.sizes)
    assert found.images_per_second == 4.0
    assert found.flops_per_second == pytest.approx(4 * flops)
    assert found.share_of_ceiling == pytest.approx(4 * flops / 1e12)
    training = replace(found, case=replace(CASE, training=True))
    assert 2.5 < training.share_of_ceiling / found.share_of_ceiling < 3


def test_the_number_of_parameters_is_the_models():
    found = result(Case("B/16"), 1.0)
    assert found.num_params == 59_880_472  # the official test's number


def test_growth_is_between_image_sizes_only():
    def sized(case, image_size):
        case = replace(case, image_size=image_size)
        return result(case, 1e-6 * case.num_patches**1.5)

    small, large = (replace(CASE, batch_size=size) for size in (1, 8))
    results = [sized(small, size) for size in (32, 16)] + [sized(large, 32)]
    (group,) = Report(MACHINE, tuple(results)).image_sizes()
    assert group == results[:2]
    (growth,) = Report(MACHINE, tuple(results)).to_dict()["growth"]
    assert growth["case"]["batch_size"] == 1
    assert growth["exponent"] == pytest.approx(1.5)


@pytest.mark.backend_free
def test_inference_beside_a_peer(no_ceiling):
    made, calls = [], []

    def peer(case):
        made.append(case)
        return lambda: calls.append(1)

    report = measure.run([CASE], rounds=3, peers={"idle": peer}, loop=True)
    (found,) = report.results
    assert made == [CASE]
    assert len(calls) == 5  # two to warm up
    assert len(found.timing.seconds) == 3
    assert found.peers["idle"].median < 1  # nobody is faster than nothing
    assert found.build_seconds > 0
    assert found.compile_seconds >= 0  # nothing to compile on torch
    assert 0 < found.loop.low <= found.loop.median <= found.loop.high
    assert found.layers == {}
    assert no_ceiling == ["float32"]
    assert report.machine["keras"] == keras.version()


@pytest.mark.backend_free
def test_a_training_step_and_fit(no_ceiling):
    case = replace(CASE, training=True, dtype="mixed_bfloat16")
    (found,) = measure.run([case], rounds=2, loop=True, layers=True).results
    assert found.loop.median > 0
    assert found.layers == {}
    assert no_ceiling == ["bfloat16"]


def test_layers_alone():
    (found,) = measure.run([CASE], rounds=2, layers=True).results
    assert set(found.layers) == {"stem", "norms", "token mixing", "channel mixing"}
    assert min(found.layers.values()) > 0


def test_weights_are_loaded(monkeypatch):
    built = []
    constructor = measure.CONSTRUCTORS["Ti/4"]

    def build(**arguments):
        built.append(constructor(**arguments))
        return built[-1]

    monkeypatch.setitem(measure.CONSTRUCTORS, "Ti/4", build)
    measure.run([Case("Ti/4")], weights="cifar10", rounds=1)
    expected = constructor(weights="cifar10")
    name = "stem"
    ours, theirs = (m.get_layer(name).projection.kernel for m in (built[0], expected))
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (ours, theirs)))
    assert built[0].output_shape == (None, 1000)


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"variant": "XL/4"}, "`variant` must be one of Ti/4, S/32.*'XL/4'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"image_size": 30}, "The nearest heights are 28 and 32"),
        ({"dtype": "float31"}, "float31"),
    ],
)
def test_wrong_cases_are_refused_before_anything_is_built(changes, message, no_ceiling):
    with pytest.raises(ValueError, match=message):
        measure.run([CASE, replace(CASE, **changes)])
    assert no_ceiling == []


@pytest.mark.backend_free
def test_rounds_are_positive(no_ceiling):
    with pytest.raises(ValueError, match="rounds=0"):
        measure.run([CASE], rounds=0)
    assert no_ceiling == []


@pytest.fixture
def report():
    many = [
        result(
            replace(CASE, image_size=size),
            1e-3 * size,
            peers={"other": Ratio(1.25, 1.2, 1.5)},
            layers={"stem": 0.002},
            loop=Ratio(0.99, 0.98, 1.0),
            host_peak=2**30,
        )
        for size in (8, 16, 32)
    ]
    return Report(MACHINE, (*many, result(Case("S/16", 4), 2.0)))


def text(report, width=200):
    from rich.console import Console

    console = Console(width=width)
    with console.capture() as capture:
        for table in benchmark.tables(report):
            console.print(table)
    return capture.get()


@pytest.mark.backend_free
def test_tables(report):
    lines = [line.strip() for line in text(report).splitlines() if " px, " in line]
    assert len(lines) == 4 * 4
    speed, costs, peers, layers = (lines[i] for i in (0, 4, 8, 12))
    assert "8 (8 to 8)" in speed and "250.0" in speed
    assert "1,024" in costs and "0.99 (0.98 to 1.00)" in costs
    assert "1.25 (1.20 to 1.50)" in peers
    assert "2.00" in layers
    assert lines[3].startswith("S/16, 224 px, batch 4, float32, inference")


def test_tables_cut_nothing_where_lines_are_short(report):
    shown = text(report, width=50)
    assert "1.00)" in shown and "inference" in shown
    assert "…" not in shown


def test_tables_show_only_what_was_measured():
    shown = text(Report(MACHINE, (result(CASE, 1.0),)))
    assert "as a multiple" not in shown and "layer alone" not in shown


def test_numbers_pass_through_json(report):
    numbers = json.loads(json.dumps(report.to_dict()))
    assert numbers["machine"] == MACHINE
    first = numbers["results"][0]
    assert first["images_per_second"] == pytest.approx(250)
    assert first["peers"]["other"]["median"] == 1.25
    assert first["num_patches"] == 4
    # Time grows with the edge here, so with the root of the patches.
    assert numbers["growth"][0]["exponent"] == pytest.approx(0.5)


@pytest.mark.backend_free
def test_figure(report):
    pytest.importorskip("matplotlib")
    throughput, growth = benchmark.figure(report).axes
    points = [line.get_xydata().tolist() for line in throughput.lines]
    assert points[1] == [[18.528264, 2.0]]
    (line, linear) = growth.lines
    assert line.get_xydata().tolist() == [[4, 4.0], [16, 8.0], [64, 16.0]]
    assert linear.get_ydata().tolist() == [4, 16, 64]
    assert "S^0.50" in line.get_label()


def test_figure_of_one_model_has_a_bar_per_setting():
    pytest.importorskip("matplotlib")
    results = (
        result(CASE, 1.0, 2.0, 4.0),
        result(replace(CASE, batch_size=8, training=True), 0.5),
    )
    (axes,) = benchmark.figure(Report(MACHINE, results)).axes
    assert [bar.get_width() for bar in axes.patches] == [1.0, 16.0]
    assert [text.get_text() for text in axes.texts] == ["1.0", "16.0"]
    # Times of 1.5 and 3 seconds are the quartiles: the line goes from slow to fast.
    assert axes.lines[0].get_xdata() == pytest.approx([2 / 3, 2 / 1.5])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[1] == "training, 8 px,\nbatch 8, float32"
    assert "Ti/4" in axes.get_title()
