"""README and documentation: code runs, commands parse, links lead somewhere."""

import inspect
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import keras_mixer
from keras_mixer.cli.main import parser

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "weights" / "RUNBOOK.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
REPOSITORY = "https://github.com/keras-mixer/keras_mixer/"

pytestmark = pytest.mark.backend_free


def blocks(page, language):
    """Return the (line, text) of every block in a language."""
    text = page.read_text(encoding="utf-8")
    pattern = rf"^```{language}\n(.*?)^```$"
    return [
        (text[: match.start(1)].count("\n") + 1, match[1])
        for match in re.finditer(pattern, text, re.M | re.S)
    ]


def offline(page):
    """Return the Python blocks that need no network; the others say `# online`."""
    found = blocks(page, "python")
    return [block for block in found if not block[1].startswith("# online")]


def commands(page):
    """Return the (line, words) of every command line, continued lines joined."""
    return [
        (line, words)
        for line, block in blocks(page, "sh")
        for command in block.replace("\\\n", " ").splitlines()
        if (words := shlex.split(command, comments=True))
    ]


def ids(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


WITH_CODE = [page for page in PAGES if offline(page)]
WITH_COMMANDS = [page for page in PAGES if commands(page)]


def test_there_is_something_to_test():
    assert len(WITH_CODE) > 8
    assert len(WITH_COMMANDS) > 8


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """The folder of a reader who has a photo, and a folder of pictures in classes."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)

    def draw(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(rng.integers(0, 256, (40, 60, 3), "uint8")).save(path)

    draw(tmp_path / "photo.jpg")
    for name in ("daisy", "rose"):
        for i in range(8):
            draw(tmp_path / "flowers" / name / f"{i}.jpg")
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.parametrize("page", WITH_CODE, ids=ids(WITH_CODE))
def test_code_runs(page, reader):
    """The blocks of a page are one program, as a reader types them one by one."""
    names = {"__name__": "__main__"}
    for line, block in offline(page):
        # The traceback of an error shows the line of the page.
        exec(compile("\n" * line + block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_code_is_python(page):
    for line, block in blocks(page, "python"):
        compile("\n" * line + block, str(page), "exec")


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=ids(WITH_COMMANDS))
def test_command_lines_are_understood(page):
    targets = re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.M)
    for line, words in commands(page):
        while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        where = f"{page}:{line}: {shlex.join(words)}"
        if words[0] == "keras-mixer":
            try:
                parser().parse_args(words[1:])
            except SystemExit:
                pytest.fail(f"{where}: not understood")
        elif words[0] == "make":
            assert words[1] in targets or words[1].startswith(".venv"), where
        elif words[0] == "python" and words[1] != "-c":
            assert (ROOT / words[1]).is_file(), where


def extras():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (table,) = re.findall(r"optional-dependencies\]\n(.*?)\n\[", text, re.S)
    return set(re.findall(r"^([\w-]+) = \[", table, re.M))


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_extras_exist(page):
    text = page.read_text(encoding="utf-8")
    for names in re.findall(r"'(?:\.|keras[_-]mixer)\[([\w,-]+)\]", text):
        assert set(names.split(",")) <= extras()


def test_every_extra_is_explained():
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert extras() == set(
        re.findall(r"`([\w-]+)`", "".join(re.findall(r"^\| (`.*?) \|", text, re.M)))
    )


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(REPOSITORY):
            path = link.removeprefix(REPOSITORY)
            assert (ROOT / re.sub("^(blob|tree)/main/", "", path)).exists(), link
        elif not re.match(r"https?:|#", link):
            assert (page.parent / link.split("#")[0]).exists(), link


def test_the_reference_has_every_public_subpackage():
    described = {page.stem for page in (ROOT / "docs" / "reference").glob("*.md")}
    modules = {
        name
        for name in keras_mixer.__all__
        if type(getattr(keras_mixer, name)).__name__ == "module"
    }
    assert modules == described - {"index", "keras_mixer"}


def test_the_reference_names_what_is_called_like_its_file():
    """mkdocstrings shows the file, and not the function in it, unless it is told to."""
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        wing = getattr(keras_mixer, page.stem, None)
        for file in (ROOT / "keras_mixer" / page.stem).glob("*.py"):
            if file.stem in getattr(wing, "__all__", ()):
                assert f"keras_mixer.{page.stem}.{file.stem}" in text, page


def test_every_public_function_and_class_has_a_docstring():
    for wing in keras_mixer.__all__:
        module = getattr(keras_mixer, wing)
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if inspect.isfunction(thing) or inspect.isclass(thing):
                assert (thing.__doc__ or "").strip(), f"{wing}.{name}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180
