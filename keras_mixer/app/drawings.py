"""The pictures to try: drawn here, so that no photo of anybody's has to be shipped.

Each shows a class of CIFAR-10, which the embedded checkpoint knows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

Colour = tuple[int, int, int]

EDGE = 256  # pixels of a finished picture
_SCALE = 2  # drawn larger, so that edges are smooth


class _Canvas:
    """A picture in coordinates from 0 to 256 that begins as a sky."""

    def __init__(self, top: Colour, bottom: Colour) -> None:
        from PIL import Image, ImageDraw

        size = EDGE * _SCALE
        weight = np.linspace(0, 1, size)[:, None, None]
        colours = np.array(top) * (1 - weight) + np.array(bottom) * weight
        pixels = np.broadcast_to(colours, (size, size, 3)).astype("uint8")
        self.image: Image.Image = Image.fromarray(pixels)
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, fill: Colour, *points: tuple[float, float]) -> None:
        self.draw.polygon([(x * _SCALE, y * _SCALE) for x, y in points], fill=fill)

    def box(self, fill: Colour, *edges: float) -> None:
        """Fill from left, top to right, bottom."""
        self.draw.rectangle([edge * _SCALE for edge in edges], fill=fill)

    def ellipse(self, fill: Colour, *edges: float) -> None:
        self.draw.ellipse([edge * _SCALE for edge in edges], fill=fill)

    def wheel(self, x: float, y: float, radius: float) -> None:
        for share, fill in ((1.0, (25, 25, 28)), (0.46, (175, 178, 182))):
            r = radius * share
            self.ellipse(fill, x - r, y - r, x + r, y + r)

    def finished(self) -> "Image":
        """Return the picture a little blurred and with noise, as a photo has both."""
        from PIL import Image, ImageFilter

        image = self.image.filter(ImageFilter.GaussianBlur(1.5 * _SCALE))
        image = image.resize((EDGE, EDGE), Image.Resampling.LANCZOS)
        noise = np.random.default_rng(0).normal(0, 4, (EDGE, EDGE, 1))
        pixels = np.clip(np.asarray(image) + noise, 0, 255)
        return Image.fromarray(pixels.astype("uint8"))


def _ship() -> _Canvas:
    c = _Canvas((150, 185, 220), (215, 228, 240))
    c.box((40, 85, 130), 0, 165, 256, 256)
    for y in range(172, 256, 8):
        c.polygon((60, 105, 150), (0, y), (256, y + 2), (256, y + 4), (0, y + 2))
    c.polygon((45, 45, 55), (25, 140), (231, 140), (205, 185), (50, 185))
    c.polygon((150, 40, 35), (42, 172), (212, 172), (205, 187), (50, 187))
    c.box((240, 240, 240), 70, 112, 190, 140)
    c.box((225, 225, 228), 85, 90, 165, 112)
    c.box((190, 60, 45), 108, 58, 128, 90)
    c.box((70, 70, 70), 189, 60, 191, 140)
    for x in range(78, 186, 14):
        c.box((70, 90, 110), x, 120, x + 6, 127)
    return c


def _airplane() -> _Canvas:
    c = _Canvas((90, 145, 215), (190, 215, 240))
    c.ellipse((238, 240, 244), 30, 108, 226, 142)
    c.polygon((180, 186, 196), (110, 125), (165, 125), (90, 205), (68, 205))
    c.polygon((200, 205, 214), (118, 115), (155, 115), (105, 62), (88, 62))
    c.polygon((60, 80, 140), (34, 118), (66, 112), (42, 68), (22, 68))
    c.box((120, 130, 150), 60, 130, 215, 132)
    return c


def _automobile() -> _Canvas:
    c = _Canvas((185, 200, 215), (220, 225, 228))
    c.box((110, 110, 112), 0, 150, 256, 256)
    c.polygon((165, 25, 30), (70, 128), (95, 88), (170, 88), (200, 128))
    c.polygon((70, 85, 100), (82, 126), (100, 95), (132, 95), (132, 126))
    c.polygon((70, 85, 100), (138, 126), (138, 95), (166, 95), (186, 126))
    c.draw.rounded_rectangle(
        [edge * _SCALE for edge in (25, 124, 235, 178)], 20 * _SCALE, (195, 30, 35)
    )
    c.box((60, 20, 22), 25, 165, 235, 182)
    c.wheel(75, 180, 24)
    c.wheel(188, 180, 24)
    c.ellipse((255, 245, 200), 222, 135, 236, 150)
    return c


def _horse() -> _Canvas:
    c = _Canvas((165, 195, 225), (210, 225, 235))
    brown, dark = (95, 55, 30), (40, 25, 15)
    c.box((105, 140, 60), 0, 170, 256, 256)
    c.ellipse(brown, 65, 95, 185, 155)
    c.polygon(brown, (160, 110), (190, 130), (215, 75), (195, 55))
    c.polygon(brown, (192, 55), (212, 50), (244, 85), (236, 98), (205, 85))
    c.polygon(brown, (196, 58), (204, 38), (210, 56))
    for x in (75, 92, 158, 174):
        c.polygon((80, 45, 25), (x - 8, 140), (x + 8, 140), (x + 4, 215), (x - 5, 215))
    c.polygon(dark, (70, 105), (52, 125), (48, 175), (60, 170), (75, 120))
    c.polygon(dark, (160, 108), (190, 52), (200, 56), (172, 118))
    return c


DRAWINGS: dict[str, Callable[[], Any]] = {
    "ship": _ship,
    "airplane": _airplane,
    "automobile": _automobile,
    "horse": _horse,
}


def draw(name: str) -> "Image":
    """Return a drawing as a PIL image of 256 x 256 pixels."""
    return DRAWINGS[name]().finished()


def write_drawings(folder: Path) -> dict[str, Path]:
    """Write all drawings into a folder; return name -> file."""
    paths = {name: folder / f"{name}.png" for name in DRAWINGS}
    for name, path in paths.items():
        draw(name).save(path)
    return paths
