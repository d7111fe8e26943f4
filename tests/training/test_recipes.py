import pytest

from keras_mixer.training.optimizers import finetune_optimizer, pretrain_optimizer
from keras_mixer.training.recipes import (
    BIG_VISION_B16,
    BIG_VISION_GSAM,
    FINETUNE_RECIPES,
    NAMED_RECIPES,
    PRETRAIN_RECIPES,
    finetune_recipe,
    pretrain_recipe,
)

# No backend computes here.
pytestmark = pytest.mark.backend_free


@pytest.mark.parametrize(
    ("dataset", "steps", "rates"),
    [
        ("imagenet2012", 20_000, (0.003, 0.01, 0.03, 0.06)),
        ("cifar10:3.0.2", 10_000, (0.003, 0.01, 0.03, 0.06)),
        ("oxford_flowers102", 500, (0.003, 0.01, 0.03, 0.06)),
        ("vtab", 2_500, (0.003, 0.01, 0.03)),
    ],
)
def test_the_published_fine_tuning(dataset, steps, rates):
    recipe = finetune_recipe(dataset)
    assert (recipe.total_steps, recipe.base_learning_rates) == (steps, rates)
    assert (recipe.batch_size, recipe.momentum, recipe.clip_norm) == (512, 0.9, 1.0)


@pytest.mark.parametrize("recipe", FINETUNE_RECIPES.values())
def test_every_fine_tuning_fits_its_optimizer(recipe):
    finetune_optimizer(
        total_steps=recipe.total_steps,
        base_learning_rate=recipe.base_learning_rates[-1],
        warmup_steps=recipe.warmup_steps,
    )


def test_table_4():
    recipe = pretrain_recipe("L/16", "imagenet21k")
    assert (recipe.randaugment, recipe.mixup) == ((2, 20), 0.5)
    assert pretrain_recipe("B", "imagenet21k").mixup == 0.2
    assert pretrain_recipe("S/32", "jft300m").base_learning_rate == 0.003
    assert all(r.batch_size == 4096 for r in PRETRAIN_RECIPES.values())


def test_big_visions_run_has_a_weight_decay_of_1e_4_per_step():
    recipe = BIG_VISION_B16
    assert recipe.base_learning_rate * recipe.weight_decay == pytest.approx(1e-4)
    assert (recipe.loss, recipe.head_bias) == ("sigmoid", -6.9)
    optimizer = pretrain_optimizer(
        total_steps=92_897,
        warmup_steps=recipe.warmup_steps,
        base_learning_rate=recipe.base_learning_rate,
        linear_end=recipe.linear_end,
    )
    assert optimizer.get_config()["learning_rate"]["config"]["linear_end"] == 1e-5


def test_unknown_ones_are_named():
    with pytest.raises(ValueError, match="'cifar11'.*Did you mean 'cifar10'"):
        finetune_recipe("cifar11")
    with pytest.raises(ValueError, match="variant='H/14'.*B on imagenet2012"):
        pretrain_recipe("H/14", "imagenet2012")


def test_the_published_run_of_gsam():
    """The numbers of `vit_i1k_gsam_no_aug.py`."""
    recipe = BIG_VISION_GSAM
    assert (recipe.epochs, recipe.batch_size, recipe.warmup_steps) == (
        300,
        4096,
        10_000,
    )
    assert (recipe.base_learning_rate, recipe.linear_end) == (0.003, 0.01)
    assert recipe.base_learning_rate * recipe.weight_decay == pytest.approx(0.0009)
    assert (recipe.loss, recipe.head_bias, recipe.clip_norm) == ("sigmoid", -10.0, 1.0)
    assert (recipe.sam_rho, recipe.gsam_alpha) == ((0.1, 0.6), 0.6)
    assert (recipe.randaugment, recipe.mixup) == (None, 0.0)
    sam = NAMED_RECIPES["sam"]
    assert (sam.sam_rho, sam.gsam_alpha, sam.epochs) == (0.2, 0.0, 300)
