"""`fit` for runs that are killed, preempted or go wrong, and go on as if they were not.

The state of the run is a function of its arguments and the step alone: batches come
from `(seed, position)`, the random seeds of the layers start from `seed` and lie in the
checkpoints. So a run that was killed at any moment and goes on from its last checkpoint
makes, on one device, bit for bit the steps of a run that never stopped.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_mixer import data
from keras_mixer.distribution import SingleDevice
from keras_mixer.training.averages import averaged_weights, inner_optimizer
from keras_mixer.training.checkpoint_intervals import CheckpointIntervals
from keras_mixer.training.distillation import DistillationLoss, with_teacher
from keras_mixer.training.log import Numbers, TrainingLog, keras_history
from keras_mixer.training.processes import agreed
from keras_mixer.training.progress import Progress
from keras_mixer.training.run_checkpoints import (
    Checkpoint,
    Checkpoints,
    read_checkpoint,
    restore,
    seed_states,
    state_of,
)
from keras_mixer.training.run_folder import sole_writer
from keras_mixer.training.run_options import RunOptions
from keras_mixer.training.run_settings import (
    check_settings,
    remember_as_left,
    run_settings,
)
from keras_mixer.training.sharpness import Sharpness
from keras_mixer.training.sharpness_step import sharpness_of
from keras_mixer.training.teacher import Teacher, open_teacher
from keras_mixer.training.trackers import Tracker, trackers


@dataclass(frozen=True)
class RunData:
    """What a run reads.

    Attributes:
        train: The `data.Source` to train on.
        validation: The `data.Source` to measure on, or `None`.
        augmentation: What happens to the training images.
        teacher: The model or exported file to learn from, too, or `None`.
    """

    train: data.Source
    validation: data.Source | None = None
    augmentation: data.Augmentation = data.Augmentation()
    teacher: Any = None


@dataclass(frozen=True)
class Compilation:
    """How a model is made ready to train; nothing is changed before `make` is called.

    Attributes:
        optimizer: The optimizer that `make` compiles with.
        loss: The loss that `make` compiles with.
        make: Adapts and compiles the model.
        sharpness: The numbers of SAM, `None` for plain steps.
    """

    optimizer: keras.Optimizer
    loss: Any
    make: Callable[[], None]
    sharpness: Sharpness | None = None

    @property
    def accumulation(self) -> int:
        """Batches of one optimizer step."""
        return inner_optimizer(self.optimizer).gradient_accumulation_steps or 1


def fit(
    model: keras.Model,
    train: data.Source,
    validation: data.Source | None = None,
    *,
    options: RunOptions,
    augmentation: data.Augmentation | None = None,
    teacher: Any = None,
    distribution: Any = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> keras.callbacks.History:
    """Train a compiled model for a number of steps, with checkpoints in between.

    Rows of `log.csv` come every `log_every` steps; every `save_every` steps the model
    is measured and a checkpoint is written. With gradient accumulation, which the
    optimizer knows of, one step is made of several batches that add up to `batch_size`.
    With averaged weights (EMA) the validation is theirs, and at the end the model has
    them.

    Args:
        model: A compiled `MLPMixer`.
        train: The `data.Source` to train on.
        validation: The `data.Source` to measure on, or `None`.
        options: Where to, how long, how often.
        augmentation: What happens to the training images; `None` for
            `data.Augmentation()`.
        teacher: A model or an exported file to learn from, too, as in `pretrain`. The
            loss must be a `DistillationLoss`, the accuracy a `LabelAccuracy`.
        distribution: What `distribution.start` returned; `None` for one device.
        callbacks: Keras callbacks, called as in `model.fit`. One epoch is one
            checkpoint interval, and the numbers of epochs go on in a run that is
            resumed. A callback that stops the training in the middle of an interval
            leaves no checkpoint of it.

    Returns:
        Keras's `History`, one entry per checkpoint interval, those before an
        interruption included.

    Raises:
        FloatingPointError: If the loss or a weight is no longer a finite number. The
            last good checkpoint stays, and the model has its weights, as after any
            other exception.
        FileExistsError: If there are checkpoints and `resume` is false, or another run
            writes there.
        ImportError: If a tracker is asked for and not installed.
        OSError: If a file cannot be written or read.
        RuntimeError: If the processes of the job found different checkpoints.
        ValueError: If an argument is out of range, or the checkpoints to go on from are
            of a run with other arguments.
    """
    if teacher is not None and not isinstance(model.loss, DistillationLoss):
        raise ValueError(
            "`teacher` needs a model compiled with `loss=training.DistillationLoss("
            f"...)`. Received: loss={model.loss!r}"
        )
    return run(
        model,
        RunData(train, validation, augmentation or data.Augmentation(), teacher),
        compilation=Compilation(
            model.optimizer, model.loss, lambda: None, sharpness_of(model)
        ),
        options=options,
        devices=distribution or SingleDevice(),
        callbacks=callbacks,
    )


def run(
    model: keras.Model,
    run_data: RunData,
    *,
    compilation: Compilation,
    options: RunOptions,
    devices: Any,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> keras.callbacks.History:
    """Make a run as `fit` does; the model is compiled when all else is checked.

    Args:
        model: An `MLPMixer`.
        run_data: What to read.
        compilation: How the model is made ready.
        options: As in `fit`.
        devices: What `distribution.start` returned.
        callbacks: As in `fit`.
    """
    accumulation = compilation.accumulation
    _check(run_data, options, accumulation, devices, callbacks)
    teacher = _opened_teacher(model, run_data, options, devices, accumulation)
    _streams(model, run_data, teacher, options, devices, accumulation)
    found_trackers = trackers(options) if devices.is_chief else []
    settings = run_settings(
        model,
        run_data.train,
        run_data.validation,
        augmentation=run_data.augmentation,
        options=options,
        optimizer=compilation.optimizer,
        loss=compilation.loss,
        sharpness=compilation.sharpness,
        teacher=teacher.fingerprint if teacher else None,
    )
    checkpoints = Checkpoints(options.folder / "checkpoints", keep=options.keep)
    with contextlib.ExitStack() as stack:

        def find() -> Checkpoint | None:
            if devices.is_chief:
                stack.enter_context(sole_writer(options.folder))
            return _to_go_on_from(checkpoints, options, settings)

        checkpoint = agreed(find, devices)
        log = TrainingLog(
            options.folder / "log.csv",
            trackers=found_trackers,
            is_writer=devices.is_chief,
        )
        log.go_on_from(checkpoint.step if checkpoint else 0)
        with devices.scope():
            compilation.make()
            _begin(model, checkpoints, checkpoint, settings, options, devices)
        if options.deterministic and devices.num_replicas == 1:
            stack.enter_context(_compiled_with_xla(model))
        stack.enter_context(_started(found_trackers, settings))
        stack.callback(log.flush)
        history = _history(checkpoint, log)
        with _good_weights_after_errors(model, checkpoints, settings, devices):
            _train(
                model,
                run_data,
                teacher,
                intervals=partial(
                    CheckpointIntervals,
                    checkpoints=checkpoints,
                    settings=settings,
                    log=log,
                    history=history,
                ),
                options=options,
                devices=devices,
                accumulation=accumulation,
                first_step=checkpoint.step if checkpoint else 0,
                callbacks=callbacks,
            )
        with devices.scope():
            if options.use_best:
                restore(model, read_checkpoint(_best(checkpoints)).arrays)
            model.optimizer.finalize_variable_values(model.trainable_variables)
        remember_as_left(model, settings)
    return keras_history(model, history)


def _check(
    run_data: RunData,
    options: RunOptions,
    accumulation: int,
    devices: Any,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    if options.batch_size % (accumulation * devices.num_replicas):
        raise ValueError(
            "`batch_size` must be a multiple of `accumulation_steps` times the number "
            f"of replicas. Received: batch_size={options.batch_size}, "
            f"accumulation_steps={accumulation}, {devices.num_replicas} replicas"
        )
    if options.use_best and run_data.validation is None:
        raise ValueError("`use_best` needs `validation`. Received: validation=None")
    for callback in callbacks:
        if not isinstance(callback, keras.callbacks.Callback):
            raise ValueError(
                f"`callbacks` must be Keras callbacks. Received: {callback!r}"
            )


def _opened_teacher(
    model: keras.Model,
    run_data: RunData,
    options: RunOptions,
    devices: Any,
    accumulation: int,
) -> Teacher | None:
    if run_data.teacher is None:
        return None
    return open_teacher(
        run_data.teacher,
        model,
        run_data.train.label_names,
        devices=devices,
        batch_size=options.batch_size // (accumulation * devices.shard[1]),
        deterministic=options.deterministic,
    )


def _streams(
    model: keras.Model,
    run_data: RunData,
    teacher: Teacher | None,
    options: RunOptions,
    devices: Any,
    accumulation: int,
    first_step: int = 0,
) -> tuple[Any, Any]:
    """Return the batches to train on and, or `None`, those to measure on."""
    common = {
        "image_size": model.input_shape[1:3],
        "batch_size": options.batch_size // accumulation,
        "shard": devices.shard,
    }
    training = data.training_batches(
        run_data.train,
        augmentation=run_data.augmentation,
        seed=options.seed,
        shuffle_bytes=options.shuffle_bytes,
        first_step=first_step * accumulation,
        **common,
    )
    if teacher:
        training = with_teacher(training, teacher)
    if run_data.validation is None:
        return training, None
    measured = data.evaluation_batches(
        run_data.validation, preprocessing=model.preprocessing, **common
    )
    return training, measured


def _to_go_on_from(
    checkpoints: Checkpoints, options: RunOptions, settings: dict[str, Any]
) -> Checkpoint | None:
    if not options.resume:
        if checkpoints.paths:
            raise FileExistsError(
                f"{str(options.folder)!r} holds a run. Go on with it (`resume=True`) "
                "or choose another folder."
            )
        return None
    checkpoint = checkpoints.latest()
    if checkpoint is not None:
        check_settings(checkpoint, settings)
    return checkpoint


def _begin(
    model: keras.Model,
    checkpoints: Checkpoints,
    checkpoint: Checkpoint | None,
    settings: dict[str, Any],
    options: RunOptions,
    devices: Any,
) -> None:
    """Restore the checkpoint, or make the first."""
    if checkpoint is not None:
        restore(model, checkpoint.arrays)
        if devices.is_chief:
            checkpoints.set_aside_after(checkpoint.step)
        return
    states = seed_states(model)
    numbers = np.random.SeedSequence(options.seed).generate_state(len(states))
    for state, number in zip(states, numbers, strict=True):
        state.assign([number % 10**9, 0])  # as Keras draws them
    arrays = state_of(model)
    if devices.is_chief:
        checkpoints.write(0, arrays, settings=settings, history=[])


def _history(checkpoint: Checkpoint | None, log: TrainingLog) -> list[Numbers]:
    if checkpoint is None:
        return []
    if checkpoint.history is None:  # files that had none had one row per checkpoint
        return list(log.rows)
    return list(checkpoint.history)


def _train(
    model: keras.Model,
    run_data: RunData,
    teacher: Teacher | None,
    *,
    intervals: Callable[..., CheckpointIntervals],
    options: RunOptions,
    devices: Any,
    accumulation: int,
    first_step: int,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    if first_step >= options.total_steps:
        return
    batches, measured = _streams(
        model, run_data, teacher, options, devices, accumulation, first_step
    )
    with Progress(
        total_steps=options.total_steps * accumulation,
        steps_per_epoch=options.save_every * accumulation,
        batch_size=options.batch_size // accumulation,
        first_step=first_step * accumulation,
        batches_per_step=accumulation,
        quiet=options.quiet or not devices.is_chief,
    ) as progress:
        own = intervals(
            options=options,
            devices=devices,
            accumulation=accumulation,
            progress=progress,
            validate=lambda: _measured(model, measured, devices, callbacks),
        )
        devices.fit(
            model,
            batches,
            initial_epoch=first_step // options.save_every,
            epochs=math.ceil(options.total_steps / options.save_every),
            steps_per_epoch=options.save_every * accumulation,
            callbacks=[own, progress, *callbacks],
            shuffle=False,  # the stream is
            verbose=0,
        )


def _measured(
    model: keras.Model,
    batches: Any,
    devices: Any,
    callbacks: Sequence[keras.callbacks.Callback],
) -> Numbers:
    """Return the numbers of the validation data, `callbacks` called as in `fit`."""
    if batches is None:
        return {}
    listeners = keras.callbacks.CallbackList(list(callbacks))
    with averaged_weights(model):
        if isinstance(devices, SingleDevice):
            found = devices.evaluate(
                model, batches, callbacks=listeners, verbose=0, return_dict=True
            )
        else:  # loops that know no callbacks
            listeners.on_test_begin()
            found = devices.evaluate(model, batches, verbose=0, return_dict=True)
            listeners.on_test_end(found)
    return {f"val_{name}": value for name, value in found.items()}


def _best(checkpoints: Checkpoints) -> Path:
    best = checkpoints.best()
    if best is None:
        raise ValueError(
            "`use_best` needs a metric named accuracy. Received: a model compiled "
            "without. The model has its last weights."
        )
    return best


@contextlib.contextmanager
def _good_weights_after_errors(
    model: keras.Model,
    checkpoints: Checkpoints,
    settings: dict[str, Any],
    devices: Any,
) -> Iterator[None]:
    """Leave the model with the weights of the last good checkpoint, and say which.

    On JAX the weights may be gone: the failed step was given their memory.
    """
    try:
        yield
    except BaseException as error:
        try:
            good = checkpoints.latest()
            if good is not None:
                with devices.scope():
                    restore(model, good.arrays)
                remember_as_left(model, settings)
                error.add_note(f"The last good checkpoint: {good.path}")
        except (OSError, ValueError) as second:
            error.add_note(f"The model has no usable weights: {second}")
        if isinstance(error, KeyboardInterrupt):
            error.add_note("Go on from there with `resume=True`.")
        raise


@contextlib.contextmanager
def _compiled_with_xla(model: keras.Model) -> Iterator[None]:
    """Let TensorFlow compile the steps of one device with XLA, then as before."""
    before = model.jit_compile
    if keras.config.backend() != "tensorflow" or before is True:
        yield
        return

    def compile_with(value: Any) -> None:
        model.jit_compile = value
        # Keras makes these once and would keep those that were compiled otherwise.
        model.train_function = model.test_function = model.predict_function = None

    compile_with(True)
    try:
        yield
    finally:
        compile_with(before)


@contextlib.contextmanager
def _started(
    all_trackers: Sequence[Tracker], settings: dict[str, Any]
) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for tracker in all_trackers:
            tracker.start(settings)
            stack.callback(tracker.close)
        yield
