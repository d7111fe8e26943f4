"""The command `predict`: pictures in, the names of their classes out."""

import argparse
import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from keras_mixer.cli.arguments import (
    add_command,
    add_labels,
    add_model_options,
    check_chosen_model,
    chosen_model,
    expanded,
    integer,
    path_of,
    read_labels,
)
from keras_mixer.cli.early_checks import check_file, check_packages, check_plot
from keras_mixer.cli.messages import UsageError, complain, escaped, sentence_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from keras_mixer.cli.arguments import Commands
    from keras_mixer.labels import Prediction
    from keras_mixer.models import MLPMixer

STANDARD_INPUT = Path("-")
PAGE = 40  # pictures of one plot
_BATCH = 32
_MAX_BYTES = 2**28  # of a picture that comes through a pipe
_THUMBNAIL = 320  # pixels of the longer edge


class _Picture(NamedTuple):
    """One picture that could be read."""

    path: Path
    pixels: "NDArray[np.float32]"  # what the model takes
    thumbnail: "NDArray[np.uint8] | None"  # what a person sees, for --plot


class _Result(NamedTuple):
    """One picture and its most probable classes."""

    picture: _Picture
    classes: "list[Prediction]"


def add(commands: "Commands") -> None:
    """Add the command to the command line."""
    command = add_command(
        commands,
        "predict",
        _predict,
        "classify image files",
        examples=(
            "predict photo.jpg folder/ --top 5",
            "predict folder/ --model run/model.keras --csv > classes.csv",
            "predict - < photo.jpg",
        ),
        check=_check,
    )
    command.add_argument(
        "images",
        type=expanded,
        nargs="+",
        metavar="IMAGE",
        help="a picture, a folder of them, or - for a picture on standard input",
    )
    add_model_options(command)
    add_labels(command)
    command.add_argument(
        "--top",
        type=integer(1),
        default=3,
        help="how many classes to show per picture (default: %(default)s)",
    )
    forms = command.add_mutually_exclusive_group()
    forms.add_argument(
        "--json", action="store_true", help="print a list of records, as JSON"
    )
    forms.add_argument(
        "--csv", action="store_true", help="print a line per picture, as CSV"
    )
    command.add_argument(
        "--plot",
        type=path_of,
        metavar="PNG",
        help=f"also draw the result to this file; more than {PAGE} pictures make "
        "several, PNG-1.png, PNG-2.png, ...",
    )


def _check(options: argparse.Namespace) -> None:
    for text in options.images:
        _check_word(text)
    missing = [t for t in options.images if t != "-" and not Path(t).exists()]
    if missing:
        raise FileNotFoundError(_missing(missing))
    if options.images.count("-") > 1:
        raise UsageError("IMAGE - stands for standard input, which is read once.")
    if options.labels:
        check_file(options.labels, "--labels")
    check_plot(options.plot)
    check_chosen_model(options)
    check_packages("Reading pictures", "plot", "pillow")
    options.files = list(_files(options.images))


def _check_word(text: str) -> None:
    if not text:
        raise UsageError("IMAGE must not be empty. Received: ''")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise UsageError(
            f"IMAGE must be a file or a folder, not an address. Received: {text!r}. "
            "Download it first, or: curl -L ADDRESS | keras-mixer predict -"
        )


def _missing(names: list[str]) -> str:
    sentence = f"There is no file or folder {', '.join(map(repr, names))}."
    for name in names:
        if name.endswith((".json", ".csv")):
            flag = f"--{name.rpartition('.')[2]}"
            sentence += f" {flag} prints to standard output: {flag} > {name}"
            break
    return sentence


def _files(words: Iterable[str]) -> Iterator[Path]:
    from keras_mixer.preprocessing import list_images

    for path in map(Path, words):
        if path != STANDARD_INPUT and path.is_dir():
            yield from list_images(path)
        else:
            yield path


def _predict(options: argparse.Namespace) -> int:
    from keras_mixer.labels import label_names

    model = chosen_model(options)
    labels = read_labels(options, model)
    label_names(labels, model.output_shape[-1])  # before the first picture
    failed: list[Path] = []
    results = _results(options, model, labels, failed)
    if options.json:
        _print_json(results)
    elif options.csv:
        _print_csv(results, min(options.top, model.output_shape[-1]))
    else:
        _print_lines(results, max(len(escaped(path)) for path in options.files))
    if failed:
        count = f"{len(failed)} of {len(options.files)} pictures"
        complain(options.command, f"{count} could not be read.")
    return 1 if failed else 0


def _results(
    options: argparse.Namespace,
    model: "MLPMixer",
    labels: tuple[str, ...] | None,
    failed: list[Path],
) -> Iterator[_Result]:
    """Yield the classes of each picture that can be read; draw pages of them."""
    import numpy as np

    from keras_mixer.labels import decode_predictions

    page: list[_Result] = []
    pages = _page_names(options.plot, len(options.files))
    pictures = _pictures(options, model, failed)
    for batch in _chunks(pictures, _BATCH):
        pixels = np.stack([picture.pixels for picture in batch])
        scores = _scores(model, pixels, only_batch=len(options.files) <= _BATCH)
        found = decode_predictions(scores, labels, top=options.top)
        for result in map(_Result, batch, found):
            yield result
            if options.plot:
                page.append(result)
            if len(page) == PAGE:
                _draw(options, page, next(pages))
                page = []
    if page:
        _draw(options, page, next(pages))


def _scores(
    model: "MLPMixer", pixels: "NDArray[np.float32]", only_batch: bool
) -> "NDArray[np.float32]":
    """Return the model's outputs, on TensorFlow without compiling for a single batch.

    XLA takes seconds for a program, and one batch of it saves less.
    """
    import keras

    if only_batch and keras.config.backend() == "tensorflow":
        return keras.ops.convert_to_numpy(model(pixels, training=False))
    return model.predict(pixels, batch_size=_BATCH, verbose=0)


def _pictures(
    options: argparse.Namespace, model: "MLPMixer", failed: list[Path]
) -> Iterator[_Picture]:
    """Yield the pictures that can be read; name the others on standard error."""
    from keras_mixer.models import preprocess

    for path in options.files:
        try:
            image: Any = path if path.is_file() else _from_pipe(path)
            thumbnail = _thumbnail(image) if options.plot else None
            yield _Picture(path, preprocess(image, model)[0], thumbnail)
        except (
            Exception
        ) as error:  # a damaged file can make the libraries raise anything
            failed.append(path)
            reason = sentence_of(error)
            name = "" if str(path) in reason else f"{str(path)!r} cannot be read: "
            complain(options.command, f"{name}{reason}")


def _from_pipe(path: Path) -> Any:
    """Return the PIL image that comes through standard input or another pipe."""
    from PIL import Image

    def read(file: BinaryIO) -> bytes:
        return file.read(_MAX_BYTES + 1)

    if path == STANDARD_INPUT:
        contents = read(sys.stdin.buffer)
    else:
        with open(path, "rb") as file:
            contents = read(file)
    if len(contents) > _MAX_BYTES:
        raise ValueError(f"more than {_MAX_BYTES // 2**20} MiB")
    image = Image.open(io.BytesIO(contents))
    image.load()
    return image


def _thumbnail(image: Any) -> "NDArray[np.uint8]":
    """Return a picture as a person sees it: upright, of its own shape, small."""
    import numpy as np
    from PIL import Image

    from keras_mixer.preprocessing import decode_image

    small = Image.fromarray(decode_image(image))
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return np.asarray(small)


def _chunks(pictures: Iterator[_Picture], size: int) -> Iterator[list[_Picture]]:
    chunk: list[_Picture] = []
    for picture in pictures:
        chunk.append(picture)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _page_names(plot: Path | None, count: int) -> Iterator[Path]:
    """Yield the files to draw to: the one that is asked for, or numbered ones."""
    if plot is None:
        return
    if count <= PAGE:
        yield plot
        return
    for i in range(1, count // PAGE + 2):
        yield plot.with_stem(f"{plot.stem}-{i}")


def _draw(options: argparse.Namespace, page: list[_Result], path: Path) -> None:
    from keras_mixer import visualize

    figure = visualize.predictions(
        [result.picture.thumbnail for result in page],
        [result.classes for result in page],
        titles=[escaped(result.picture.path) for result in page],
        top=max(len(result.classes) for result in page),
    )
    visualize.save(figure, path)
    records = options.json or options.csv  # which belong alone to standard output
    print(f"Written: {escaped(path)}", file=sys.stderr if records else sys.stdout)


def _print_lines(results: Iterable[_Result], width: int) -> None:
    for picture, classes in results:
        scores = ", ".join(f"{escaped(c.name)} {c.score:.1%}" for c in classes)
        print(f"{escaped(picture.path):<{width}}  {scores}", flush=True)


def _print_json(results: Iterable[_Result]) -> None:
    """Print a list, one record a line."""
    separator = "["
    for picture, classes in results:
        record = {
            "path": str(picture.path),
            "classes": [c.name for c in classes],
            "probabilities": [c.score for c in classes],
        }
        print(f"{separator}{json.dumps(record)}", end="", flush=True)
        separator = ",\n "
    print("[]" if separator == "[" else "]")


def _print_csv(results: Iterable[_Result], count: int) -> None:
    """Print a line per picture: its path, then classes and their probabilities."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    columns = [(f"class_{i}", f"probability_{i}") for i in range(1, count + 1)]
    writer.writerow(["path", *(name for pair in columns for name in pair)])
    for picture, classes in results:
        cells = [(escaped(c.name), f"{c.score:.6g}") for c in classes]
        writer.writerow(
            [escaped(picture.path), *(cell for pair in cells for cell in pair)]
        )
