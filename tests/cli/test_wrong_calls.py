"""Wrong calls: one sentence that says what came and what to do, and an exit status."""

import argparse
import errno
import importlib
import os
import re
import sys
from types import SimpleNamespace

import pytest

from keras_mixer.cli import early_checks, libraries
from keras_mixer.cli.main import main

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")

pytestmark = pytest.mark.backend_free

command_line = importlib.import_module("keras_mixer.cli.main")

# What the words alone tell: status 2. Paths below are of the fixture `place`.
USAGE = [
    ("", "the following arguments are required: COMMAND"),
    ("pretict photo.png", "invalid choice: 'pretict' (choose from 'models', 'pred"),
    ("models --nonsense", "unrecognized arguments: --nonsense"),
    ("models ''", "unrecognized arguments: "),
    ("models --variant Z/9", "--variant must be one of Ti/4, S/32, "),
    ("predict", "the following arguments are required: IMAGE"),
    ("predict ''", "IMAGE must not be empty"),
    ("predict https://example.org/a.png", "curl -L ADDRESS | keras-mixer predict -"),
    ("predict - -", "standard input, which is read once"),
    ("predict photo.png --top 0", "--top: must be a positive integer. Received: '0'"),
    ("predict photo.png --top few", "--top: must be a positive integer"),
    ("predict photo.png --top 2 b.png", "without a flag must stand together"),
    ("predict photo.png --variant B16", "--variant must be one of Ti/4"),
    ("predict photo.png --weights nonsense", "--weights 'nonsense'"),
    ("predict photo.png --weights gsam", "'gsam' exists for B/16, B/32"),
    ("predict photo.png --weights hf://owner", "hf://owner/name"),
    ("predict photo.png --model hf://a/b/c", "hf://owner/name"),
    ("predict photo.png --model m.keras --weights none", "not allowed with argument"),
    ("predict photo.png --model folder --variant B/16", "--variant: not allowed"),
    ("predict photo.png --model text.txt", "--model must be a folder of a published"),
    ("predict photo.png --json --csv", "--csv: not allowed with argument --json"),
    ("predict photo.png --plot chart.jpg", "--plot must end in .png"),
    ("finetune --output run", "the following arguments are required: --data"),
    ("finetune --data cifar10", "the following arguments are required: --output"),
    ("finetune {run} --steps 0", "--steps: must be a positive integer"),
    ("finetune {run} --steps 1.5", "--steps: must be a positive integer"),
    ("finetune {run} --batch-size -8", "--batch-size: must be a positive integer"),
    ("finetune {run} --learning-rate 0", "--learning-rate: must be a number above 0"),
    ("finetune {run} --learning-rate nan", "--learning-rate: must be a number above"),
    ("finetune {run} --grid 0.1 --learning-rate 1", "not allowed with argument"),
    ("finetune {run} --linear-probe --lora 4", "not allowed with argument"),
    ("finetune {run} --lora 0", "--lora: must be a positive integer"),
    ("finetune {run} --layer-decay 2", "must be a number above 0 and at most 1"),
    (
        "finetune {run} --label-smoothing 1",
        "must be a number of at least 0 and below 1",
    ),
    ("finetune {run} --ema 1", "--ema: must be a number of at least 0 and below 1"),
    ("finetune {run} --loss hinge", "--loss: invalid choice: 'hinge'"),
    ("finetune {run} --temperature 2", "--temperature needs --teacher"),
    ("finetune {run} --distillation-weight 1", "--distillation-weight needs --teacher"),
    ("finetune {run} --teacher B/16", "such as B/16:imagenet1k. Received: 'B/16'"),
    ("finetune {run} --teacher B/16:none", "--teacher must have weights"),
    ("finetune {run} --teacher B/16:no", "Received: --teacher 'B/16:no'. It has"),
    ("finetune {run} --teacher text.txt", "--teacher must be a folder of a published"),
    ("finetune {run} --randaugment 2 30", "a magnitude from 0 to 20. Received: 2 30"),
    ("finetune {run} --save-every 4 --validate-every 6", "multiple of --save-every"),
    ("finetune {run} --best --validation-split none", "--best needs a validation"),
    ("finetune {run} --distribute all", "--distribute must be mirrored, tpu"),
    ("finetune {run} --coordinator a:1", "--coordinator can be used only with"),
    ("finetune {run} --sam-rho -1", "--sam-rho: must be a number of at least 0"),
    ("finetune {run} --sam-rho 0.6 0.1", "the smaller first. Received: 0.6 0.1"),
    ("finetune {run} --gsam-alpha 0.5", "--gsam-alpha needs --sam-rho"),
    ("pretrain {run} --recipe sam --sam-rho 0 --gsam-alpha 1", "needs --sam-rho"),
    ("pretrain {run} --recipe best", "--recipe: invalid choice: 'best'"),
    ("finetune {run} --dtype float8", "--dtype must be float32"),
    ("finetune {run} --seed -1", "--seed: must be an integer from 0 to 2147483645"),
    ("pretrain {run} --stochastic-depth 1", "--stochastic-depth: must be a number"),
    ("pretrain {run} --weight-decay -1", "--weight-decay: must be a number of at"),
    ("evaluate", "the following arguments are required: --data"),
    ("evaluate --data cifar10 --match best", "--match: invalid choice: 'best'"),
    ("evaluate --data ''", "--data must name a data set or a folder"),
    ("fewshot --data cifar10 --shots 0", "--shots: must be a positive integer"),
    ("fewshot --data cifar10 --l2 -1", "--l2: must be a number of at least 0"),
    ("fewshot --data cifar10 --validation-split none", "--validation-split must be"),
    ("export model.pb", "TARGET must end in one of .onnx"),
    ("export model --format onnx", "TARGET must end in .onnx for --format onnx"),
    ("export model --format coreml", "--format: invalid choice: 'coreml'"),
    ("export m.onnx --count 1 --int8 .", "--count: must be an integer, 2 or more"),
    ("export folder/model --int8 .", "--int8 is for .onnx and .xml"),
    ("plot", "the following arguments are required: PICTURE"),
    ("plot filters picture.jpg", "PNG must end in .png. Received: 'picture.jpg'"),
    ("plot stem picture.png --count 0", "--count: must be a positive integer"),
    ("benchmark --variants XL/4", "--variants must be one of Ti/4"),
    ("benchmark --batch-sizes 0", "--batch-sizes: must be a positive integer"),
    ("benchmark --dtypes half", "--dtypes must be float32"),
    ("benchmark --input folder --train --plot a.png", "--train, --plot cannot be used"),
    ("benchmark --input folder --rounds 5", "--rounds cannot be used with --input"),
    ("tpu-compile --batch some", "--batch: must be a positive integer"),
    ("tpu-compile --variant B/17", "--variant must be one of Ti/4"),
    ("tpu-compile --backend torch", "argument --backend: invalid choice: 'torch'"),
    (
        "tpu-compile --backend tensorflow --model-devices 2",
        "--model-devices must be 1 with the backend tensorflow",
    ),
    ("convert photo.png new.keras", "SOURCE must be a folder of a published model"),
    ("convert weights.npz new.npy", "TARGET must end in .npz"),
    ("convert weights.npz ''", "TARGET must not be empty"),
    ("convert weights.npz new --value-range 1 0", "two numbers, the lower one first"),
    ("convert weights.npz new --input-shape 0 1 3", "--input-shape: must be a posit"),
    ("verify", "the following arguments are required: SOURCE"),
    ("publish weights.npz mixer", "OWNER/NAME must be two names. Received: 'mixer'"),
    ("publish --space a/b --timm --licence mit", "--timm, --licence cannot be used"),
    ("publish weights.npz a/b/c", "OWNER/NAME must be two names"),
]
# What is not there, or cannot be written: status 1.
FAILED = [
    ("predict absent.png", "There is no file or folder 'absent.png'"),
    ("predict photo.png --model absent.keras", "no file 'absent.keras' (--model)"),
    ("predict photo.png --model owner/name", "If you mean a repository on the Hub: hf"),
    ("predict photo.png --weights absent.npz", "no file 'absent.npz' (--weights)"),
    ("predict photo.png --labels absent.txt", "no file 'absent.txt' (--labels)"),
    ("predict photo.png --plot text.txt/a.png", "text.txt' is a file"),
    ("predict folder", "has no images"),
    ("finetune --data ./absent --output run", "no folder './absent' (--data)"),
    ("finetune --data text.txt --output run", "'text.txt' is a file"),
    ("finetune --data folder --output text.txt", "'text.txt' (--output) is a file"),
    ("finetune {run} --data-dir absent", "no folder 'absent' (--data-dir)"),
    ("finetune {run} --teacher B/16:absent.npz", "no file 'absent.npz' (--teacher)"),
    ("benchmark --input ./absent", "There is no folder './absent' (--input)"),
    ("evaluate --data cifar10 --real absent.json", "no file 'absent.json' (--real)"),
    ("evaluate --data cifar10 --real text.txt", "--real must be a JSON file"),
    ("evaluate --data cifar10 --json folder", "'folder' (--json) is a folder"),
    ("fewshot --data cifar10 --cache-dir text.txt", "(--cache-dir) is a file"),
    ("plot curves new.png absent.csv", "no file 'absent.csv' (LOG)"),
    ("convert absent.npz new.keras", "no file 'absent.npz' (SOURCE)"),
    ("convert weights.npz text.txt", "(TARGET) is a file"),
    ("convert photo.png weights.npz", "exists. Choose another name, or replace it wi"),
    ("verify absent", "There is no file or folder 'absent'"),
    ("verify weights.npz --same-as absent.npz", "'absent.npz' (--same-as)"),
    ("publish absent.npz owner/name", "no file 'absent.npz' (SOURCE)"),
    ("publish weights.npz owner/name", "Publishing needs a token of the Hub"),
    ("demo --output text.txt", "'text.txt' (--output) is a file"),
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory of the calls; a command that begins is a failure."""
    (tmp_path / "text.txt").write_text("no JSON")
    (tmp_path / "folder").mkdir()
    for name in ("photo.png", "b.png", "m.keras", "weights.npz", "b.xml", "b.pt2"):
        (tmp_path / name).write_text("anything")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    installed(monkeypatch)
    real = command_line.parser()

    def parse_args(arguments):
        options = real.parse_args(arguments)
        options.run = lambda options: pytest.fail("the command began")
        return options

    fake = SimpleNamespace(parse_args=parse_args)
    monkeypatch.setattr(command_line, "parser", lambda: fake)
    return tmp_path


def installed(monkeypatch, *missing):
    """All packages of the extras count as installed, but for some."""
    monkeypatch.setattr(early_checks, "is_installed", lambda name: name not in missing)


def complaint(call, capsys):
    """Make a wrong call; return its exit status, and the sentence it prints."""
    words = [
        word.strip("'")
        for word in call.format(run="--data cifar10 --output run").split()
    ]
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert not out and "Traceback" not in err
    first, *more = err.splitlines()
    assert first.startswith("keras-mixer")
    assert not more or more[0].startswith("Try 'keras-mixer")
    return status, first


def test_there_are_sixty_and_more():
    assert len({*USAGE, *FAILED}) > 60


@pytest.mark.parametrize(("call", "message"), USAGE)
def test_wrong_usage_is_one_sentence_and_status_2(call, message, place, capsys):
    before = sorted(place.rglob("*"))
    status, sentence = complaint(call, capsys)
    assert message in sentence
    assert status == 2
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(("call", "message"), FAILED)
def test_what_is_not_there_is_one_sentence_and_status_1(call, message, place, capsys):
    before = sorted(place.rglob("*"))
    status, sentence = complaint(call, capsys)
    assert message in sentence
    assert status == 1
    assert sorted(place.rglob("*")) == before


# --- paths ------------------------------------------------------------------------

# Options that name files or folders, by their metavars or their names.
PATHS = re.compile(r"FILE|FOLDER|PNG|IMAGE|LOG|SOURCE|TARGET|MODEL|^(model|weights)$")


def options_of(parser):
    """Yield every option of a parser and of the commands in it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from options_of(command)
        else:
            yield action


def test_every_path_begins_where_a_tilde_says(monkeypatch):
    """The shell leaves the `~` of `--model=~/run` as it is."""
    monkeypatch.setenv("HOME", "/home/somebody")
    found = [
        option
        for option in options_of(command_line.parser())
        if PATHS.search(str(option.metavar or option.dest)) and option.nargs != 0
    ]
    assert len(found) > 30
    for option in found:
        assert str(option.type("~/x")) == "/home/somebody/x", option
        assert str(option.type("hf://a/b")).startswith("hf:"), option
        assert str(option.type("~nobody-of-that-name/x")).startswith("~"), option


def test_a_tilde_after_an_equals_sign(place, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    for call, message in (
        ("predict photo.png --labels=~/no.txt", f"no file '{place}/no.txt' (--labels)"),
        ("predict photo.png --model=~/no.keras", f"'{place}/no.keras' (--model)"),
        ("benchmark --json=~/folder", f"'{place}/folder' (--json) is a folder"),
        ("finetune {run} --teacher B/16:~/no.npz", f"'{place}/no.npz' (--teacher)"),
    ):
        assert message in complaint(call, capsys)[1]


# --- the machine ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "status", "message"),
    [
        ("teapot", 2, "KERAS_BACKEND must be tensorflow, jax or torch. Received"),
        ("jax", 1, "The backend jax is not installed: pip install 'keras-mixer[jax]'"),
    ],
)
def test_an_unusable_backend(backend, status, message, place, capsys, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    installed(monkeypatch, "jax")
    found, sentence = complaint("predict photo.png", capsys)
    assert (found, message in sentence) == (status, True)


def test_the_backend_of_keras_own_file(place, monkeypatch):
    monkeypatch.delenv("KERAS_BACKEND")
    monkeypatch.setenv("KERAS_HOME", str(place))
    assert early_checks.backend() == "tensorflow"
    (place / "keras.json").write_text('{"backend": "jax"}')
    assert early_checks.backend() == "jax"


@pytest.mark.parametrize(
    ("missing", "asked", "taken"),
    [
        (["tensorflow", "torch"], None, "jax"),
        (["tensorflow", "torch"], "torch", "torch"),  # an error, and not another one
        (["torch"], None, None),  # Keras's own default is there
        (["tensorflow"], None, None),  # one of two would be a guess
    ],
)
def test_the_only_backend_is_taken(missing, asked, taken, place, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(place))
    monkeypatch.setenv("KERAS_BACKEND", asked or "")
    monkeypatch.setattr(libraries, "is_installed", lambda name: name not in missing)
    libraries.use_installed_backend()
    assert (os.environ["KERAS_BACKEND"] or None) == taken


@pytest.mark.parametrize(
    ("call", "missing", "extra"),
    [
        ("predict photo.png", "pillow", "keras-mixer[plot]"),
        ("predict photo.png --plot a.png", "matplotlib", "keras-mixer[plot]"),
        ("finetune {run}", "tensorflow-datasets", "keras-mixer[data]"),
        ("finetune {run} --tensorboard", "tensorboard", "keras-mixer[tensorboard]"),
        ("benchmark --input cifar10", "tensorflow-datasets", "keras-mixer[data]"),
        ("finetune {run} --teacher b.xml", "openvino", "keras-mixer[export]"),
        ("finetune {run} --teacher b.pt2", "torch", "keras-mixer[torch]"),
        ("export new", "tensorflow", "keras-mixer[tensorflow]"),
        ("export new.onnx", "onnxruntime", "keras-mixer[export]"),
        ("demo", "scikit-learn", "keras-mixer[demo]"),
    ],
)
def test_a_missing_package_names_its_extra(
    call, missing, extra, place, capsys, monkeypatch
):
    installed(monkeypatch, missing)
    status, sentence = complaint(call, capsys)
    assert status == 1
    assert f"pip install '{extra}'" in sentence


@pytest.mark.parametrize(
    ("backend", "call", "message"),
    [
        ("torch", "export new", "The backend torch cannot write tf_saved_model"),
        ("jax", "export new.pt2", "Set KERAS_BACKEND=torch"),
        ("torch", "tpu-compile", "set KERAS_BACKEND=jax"),
        ("jax", "finetune {run} --distribute ddp", "'ddp' with jax"),
    ],
)
def test_another_backend_is_needed(backend, call, message, place, capsys, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    status, sentence = complaint(call, capsys)
    assert (status, message in sentence) == (2, True)


# --- what goes wrong later --------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (ValueError("`top` must be 1"), 1, "--top must be 1"),
        (OSError(errno.ENOSPC, "No space left", "a.h5"), 1, "No space left: 'a.h5'"),
        (FloatingPointError("stopped"), 1, "stopped"),
        (MemoryError(), 1, "The memory of this machine is too small. Try smaller"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of"), 1, "The memory of this machine"),
        (RuntimeError("alloc: can't allocate memory: you tri"), 1, "The memory of thi"),
        (RuntimeError("a\n\n  b" + 9999 * "c"), 1, "a b" + "c" * 90),
        (RuntimeError("No TPU"), 1, "No TPU (KERAS_MIXER_TRACEBACK=1 shows where"),
        (KeyError("x"), 1, "KeyError: 'x' (KERAS_MIXER_TRACEBACK=1 shows where"),
        (ValueError("a\x1b[2J\x07"), 1, r"a\x1b[2J\x07"),
        (KeyboardInterrupt(), 130, "interrupted."),
    ],
)
def test_no_error_shows_a_traceback(
    error, status, sentence, place, capsys, monkeypatch
):
    options = command_line.parser().parse_args(["predict", "photo.png"])

    def run(options):
        raise error

    options.run, options.check = run, lambda options: None
    fake = SimpleNamespace(parse_args=lambda arguments: options)
    monkeypatch.setattr(command_line, "parser", lambda: fake)
    assert main([]) == status
    err = capsys.readouterr().err
    assert err.startswith(f"keras-mixer predict: {sentence}")
    assert len(err.splitlines()) == 1


def test_an_interrupted_run_says_how_to_go_on(place, capsys, monkeypatch):
    options = command_line.parser().parse_args(
        ["finetune", "--data", "cifar10", "--output", "run"]
    )

    def run(options):
        raise KeyboardInterrupt

    options.run, options.check = run, lambda options: None
    fake = SimpleNamespace(parse_args=lambda arguments: options)
    monkeypatch.setattr(command_line, "parser", lambda: fake)
    assert main([]) == 130
    assert "Run it again with --resume" in capsys.readouterr().err

    def stopped(options):
        interruption = KeyboardInterrupt()
        interruption.add_note("Go on from there with `resume=True`.")
        raise interruption

    options.run = stopped
    assert main([]) == 130
    assert capsys.readouterr().err.splitlines() == [
        "keras-mixer finetune: interrupted.",
        "Go on from there with --resume.",
    ]


def test_a_full_disk_behind_standard_output_is_a_failure(capsys, monkeypatch):
    class Full:
        def write(self, text):
            return len(text)

        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

        def fileno(self):
            raise OSError("no file")

    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["models"]) == 1
    assert "No space left on device" in capsys.readouterr().err
