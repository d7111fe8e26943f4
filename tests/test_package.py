"""The package as a whole: what a wheel holds, and what imports load."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "keras_mixer"
BACKENDS = {"jax", "tensorflow", "torch"}


def nightly(*values):
    return pytest.param(*values, marks=pytest.mark.nightly)


def python(code, *arguments, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """A wheel built from this checkout, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    python(
        "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
        if ROOT == Path.cwd()
        else "import os, sys; from hatchling.build import build_wheel;"
        f"os.chdir({str(ROOT)!r}); build_wheel(sys.argv[1])",
        folder,
    )
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.mark.backend_free
def test_the_wheel_holds_the_package_and_the_embedded_checkpoint(wheel):
    files = {str(path.relative_to(wheel)) for path in wheel.rglob("*.*")}
    embedded = "keras_mixer/embedded/mixer-ti4-cifar10"
    for name in ("config.json", "model.weights.h5", "README.md", "checksums.json"):
        assert f"{embedded}/{name}" in files
    modules = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
    assert modules <= files
    assert not [name for name in files if name.startswith(("tests", "examples"))]
    weights = wheel / embedded / "model.weights.h5"
    assert weights.stat().st_size < 6_000_000


def test_links_of_the_long_description_are_addresses(wheel):
    """PyPI has no files beside it; what they lead to is there at the tag."""
    (metadata,) = wheel.glob("*.dist-info/METADATA")
    headers, _, text = metadata.read_text(encoding="utf-8").partition("\n\n")
    assert "Description-Content-Type: text/markdown" in headers.splitlines()
    version = re.search(r"^Version: (.+)$", headers, re.M)[1]
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", text)
    own = (
        f"https://github.com/keras-mixer/keras_mixer/blob/v{version}/",
        f"https://raw.githubusercontent.com/keras-mixer/keras_mixer/v{version}/",
    )
    files = []
    for image, link in links:
        assert link.startswith("https://"), link
        if link.startswith(own):
            files.append(link)
            assert link.startswith(own[bool(image)]), link
            assert (ROOT / link.removeprefix(own[bool(image)])).is_file(), link
    assert len(files) > 20
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(re.findall(r"\]\(", readme)) == len(links)


@pytest.fixture
def site(tmp_path):
    """Installed packages but for the other backends and everything optional."""
    hidden = BACKENDS - {keras.config.backend()}
    hidden |= {"jaxlib"} if "jax" in hidden else set()
    hidden |= {"matplotlib", "PIL", "sklearn", "tensorflow_datasets"}
    hidden |= {"ai_edge_litert", "onnx", "onnxruntime", "openvino"}
    folder = tmp_path / "site"
    folder.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.name.split(".")[0] not in hidden:
            (folder / entry.name).symlink_to(entry)
    return folder


def test_the_wheel_works_with_one_backend_alone(wheel, site):
    code = """
import numpy as np
import keras_mixer
assert keras_mixer.__file__.startswith(sys.argv[1]), keras_mixer.__file__
model = keras_mixer.MixerTi4(weights="cifar10")
scores = model.predict(np.full((1, 32, 32, 3), 128, "uint8"), verbose=0)
print(abs(float(scores.sum()) - 1) < 1e-5)
print(*sorted({"jax", "tensorflow", "torch"} & set(sys.modules)))
"""
    # No site-packages: what is not named here is not there.
    alone = f"import sys; sys.path[:0] = [{str(wheel)!r}, {str(site)!r}]\n"
    result = subprocess.run(
        [sys.executable, "-S", "-c", alone + code, str(wheel)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["True", keras.config.backend()]


_LOADED = """
import sys
{statement}
print(*sorted({backends!r} & set(sys.modules)))
"""


def loaded_by(statement):
    code = _LOADED.format(statement=statement, backends=BACKENDS)
    return set(python(code).split())


@pytest.mark.backend_free
def test_importing_the_package_loads_no_backend():
    assert loaded_by("import keras_mixer") == set()


def test_a_model_loads_the_backend_that_is_used():
    # TensorFlow imports JAX where both are installed; that is not ours to change.
    used = loaded_by("import keras_mixer; keras_mixer.MixerB16")
    assert keras.config.backend() in used
    assert used == loaded_by("import keras")


@pytest.mark.backend_free
@pytest.mark.parametrize(
    "imports",
    [
        "import keras_mixer",
        nightly("import keras, keras_mixer"),
        "from keras_mixer.labels import decode_predictions",
        nightly("import keras_mixer, keras"),
        nightly("import keras_mixer.layers"),
        nightly("from keras_mixer.checkpoints import list_checkpoints"),
        nightly("from keras_mixer import data"),
        nightly("from keras_mixer.cli import main"),
    ],
)
def test_saved_models_load_after_the_import_alone(imports, tmp_path):
    path = ROOT / "tests" / "data" / "before_wings" / "finetuned.keras"
    code = f"""
import sys
{imports}
import keras
model = keras.saving.load_model(sys.argv[1])
print(type(model).__name__, type(model.optimizer).__name__)
"""
    assert python(code, path).split() == ["MLPMixer", "MomentumSGD"]


@pytest.mark.backend_free
def test_every_public_name_is_found():
    code = """
import keras_mixer
for name in keras_mixer.__all__:
    assert getattr(keras_mixer, name) is not None
    assert name in dir(keras_mixer)
print(keras_mixer.__version__)
"""
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", python(code).split()[-1])


@pytest.mark.backend_free
def test_names_of_the_lazy_door_are_those_of_the_type_checkers():
    source = (PACKAGE / "__init__.py").read_text(encoding="utf-8")
    (block,) = re.findall(r"^if TYPE_CHECKING:\n(.*?)^__all__", source, re.M | re.S)
    seen = re.findall(r"\w+", re.sub(r"from [\w.]+ import|__version__: str", "", block))
    import keras_mixer

    assert sorted(seen) == sorted(keras_mixer.__all__)


@pytest.mark.nightly
def test_the_test_above_can_fail():
    other = "tensorflow" if keras.config.backend() == "torch" else "torch"
    assert other not in loaded_by("import keras")
    assert other in loaded_by(f"import keras_mixer, {other}")
