"""`fit` for runs that are killed, preempted or go wrong, and go on as if they were not.

The state of the run is a function of its arguments and the step alone: batches come
from `(seed, position)`, the random seeds of the layers start from `seed` and lie in the
checkpoints. So a run that was killed at any moment and goes on from its last checkpoint
makes, on one device, bit for bit the steps of a run that never stopped.
"""

import json
import math
from pathlib import Path

import keras
import numpy as np

from keras_mixer import data
from keras_mixer.distribution import SingleDevice
from keras_mixer.training.log import TrainingLog
from keras_mixer.training.progress import Progress
from keras_mixer.training.run_checkpoints import (
    Checkpoints,
    first_not_finite,
    read_checkpoint,
    restore,
    seed_states,
    state_of,
)


def fit(
    model,
    train,
    validation=None,
    *,
    output_dir,
    total_steps,
    batch_size,
    seed=0,
    save_every=500,
    validate_every=None,
    keep=2,
    use_best=False,
    resume=False,
    tensorboard=False,
    distribution=None,
    deterministic=True,
    quiet=False,
    **augmentation,
):
    """Train a compiled model for `total_steps`, in stretches of `save_every` steps.

    After each stretch the numbers of `log.csv` are written, validation ones included,
    and then a checkpoint. With gradient accumulation, which the optimizer knows of, one
    step is made of several batches that add up to `batch_size`. With averaged weights
    (EMA) the validation is theirs, and at the end the model has them.

    Args:
        model: A compiled `MLPMixer`.
        train: The `data.Source` to train on.
        validation: The `data.Source` to measure on, or `None`.
        output_dir: Folder of `checkpoints/`, `log.csv` and `tensorboard/`. Several
            processes must all see it.
        total_steps: Optimizer steps of the whole run.
        batch_size: Images of one optimizer step, over all devices.
        seed: Seed of the order of the images, their augmentation, and of dropout.
        save_every: Steps between two checkpoints.
        validate_every: Steps between two validations, a multiple of `save_every`;
            `None` for each checkpoint. The last step is always measured.
        keep: How many of the last checkpoints stay, beside the one with the best
            validation accuracy.
        use_best: Whether the model ends with that one's weights, not the last.
        resume: Whether to go on from the last whole checkpoint in `output_dir`; without
            any, the run starts.
        tensorboard: Whether to write logs for TensorBoard, too.
        distribution: What `distribution.start` returned; `None` for one device.
        deterministic: Whether TensorFlow compiles the step with XLA on one device.
            Without it the order of its sums varies from run to run, and a run that goes
            on agrees up to rounding only. JAX computes so anyway. (On GPUs set
            `XLA_FLAGS=--xla_gpu_deterministic_ops=true`, too, for either.)
        quiet: Whether to print nothing.
        **augmentation: Passed to `data.training_batches`.

    Returns:
        Keras's `History`, one entry per stretch, those before an interruption included.

    Raises:
        FloatingPointError: If the loss or a weight is no longer a finite number. The
            last good checkpoint stays, and the model has its weights, as after any
            other exception.
        FileExistsError: If there are checkpoints and `resume` is false.
        ImportError: If TensorBoard is asked for and not installed.
        ValueError: If an argument is out of range, or the checkpoints to go on from are
            of a run with other arguments.
    """
    validate_every = validate_every or save_every
    accumulation = _inner(model.optimizer).gradient_accumulation_steps or 1
    _check_steps(total_steps, batch_size, save_every, validate_every, accumulation)
    if use_best and validation is None:
        raise ValueError("`use_best` needs `validation`. Received: validation=None")
    devices = distribution or SingleDevice()
    output_dir = Path(output_dir)
    checkpoints = Checkpoints(output_dir / "checkpoints", keep=keep)
    if devices.is_chief and checkpoints.paths and not resume:
        raise FileExistsError(
            f"{str(output_dir)!r} holds a run. Go on with it (`resume=True`, --resume) "
            "or choose another folder."
        )
    if (
        deterministic
        and devices.num_replicas == 1
        and keras.config.backend() == "tensorflow"
    ):
        model.jit_compile = True
    settings = _settings(model, train, augmentation) | {
        "total_steps": total_steps,
        "batch_size": batch_size,
        "seed": seed,
        "save_every": save_every,
    }
    log = TrainingLog(
        output_dir / "log.csv",
        tensorboard=output_dir / "tensorboard" if tensorboard else None,
        is_writer=devices.is_chief,
    )
    with devices.scope():
        step = _begin(model, checkpoints, settings, seed, devices.is_chief)
    log.go_on_from(step)
    size = model.input_shape[1:3]
    micro_batch = batch_size // accumulation
    stretches = _Stretches(
        checkpoints=checkpoints,
        settings=settings,
        log=log,
        devices=devices,
        total_steps=total_steps,
        save_every=save_every,
        validate_every=validate_every,
        accumulation=accumulation,
        validation_batches=validation
        and data.evaluation_batches(
            validation,
            image_size=size,
            batch_size=micro_batch,
            preprocessing=model.preprocessing,
            shard=devices.shard,
        ),
        progress=Progress(
            total_steps=total_steps * accumulation,
            steps_per_epoch=save_every * accumulation,
            batch_size=micro_batch,
            first_step=step * accumulation,
            batches_per_step=accumulation,
            quiet=quiet or not devices.is_chief,
        ),
    )
    try:
        if step < total_steps:
            batches = data.training_batches(
                train,
                image_size=size,
                batch_size=micro_batch,
                seed=seed,
                first_step=step * accumulation,
                shard=devices.shard,
                **augmentation,
            )
            with stretches.progress:
                devices.fit(
                    model,
                    batches,
                    initial_epoch=step // save_every,
                    epochs=math.ceil(total_steps / save_every),
                    steps_per_epoch=save_every * accumulation,
                    callbacks=[stretches, stretches.progress],
                    shuffle=False,  # the stream is
                    verbose=0,
                )
    except BaseException as error:
        # On JAX the weights may be gone: the failed step was given their memory.
        with devices.scope():
            if good := checkpoints.latest():
                restore(model, good.arrays)
                error.add_note(f"The last good checkpoint: {good.path}")
        raise
    with devices.scope():
        if use_best:
            restore(model, read_checkpoint(checkpoints.best()).arrays)
        model.optimizer.finalize_variable_values(model.trainable_variables)
    return log.history(model)


class _Stretches(keras.callbacks.Callback):
    """What happens between two stretches, in this order: measure, log, save.

    The row comes before the checkpoint: a run that is killed between them drops it and
    writes it again, and never misses one.
    """

    async_safe = True

    def __init__(
        self,
        *,
        checkpoints,
        settings,
        log,
        devices,
        total_steps,
        save_every,
        validate_every,
        accumulation,
        validation_batches,
        progress,
    ):
        super().__init__()
        self.checkpoints = checkpoints
        self.settings = settings
        self.log = log
        self.devices = devices
        self.total_steps = total_steps
        self.save_every = save_every
        self.validate_every = validate_every
        self.accumulation = accumulation
        self.validation_batches = validation_batches
        self.progress = progress
        self._last_batch = None
        self._bad_batches = set()

    def on_epoch_begin(self, epoch, logs=None):
        steps = min(self.save_every, self.total_steps - epoch * self.save_every)
        self._last_batch = steps * self.accumulation - 1

    def on_train_batch_begin(self, batch, logs=None):
        # Keras ends the epoch after the batch in which this is set.
        if batch + self.model.steps_per_execution > self._last_batch:
            self.model.stop_training = True

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(logs["loss"]):
            self._bad_batches.add(batch)
            # Processes that share a model must leave a stretch at the same step.
            if self.devices.shard == (0, 1):
                self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        start = epoch * self.save_every
        step = min(start + self.save_every, self.total_steps)
        if self._bad_batches:
            bad = start + min(self._bad_batches) // self.accumulation + 1
            raise _not_finite("the loss", bad)
        state = state_of(self.model)
        if name := first_not_finite(state):
            raise _not_finite(name, step)
        logs["learning_rate"] = float(
            keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        )
        if math.isfinite(self.progress.images_per_second):
            logs["images_per_second"] = self.progress.images_per_second
        if step % self.validate_every == 0 or step == self.total_steps:
            logs.update(self._validate())
        self.log.append(step, logs)
        if self.devices.is_chief:
            self.checkpoints.write(
                step, state, settings=self.settings, score=logs.get("val_accuracy")
            )
        self.model.stop_training = step == self.total_steps

    def _validate(self):
        if self.validation_batches is None:
            return {}
        averages = _averages(self.model.optimizer)
        _swap(averages)
        try:
            numbers = self.devices.evaluate(
                self.model, self.validation_batches, verbose=0, return_dict=True
            )
        finally:
            _swap(averages)
        return {f"val_{name}": value for name, value in numbers.items()}


def _begin(model, checkpoints, settings, seed, is_chief):
    """Restore the last whole checkpoint, or make the first; return its step."""
    checkpoint = checkpoints.latest()
    if checkpoint is not None:
        _check_settings(checkpoint, settings)
        restore(model, checkpoint.arrays)
        if is_chief:
            checkpoints.remove_after(checkpoint.step)
        return checkpoint.step
    states = seed_states(model)
    numbers = np.random.SeedSequence(seed).generate_state(len(states))
    for state, number in zip(states, numbers, strict=True):
        state.assign([number % 10**9, 0])  # as Keras draws them
    state = state_of(model)
    if is_chief:
        checkpoints.write(0, state, settings=settings)
    return 0


def _settings(model, train, augmentation):
    """Return what must be the same when a run goes on, as in JSON."""
    settings = {
        "model": model.config,
        "dtype": model.blocks[0].dtype_policy.name,
        "optimizer": keras.optimizers.serialize(model.optimizer),
        "loss": keras.losses.serialize(keras.losses.get(model.loss)),
        "examples": train.num_examples,
        "labels": train.label_names,
        "augmentation": augmentation,
    }
    return json.loads(json.dumps(settings))


def _check_settings(checkpoint, settings):
    before, now = (
        # Where a class is written is no setting: it moves when the package changes.
        {n: v for n, v in _flat(s).items() if n.rpartition(".")[2] != "module"}
        for s in (checkpoint.settings, settings)
    )
    lines = [
        f"  {name}: {before.get(name)!r} there, {now.get(name)!r} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if lines:
        raise ValueError(
            f"{checkpoint.path} is of a run with other arguments. Give the same, or "
            "choose another folder.\n" + "\n".join(lines)
        )


def _flat(value, prefix=""):
    """Return nested dictionaries as one, with dotted names."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{name}" if prefix else name)
    return flat


def _check_steps(total_steps, batch_size, save_every, validate_every, accumulation):
    if total_steps < 1:
        raise ValueError(
            f"`total_steps` must be at least 1. Received: total_steps={total_steps}"
        )
    if save_every < 1 or validate_every % save_every:
        raise ValueError(
            "`save_every` must be at least 1, and `validate_every` a multiple of it. "
            f"Received: save_every={save_every}, validate_every={validate_every}"
        )
    if batch_size < 1 or batch_size % accumulation:
        raise ValueError(
            "`batch_size` must be a positive multiple of `accumulation_steps`. "
            f"Received: batch_size={batch_size}, accumulation_steps={accumulation}"
        )


def _not_finite(name, step):
    return FloatingPointError(
        f"Training stopped: {name} is NaN or infinite at step {step}. A smaller "
        "learning rate, a longer warm-up or clipping may help."
    )


def _averages(optimizer):
    """Return pairs of a trained weight and its average, none without EMA."""
    optimizer = _inner(optimizer)
    if not optimizer.use_ema:
        return []
    return list(
        zip(
            optimizer._trainable_variables,
            optimizer._model_variables_moving_average,
            strict=True,
        )
    )


def _inner(optimizer):
    """Return the optimizer that Keras wraps to scale the loss under float16."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def _swap(pairs):
    """Swap the values of variables, exactly: Keras's own callback rounds on TF."""
    for one, other in pairs:
        value = keras.ops.copy(one)
        one.assign(other)
        other.assign(value)
