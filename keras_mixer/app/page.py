"""The page: what a person sees and touches, as components of Gradio."""

import functools
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from keras_mixer.app.answers import (
    Method,
    as_csv,
    classify,
    columns,
    evidence_picture,
    filters_picture,
    table,
)
from keras_mixer.app.drawings import write_drawings
from keras_mixer.app.limits import MEBIBYTE, Limits
from keras_mixer.app.shelf import PRECISIONS, Precision, Shelf, about
from keras_mixer.preprocessing import SUFFIXES

_LOG = logging.getLogger(__name__)
_BARS = 5  # classes of the bar chart
_INTRO = """# keras_mixer
A picture in, its class out, by an MLP-Mixer: a network that mixes patches and channels
with small MLPs alone. Your pictures stay on the machine that runs this page."""

_EVIDENCE = """
The score of a class is a sum of one share per patch. Red patches give more than the
mean share, blue ones less. A share is where the evidence ends, not where it came
from."""

# Focus that can be seen, no wider than a phone, and controls as high as a thumb.
STYLE = """
.gradio-container { max-width: 1080px !important; margin: 0 auto !important; }
.gradio-container *:focus-visible { outline: 3px solid #2563eb !important;
  outline-offset: 2px; }
.examples { display: grid !important; grid-template-columns: repeat(2, 1fr); gap: 8px; }
.examples button { min-width: 0 !important; min-height: 44px; }
.examples button img { width: 32px !important; height: 32px !important;
  border-radius: 4px; }
@media (max-width: 640px) {
  .gradio-container { padding: 8px !important; }
  .gradio-container button { min-height: 44px; }
}
"""


def theme() -> Any:
    """Return the look of the page: fonts of the reader's own machine."""
    return gr.themes.Default(
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )


class _Handlers:
    """What happens when somebody touches the page. One model serves all of them."""

    def __init__(self, shelf: Shelf, limits: Limits) -> None:
        self.shelf, self.limits = shelf, limits

    def load(
        self,
        source: str,
        precision: Precision,
        progress: Any = gr.Progress(track_tqdm=True),  # noqa: B008
    ) -> tuple[str, Any]:
        """Return what the model is, and the range of its blocks."""
        progress(0, desc="Loading the weights")
        model = self.shelf.get(source, precision)
        progress(1, desc="Loaded")
        return about(source, model, precision), gr.update(
            maximum=len(model.blocks) - 1, value=0
        )

    def classify(
        self, files: list[str] | None, source: str, precision: Precision
    ) -> tuple[Any, ...]:
        """Return what was left out, the names of the others, the table, the CSV."""
        model = self.shelf.get(source, precision)
        paths = [Path(file) for file in files or ()]
        results = classify(model, paths, self.limits)
        problems = [r.picture.problem for r in results if r.picture.problem]
        if len(problems) == len(results):
            raise ValueError(" ".join(problems[:3]))
        rows = table(results)
        shown = next(i for i, result in enumerate(results) if result.classes)
        several = len(results) > 1
        return (
            _notice(problems),
            gr.update(
                choices=[
                    (f"{i + 1}. {result.picture.name}", i)
                    for i, result in enumerate(results)
                    if result.classes
                ],
                value=shown,
                visible=several,
            ),
            gr.update(value=rows, visible=several),
            gr.update(value=_written(as_csv(rows)), visible=several),
        )

    def show(
        self,
        files: list[str] | None,
        number: int | None,
        source: str,
        precision: Precision,
    ) -> tuple[Any, ...]:
        """Return the bars of a picture, and its classes to choose from."""
        model = self.shelf.get(source, precision)
        path = _chosen(files, number)
        (result,) = classify(model, [path], self.limits)
        if not result.classes:
            raise ValueError(result.picture.problem)
        choices = [(f"{name} ({score:.1%})", i) for i, name, score in result.classes]
        bars = {name: score for _, name, score in result.classes[:_BARS]}
        return bars, gr.update(choices=choices, value=choices[0][1])

    def evidence(
        self,
        files: list[str] | None,
        number: int | None,
        class_index: int | None,
        method: Method,
        source: str,
        precision: Precision,
    ) -> Any:
        """Return the evidence map of a picture."""
        model = self.shelf.get(source, precision)
        path = _chosen(files, number)
        index = None if class_index is None else int(class_index)
        return evidence_picture(model, path, index, method, self.limits)

    def filters(self, block: int, source: str, precision: Precision) -> Any:
        """Return the filters of a block."""
        return filters_picture(self.shelf.get(source, precision), int(block))


def _notice(problems: list[str]) -> Any:
    text = "".join(f"- {_plain(problem)}\n" for problem in problems)
    head = "These files were left out:\n\n" if problems else ""
    return gr.update(value=head + text, visible=bool(problems))


def _plain(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>()#!|~$&" else c for c in text)


def _chosen(files: list[str] | None, number: int | None) -> Path:
    if not files:
        raise ValueError("There is no picture yet. Drop one, or take an example.")
    number = int(number or 0)
    if not 0 <= number < len(files):
        raise ValueError(f"There is no picture {number + 1}.")
    return Path(files[number])


def _written(text: str) -> str:
    """Return the path of a new file, in the folder whose old files are removed."""
    from gradio.utils import get_upload_folder

    folder = tempfile.mkdtemp(dir=get_upload_folder())
    path = Path(folder) / "classes.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def _with_sentence(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler whose errors reach the person as a sentence."""

    @functools.wraps(function)
    def handler(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except (ValueError, OSError, ImportError) as error:
            sentence = _sentence(error)
        except MemoryError:
            sentence = "This machine has not enough memory for this request."
        except Exception:
            _LOG.exception("A request failed")
            sentence = (
                "An error in the demo, not in what you chose: the terminal shows it."
            )
        raise gr.Error(sentence, duration=15, print_exception=False)

    return handler


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace("<", "\N{SINGLE LEFT-POINTING ANGLE QUOTATION MARK}")


def page(shelf: Shelf, precision: Precision, limits: Limits, drawings: Path) -> Any:
    """Return the page as Gradio's `Blocks`.

    Args:
        shelf: The models.
        precision: What is chosen at the start.
        limits: What a request may be.
        drawings: Folder for the examples.
    """
    with gr.Blocks(title="keras_mixer", analytics_enabled=False) as blocks:
        gr.Markdown(_INTRO)
        parts: dict[str, Any] = {}
        with gr.Row():
            with gr.Column(min_width=300):
                parts |= _pictures(limits, drawings) | _model(shelf, precision)
            with gr.Column(min_width=300):
                parts |= _results()
        with gr.Tab("Evidence"):
            parts |= _evidence()
        with gr.Tab("Filters"):
            last = len(shelf.get(shelf.first, precision).blocks) - 1
            parts["block"] = gr.Slider(0, last, value=0, step=1, label="Block")
            parts["filters"] = _shown("Token-mixing filters of the block")
        _connect(blocks, parts, _Handlers(shelf, limits))
    return blocks.queue(
        max_size=limits.queue, default_concurrency_limit=1, api_open=False
    )


def _pictures(limits: Limits, drawings: Path) -> dict[str, Any]:
    size = limits.picture_bytes // MEBIBYTE
    files = gr.File(
        label=f"Pictures: up to {limits.pictures}, of {size} MiB each",
        file_count="multiple",
        file_types=list(SUFFIXES),
        height=160,
        elem_id="pictures",
    )
    gr.Markdown("Or take one of these drawings:")
    with gr.Row(elem_classes="examples"):
        for name, path in write_drawings(drawings).items():
            button = gr.Button(name, icon=str(path), size="sm", min_width=130)
            button.click(
                functools.partial(_example, str(path)),
                outputs=files,
                queue=False,
                api_visibility="private",
            )
    return {"files": files}


def _example(path: str) -> list[str]:
    return [path]


def _model(shelf: Shelf, precision: Precision) -> dict[str, Any]:
    info = "Choose one of the list."
    if shelf.any_source:
        info = (
            "Choose one of the list, or type hf://owner/name or the path of a file or "
            "folder."
        )
    return {
        "source": gr.Dropdown(
            shelf.names,
            value=shelf.first,
            label="Model and weights",
            info=info,
            allow_custom_value=shelf.any_source,
            elem_id="model",
        ),
        "precision": gr.Radio(
            list(PRECISIONS), value=precision, label="Precision", elem_id="precision"
        ),
        "facts": gr.Markdown("", elem_id="facts", min_height=50),
    }


def _results() -> dict[str, Any]:
    return {
        "notice": gr.Markdown(visible=False, elem_id="notice"),
        "number": gr.Dropdown(
            [], label="Picture", visible=False, elem_id="picture", type="value"
        ),
        "bars": gr.Label(label="Classes", num_top_classes=_BARS, elem_id="classes"),
        "table": gr.Dataframe(
            headers=columns(),
            label="All pictures",
            visible=False,
            interactive=False,
            wrap=True,
            max_height=320,
            elem_id="table",
        ),
        "csv": gr.DownloadButton(
            "Download the table (CSV)", visible=False, elem_id="csv"
        ),
    }


def _evidence() -> dict[str, Any]:
    gr.Markdown(_EVIDENCE)
    with gr.Row():
        class_index = gr.Dropdown([], label="Class", min_width=200, elem_id="class")
        method = gr.Radio(
            [("exact shares", "exact"), ("occlusion, slower", "occlusion")],
            value="exact",
            label="Method",
            min_width=200,
            elem_id="method",
        )
    return {
        "class": class_index,
        "method": method,
        "evidence": _shown("Evidence map"),
    }


def _shown(name: str) -> Any:
    return gr.Image(
        label=name,
        alt_text=name,
        format="png",
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_id=name.split()[0].lower(),
    )


def _connect(blocks: Any, parts: dict[str, Any], handlers: _Handlers) -> None:
    """Connect events to handlers: model first, then pictures, then evidence."""
    model = [parts["source"], parts["precision"]]
    one = [parts["files"], parts["number"]]
    load = (_with_sentence(handlers.load), model, [parts["facts"], parts["block"]])
    draw = (
        _with_sentence(handlers.filters),
        [parts["block"], *model],
        parts["filters"],
    )
    classify = (
        _with_sentence(handlers.classify),
        [parts["files"], *model],
        [parts[name] for name in ("notice", "number", "table", "csv")],
    )
    show = (
        _with_sentence(handlers.show),
        [*one, *model],
        [parts["bars"], parts["class"]],
    )
    explain = (
        _with_sentence(handlers.evidence),
        [*one, parts["class"], parts["method"], *model],
        parts["evidence"],
    )
    step = {"concurrency_id": "model", "show_progress": "minimal"}
    long = {"concurrency_id": "model", "show_progress": "full"}
    hidden = {**step, "api_visibility": "private"}

    def from_here(event: Any) -> None:
        event.success(*show, **hidden).success(*explain, **hidden)

    blocks.load(*load, **long, api_name="load").success(*draw, **hidden)
    for part in model:
        event = part.change(*load, **long, api_visibility="private")
        event.success(*draw, **hidden)
        again = event.success(*classify, **hidden)
        from_here(again)
    from_here(parts["files"].change(*classify, **long, api_name="classify"))
    event = parts["number"].input(*show, **step, api_name="show")
    event.success(*explain, **hidden)
    parts["class"].input(*explain, **long, api_visibility="private")
    parts["method"].change(*explain, **long, api_name="evidence")
    parts["block"].change(*draw, **step, trigger_mode="always_last", api_name="filters")
