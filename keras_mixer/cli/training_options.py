"""What `finetune` and `pretrain` are asked: their options, and the paper's answers.

What an option does not give comes from the recipe of the data set, where the paper has
one, and else from the defaults of `training.finetune` and `training.pretrain`.
"""

from pathlib import Path

from keras_mixer.training import finetune_recipe, pretrain_recipe

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
    "loss",
    "label_smoothing",
    "crop",
    "randaugment",
    "mixup",
    "remat",
    "seed",
    "save_every",
    "validate_every",
    "keep",
    "use_best",
    "resume",
    "tensorboard",
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
)


def add_finetune_options(command):
    """Add the options of `finetune_arguments`."""
    recipe, rate = _add_recipe_options(command)
    rate.add_argument(
        "--grid",
        nargs="*",
        type=float,
        metavar="RATE",
        help="choose the learning rate among these (default: the paper's) on a part of "
        "the training images that is held out, then train on all of them",
    )
    recipe.add_argument(
        "--layer-decay",
        type=float,
        metavar="FACTOR",
        help="of the learning rate, per block below the head",
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
        type=int,
        metavar="RANK",
        help="train adapters of this rank, and the head",
    )


def add_pretrain_options(command):
    """Add the options of `pretrain_arguments`."""
    recipe, _ = _add_recipe_options(command)
    recipe.add_argument("--weight-decay", type=float, metavar="DECAY")
    recipe.add_argument("--schedule", choices=("linear", "cosine"))
    recipe.add_argument("--dropout", dest="dropout_rate", type=float, metavar="RATE")
    recipe.add_argument(
        "--stochastic-depth", dest="stochastic_depth_rate", type=float, metavar="RATE"
    )


def finetune_arguments(options):
    """Return the arguments of `training.finetune` that the options give.

    Raises:
        ValueError: If the steps are neither given nor known.
    """
    given = _given(options, (*_PASSED, "train_only", "lora_rank"))
    if "total_steps" not in given:
        given["total_steps"] = finetune_recipe(options.data).total_steps
    return _with_warmup(given, "finetune")


def grid_splits(options):
    """Return the learning rates to choose from, and the two splits to do it on.

    Raises:
        ValueError: If the rates are neither given nor known, or the split cannot be
            divided.
    """
    try:
        recipe = finetune_recipe(options.data)
    except ValueError:
        if not options.grid:
            raise
        recipe = None
    if recipe and options.split == "train":
        splits = recipe.train_split, recipe.validation_split
    elif options.split.isidentifier():
        splits = f"{options.split}[:90%]", f"{options.split}[90%:]"
    else:
        raise ValueError(
            "--grid holds out a part of --split, which must be a whole split. "
            f"Received: {options.split!r}"
        )
    return options.grid or recipe.base_learning_rates, *splits


def pretrain_arguments(options, num_examples):
    """Return the arguments of the model, and those of `training.pretrain`.

    Raises:
        ValueError: If the steps are neither given nor known.
    """
    model, given = _given(options, _MODEL), _given(options, _PASSED)
    try:
        recipe = pretrain_recipe(options.variant, options.data.split(":")[0])
    except ValueError:
        if options.total_steps is None:
            raise
        return model, _with_warmup(given, "pretrain")
    model = {name: getattr(recipe, name) for name in _MODEL} | model
    given = {name: getattr(recipe, name) for name in _FROM_RECIPE} | given
    steps = round(recipe.epochs * num_examples / given["batch_size"])
    return model, _with_warmup({"total_steps": steps} | given, "pretrain")


def _given(options, names):
    values = {name: getattr(options, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _with_warmup(arguments, command):
    longest = min(_WARMUP[command], arguments["total_steps"] // 5)
    return {"warmup_steps": longest} | arguments


def _add_recipe_options(command):
    recipe = command.add_argument_group(
        "recipe",
        "What is not given is the paper's, for this data set where it has one.",
    )
    rate = recipe.add_mutually_exclusive_group()
    for name, target, kind, help in (
        ("--steps", "total_steps", int, "optimizer steps, warm-up included"),
        ("--warmup-steps", None, int, "steps to the peak of the learning rate"),
        ("--batch-size", None, int, "images of one step, on all devices together"),
        ("--clip-norm", None, float, "largest global norm of the gradients"),
        ("--accumulation", "accumulation_steps", int, "batches that make one step"),
        ("--ema", "ema_momentum", float, "end with averaged weights, of this momentum"),
        ("--label-smoothing", None, float, "share of the target for all classes"),
        ("--mixup", None, float, "parameter of mixup's Beta distribution"),
        ("--image-size", None, int, "edge in pixels (default: that of the model)"),
    ):
        recipe.add_argument(name, dest=target, type=kind, metavar="N", help=help)
    rate.add_argument(
        "--learning-rate",
        dest="base_learning_rate",
        type=float,
        metavar="N",
        help="its peak",
    )
    recipe.add_argument("--loss", choices=("softmax", "sigmoid"))
    recipe.add_argument("--crop", choices=("inception", "pad", "none"))
    recipe.add_argument(
        "--randaugment", nargs=2, type=int, metavar=("LAYERS", "MAGNITUDE")
    )

    run = command.add_argument_group("run")
    run.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="for the checkpoints, the logs and the trained model",
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in --output, if any",
    )
    run.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    run.add_argument(
        "--dtype", metavar="POLICY", help="such as mixed_bfloat16 (default: float32)"
    )
    run.add_argument(
        "--remat", action="store_true", help="compute blocks twice, to save memory"
    )
    run.add_argument(
        "--save-every", type=int, metavar="STEPS", help="between two checkpoints"
    )
    run.add_argument(
        "--validate-every", type=int, metavar="STEPS", help="a multiple of --save-every"
    )
    run.add_argument("--keep", type=int, metavar="N", help="how many checkpoints stay")
    run.add_argument(
        "--best",
        dest="use_best",
        action="store_true",
        help="end with the weights of the best validation, not the last",
    )
    run.add_argument(
        "--tensorboard", action="store_true", help="write logs for TensorBoard, too"
    )
    devices = command.add_argument_group("devices")
    devices.add_argument(
        "--distribute",
        metavar="HOW",
        help="mirrored, tpu, tpu:NAME or multiworker (tensorflow), data or model:N "
        "(jax), ddp (torch); default: one device",
    )
    devices.add_argument(
        "--coordinator", metavar="ADDRESS:PORT", help="of host 0 (jax)"
    )
    devices.add_argument(
        "--num-processes", type=int, metavar="N", help="of hosts (jax)"
    )
    devices.add_argument(
        "--process-id", type=int, metavar="I", help="of this host (jax)"
    )
    return recipe, rate
