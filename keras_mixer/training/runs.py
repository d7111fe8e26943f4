"""The paper's recipes, run from the first step to the last: fine-tuning, pre-training.

Each is a compiled model and `resumable_fit.fit`; the optimizers and losses work as well
in any `compile`/`fit` of your own.

Source: paper, section 3 and appendices B and C; `vit_jax/train.py`;
`big_vision/configs/mlp_mixer_i1k.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import keras

from keras_mixer import data
from keras_mixer.distribution import SingleDevice
from keras_mixer.training.adaptation import (
    add_lora,
    check_lora_rank,
    freeze_body,
    set_remat,
)
from keras_mixer.training.distillation import (
    Distillation,
    DistillationLoss,
    LabelAccuracy,
)
from keras_mixer.training.losses import SigmoidCrossentropy
from keras_mixer.training.optimizers import (
    finetune_optimizer,
    pretrain_optimizer,
)
from keras_mixer.training.resumable_fit import Compilation, RunData, run
from keras_mixer.training.run_options import RunOptions
from keras_mixer.training.sharpness import Rho, Sharpness, check_sam
from keras_mixer.training.sharpness_step import set_sam

Loss = Literal["softmax", "sigmoid"]
_Record = TypeVar("_Record")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Objective:
    """What both recipes share: the loss, and how a step is made of batches."""

    loss: Loss
    label_smoothing: float
    accumulation_steps: int
    ema_momentum: float | None
    sam_rho: Rho
    gsam_alpha: float
    remat: bool


def finetune(
    model: keras.Model,
    train: data.Source,
    validation: data.Source | None = None,
    *,
    output_dir: str | Path,
    total_steps: int,
    batch_size: int = 512,
    base_learning_rate: float = 0.03,
    warmup_steps: int = 500,
    clip_norm: float | None = 1.0,
    layer_decay: float | None = None,
    train_only: Literal["head"] | None = None,
    lora_rank: int | None = None,
    loss: Loss = "softmax",
    teacher: Any = None,
    distillation_weight: float = 0.5,
    distillation_temperature: float = 3.0,
    label_smoothing: float = 0.0,
    accumulation_steps: int = 1,
    ema_momentum: float | None = None,
    sam_rho: Rho = 0.0,
    gsam_alpha: float = 0.0,
    remat: bool = False,
    crop: data.Crop = "inception",
    pad: int = 4,
    area_range: tuple[float, float] = (0.05, 1.0),
    flip: bool = True,
    randaugment: tuple[int, float] | tuple[int, float, float] | None = None,
    random_erasing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    seed: int = 0,
    shuffle_bytes: int = data.SHUFFLE_BYTES,
    save_every: int = 500,
    log_every: int | None = None,
    validate_every: int | None = None,
    keep: int = 2,
    use_best: bool = False,
    resume: bool = False,
    tensorboard: bool = False,
    wandb: bool = False,
    mlflow: bool = False,
    deterministic: bool = True,
    quiet: bool = False,
    distribution: Any = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> keras.callbacks.History:
    """Fine-tune `model` as the paper does.

    SGD with momentum 0.9, gradients clipped to a global norm, linear warm-up, cosine
    decay to zero, no weight decay; softmax cross-entropy; inception crops and flips.

    Args:
        model: An `MLPMixer` with logits (`classifier_activation=None`). Its head should
            be new, that is zero: build it with `num_classes=train.num_classes`.
        train: The `data.Source` to train on.
        validation: The `data.Source` to measure on, or `None`.
        output_dir: Folder for checkpoints and logs.
        total_steps: Optimizer steps of the whole run, warm-up included.
        batch_size: Images of one optimizer step, over all devices and accumulations.
        base_learning_rate: Peak learning rate.
        warmup_steps: Steps from 0 to the peak.
        clip_norm: Largest global norm of the gradients; `None` does not clip.
        layer_decay: Factor of the learning rate per block below the head, in (0, 1];
            `None` for one rate.
        train_only: `"head"` for a linear probe, `None` for all weights.
        lora_rank: Rank of adapters that are trained instead of the blocks' kernels;
            `None` for none.
        loss: `"softmax"` or `"sigmoid"` cross-entropy.
        teacher: A model of the same classes to learn from, too: a Keras model, with a
            Mixer inside or not, or an exported file (its path, or what `export.load`
            returns). It gets the very pixels of `model`, resized if it takes another
            size, and is not trained; see `open_teacher`. `None` for none.
        distillation_weight: Share of the teacher's part in the loss, in (0, 1]; see
            `DistillationLoss`.
        distillation_temperature: What both logits are divided by there. Positive.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        accumulation_steps: Batches of `batch_size / accumulation_steps` that make one
            step.
        ema_momentum: Momentum of averaged weights, with which the model is measured and
            ends, in [0, 1]; `None` for none.
        sam_rho: Length of SAM's perturbation of the weights, 0 for plain training; a
            tuple of two follows the learning rate from its lowest value to its peak.
            About twice the time per step; see `set_sam`.
        gsam_alpha: Share of GSAM's orthogonal gradient, 0 for SAM. Needs `sam_rho`.
        remat: Whether to compute the blocks again in the backward pass, to save memory.
        crop: `"inception"`, `"pad"` or `"none"`, as in `data.Augmentation`.
        pad: Zero pixels on each side before the crop of `crop="pad"`.
        area_range: Smallest and largest share of the area for `crop="inception"`.
        flip: Whether half of the images are mirrored left to right.
        randaugment: Number of operations and magnitude, such as `(2, 15)`; `None` for
            no RandAugment.
        random_erasing: Probability that a rectangle of an image becomes noise, in
            [0, 1].
        mixup: Parameter of mixup's Beta distribution, 0 for no mixup.
        cutmix: Parameter of CutMix's Beta distribution, 0 for no CutMix.
        seed: Seed of the order of the images, their augmentation, and of dropout.
        shuffle_bytes: Size of the buffer that shuffles a source which can only be read
            in order, such as TFDS, in bytes; see `data.training_batches`.
        save_every: Steps between two checkpoints. Callbacks see it as one epoch.
        log_every: Steps between two rows of `log.csv`; `None` for a hundredth of the
            run, but not more than `save_every`.
        validate_every: Steps between two validations, a multiple of `save_every`;
            `None` for each checkpoint. The last step is always measured.
        keep: How many of the last checkpoints stay, beside the best one.
        use_best: Whether the model ends with the weights of the best validation
            accuracy, not the last.
        resume: Whether to go on from the last whole checkpoint in `output_dir`; without
            any, the run starts.
        tensorboard: Whether to write logs for TensorBoard, too.
        wandb: Whether to send the rows to Weights & Biases, too.
        mlflow: Whether to send the rows to MLflow, too.
        deterministic: Whether TensorFlow compiles the step with XLA on one device, so
            that a run that goes on agrees to the bit; see `RunOptions`.
        quiet: Whether to print nothing.
        distribution: What `distribution.start` returned; `None` for one device.
        callbacks: Keras callbacks, called as in `model.fit`; see `fit`.

    Returns:
        Keras's `History`, one entry per checkpoint interval.

    Raises:
        ValueError: If an argument is out of range, or the model and the data do not
            fit, or the run to go on with had other arguments. Nothing is written then.
        FloatingPointError: If the loss or a weight is no longer a finite number.
        FileExistsError: If `output_dir` holds a run and `resume` is not asked for, or
            another run is writing there.
        OSError: If a file cannot be read or written.

    Reference: paper, section 3 and appendix C; `vit_jax/configs/common.py`.
    """
    given = dict(locals())
    check_logits(model)
    if train_only not in (None, "head"):
        raise ValueError(
            f'`train_only` must be "head" or None. Received: train_only={train_only!r}'
        )
    if lora_rank is not None:
        check_lora_rank(model, lora_rank, "lora_rank")

    def adapt() -> None:
        if train_only == "head":
            freeze_body(model)
        if lora_rank is not None:
            add_lora(model, lora_rank)

    make_optimizer = partial(
        finetune_optimizer,
        total_steps=total_steps,
        base_learning_rate=base_learning_rate,
        warmup_steps=warmup_steps,
        clip_norm=clip_norm,
        layer_decay=layer_decay,
    )
    return _run(given, make_optimizer, adapt, (0.0, base_learning_rate))


def pretrain(
    model: keras.Model,
    train: data.Source,
    validation: data.Source | None = None,
    *,
    output_dir: str | Path,
    total_steps: int,
    batch_size: int = 4096,
    base_learning_rate: float = 0.001,
    warmup_steps: int = 10_000,
    weight_decay: float = 0.1,
    clip_norm: float | None = 1.0,
    schedule: Literal["linear", "cosine"] = "linear",
    linear_end: float = 1e-5,
    layer_decay: float | None = None,
    loss: Loss = "softmax",
    teacher: Any = None,
    distillation_weight: float = 0.5,
    distillation_temperature: float = 3.0,
    label_smoothing: float = 0.0,
    accumulation_steps: int = 1,
    ema_momentum: float | None = None,
    sam_rho: Rho = 0.0,
    gsam_alpha: float = 0.0,
    remat: bool = False,
    crop: data.Crop = "inception",
    pad: int = 4,
    area_range: tuple[float, float] = (0.05, 1.0),
    flip: bool = True,
    randaugment: tuple[int, float] | tuple[int, float, float] | None = None,
    random_erasing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    seed: int = 0,
    shuffle_bytes: int = data.SHUFFLE_BYTES,
    save_every: int = 500,
    log_every: int | None = None,
    validate_every: int | None = None,
    keep: int = 2,
    use_best: bool = False,
    resume: bool = False,
    tensorboard: bool = False,
    wandb: bool = False,
    mlflow: bool = False,
    deterministic: bool = True,
    quiet: bool = False,
    distribution: Any = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> keras.callbacks.History:
    """Train `model` from its present weights with the paper's pre-training recipe.

    AdamW with decay on kernels only, gradients clipped to a global norm, linear warm-up
    and decay. Stochastic depth and dropout are the model's own.

    Args:
        model: An `MLPMixer` with logits (`classifier_activation=None`).
        train: The `data.Source` to train on.
        validation: The `data.Source` to measure on, or `None`.
        output_dir: Folder for checkpoints and logs.
        total_steps: Optimizer steps of the whole run, warm-up included.
        batch_size: Images of one optimizer step, over all devices and accumulations.
        base_learning_rate: Peak learning rate.
        warmup_steps: Steps from 0 to the peak.
        weight_decay: Decay per unit of learning rate.
        clip_norm: Largest global norm of the gradients; `None` does not clip.
        schedule: `"linear"` or `"cosine"`.
        linear_end: Where the linear decay ends, as a share of the peak.
        layer_decay: As in `finetune`.
        loss: `"softmax"` or `"sigmoid"` cross-entropy.
        teacher: A model of the same classes to learn from, too: a Keras model, with a
            Mixer inside or not, or an exported file (its path, or what `export.load`
            returns). It gets the very pixels of `model`, resized if it takes another
            size, and is not trained; see `open_teacher`. `None` for none.
        distillation_weight: Share of the teacher's part in the loss, in (0, 1]; see
            `DistillationLoss`.
        distillation_temperature: What both logits are divided by there. Positive.
        label_smoothing: Share of the target spread over all classes, in [0, 1).
        accumulation_steps: Batches of `batch_size / accumulation_steps` that make one
            step.
        ema_momentum: Momentum of averaged weights, with which the model is measured and
            ends, in [0, 1]; `None` for none.
        sam_rho: Length of SAM's perturbation of the weights, 0 for plain training; a
            tuple of two follows the learning rate from its lowest value to its peak.
            About twice the time per step; see `set_sam`.
        gsam_alpha: Share of GSAM's orthogonal gradient, 0 for SAM. Needs `sam_rho`.
        remat: Whether to compute the blocks again in the backward pass, to save memory.
        crop: `"inception"`, `"pad"` or `"none"`, as in `data.Augmentation`.
        pad: Zero pixels on each side before the crop of `crop="pad"`.
        area_range: Smallest and largest share of the area for `crop="inception"`.
        flip: Whether half of the images are mirrored left to right.
        randaugment: Number of operations and magnitude, such as `(2, 15)`; `None` for
            no RandAugment.
        random_erasing: Probability that a rectangle of an image becomes noise, in
            [0, 1].
        mixup: Parameter of mixup's Beta distribution, 0 for no mixup.
        cutmix: Parameter of CutMix's Beta distribution, 0 for no CutMix.
        seed: Seed of the order of the images, their augmentation, and of dropout.
        shuffle_bytes: Size of the buffer that shuffles a source which can only be read
            in order, such as TFDS, in bytes; see `data.training_batches`.
        save_every: Steps between two checkpoints. Callbacks see it as one epoch.
        log_every: Steps between two rows of `log.csv`; `None` for a hundredth of the
            run, but not more than `save_every`.
        validate_every: Steps between two validations, a multiple of `save_every`;
            `None` for each checkpoint. The last step is always measured.
        keep: How many of the last checkpoints stay, beside the best one.
        use_best: Whether the model ends with the weights of the best validation
            accuracy, not the last.
        resume: Whether to go on from the last whole checkpoint in `output_dir`; without
            any, the run starts.
        tensorboard: Whether to write logs for TensorBoard, too.
        wandb: Whether to send the rows to Weights & Biases, too.
        mlflow: Whether to send the rows to MLflow, too.
        deterministic: Whether TensorFlow compiles the step with XLA on one device, so
            that a run that goes on agrees to the bit; see `RunOptions`.
        quiet: Whether to print nothing.
        distribution: What `distribution.start` returned; `None` for one device.
        callbacks: Keras callbacks, called as in `model.fit`; see `fit`.

    Returns:
        Keras's `History`, one entry per checkpoint interval.

    Raises:
        ValueError: If an argument is out of range, or the model and the data do not
            fit, or the run to go on with had other arguments. Nothing is written then.
        FloatingPointError: If the loss or a weight is no longer a finite number.
        FileExistsError: If `output_dir` holds a run and `resume` is not asked for, or
            another run is writing there.
        OSError: If a file cannot be read or written.

    Reference: paper, section 3 and appendix B; `big_vision/configs/mlp_mixer_i1k.py`.
    """
    given = dict(locals())
    make_optimizer = partial(
        pretrain_optimizer,
        total_steps=total_steps,
        base_learning_rate=base_learning_rate,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        schedule=schedule,
        linear_end=linear_end,
        layer_decay=layer_decay,
    )
    lowest = linear_end * base_learning_rate if schedule == "linear" else 0.0
    return _run(given, make_optimizer, lambda: None, (lowest, base_learning_rate))


def finetune_rates(
    build: Callable[[], keras.Model],
    train: data.Source,
    development: data.Source,
    *,
    base_learning_rates: Sequence[float],
    output_dir: str | Path,
    **arguments: Any,
) -> tuple[float, dict[float, float]]:
    """Fine-tune once per learning rate and return the best rate by accuracy.

    Args:
        build: Function without arguments that returns a new model; called once per
            rate.
        train: The `data.Source` to train on.
        development: The `data.Source` to measure on: held-out training examples, so
            that nothing is chosen by the test images.
        base_learning_rates: The grid.
        output_dir: Folder; each run has one of its own in it.
        **arguments: Passed to `finetune`. With `resume`, finished runs are not run
            again.

    Returns:
        The best rate, and `rate -> accuracy` on `development` after the last step.

    Raises:
        ValueError: If the grid is empty.

    Reference: paper, appendix C: the rate is chosen on a development split, the final
    run has the whole training split.
    """
    if not base_learning_rates:
        raise ValueError("`base_learning_rates` must not be empty. Received: none")
    accuracies: dict[float, float] = {}
    for rate in base_learning_rates:
        history = finetune(
            build(),
            train,
            development,
            base_learning_rate=rate,
            output_dir=Path(output_dir) / f"rate-{rate:g}",
            **arguments,
        )
        accuracies[rate] = history.history["val_accuracy"][-1]
    return max(accuracies, key=lambda rate: accuracies[rate]), accuracies


def check_logits(model: keras.Model) -> None:
    """Raise a `ValueError` unless `model` ends in logits."""
    head = model.layers[-1]
    if getattr(head, "activation", None) is not keras.activations.linear:
        raise ValueError(
            "Training needs logits: build the model with `classifier_activation=None` "
            "and `num_classes` > 0. The trained weights load into a model with softmax."
        )


def _run(
    given: Mapping[str, Any],
    make_optimizer: Callable[..., keras.Optimizer],
    adapt: Callable[[], None],
    learning_rates: tuple[float, float],
) -> keras.callbacks.History:
    """Check the arguments of a recipe, then adapt, compile and train the model."""
    model, train, validation = (given[n] for n in ("model", "train", "validation"))
    _check_data(model, train, validation)
    options = _taken(RunOptions, given)
    augmentation = _taken(data.Augmentation, given)
    objective = _taken(_Objective, given)
    distillation = _taken(Distillation, given)
    devices = given["distribution"] or SingleDevice()
    loss = _loss(objective)
    sharpness = _sharpness(objective, learning_rates)
    metric: type[keras.metrics.Metric] = keras.metrics.CategoricalAccuracy
    if distillation.teacher is not None:
        loss = DistillationLoss(
            loss,
            distillation.distillation_weight,
            distillation.distillation_temperature,
        )
        metric = LabelAccuracy
    with devices.scope():  # or a TensorFlow strategy refuses it
        optimizer = make_optimizer(
            accumulation_steps=objective.accumulation_steps,
            ema_momentum=objective.ema_momentum,
        )

    def make() -> None:
        adapt()
        if objective.remat:
            set_remat(model, True)
        set_sam(model, sharpness)
        model.compile(
            optimizer=optimizer,
            loss=loss,
            metrics=[metric("accuracy")],
        )

    return run(
        model,
        RunData(train, validation, augmentation, distillation.teacher),
        compilation=Compilation(optimizer, loss, make, sharpness),
        options=options,
        devices=devices,
        callbacks=given["callbacks"],
    )


def _taken(record: type[_Record], given: Mapping[str, Any]) -> _Record:
    """Return a record of those arguments that have the names of its fields."""
    fields = dataclasses.fields(record)  # type: ignore[arg-type]
    return record(**{field.name: given[field.name] for field in fields})


def _sharpness(
    objective: _Objective, learning_rates: tuple[float, float]
) -> Sharpness | None:
    rho, alpha = objective.sam_rho, objective.gsam_alpha
    check_sam(rho, alpha)
    if not rho:
        return None
    rates = learning_rates if isinstance(rho, tuple) else None
    return Sharpness(rho=rho, gsam_alpha=alpha, learning_rates=rates)


def _loss(objective: _Objective) -> keras.losses.Loss:
    smoothing = objective.label_smoothing
    if not 0 <= smoothing < 1:
        raise ValueError(
            "`label_smoothing` must lie in [0, 1). "
            f"Received: label_smoothing={smoothing!r}"
        )
    if objective.loss == "softmax":
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=smoothing
        )
    if objective.loss == "sigmoid":
        return SigmoidCrossentropy(label_smoothing=smoothing)
    raise ValueError(
        f'`loss` must be "softmax" or "sigmoid". Received: loss={objective.loss!r}'
    )


def _check_data(
    model: keras.Model, train: data.Source, validation: data.Source | None
) -> None:
    check_logits(model)
    for name, source in {"train": train, "validation": validation}.items():
        if source and source.num_classes != model.output_shape[-1]:
            raise ValueError(
                f"`{name}` and `model` must have the same number of classes. Received: "
                f"{source.num_classes} and {model.output_shape[-1]}. Build the model "
                f"with `num_classes={source.num_classes}`."
            )
