"""The options of `finetune` and `pretrain`, and their values from the paper.

The value of an option that is not given comes from the paper's recipe for the data
set, if there is one, else from the defaults of `training.finetune` and
`training.pretrain`.
"""

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from keras_mixer.cli.arguments import Parser, expanded, integer, number, path_of
from keras_mixer.cli.early_checks import check_backend
from keras_mixer.cli.messages import UsageError

if TYPE_CHECKING:
    from keras_mixer.cli.arguments import Group
    from keras_mixer.training import FinetuneRecipe

# The longest warm-up where none is given: the recipes', but no more than a fifth of the
# run, which is what they give the short ones.
_WARMUP = {"finetune": 500, "pretrain": 10_000}

# Options that go on under the names of `training.finetune` and `training.pretrain`.
_PASSED = (
    "total_steps",
    "warmup_steps",
    "batch_size",
    "base_learning_rate",
    "weight_decay",
    "schedule",
    "clip_norm",
    "layer_decay",
    "accumulation_steps",
    "ema_momentum",
    "sam_rho",
    "gsam_alpha",
    "loss",
    "distillation_weight",
    "distillation_temperature",
    "label_smoothing",
    "crop",
    "randaugment",
    "mixup",
    "remat",
    "seed",
    "shuffle_bytes",
    "save_every",
    "log_every",
    "validate_every",
    "keep",
    "use_best",
    "resume",
    "tensorboard",
    "wandb",
    "mlflow",
)
# What a pre-training recipe says of the model, and of the training.
_MODEL = ("dropout_rate", "stochastic_depth_rate")
_FROM_RECIPE = (
    "base_learning_rate",
    "weight_decay",
    "linear_end",
    "clip_norm",
    "batch_size",
    "randaugment",
    "mixup",
    "loss",
    "sam_rho",
    "gsam_alpha",
)

# Names of `distribution.start`, by backend.
_DEVICES = {
    "tensorflow": r"mirrored|tpu(:.+)?|multiworker",
    "jax": r"data|model:[1-9]\d*",
    "torch": r"ddp",
}

_RATE = number(0, 1, open_high=True)
_POSITIVE = number(0, open_low=True)


def add_finetune_options(command: Parser) -> None:
    """Add the options of `finetune_arguments`."""
    recipe, rate = _add_recipe_options(command)
    rate.add_argument(
        "--grid",
        nargs="*",
        type=_POSITIVE,
        metavar="RATE",
        help="choose the learning rate among these (default: the paper's) on a part of "
        "the training images that is held out, then train on all of them",
    )
    recipe.add_argument(
        "--layer-decay",
        type=number(0, 1, open_low=True),
        metavar="FACTOR",
        help="factor of the learning rate for each block below the head",
    )
    adapt = recipe.add_mutually_exclusive_group()
    adapt.add_argument(
        "--linear-probe",
        dest="train_only",
        action="store_const",
        const="head",
        help="train the head alone",
    )
    adapt.add_argument(
        "--lora",
        dest="lora_rank",
        type=integer(1),
        metavar="RANK",
        help="train adapters of this rank, and the head",
    )
    _add_run_options(command)
    _add_device_options(command)


def add_pretrain_options(command: Parser) -> None:
    """Add the options of `pretrain_arguments`."""
    recipe, _ = _add_recipe_options(command)
    recipe.add_argument(
        "--recipe",
        choices=("big_vision", "sam", "gsam"),
        help="a published run on ImageNet-1k, for any data set (default: the paper's)",
    )
    recipe.add_argument("--weight-decay", type=number(0), metavar="DECAY")
    recipe.add_argument("--schedule", choices=("linear", "cosine"))
    recipe.add_argument("--dropout", dest="dropout_rate", type=_RATE, metavar="RATE")
    recipe.add_argument(
        "--stochastic-depth", dest="stochastic_depth_rate", type=_RATE, metavar="RATE"
    )
    _add_run_options(command)
    _add_device_options(command)


def _add_recipe_options(command: Parser) -> "tuple[Group, Group]":
    """Add what both recipes have; return the group, and that of the learning rate."""
    recipe = command.add_argument_group(
        "recipe",
        "Options that are not given come from the paper's recipe for the data set, if "
        "it has one.",
    )
    rate = recipe.add_mutually_exclusive_group()
    for name, target, kind, help in (
        ("--steps", "total_steps", integer(1), "optimizer steps, warm-up included"),
        ("--warmup-steps", None, integer(0), "steps to the peak of the learning rate"),
        ("--batch-size", None, integer(1), "images of a step, on all devices together"),
        ("--clip-norm", None, _POSITIVE, "largest global norm of the gradients"),
        (
            "--accumulation",
            "accumulation_steps",
            integer(1),
            "batches that make a step",
        ),
        (
            "--ema",
            "ema_momentum",
            _RATE,
            "end with weights averaged with this momentum",
        ),
        (
            "--label-smoothing",
            None,
            _RATE,
            "share of the target spread over all classes",
        ),
        ("--mixup", None, number(0), "parameter of mixup's Beta distribution"),
        ("--image-size", None, integer(1), "edge in pixels (default: the model's)"),
    ):
        recipe.add_argument(name, dest=target, type=kind, metavar="N", help=help)
    rate.add_argument(
        "--learning-rate",
        dest="base_learning_rate",
        type=_POSITIVE,
        metavar="N",
        help="peak learning rate",
    )
    recipe.add_argument(
        "--sam-rho",
        nargs="+",
        type=number(0),
        metavar=("RHO", "RHO_MAX"),
        help="sharpness-aware training (SAM) with perturbations of this length; two "
        "numbers: at the lowest and at the highest learning rate",
    )
    recipe.add_argument(
        "--gsam-alpha",
        type=number(0),
        metavar="ALPHA",
        help="GSAM's share of the orthogonal gradient; needs --sam-rho",
    )
    recipe.add_argument("--loss", choices=("softmax", "sigmoid"))
    recipe.add_argument(
        "--teacher",
        type=expanded,
        metavar="MODEL",
        help="also learn from this model of the same classes: a .keras, a folder of a "
        "published model, hf://owner/name, VARIANT:WEIGHTS such as B/16:imagenet1k, or "
        "an exported file",
    )
    recipe.add_argument(
        "--temperature",
        dest="distillation_temperature",
        type=_POSITIVE,
        metavar="N",
        help="divisor of the logits of both models in the loss (default: 3)",
    )
    recipe.add_argument(
        "--distillation-weight",
        type=number(0, 1, open_low=True),
        metavar="SHARE",
        help="share of the teacher in the loss (default: 0.5)",
    )
    recipe.add_argument("--crop", choices=("inception", "pad", "none"))
    recipe.add_argument(
        "--randaugment", nargs=2, type=integer(0), metavar=("LAYERS", "MAGNITUDE")
    )
    return recipe, rate


def _add_run_options(command: Parser) -> None:
    run = command.add_argument_group("run")
    run.add_argument(
        "--output",
        type=path_of,
        required=True,
        metavar="FOLDER",
        help="folder for the checkpoints, the logs and the trained model",
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in --output, if any",
    )
    run.add_argument(
        "--seed", type=integer(0, 2**31 - 3), default=0, help="default: %(default)s"
    )
    run.add_argument(
        "--dtype", metavar="POLICY", help="such as mixed_bfloat16 (default: float32)"
    )
    run.add_argument(
        "--remat", action="store_true", help="compute blocks twice, to save memory"
    )
    run.add_argument(
        "--shuffle-bytes",
        type=integer(1),
        metavar="BYTES",
        help="size of the buffer that shuffles a TFDS data set (default: 1 GiB)",
    )
    run.add_argument(
        "--save-every",
        type=integer(1),
        metavar="STEPS",
        help="steps between two checkpoints (default: 500)",
    )
    run.add_argument(
        "--log-every",
        type=integer(1),
        metavar="STEPS",
        help="steps between two rows of log.csv (default: a hundredth of the run)",
    )
    run.add_argument(
        "--validate-every",
        type=integer(1),
        metavar="STEPS",
        help="steps between two validations, a multiple of --save-every (default: at "
        "each checkpoint)",
    )
    run.add_argument(
        "--keep",
        type=integer(1),
        metavar="N",
        help="how many of the last checkpoints to keep (default: 2)",
    )
    run.add_argument(
        "--best",
        dest="use_best",
        action="store_true",
        help="end with the weights of the best validation accuracy, not the last ones",
    )
    run.add_argument(
        "--tensorboard", action="store_true", help="write logs for TensorBoard, too"
    )
    run.add_argument(
        "--wandb",
        action="store_true",
        help="send the rows of the log to Weights & Biases, too (WANDB_MODE=offline "
        "keeps them here)",
    )
    run.add_argument(
        "--mlflow",
        action="store_true",
        help="send the rows of the log to MLflow, too (MLFLOW_TRACKING_URI says where)",
    )


def _add_device_options(command: Parser) -> None:
    devices = command.add_argument_group("devices")
    devices.add_argument(
        "--distribute",
        metavar="HOW",
        help="mirrored, tpu, tpu:NAME or multiworker (tensorflow), data or model:N "
        "(jax), ddp (torch); default: one device",
    )
    devices.add_argument(
        "--coordinator", metavar="ADDRESS:PORT", help="address of host 0 (jax)"
    )
    devices.add_argument(
        "--num-processes", type=integer(1), metavar="N", help="number of hosts (jax)"
    )
    devices.add_argument(
        "--process-id",
        type=integer(0),
        metavar="I",
        help="number of this host, from 0 (jax)",
    )


def check_run(options: argparse.Namespace) -> None:
    """Raise unless the options of a run fit together, and this backend.

    Raises:
        UsageError: If they do not.
        ImportError: If the backend is not installed.
    """
    if options.randaugment:
        layers, magnitude = options.randaugment
        if layers < 1 or magnitude > 20:
            raise UsageError(
                "--randaugment takes at least 1 layer and a magnitude from 0 to 20. "
                f"Received: {layers} {magnitude}"
            )
    _check_sam(options)
    for flag, value in (
        ("--temperature", options.distillation_temperature),
        ("--distillation-weight", options.distillation_weight),
    ):
        if value is not None and options.teacher is None:
            raise UsageError(f"{flag} needs --teacher.")
    save, validate = options.save_every, options.validate_every
    if save and validate and validate % save:
        raise UsageError(
            "--validate-every must be a multiple of --save-every. Received: "
            f"{validate} and {save}"
        )
    if options.use_best and options.validation_split == "none":
        raise UsageError("--best needs a validation: --validation-split is none.")
    _check_devices(options, check_backend())


def _check_sam(options: argparse.Namespace) -> None:
    rhos = options.sam_rho or ()
    if len(rhos) > 2 or list(rhos) != sorted(rhos):
        raise UsageError(
            "--sam-rho takes one number, or two, the smaller first. Received: "
            f"{' '.join(f'{rho:g}' for rho in rhos)}"
        )
    has_rho = any(rhos) or (
        options.sam_rho is None and getattr(options, "recipe", None) in ("sam", "gsam")
    )
    if options.gsam_alpha and not has_rho:
        raise UsageError("--gsam-alpha needs --sam-rho, more than 0.")


def _check_devices(options: argparse.Namespace, backend: str) -> None:
    name = options.distribute
    if name is not None and not re.fullmatch(_DEVICES.get(backend, ""), name):
        raise UsageError(
            "--distribute must be mirrored, tpu, tpu:NAME or multiworker with "
            "TensorFlow, data or model:N with JAX, ddp with torch. "
            f"Received: {name!r} with {backend}"
        )
    given = [
        flag
        for flag, value in {
            "--coordinator": options.coordinator,
            "--num-processes": options.num_processes,
            "--process-id": options.process_id,
        }.items()
        if value is not None
    ]
    if given and (backend != "jax" or name is None):
        raise UsageError(
            f"{', '.join(given)} can be used only with --distribute data or model:N, "
            "on the JAX backend."
        )


def finetune_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `training.finetune` that the options give.

    Raises:
        UsageError: If the steps are neither given nor known.
    """
    given = _given(options, (*_PASSED, "train_only", "lora_rank"))
    if "total_steps" not in given:
        given["total_steps"] = _finetune_recipe(options).total_steps
    return _with_warmup(given, "finetune")


def grid_splits(
    options: argparse.Namespace,
) -> tuple[Sequence[float], str, str]:
    """Return the learning rates to choose from, and the two splits to do it on.

    Raises:
        UsageError: If the rates are neither given nor known, or the split cannot be
            divided.
    """
    recipe = None
    try:
        recipe = _finetune_recipe(options)
    except UsageError:
        if not options.grid:
            raise
    if recipe and options.split == "train":
        splits = recipe.train_split, recipe.validation_split
    elif options.split.isidentifier():
        splits = f"{options.split}[:90%]", f"{options.split}[90%:]"
    else:
        raise UsageError(
            "--grid holds out a part of --split, which must be a whole split. "
            f"Received: {options.split!r}"
        )
    rates = options.grid or (recipe.base_learning_rates if recipe else ())
    return rates, *splits


def recipe_test_split(options: argparse.Namespace) -> str | None:
    """Return the split on which the paper measures, if it trains on this data set."""
    if options.command != "finetune":
        return None
    try:
        return _finetune_recipe(options).test_split
    except UsageError:
        return None


def _finetune_recipe(options: argparse.Namespace) -> "FinetuneRecipe":
    from keras_mixer.training import FINETUNE_RECIPES, finetune_recipe

    try:
        return finetune_recipe(options.data)
    except ValueError as error:
        raise UsageError(
            f"The paper does not fine-tune on {options.data!r}, but on "
            f"{', '.join(FINETUNE_RECIPES)}. Give --steps, and --learning-rate or "
            "--grid with rates."
        ) from error


def pretrain_arguments(
    options: argparse.Namespace, num_examples: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of the model, and those of `training.pretrain`.

    Raises:
        UsageError: If the steps are neither given nor known.
    """
    from keras_mixer.training import NAMED_RECIPES, pretrain_recipe

    model, given = _given(options, _MODEL), _given(options, _PASSED)
    try:
        recipe = NAMED_RECIPES.get(options.recipe) or pretrain_recipe(
            options.variant or "Ti/4", options.data.split(":")[0]
        )
    except ValueError as error:
        if options.total_steps is None:
            raise UsageError(f"{error} Give --steps.") from error
        return model, _with_warmup(given, "pretrain")
    model = {name: getattr(recipe, name) for name in _MODEL} | model
    given = {name: getattr(recipe, name) for name in _FROM_RECIPE} | given
    steps = round(recipe.epochs * num_examples / given["batch_size"])
    return model, _with_warmup({"total_steps": steps} | given, "pretrain")


def _given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(options, name, None) for name in names}
    given = {name: value for name, value in values.items() if value is not None}
    if "sam_rho" in given:
        rhos = given["sam_rho"]
        given["sam_rho"] = rhos[0] if len(rhos) == 1 else tuple(rhos)
    return given


def _with_warmup(arguments: dict[str, Any], command: str) -> dict[str, Any]:
    longest = min(_WARMUP[command], arguments["total_steps"] // 5)
    return {"warmup_steps": longest} | arguments
