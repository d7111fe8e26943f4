"""The notebooks run from top to bottom, and are kept without what they printed."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
COLAB = "https://colab.research.google.com/github/keras-mixer/keras_mixer/blob/main/"

pytestmark = pytest.mark.backend_free


def cells(path, kind):
    return [
        cell
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == kind
    ]


def text(cell):
    return "".join(cell["source"])


def test_there_are_four():
    assert {path.stem for path in NOTEBOOKS} == {
        "features_fewshot_evidence",
        "first_steps",
        "tpu",
        "your_folder",
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_without_outputs(path):
    for cell in cells(path, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_can_be_opened_in_colab(path):
    name = path.relative_to(ROOT).as_posix()
    assert f"({COLAB}{name})" in text(cells(path, "markdown")[0])
    guides = "".join(
        page.read_text(encoding="utf-8")
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    )
    assert f"({COLAB}{name})" in guides


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_installs_in_colab_alone_and_chooses_a_backend_first(path):
    first, second = cells(path, "code")[:2]
    assert re.search(
        r'find_spec\("keras_mixer"\) is None:\n +%pip install', text(first)
    )
    backend, imported = text(second).split("%matplotlib inline")
    assert "os.environ" in backend and "import keras" not in backend
    assert "keras" in imported


# Half a minute each: `make test` runs the one that a newcomer opens first.
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path,
            id=path.stem,
            marks=[pytest.mark.nightly] * (path.stem != "first_steps"),
        )
        for path in NOTEBOOKS
    ],
)
def test_runs_from_top_to_bottom(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # Of tqdm, where ipywidgets is missing; Colab has it.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    printed = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    assert any("image/png" in output.get("data", {}) for output in printed)
    errors = [o for o in printed if o.get("name") == "stderr"]
    assert errors == []
