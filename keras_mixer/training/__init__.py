"""Recipes of training, their optimizers and losses, and runs that can be resumed.

Batches come from `keras_mixer.data`, devices from `keras_mixer.distribution`.
"""

from keras_mixer.training.adaptation import (
    add_lora,
    freeze_body,
    set_head_bias,
    set_remat,
)
from keras_mixer.training.distillation import (
    DistillationLoss,
    LabelAccuracy,
)
from keras_mixer.training.losses import (
    SigmoidCrossentropy,
)
from keras_mixer.training.optimizers import (
    finetune_optimizer,
    pretrain_optimizer,
)
from keras_mixer.training.recipes import (
    FINETUNE_RECIPES,
    NAMED_RECIPES,
    PRETRAIN_RECIPES,
    FinetuneRecipe,
    PretrainRecipe,
    finetune_recipe,
    pretrain_recipe,
)
from keras_mixer.training.resumable_fit import (
    fit,
)
from keras_mixer.training.run_options import (
    RunOptions,
)
from keras_mixer.training.runs import (
    check_logits,
    finetune,
    finetune_rates,
    pretrain,
)
from keras_mixer.training.schedules import (
    warmup_schedule,
)
from keras_mixer.training.sharpness import (
    Sharpness,
)
from keras_mixer.training.sharpness_step import (
    set_sam,
)
from keras_mixer.training.teacher import (
    open_teacher,
)
from keras_mixer.training.update_rules import (
    KernelAdamW,
    MomentumSGD,
)

__all__ = [
    "DistillationLoss",
    "FINETUNE_RECIPES",
    "FinetuneRecipe",
    "KernelAdamW",
    "LabelAccuracy",
    "MomentumSGD",
    "NAMED_RECIPES",
    "PRETRAIN_RECIPES",
    "PretrainRecipe",
    "RunOptions",
    "Sharpness",
    "SigmoidCrossentropy",
    "add_lora",
    "check_logits",
    "finetune",
    "finetune_optimizer",
    "finetune_rates",
    "finetune_recipe",
    "fit",
    "freeze_body",
    "open_teacher",
    "pretrain",
    "pretrain_optimizer",
    "pretrain_recipe",
    "set_head_bias",
    "set_remat",
    "set_sam",
    "warmup_schedule",
]
