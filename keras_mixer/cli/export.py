"""The commands `export` and `plot`: a model for other runtimes, and in pictures."""

import csv
from pathlib import Path

from keras_mixer.cli.arguments import add_command, add_model_options, chosen_model


def add(commands):
    """Add both commands to the command line."""
    command = add_command(
        commands, "export", _export, "write a model for another runtime, and check it"
    )
    command.add_argument(
        "target",
        metavar="TARGET",
        help="ends in .onnx, .xml (OpenVINO), .tflite (LiteRT) or .pt2 (torch); with "
        "no ending the folder of a SavedModel",
    )
    add_model_options(command)
    command.add_argument(
        "--format",
        help="onnx, openvino, tf_saved_model, litert or torch (default: by the ending)",
    )
    command.add_argument("--force", action="store_true", help="replace TARGET")
    group = command.add_argument_group("int8, for .onnx and .xml")
    group.add_argument(
        "--int8",
        metavar="NAME_OR_FOLDER",
        help="write int8, calibrated with training images: a folder of pictures, or a "
        "data set of TFDS, such as cifar10",
    )
    group.add_argument(
        "--count",
        type=int,
        default=300,
        metavar="N",
        help="how many images, spread over the folder (default: %(default)s)",
    )
    group.add_argument(
        "--split", default="train", help="of the data set (default: %(default)s)"
    )
    group.add_argument(
        "--data-dir",
        metavar="FOLDER",
        help="where prepared TFDS data sets lie (default: that of TFDS)",
    )

    command = commands.add_parser(
        "plot",
        help="draw what a model learned, or its training",
        description="Draw what a model learned, or its training.",
    )
    pictures = command.add_subparsers(dest="picture", required=True, metavar="PICTURE")
    picture = add_command(
        pictures, "filters", _plot_filters, "draw the units of a token-mixing MLP"
    )
    _add_picture_options(picture)
    picture.add_argument(
        "--block", type=int, default=0, help="number of the block (default: first)"
    )
    picture = add_command(
        pictures, "stem", _plot_stem, "draw the linear embeddings of the patches"
    )
    _add_picture_options(picture)
    picture = add_command(
        pictures, "curves", _plot_curves, "draw loss and accuracy of trainings"
    )
    _add_png(picture)
    picture.add_argument(
        "logs",
        nargs="+",
        type=Path,
        metavar="LOG",
        help="a log.csv of `finetune` or `pretrain`, or of Keras's CSVLogger",
    )


def _add_png(picture):
    picture.add_argument("target", type=Path, metavar="PNG", help="the file to write")


def _add_picture_options(picture):
    _add_png(picture)
    add_model_options(picture)
    picture.add_argument(
        "--count", type=int, metavar="N", help="how many units (default: all)"
    )


def _export(options):
    from keras_mixer.export import export

    model = chosen_model(options)
    images = _calibration_images(options, model) if options.int8 else None
    difference = export(
        model,
        options.target,
        format=options.format,
        calibration_images=images,
        overwrite=options.force,
    )
    print(
        f"Written: {options.target} (relative difference from the model: "
        f"{difference:.1e})"
    )


def _calibration_images(options, model):
    from keras_mixer.data import evaluation_batches, open_source
    from keras_mixer.preprocessing import list_images, preprocess

    if options.count < 2:
        raise ValueError(f"--count must be at least 2. Received: {options.count}")
    if Path(options.int8).is_dir():
        files = list_images(options.int8)
        step = max(1, len(files) // options.count)  # files of a class lie together
        return preprocess(files[::step][: options.count], model)
    batches = evaluation_batches(
        open_source(options.int8, options.split, data_dir=options.data_dir),
        image_size=model.input_shape[1:3],
        batch_size=options.count,
        preprocessing=model.preprocessing,
    )
    pixels = next(batches.as_numpy_iterator())[0]
    if model.config["include_preprocessing"]:
        return pixels
    return pixels * model.preprocessing.scale + model.preprocessing.offset


def _plot_filters(options):
    from keras_mixer import visualize

    model = chosen_model(options)
    _save(
        visualize.token_mixing_filters(model, options.block, options.count),
        options.target,
    )


def _plot_stem(options):
    from keras_mixer import visualize

    _save(visualize.stem_filters(chosen_model(options), options.count), options.target)


def _plot_curves(options):
    from keras_mixer import visualize

    histories = {str(path): _read_log(path) for path in options.logs}
    _save(visualize.training_curves(histories), options.target)


def _read_log(path):
    """Return `column -> numbers` of a CSV file; what was not measured is NaN."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        return {
            name: [float(row[name] or "nan") for row in rows]
            for name in (rows[0] if rows else ())
        }
    except (TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is not a log of numbers: {error}") from error


def _save(figure, path):
    from keras_mixer import visualize

    visualize.save(figure, path)
    print(f"Written: {path}")
