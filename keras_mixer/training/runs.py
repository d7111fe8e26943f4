"""The paper's recipes, run from the first step to the last: fine-tuning, pre-training.

Each is a compiled model and `resumable_fit.fit`; the optimizers and losses work as well
in any `compile`/`fit` of your own.

Source: paper, section 3 and appendices B and C; `vit_jax/train.py`;
`big_vision/configs/mlp_mixer_i1k.py`.
"""

from pathlib import Path

import keras

from keras_mixer.distribution import SingleDevice
from keras_mixer.training.adaptation import add_lora, freeze_body, set_remat
from keras_mixer.training.losses import SigmoidCrossentropy
from keras_mixer.training.optimizers import (
    finetune_optimizer,
    pretrain_optimizer,
)
from keras_mixer.training.resumable_fit import fit


def finetune(
    model,
    train,
    validation=None,
    *,
    output_dir,
    total_steps,
    batch_size=512,
    base_learning_rate=0.03,
    warmup_steps=500,
    clip_norm=1.0,
    layer_decay=None,
    train_only=None,
    lora_rank=None,
    crop="inception",
    **run,
):
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
        clip_norm: Largest global norm of the gradients.
        layer_decay: Factor of the learning rate per block below the head, in (0, 1];
            `None` for one rate.
        train_only: `"head"` for a linear probe, `None` for all weights.
        lora_rank: Rank of adapters that are trained instead of the blocks' kernels;
            `None` for none.
        crop: As in `data.training_batches`.
        **run: Further arguments of the run: `loss`, `label_smoothing`,
            `accumulation_steps`, `ema_momentum` and `remat` as in `pretrain`, and those
            of `resumable_fit.fit` (`seed`, `save_every`, `validate_every`, `keep`,
            `use_best`, `resume`, `tensorboard`, `distribution`, `quiet`, `mixup`,
            `randaugment`, ...).

    Returns:
        Keras's `History`, one entry per checkpoint.

    Raises:
        ValueError: If an argument is out of range, or the model and the data do not
            fit.
        FloatingPointError: If the loss or a weight is no longer a finite number.
        FileExistsError: If `output_dir` holds a run and `resume` is not asked for.

    Reference: paper, section 3 and appendix C; `vit_jax/configs/common.py`.
    """
    if train_only not in (None, "head"):
        raise ValueError(
            f'`train_only` must be "head" or None. Received: train_only={train_only!r}'
        )

    def optimizer(**extras):
        return finetune_optimizer(
            total_steps=total_steps,
            base_learning_rate=base_learning_rate,
            warmup_steps=warmup_steps,
            clip_norm=clip_norm,
            layer_decay=layer_decay,
            **extras,
        )

    def adapt():
        if train_only == "head":
            freeze_body(model)
        if lora_rank is not None:
            add_lora(model, lora_rank)

    return _run(
        model,
        train,
        validation,
        optimizer=optimizer,
        adapt=adapt,
        output_dir=output_dir,
        total_steps=total_steps,
        batch_size=batch_size,
        crop=crop,
        **run,
    )


def pretrain(
    model,
    train,
    validation=None,
    *,
    output_dir,
    total_steps,
    batch_size=4096,
    base_learning_rate=0.001,
    warmup_steps=10_000,
    weight_decay=0.1,
    clip_norm=1.0,
    schedule="linear",
    linear_end=1e-5,
    crop="inception",
    **run,
):
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
        clip_norm: Largest global norm of the gradients.
        schedule: `"linear"` or `"cosine"`.
        linear_end: Where the linear decay ends, as a share of the peak.
        crop: As in `data.training_batches`.
        **run: Further arguments of the run:
            `loss`: `"softmax"` (default) or `"sigmoid"`, cross-entropy;
            `label_smoothing`: share of the target spread over all classes, in [0, 1);
            `accumulation_steps`: batches of `batch_size / accumulation_steps` that make
            one step; `ema_momentum`: of the averaged weights with which the model is
            measured and ends; `remat`: whether to compute the blocks again in the
            backward pass to save memory; and those of `resumable_fit.fit`.

    Returns:
        Keras's `History`, one entry per checkpoint.

    Raises:
        ValueError: If an argument is out of range, or the model and the data do not
            fit.
        FloatingPointError: If the loss or a weight is no longer a finite number.
        FileExistsError: If `output_dir` holds a run and `resume` is not asked for.

    Reference: paper, section 3 and appendix B; `big_vision/configs/mlp_mixer_i1k.py`.
    """

    def optimizer(**extras):
        return pretrain_optimizer(
            total_steps=total_steps,
            base_learning_rate=base_learning_rate,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            schedule=schedule,
            linear_end=linear_end,
            **extras,
        )

    return _run(
        model,
        train,
        validation,
        optimizer=optimizer,
        output_dir=output_dir,
        total_steps=total_steps,
        batch_size=batch_size,
        crop=crop,
        **run,
    )


def finetune_rates(
    build, train, development, *, base_learning_rates, output_dir, **arguments
):
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
    accuracies = {}
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
    return max(accuracies, key=accuracies.get), accuracies


def check_logits(model):
    """Raise a `ValueError` unless `model` ends in logits."""
    head = model.layers[-1]
    if getattr(head, "activation", None) is not keras.activations.linear:
        raise ValueError(
            "Training needs logits: build the model with `classifier_activation=None` "
            "and `num_classes` > 0. The trained weights load into a model with softmax."
        )


def _run(
    model,
    train,
    validation,
    *,
    optimizer,
    adapt=None,
    loss="softmax",
    label_smoothing=0.0,
    accumulation_steps=1,
    ema_momentum=None,
    remat=False,
    distribution=None,
    **run,
):
    """Compile `model` with the recipe's parts and train it."""
    _check_data(model, train, validation)
    devices = distribution or SingleDevice()
    with devices.scope():
        if adapt:
            adapt()
        if remat:
            set_remat(model, True)
        model.compile(
            optimizer=optimizer(
                accumulation_steps=accumulation_steps, ema_momentum=ema_momentum
            ),
            loss=_loss(loss, label_smoothing),
            metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
        )
    return fit(model, train, validation, distribution=devices, **run)


def _loss(name, label_smoothing):
    if name == "softmax":
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=label_smoothing
        )
    if name == "sigmoid":
        return SigmoidCrossentropy(label_smoothing=label_smoothing)
    raise ValueError(f'`loss` must be "softmax" or "sigmoid". Received: loss={name!r}')


def _check_data(model, train, validation):
    check_logits(model)
    for name, source in {"train": train, "validation": validation}.items():
        if source and source.num_classes != model.output_shape[-1]:
            raise ValueError(
                f"`{name}` and `model` must have the same number of classes. Received: "
                f"{source.num_classes} and {model.output_shape[-1]}. Build the model "
                f"with `num_classes={source.num_classes}`."
            )
