"""Draw the pictures of the documentation with the package itself.

    KERAS_BACKEND=jax python docs/make_images.py

needs the extra `plot`. Writes `docs/images/*.png`: filters of the embedded checkpoint,
and what it says of the three drawings of `examples/notebooks/first_steps.ipynb`.
"""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL.Image import Image

from keras_mixer import MixerTi4, preprocess, visualize

FOLDER = Path(__file__).parent / "images"
NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebooks" / "first_steps.ipynb"


def main() -> None:
    """Draw every picture."""
    model = MixerTi4(weights="cifar10")
    write("filters.png", visualize.token_mixing_filters(model))
    write("stem.png", visualize.stem_filters(model))

    pictures = drawings()
    scores = model.predict(preprocess(pictures, model), verbose=0)
    shown = [np.asarray(picture) for picture in pictures]
    write("predictions.png", visualize.predictions(shown, scores, model.labels))
    write("evidence.png", visualize.evidence_figure(model, pictures[2]))


def drawings() -> list[Image]:
    """Return the airplane, the ship and the car that the notebook draws."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    (source,) = (
        text for cell in cells if "def plane" in (text := "".join(cell["source"]))
    )
    names: dict = {}
    exec(f"from PIL import Image, ImageDraw\n{source}", names)
    return names["pictures"]


def write(name: str, figure: Figure) -> None:
    """Write a figure, small enough for a page."""
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / name, dpi=100, pil_kwargs={"optimize": True})
    print(f"{FOLDER / name}: {(FOLDER / name).stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
