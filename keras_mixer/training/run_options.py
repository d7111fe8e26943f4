"""What a run of training is asked to do, beside its recipe and its data."""

from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from keras_mixer.checks import check_dim
from keras_mixer.data import SHUFFLE_BYTES

# Rows of the log where no interval is given.
_ROWS = 100


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a run, checked when they are put together.

    Attributes:
        output_dir: Folder of `checkpoints/`, `log.csv` and `tensorboard/`. Several
            processes must all see it.
        total_steps: Optimizer steps of the whole run.
        batch_size: Images of one optimizer step, over all devices.
        seed: Seed of the order of the images, their augmentation, and of dropout.
        shuffle_bytes: Size of the buffer that shuffles a source which can only be read
            in order, such as TFDS, in bytes; see `data.training_batches`. Of several
            processes each has such a buffer.
        save_every: Steps between two checkpoints, the checkpoint interval. Callbacks
            see it as one epoch.
        log_every: Steps between two rows of `log.csv`; there is one more at each
            checkpoint. `None`: a hundredth of the run, but not more than `save_every`.
        validate_every: Steps between two validations, a multiple of `save_every`;
            `None` for each checkpoint. The last step is always measured.
        keep: How many of the last checkpoints stay, beside the one with the best
            validation accuracy.
        use_best: Whether the model ends with the weights of the best validation
            accuracy, not the last.
        resume: Whether to go on from the last whole checkpoint in `output_dir`; without
            any, the run starts.
        tensorboard: Whether to write logs for TensorBoard, too.
        wandb: Whether to send the rows to Weights & Biases, too. Its own variables
            say where: `WANDB_PROJECT`, `WANDB_MODE=offline`, ...
        mlflow: Whether to send the rows to MLflow, too. `MLFLOW_TRACKING_URI` and
            `MLFLOW_EXPERIMENT_NAME` say where.
        deterministic: Whether TensorFlow compiles the step with XLA on one device.
            Without it the order of its sums varies from run to run, and a run that goes
            on agrees up to rounding only. JAX computes so anyway. (On GPUs set
            `XLA_FLAGS=--xla_gpu_deterministic_ops=true`, too, for either.)
        quiet: Whether to print nothing.

    Raises:
        ValueError: If a value is out of its range.
    """

    output_dir: str | Path
    total_steps: int
    batch_size: int
    seed: int = 0
    shuffle_bytes: int = SHUFFLE_BYTES
    save_every: int = 500
    log_every: int | None = None
    validate_every: int | None = None
    keep: int = 2
    use_best: bool = False
    resume: bool = False
    tensorboard: bool = False
    wandb: bool = False
    mlflow: bool = False
    deterministic: bool = True
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in (
            "total_steps",
            "batch_size",
            "shuffle_bytes",
            "save_every",
            "keep",
        ):
            check_dim(name, getattr(self, name))
        if self.log_every is not None:
            check_dim("log_every", self.log_every)
        if self.validate_every is not None:
            check_dim("validate_every", self.validate_every)
            if self.validate_every % self.save_every:
                raise ValueError(
                    "`validate_every` must be a multiple of `save_every`. Received: "
                    f"validate_every={self.validate_every}, "
                    f"save_every={self.save_every}"
                )
        if not isinstance(self.seed, Integral) or not 0 <= self.seed <= 2**31 - 3:
            raise ValueError(
                "`seed` must be an integer from 0 to 2147483645. "
                f"Received: seed={self.seed!r}"
            )

    @property
    def folder(self) -> Path:
        """The output folder as a `Path`."""
        return Path(self.output_dir).expanduser()

    @property
    def log_interval(self) -> int:
        """Steps between two rows of the log, the default worked out."""
        interval = self.log_every or max(1, self.total_steps // _ROWS)
        return min(interval, self.save_every)

    def is_validated(self, step: int) -> bool:
        """Return whether the validation data is measured after a step."""
        every = self.validate_every or self.save_every
        return step % every == 0 or step == self.total_steps
