"""Recipes: `fit` around the paper's optimizers.

`pretrain` runs a whole recipe; the optimizers themselves work in any `compile`/`fit`.

Source: paper, section 3 and appendix B; `big_vision/configs/mlp_mixer_i1k.py`.
"""

import math
from pathlib import Path

import keras

from keras_mixer.optimizers import (
    MomentumSGD,
    finetune_optimizer,
    pretrain_optimizer,
)

__all__ = [
    "MomentumSGD",
    "check_logits",
    "finetune_optimizer",
    "pretrain",
    "pretrain_optimizer",
    "steps_per_epoch",
]


def pretrain(
    model,
    batches,
    *,
    steps_per_epoch,
    epochs,
    output_dir,
    validation_batches=None,
    label_smoothing=0.0,
    verbose=1,
    **optimizer_arguments,
):
    """Train `model` from its present weights with the pre-training recipe.

    Goes on where an earlier run with the same `output_dir` was interrupted (at the end
    of its last whole epoch), and writes `log.csv` and `final.weights.h5` there.

    Args:
        model: A Mixer with logits (`classifier_activation=None`).
        batches: Endless stream of `(pixels, one-hot labels)`.
        steps_per_epoch: Optimizer steps between two validations.
        epochs: Number of such stretches.
        output_dir: Folder for the log, the backup and the weights.
        validation_batches: One pass of validation examples, or `None`.
        label_smoothing: Share of the target spread evenly over the classes.
        verbose: As in `fit`.
        **optimizer_arguments: Passed to `pretrain_optimizer`.

    Returns:
        Keras's `History`.

    Raises:
        ValueError: If the model does not end in logits.
    """
    check_logits(model)
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    model.compile(
        optimizer=pretrain_optimizer(
            total_steps=epochs * steps_per_epoch, **optimizer_arguments
        ),
        loss=keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=label_smoothing
        ),
        metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
    )
    history = model.fit(
        batches,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        validation_data=validation_batches,
        callbacks=[
            keras.callbacks.BackupAndRestore(output_dir / "backup"),
            keras.callbacks.CSVLogger(output_dir / "log.csv", append=True),
            keras.callbacks.TerminateOnNaN(),
        ],
        verbose=verbose,
    )
    model.save_weights(output_dir / "final.weights.h5")
    return history


def check_logits(model):
    """Raise a `ValueError` unless `model` ends in logits."""
    head = model.layers[-1]
    if getattr(head, "activation", None) is not keras.activations.linear:
        raise ValueError(
            "Training needs logits: build the model with `classifier_activation=None` "
            "and `num_classes` > 0. The trained weights load into a model with softmax."
        )


def steps_per_epoch(num_examples, batch_size):
    """Return the number of full batches nearest to one pass, at least one."""
    return max(1, math.floor(num_examples / batch_size))
