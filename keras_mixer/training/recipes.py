"""The published numbers of training: one record per data set or pre-training run.

A record only says numbers; `optimizers.py` turns them into optimizers.

Source: paper, section 3, appendices B and C, table 4; Dosovitskiy et al. 2020, "An
Image is Worth 16x16 Words", appendix B.1.1 (its fine-tuning is that of the paper);
`vit_jax/configs/common.py`; `big_vision/configs/mlp_mixer_i1k.py`;
`big_vision/configs/proj/gsam/vit_i1k_gsam_no_aug.py`.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from dataclasses import dataclass

_WIDE_GRID = (0.003, 0.01, 0.03, 0.06)


@dataclass(frozen=True)
class FinetuneRecipe:
    """How the paper fine-tunes on one data set.

    Attributes:
        total_steps: Optimizer steps, warm-up included.
        base_learning_rates: The grid of peak learning rates; the best on
            `validation_split` is used.
        train_split: TFDS split to train on while the grid is searched; the final run
            takes the whole training set.
        validation_split: TFDS split to choose the learning rate on.
        test_split: TFDS split of the reported accuracy.
        warmup_steps: Steps from 0 to the peak.
        batch_size: Images per step.
        image_size: Edge of the square image in pixels.
        momentum: Momentum of SGD.
        clip_norm: Largest global norm of the gradients.
    """

    total_steps: int
    base_learning_rates: tuple[float, ...]
    train_split: str
    validation_split: str
    test_split: str
    warmup_steps: int = 500
    batch_size: int = 512
    image_size: int = 224
    momentum: float = 0.9
    clip_norm: float = 1.0


_CIFAR = FinetuneRecipe(
    10_000, _WIDE_GRID, "train[:98%]", "train[98%:]", test_split="test"
)

# The official code warms up over 500 steps on every data set it knows, which would be
# the whole run on Pets and Flowers, and no paper says what was done there: a fifth of
# the run is this package's own choice.
_SHORT_WARMUP = 100

FINETUNE_RECIPES = {
    "imagenet2012": FinetuneRecipe(
        20_000, _WIDE_GRID, "train[:99%]", "train[99%:]", test_split="validation"
    ),
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "oxford_iiit_pet": FinetuneRecipe(
        500,
        _WIDE_GRID,
        "train[:90%]",
        "train[90%:]",
        test_split="test",
        warmup_steps=_SHORT_WARMUP,
    ),
    # The 1020 train and 1020 validation images together are the training set.
    "oxford_flowers102": FinetuneRecipe(
        500,
        _WIDE_GRID,
        "train[:90%]+validation[:90%]",
        "train[90%:]+validation[90%:]",
        test_split="test",
        warmup_steps=_SHORT_WARMUP,
    ),
    # VTAB-1k: every one of its tasks has these two splits of 800 and 200 images.
    "vtab": FinetuneRecipe(
        2_500, (0.003, 0.01, 0.03), "train[:800]", "validation[:200]", test_split="test"
    ),
}


@dataclass(frozen=True)
class PretrainRecipe:
    """How the paper, or big_vision, pre-trains one model on one data set.

    Attributes:
        epochs: Passes over the training images.
        base_learning_rate: Peak learning rate.
        weight_decay: Decay of kernels per unit of learning rate.
        randaugment: `(layers, magnitude)`, magnitude 10 being the largest of the usual
            range; `None` for no RandAugment.
        mixup: Parameter of the Beta distribution of the mixing share; 0 for no mixup.
        dropout_rate: Dropout inside the MLPs.
        stochastic_depth_rate: Probability to drop a branch of the last block.
        loss: `"softmax"` or `"sigmoid"` cross-entropy.
        head_bias: First value of the head's bias.
        warmup_steps: Steps from 0 to the peak.
        batch_size: Images per step.
        image_size: Edge of the square image in pixels.
        linear_end: Where the linear decay ends, as a share of the peak.
        clip_norm: Largest global norm of the gradients.
        sam_rho: Length of SAM's perturbation, 0 for none; or its values at the lowest
            and at the highest learning rate.
        gsam_alpha: Share of GSAM's orthogonal gradient, 0 for SAM.
    """

    epochs: int
    base_learning_rate: float
    weight_decay: float
    randaugment: tuple[int, int] | None = None
    mixup: float = 0.0
    dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0
    loss: str = "softmax"
    head_bias: float = 0.0
    warmup_steps: int = 10_000
    batch_size: int = 4096
    image_size: int = 224
    linear_end: float = 0.0
    clip_norm: float = 1.0
    sam_rho: float | tuple[float, float] = 0.0
    gsam_alpha: float = 0.0


# By size letter and data: table 4. The paper does not name its loss.
PRETRAIN_RECIPES = {
    ("B", "imagenet2012"): PretrainRecipe(300, 0.001, 0.1, (2, 15), 0.5, 0.0, 0.1),
    ("L", "imagenet2012"): PretrainRecipe(300, 0.001, 0.1, (2, 15), 0.5, 0.0, 0.1),
    ("B", "imagenet21k"): PretrainRecipe(300, 0.001, 0.1, (2, 10), 0.2, 0.0, 0.1),
    ("L", "imagenet21k"): PretrainRecipe(300, 0.001, 0.1, (2, 20), 0.5, 0.0, 0.1),
    ("S", "jft300m"): PretrainRecipe(5, 0.003, 0.03),
    ("B", "jft300m"): PretrainRecipe(7, 0.003, 0.03),
    ("L", "jft300m"): PretrainRecipe(14, 0.001, 0.03),  # 7 epochs in a second row
    ("H", "jft300m"): PretrainRecipe(14, 0.001, 0.03),
}

# Mixer-B/16 on ImageNet-1k, 76.3 % top-1. -6.9 is about -log(1000): at the start every
# class is as probable as it is frequent.
BIG_VISION_B16 = PretrainRecipe(
    300,
    0.001,
    0.1,
    (2, 15),
    0.5,
    0.0,
    0.1,
    loss="sigmoid",
    head_bias=-6.9,
    linear_end=1e-5,
)

# The published run of GSAM on ImageNet-1k: crops and flips only. It is for ViT-B/32;
# nobody published one for a Mixer. Its weight decay, 0.001 per step at the peak, is the
# paper's 0.3 x 0.003, rounded. There each of the TPU's chips perturbs the weights by
# its own part of the 4096 images.
BIG_VISION_GSAM = PretrainRecipe(
    300,
    0.003,
    0.3,
    loss="sigmoid",
    head_bias=-10.0,
    linear_end=0.01,
    sam_rho=(0.1, 0.6),
    gsam_alpha=0.6,
)

# SAM is that run with one rho and alpha = 0 (a comment of its config). 0.2 is what was
# reported for ViT-B/16 (issue 153 of google-research/vision_transformer), with 64
# images per perturbation: its author made it larger for fewer devices. The rho of the
# published Mixers is in no public code.
SAM_RECIPE = dataclasses.replace(BIG_VISION_GSAM, sam_rho=0.2, gsam_alpha=0.0)

# Runs on ImageNet-1k that are known by a name.
NAMED_RECIPES = {
    "big_vision": BIG_VISION_B16,
    "sam": SAM_RECIPE,
    "gsam": BIG_VISION_GSAM,
}


def finetune_recipe(dataset: str) -> FinetuneRecipe:
    """Return the paper's fine-tuning of a data set.

    Args:
        dataset: TFDS name, such as `"cifar10"` or `"oxford_iiit_pet:3.2.0"`.

    Raises:
        ValueError: If the paper has none for it; the message names those there are.
    """
    # What follows the name in TFDS: a version, or a config.
    name = dataset.split(":")[0].split("/")[0]
    if name not in FINETUNE_RECIPES:
        raise ValueError(
            f"The paper does not fine-tune on this data set. Received: {dataset!r}. "
            f"{_known(name, FINETUNE_RECIPES)} "
            "Give the steps and the learning rate yourself."
        )
    return FINETUNE_RECIPES[name]


def pretrain_recipe(variant: str, dataset: str) -> PretrainRecipe:
    """Return the paper's pre-training of a model on a data set.

    Args:
        variant: Size letter, with or without a patch size: `"B"` or `"B/16"`.
        dataset: `"imagenet2012"`, `"imagenet21k"` or `"jft300m"`.

    Raises:
        ValueError: If table 4 has no such row; the message names those there are.
    """
    row = (variant.split("/")[0], dataset)
    if row not in PRETRAIN_RECIPES:
        rows = ", ".join(f"{size} on {data}" for size, data in PRETRAIN_RECIPES)
        raise ValueError(
            "The paper has no such pre-training. Received: "
            f"variant={variant!r}, dataset={dataset!r}. It has {rows}."
        )
    return PRETRAIN_RECIPES[row]


def _known(name: str, recipes: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, recipes, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}It has {', '.join(recipes)}."
