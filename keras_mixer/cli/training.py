"""The commands `finetune` and `pretrain`: data and a model in, a trained model out."""

import argparse
import math
from typing import TYPE_CHECKING, Any

from keras_mixer.cli.arguments import (
    Parser,
    add_command,
    add_data_options,
    add_model_options,
    check_chosen_model,
    check_source,
    chosen_model,
    opened_source,
    reads_data,
)
from keras_mixer.cli.early_checks import check_packages, check_writable
from keras_mixer.cli.teacher import check_teacher, teacher_argument
from keras_mixer.cli.training_options import (
    add_finetune_options,
    add_pretrain_options,
    check_run,
    finetune_arguments,
    grid_splits,
    pretrain_arguments,
    recipe_test_split,
)

if TYPE_CHECKING:
    import keras

    from keras_mixer.cli.arguments import Commands
    from keras_mixer.data import Source
    from keras_mixer.distribution import Devices
    from keras_mixer.models import MLPMixer

_DATA_FLAGS = {"name": "--data", "folder": "--data", "name_or_folder": "--data"}


def add(commands: "Commands") -> None:
    """Add both commands to the command line."""
    command = add_command(
        commands,
        "finetune",
        _finetune,
        "fine-tune a model on a data set",
        examples=(
            "finetune --data cifar10 --output run/",
            "finetune --data pictures/ --steps 500 --learning-rate 0.01 --output run/",
            "finetune --data pictures/ --steps 500 --output run/ --resume",
        ),
        check=_check,
        needs_tensorflow=reads_data,
        flags=_DATA_FLAGS,
    )
    add_model_options(command)
    _add_data_options(command)
    add_finetune_options(command)

    command = add_command(
        commands,
        "pretrain",
        _pretrain,
        "train a model from random weights",
        examples=(
            "pretrain --data imagenet2012 --variant B/16 --output run/",
            "pretrain --data pictures/ --steps 5000 --batch-size 256 --output run/",
            "pretrain --data pictures/ --model run/model.keras --steps 5000 \\\n"
            "      --stochastic-depth 0.2 --output longer/",
        ),
        check=_check,
        needs_tensorflow=reads_data,
        flags=_DATA_FLAGS,
    )
    add_model_options(command)
    command.set_defaults(default_weights="none")
    _add_data_options(command)
    add_pretrain_options(command)


def _add_data_options(command: Parser) -> None:
    add_data_options(command, split="train").add_argument(
        "--validation-split",
        metavar="SPLIT",
        help="split to measure the accuracy on, or none (default: the paper's; without "
        "one, validation, else test, else a tenth that is held out)",
    )


def _check(options: argparse.Namespace) -> None:
    check_run(options)
    check_writable(options.output, "--output", folder=True)
    check_source(options)
    # The curves are drawn at the end.
    check_packages("Drawing the curves of a run", "plot", "matplotlib")
    for tracker in ("tensorboard", "wandb", "mlflow"):
        if getattr(options, tracker):
            check_packages(f"--{tracker}", tracker, tracker)
    check_chosen_model(options)
    if options.teacher is not None:
        check_teacher(options.teacher)


def _finetune(options: argparse.Namespace) -> None:
    from keras_mixer import training

    arguments = finetune_arguments(options) | teacher_argument(options)
    grid = grid_splits(options) if options.grid is not None else None
    devices, train, validation = _begin(options)

    def build() -> "MLPMixer":
        return _with_new_head(options, chosen_model(options), train.label_names)

    with devices.scope():
        if grid:
            rates, *splits = grid
            best, accuracies = training.finetune_rates(
                build,
                *(opened_source(options, split) for split in splits),
                base_learning_rates=rates,
                output_dir=options.output / "grid",
                distribution=devices,
                **arguments,
            )
            arguments["base_learning_rate"] = best
            for rate, accuracy in accuracies.items():
                _say(devices, f"learning rate {rate:g}: {accuracy:.2%} on {splits[1]}")
        model = build()
    history = training.finetune(
        model,
        train,
        validation,
        output_dir=options.output,
        distribution=devices,
        **arguments,
    )
    _finish(options, devices, model, history, arguments.get("loss", "softmax"))


def _pretrain(options: argparse.Namespace) -> None:
    from keras_mixer import training
    from keras_mixer.training import set_head_bias

    devices, train, validation = _begin(options)
    of_model, arguments = pretrain_arguments(options, train.num_examples)
    loss = arguments.get("loss", "softmax")
    arguments |= teacher_argument(options)
    with devices.scope():
        model = _start_of_pretraining(options, train, of_model)
        if loss == "sigmoid" and _has_zero_head(model):
            set_head_bias(model, _first_bias(options, train.num_classes))
    history = training.pretrain(
        model,
        train,
        validation,
        output_dir=options.output,
        distribution=devices,
        **arguments,
    )
    _finish(options, devices, model, history, loss)


def _begin(
    options: argparse.Namespace,
) -> "tuple[Devices, Source, Source | None]":
    """Start the devices and open the data, before anything large is made."""
    import keras

    from keras_mixer import distribution
    from keras_mixer.data import check_classes

    devices = distribution.start(
        options.distribute,
        coordinator=options.coordinator,
        num_processes=options.num_processes,
        process_id=options.process_id,
    )
    train, validation, sentence = _opened_sources(options)
    check_classes(train)
    measured = f"{validation.num_examples:,}" if validation else "none"
    keras.utils.set_random_seed(options.seed)
    _say(
        devices,
        f"{options.data}: {train.num_classes} classes, {train.num_examples:,} images "
        f"to train on, {measured} to measure on",
    )
    if sentence:
        _say(devices, sentence)
    return devices, train, validation


def _opened_sources(
    options: argparse.Namespace,
) -> "tuple[Source, Source | None, str]":
    """Return what to train on, what to measure on, and what is to be said of it.

    `options.measured_on` becomes the words for what is measured on.
    """
    from keras_mixer.data import open_training_sources

    split = options.validation_split or recipe_test_split(options)
    if split:
        options.measured_on = split
        train = opened_source(options, options.split)
        validation = None if split == "none" else opened_source(options, split)
        return train, validation, ""
    train, validation, sentence = open_training_sources(
        options.data,
        options.split,
        data_dir=options.data_dir,
        corrupt=options.corrupt,
        seed=options.seed,
    )
    options.measured_on = sentence.removeprefix("Measured on ").rstrip(".")
    return train, validation, sentence


def _with_new_head(
    options: argparse.Namespace,
    model: "MLPMixer",
    labels: tuple[str, ...],
    **changes: Any,
) -> "MLPMixer":
    """Return the model with logits of these classes, and all that the flags change.

    The head is new, that is zero, unless the model has these very classes.
    """
    from keras_mixer.models import rebuilt, resize, split_head

    model = rebuilt(
        split_head(model)[0],  # of a model with more layers, its body
        labels=labels,
        classifier_activation=None,
        dtype=options.dtype,
        **changes,
    )
    _, height, width, channels = model.input_shape
    if options.image_size:
        height = width = options.image_size
    shape = (height, width, channels)
    return resize(model, shape) if shape != model.input_shape[1:] else model


def _start_of_pretraining(
    options: argparse.Namespace, train: "Source", of_model: dict[str, Any]
) -> "MLPMixer":
    """Return the model to begin with: of `--model`, of `--weights`, or a random one."""
    if options.model:
        return _with_new_head(
            options, chosen_model(options), train.label_names, **of_model
        )
    if options.image_size:
        of_model["input_shape"] = (options.image_size, options.image_size, 3)
    model = chosen_model(
        options,
        num_classes=train.num_classes,
        classifier_activation=None,
        dtype=options.dtype,
        **of_model,
    )
    model.labels = train.label_names
    return model


def _first_bias(options: argparse.Namespace, num_classes: int) -> float:
    """Return the bias of a new head under the sigmoid loss.

    It is that of a named run, or else that with which a class is as probable as it is
    frequent (-6.9 for 1000).
    """
    from keras_mixer.training import NAMED_RECIPES

    if options.recipe:
        return NAMED_RECIPES[options.recipe].head_bias
    return -math.log(num_classes)


def _has_zero_head(model: "MLPMixer") -> bool:
    from keras import ops

    return not bool(ops.any(ops.not_equal(model.get_layer("head").kernel, 0)))


def _finish(
    options: argparse.Namespace,
    devices: "Devices",
    model: "MLPMixer",
    history: "keras.callbacks.History",
    loss: str,
) -> None:
    """Write the trained model and its curves, and say where they are."""
    from keras_mixer import visualize
    from keras_mixer.hub import write_folder, write_model
    from keras_mixer.models import rebuilt

    # On all hosts: what spans them is read by all of them.
    trained = rebuilt(
        model,
        classifier_activation=loss,  # "softmax" or "sigmoid"
        dropout_rate=0.0,
        stochastic_depth_rate=0.0,
    )
    if not devices.is_chief:
        return
    facts = {}
    measured = [a for a in history.history.get("val_accuracy", []) if not math.isnan(a)]
    if measured:
        accuracy = max(measured) if options.use_best else measured[-1]
        facts["accuracy"] = f"{accuracy:.2%} on {options.data}, {options.measured_on}"
    output = options.output
    write_model(trained, output / "model.keras", overwrite=True)
    write_folder(trained, output / "model", overwrite=True, metrics=facts)
    # The log has a hundred rows; the history has one entry for each checkpoint.
    log = visualize.read_log(output / "log.csv")
    curves = visualize.training_curves({options.command: log})
    visualize.save(curves, output / "curves.png")
    for name, value in facts.items():
        print(f"{name.capitalize()}: {value}")
    print("Written:")
    for name in ("model.keras", "model", "curves.png", "log.csv"):
        print(f"  {output / name}")


def _say(devices: "Devices", text: str) -> None:
    if devices.is_chief:
        print(text, flush=True)
