"""Names of classes as text of a figure: short, and in letters that a font here has."""

import functools
from typing import Any

_PLACEHOLDER = "\N{WHITE SQUARE}"
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def short_name(name: str, length: int = 26) -> str:
    """Return a name that fits beside an axis."""
    return name if len(name) <= length else name[: length - 1] + _ELLIPSIS


def readable(name: str, class_id: str | int) -> str:
    """Return a short name that can be drawn on this machine.

    A letter that no installed font has, or that is a control character, becomes a
    square; the class's number is then added, so that two such names can be told apart.
    """
    fonts = _fonts_of(name)
    if name and fonts is not None and name.isprintable():
        return short_name(name)
    shown = "".join(
        letter
        if letter.isprintable() and _font_of(letter) is not None
        else _PLACEHOLDER
        for letter in name
    )
    return f"{short_name(shown, 18)} ({class_id})"


def text_style(*texts: str) -> dict[str, Any]:
    """Return the arguments with which matplotlib draws such texts as they are."""
    fonts = dict.fromkeys(
        font for text in texts for letter in text if (font := _font_of(letter))
    )
    style: dict[str, Any] = {"parse_math": False}
    if list(fonts) not in ([], [_default_font()]):
        # matplotlib takes each letter from the first font of the list that has it.
        style["fontfamily"] = list(dict.fromkeys([_default_font(), *fonts]))
    return style


def _fonts_of(name: str) -> set[str] | None:
    """Return the fonts that a name needs; `None` if one of its letters has none."""
    fonts = {_font_of(letter) for letter in name}
    return None if None in fonts else {font for font in fonts if font}


@functools.cache
def _font_of(letter: str) -> str | None:
    """Return the name of an installed font that has a letter, or `None`."""
    if ord(letter) in _letters_of(_default_path()):
        return _default_font()
    from matplotlib.font_manager import fontManager

    for font in sorted(fontManager.ttflist, key=lambda font: (font.name, font.fname)):
        # The last-resort font has a box for every letter, which says nothing.
        if "Last Resort" not in font.name and ord(letter) in _letters_of(font.fname):
            return font.name
    return None


@functools.cache
def _letters_of(path: str) -> frozenset[int]:
    """Return the code points of a font; none if matplotlib cannot read it."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # such as fonts of coloured pictures
        return frozenset()


@functools.cache
def _default_path() -> str:
    from matplotlib.font_manager import FontProperties, findfont

    return str(findfont(FontProperties()))


@functools.cache
def _default_font() -> str:
    from matplotlib.font_manager import get_font

    return get_font(_default_path()).family_name
