"""Names are drawn in letters that a font here has, and stay different."""

import io

import numpy as np
import pytest

from keras_mixer import visualize
from keras_mixer.visualize import names
from keras_mixer.visualize.names import readable, text_style

pytestmark = pytest.mark.backend_free
pytest.importorskip("matplotlib")

# A letter of a private plane: no font of a distribution has it.
NOWHERE = chr(0x10FF00)


def test_names_of_common_letters_stay_as_they_are():
    for name in ("cat", "na\u00efve \u03a9", "\u043a\u043e\u0442", "$x$_^"):
        assert readable(name, 3) == name
        assert text_style(name) == {"parse_math": False}
    assert readable("a" * 60, 3) == "a" * 25 + "\u2026"


def test_letters_without_a_font_become_squares_with_the_number():
    assert readable(f"{NOWHERE} cat", 3) == "\u25a1 cat (3)"
    one, other = (readable(NOWHERE, number) for number in (1, 2))
    assert one != other
    assert readable("two\nlines\x1b[2J", 4) == "two\u25a1lines\u25a1[2J (4)"
    assert readable("", 5) == " (5)"


def test_another_font_is_taken_where_it_has_the_letter(monkeypatch):
    # DejaVu Sans has no such letter; matplotlib's own fonts for formulas do.
    monkeypatch.setattr(names, "_letters_of", letters_of(names._letters_of))
    names._font_of.cache_clear()
    letter = "\u732b"
    assert readable(letter, 0) == letter
    families = text_style(letter, "a")["fontfamily"]
    assert families[0] == "DejaVu Sans" and len(families) == 2
    monkeypatch.undo()
    names._font_of.cache_clear()


def letters_of(real):
    """Let one of the installed fonts have a letter more."""

    def letters(path):
        return real(path) | ({0x732B} if "STIXGeneral" in path else set())

    return letters


def test_no_warning_of_missing_glyphs_in_any_figure():
    labels = [f"{NOWHERE}\u732b", "\u732b", "plain"]
    scores = np.array([[0.1, 0.7, 0.2]])
    picture = np.zeros((1, 4, 4, 3))
    for figure in (
        visualize.confusion_matrix(np.eye(3), labels),
        visualize.predictions(picture, scores, labels, [0]),
    ):
        figure.savefig(io.BytesIO())
