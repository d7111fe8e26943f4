import argparse

import pytest

from keras_mixer.cli.messages import escaped, in_flags, sentence_of

pytestmark = pytest.mark.backend_free

OPTIONS = argparse.Namespace(
    total_steps=1,
    dtype=None,
    use_best=True,
    force=False,
    target="a.onnx",
    int8=None,
    run=print,
    flags={"path": "TARGET"},
)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (
            "`total_steps` must be positive. Received: total_steps=0",
            "--steps must be positive. Received: --steps 0",
        ),
        ("`use_best` needs it", "--best needs it"),
        (
            "Replace it with `overwrite=True` (`--force` on the command line).",
            "Replace it with --force.",
        ),
        ('Set `dtype="float32"`.', "Set --dtype float32."),
        ("`path` must end in .onnx", "TARGET must end in .onnx"),
        ("`calibration_images` must be 2", "--int8 must be 2"),
        # No flags of this command.
        ("`model` must end in logits: model=3", "`model` must end in logits: model=3"),
        ("`run` and `flags`", "`run` and `flags`"),
        ("a path=3 and `a total_steps`", "a TARGET 3 and `a total_steps`"),
    ],
)
def test_arguments_become_flags(said, shown):
    assert in_flags(said, OPTIONS) == shown


def test_control_characters_and_broken_names_are_escaped():
    assert escaped("café 猫") == "café 猫"
    assert escaped("a\nb\x1b[0m\u202e\udce9") == r"a\nb\x1b[0m\u202e\udce9"


def test_every_error_says_something():
    assert sentence_of(OSError(2, "No such file", "x\n")) == r"No such file: 'x\n'"
    assert sentence_of(OSError(28, "No space left")) == "No space left."
    assert sentence_of(AssertionError()) == "AssertionError"
