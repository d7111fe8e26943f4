"""The table of a GPU: its plan, its turns and its text; nothing is measured here."""

import json
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples" / "benchmark"

pytestmark = pytest.mark.backend_free


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


# In place of `gpu_cell.py`: does what the cell's contender says.
CELL = """
import json, sys, time
name = json.loads(sys.argv[1])["contender"]
if name == "fails":
    raise ValueError("no such model")
if name == "hangs":
    time.sleep(60)
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.readline()
if name == "dies":
    sys.exit()
start = time.time()
time.sleep(0.3)
print(json.dumps({"seconds": [0.1], "peak": None, "times": [start, time.time()]}))
"""


@pytest.fixture
def run(monkeypatch, tmp_path):
    import gpu_turns

    (tmp_path / "gpu_cell.py").write_text(CELL)
    monkeypatch.setattr(gpu_turns, "__file__", str(tmp_path / "gpu_turns.py"))

    def run(names, *, seconds=60.0, budget=30.0, memory=1.0, total=10.0, least=0.1):
        turns = gpu_turns.Turns(
            lanes=4,
            memory=total,
            end=time.monotonic() + seconds,
            environment={},
            least=least,
        )
        cells = [
            {"contender": name, "budget": budget, "memory": memory, "backend": "jax"}
            for name in names
        ]
        found = []
        turns.run(cells, lambda cell, answer: found.append((cell["contender"], answer)))
        assert not turns._running
        return found

    return run


def test_one_that_fails_or_dies_costs_nothing_else(run):
    found = dict(run(["fails", "dies", "measures"]))
    assert found["fails"] == {"error": "ValueError: no such model"}
    assert found["dies"] == {"error": "ended without a word"}
    assert found["measures"]["seconds"] == [0.1]


def test_one_that_hangs_is_ended_and_the_rest_is_left_out_at_the_end(run):
    start = time.monotonic()
    found = dict(run(["hangs"], budget=0.5))
    assert found == {"hangs": {"error": "not done in 0 s"}}
    found = dict(run(["hangs", "measures"], seconds=1.0, total=1.5))
    assert found["hangs"]["error"].startswith("not done in")
    assert found["measures"] == {"error": "no time left"}
    assert time.monotonic() - start < 20


def test_no_two_are_timed_at_once(run):
    times = [answer["times"] for _, answer in run(["measures"] * 3)]
    times.sort()
    assert times[0][1] <= times[1][0] <= times[1][1] <= times[2][0]


def small_plan(**arguments):
    import gpu_table

    cells = gpu_table.plan([256, 1024], **arguments)
    for cell in cells:
        cell["budget"] = 2 * cell["seconds"]
    return cells


def test_the_plan_has_every_contender_and_fits_nine_minutes():
    import gpu_table
    from gpu_report import NAMES

    cells = small_plan()
    whole = {
        (name, variant, 256, training, False)
        for name in NAMES
        for variant in ("S/16", "B/32", "B/16", "L/16")
        for training in (False, True)
    }
    found = [
        tuple(
            cell[key]
            for key in ("contender", "variant", "batch_size", "training", "remat")
        )
        for cell in cells
    ]
    assert len(set(found)) == len(found)
    assert whole <= set(found)
    assert {("ours-jax", "H/14", 64, True, remat) for remat in (True, False)} <= set(
        found
    )
    assert cells[0]["contender"] == "ceilings"
    assert max(cell["memory"] for cell in cells) < 0.9 * 79  # an H100's
    text = gpu_table.plan_text(cells, 5, 9)
    minutes = float(text.splitlines()[-1].split()[1])
    assert minutes < 9
    assert text.startswith(f"{len(cells)} measurements, 5 at a time")
    assert {cell["variant"] for cell in small_plan(small=True)} == {"Ti/4"}


def results():
    cells = small_plan()
    answers = {
        "ceilings": {
            "flops": 7.5e14,
            "copied": 3e12,
            "machine": {"devices": "NVIDIA H100", "processor": "x"},
            "versions": {"jax": "0.10.2", "timm": "1.0.31"},
        },
        "ours-jax": {"seconds": [0.02, 0.01, 0.03], "peak": 3 * 2**30},
        "ours-tensorflow": {"seconds": [0.04], "peak": 2 * 2**30},
        "timm": {"seconds": [0.04], "peak": 4 * 2**30},
        "flax": {"error": "ModuleNotFoundError: No module named 'flax'"},
    }
    return [
        (cell, answers[cell["contender"]] | {"batch_size": cell["batch_size"]})
        for cell in cells
        if cell["contender"] in answers and cell["variant"] in ("B/16", "H/14")
    ]


def test_the_tables_have_speed_memory_and_what_is_missing():
    from gpu_report import section

    text = section(results(), command="python gpu_table.py", date="2026-01-02")
    lines = text.splitlines()
    assert lines[0] == "## On a GPU"
    assert "NVIDIA H100: matrix products reach 750 TFLOP/s," in lines
    assert "copies 3,000 GB/s." in lines
    assert "| | batch | ours, JAX | ours, TensorFlow | Flax | timm | ratio |" in lines
    # 256 images in 20 ms, 40 ms and 40 ms; the median of three counts.
    assert "| B/16 | 256 | 12,800 | 6,400 | - | 6,400 | 2.00 |" in lines
    # The least memory of ours over the least of the others.
    assert "| B/16 | 256 | 3,072 | 2,048 | - | 4,096 | 0.50 |" in lines
    assert "| H/14, remat | 64 | 3,200 | - | - | - | - |" in lines
    assert (
        "- Flax, B/16, training: ModuleNotFoundError: No module named 'flax'" in lines
    )
    assert lines[-1] == "JAX 0.10.2, timm 1.0.31, 2026-01-02."
    json.dumps(results())  # as `--json` writes them


def test_the_section_takes_the_place_of_the_old_one():
    from gpu_report import into_page

    page = "# Speed\n\nWords.\n\n## On a CPU\n\nOne.\n\n## Loops\n\nTwo.\n"
    first = into_page(page, "## On a GPU\n\nThree.\n")
    assert first == page.replace("## Loops", "## On a GPU\n\nThree.\n\n## Loops")
    assert into_page(first, "## On a GPU\n\nFour.\n") == first.replace("Three", "Four")


def test_no_gpu_and_no_wheels_are_clear_errors(monkeypatch, tmp_path):
    import gpu_table

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="--device cpu --small"):
        gpu_table.device_memory("gpu")
    with pytest.raises(SystemExit, match="folder of .whl files"):
        gpu_table.install(tmp_path, tmp_path / "new")
    variables = gpu_table.environment("cpu", "wheels")
    assert variables["JAX_PLATFORMS"] == "cpu"
    assert variables["PYTHONPATH"].startswith("wheels")
    assert Path(sys.executable).exists()
