"""A start in no time: what is loaded, and how long it takes, before a command runs."""

import argparse
import json
import os
import resource
import subprocess
import sys

import pytest

from keras_mixer.cli.main import parser

pytestmark = pytest.mark.backend_free

HEAVY = ("jax", "keras", "numpy", "tensorflow", "torch")


def commands(new=None):
    """All commands with their subcommands, as words."""
    for action in (new or parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield (name,)
                yield from ((name, *more) for more in commands(command))


COMMANDS = [words for words in commands()]


def python(code, *arguments, **environment):
    """Run code in a new process; return its output and the seconds it computed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert result.returncode == 0, result.stderr
    return result.stdout, seconds


_LOADED = """
import contextlib, io, json, sys
from keras_mixer.cli import main
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        with contextlib.redirect_stderr(out), contextlib.suppress(SystemExit):
            main(arguments)
    assert out.getvalue(), arguments
print(*sorted(set(json.loads(sys.argv[2])) & set(sys.modules)))
"""


def loaded_by(*calls):
    out, _ = python(_LOADED, json.dumps(calls), json.dumps(HEAVY))
    return set(out.split())


def test_there_are_all_commands():
    names = {" ".join(words) for words in COMMANDS}
    assert names == {
        *("models", "predict", "finetune", "pretrain", "evaluate", "fewshot"),
        *("export", "plot", "plot filters", "plot stem", "plot curves"),
        "plot evidence",
        *("benchmark", "tpu-compile", "convert", "verify", "publish", "demo"),
        "app",
    }


def test_help_version_and_wrong_words_load_nothing_heavy():
    helps = [[*words, "--help"] for words in COMMANDS]
    wrong = [["pretict"], ["predict"], ["finetune", "--steps", "0"], ["--nonsense"]]
    assert loaded_by(["--help"], ["--version"], *helps, *wrong) == set()


def test_missing_files_and_wrong_names_load_no_backend():
    loaded = loaded_by(
        ["predict", "absent.png"],
        ["predict", "https://example.org/photo.jpg"],
        ["convert", "absent.npz", "new.keras"],
        ["publish", "absent.npz", "no-slash"],
        ["evaluate", "--data", "./absent"],
        ["finetune", "--data", "cifar10", "--output", "/dev/null/run"],
        ["plot", "curves", "new.png", "absent.csv"],
        ["predict", ".", "--variant", "B/17"],
    )
    assert loaded <= {"numpy"}


def test_models_and_names_of_weights_load_no_keras():
    loaded = loaded_by(["models"], ["predict", ".", "--weights", "nonsense"])
    assert loaded <= {"numpy"}


def test_the_package_runs_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "keras_mixer", "predict", "absent.png"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == (
        "keras-mixer predict: There is no file or folder 'absent.png'.\n"
    )


@pytest.mark.parametrize(
    ("words", "limit"),
    [(["--help"], 0.4), (["predict", "absent.png"], 0.4), (["models"], 0.8)],
)
def test_the_answer_is_there_at_once(words, limit):
    code = "import sys; from keras_mixer.cli import main; main(sys.argv[1:])"
    seconds = min(python(code, *words)[1] for _ in range(2))
    assert seconds < 2 * limit  # the machine may be busy


@pytest.mark.parametrize("words", [(), *COMMANDS], ids=" ".join)
def test_every_help_ends_with_examples_and_exit_statuses(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parser().parse_args([*words, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: keras-mixer")
    _, examples = text.split("\nexamples:\n")
    *lines, empty, status = examples.rstrip("\n").split("\n")
    assert status == (
        "exit status: 0 done, 1 failed or partly failed, 2 wrong usage, 130 interrupted"
    )
    name = " ".join(["keras-mixer", *words])
    calls = [line for line in lines if line.startswith(f"  {name}")]
    assert 2 <= len(calls) <= 3 and not empty


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_examples_are_right_calls(words, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args([*words, "--help"])
    text = capsys.readouterr().out.split("\nexamples:\n")[1].replace("\\\n", " ")
    for line in text.split("\n"):
        if line.startswith("  keras-mixer"):
            call = line.split("<")[0].split(">")[0].split()[1:]
            parser().parse_args(call)


_IMPORT = """
import os, sys
from keras_mixer.cli.libraries import keep_quiet
keep_quiet(owns_process=True)
import tensorflow
os.write(2, b"still open")
"""
_FAILING = "import os\nos.write(2, b'a line of the log')\nraise ImportError('no AVX')\n"


def error_output(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("TF_CPP")}
        | environment,
    )
    return result.stderr


def test_tensorflow_writes_nothing_while_it_is_imported():
    pytest.importorskip("tensorflow")
    assert error_output(_IMPORT) == "still open"


def test_what_it_wrote_is_shown_if_it_cannot_be_imported(tmp_path):
    (tmp_path / "tensorflow.py").write_text(_FAILING)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    text = error_output(_IMPORT, PYTHONPATH=path)
    assert text.startswith("a line of the log") and "no AVX" in text


def test_its_own_variables_let_it_speak(tmp_path):
    (tmp_path / "tensorflow.py").write_text(_FAILING.replace("raise", "#"))
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    text = error_output(_IMPORT, PYTHONPATH=path, TF_CPP_MIN_LOG_LEVEL="0")
    assert text == "a line of the logstill open"


def test_compiled_programs_of_jax_are_kept_unless_one_says_where(monkeypatch):
    from keras_mixer.cli.libraries import keep_compiled_programs

    names = ("MAX_SIZE", "DIR")
    monkeypatch.setattr(os, "environ", {"XDG_CACHE_HOME": "caches"})
    os.environ["KERAS_BACKEND"] = "torch"
    keep_compiled_programs()
    assert not any(f"JAX_COMPILATION_CACHE_{name}" in os.environ for name in names)
    os.environ["KERAS_BACKEND"] = "jax"
    keep_compiled_programs()
    expected = os.path.join("caches", "keras_mixer", "jax")
    assert os.path.dirname(os.environ["JAX_COMPILATION_CACHE_DIR"]) == expected
    os.environ["JAX_COMPILATION_CACHE_DIR"] = ""
    keep_compiled_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == ""


_WARNS = """
import warnings
from keras_mixer.cli.libraries import keep_quiet
keep_quiet(owns_process=True)
warnings.warn_explicit("Corrupt EXIF data", UserWarning, "a.py", 1, module="PIL.Image")
warnings.warn_explicit("one picture is left out", UserWarning, "b.py", 1, module="b")
"""


@pytest.mark.parametrize("level", ["", "0"])
def test_warnings_of_pillow_that_name_no_file_are_not_shown(level):
    environment = os.environ | ({"TF_CPP_MIN_LOG_LEVEL": level} if level else {})
    result = subprocess.run(
        [sys.executable, "-c", _WARNS], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert "left out" in result.stderr and "EXIF" not in result.stderr
