"""Where the rows of a log go beside `log.csv`: TensorBoard, Weights & Biases, MLflow.

Each through its library's plain functions, which need no TensorFlow. A run that goes on
continues the tracked run it began.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from keras_mixer.training.run_options import RunOptions


class Tracker(Protocol):
    """What gets the rows of a log."""

    def start(self, settings: Mapping[str, Any]) -> None:
        """Begin, or go on with what was begun; `settings` are those of the run."""

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take one row."""

    def close(self) -> None:
        """Write what is still held back."""


def trackers(options: RunOptions) -> list[Tracker]:
    """Return the trackers that a run asks for; nothing is written before `start`.

    Raises:
        ImportError: If the package of one is not installed.
    """
    classes: list[tuple[bool, type]] = [
        (options.tensorboard, TensorBoard),
        (options.wandb, WeightsAndBiases),
        (options.mlflow, MLflow),
    ]
    return [make(options.folder) for wanted, make in classes if wanted]


class TensorBoard:
    """Scalars in `tensorboard/` of the folder of a run."""

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.summary import Writer
        except ImportError as error:
            raise _missing("tensorboard") from error
        self._open = lambda: Writer(str(folder / "tensorboard"))

    def start(self, settings: Mapping[str, Any]) -> None:
        self._writer = self._open()

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of wandb with the folder's name; `WANDB_PROJECT` and others say where."""

    def __init__(self, folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        self._wandb, self._folder = wandb, folder

    def start(self, settings: Mapping[str, Any]) -> None:
        known = _remembered(self._folder / "wandb_id")
        self._run = self._wandb.init(
            dir=str(self._folder),
            name=self._folder.name,
            config=dict(settings),
            id=known or None,
            resume="allow",
        )
        # A run that goes on gives some steps again, which wandb's own count forbids.
        self._run.define_metric("*", step_metric="step")
        _remember(self._folder / "wandb_id", self._run.id)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step, **numbers})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow with the folder's name; its own variables choose the server."""

    def __init__(self, folder: Path) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise _missing("mlflow") from error
        self._make_client, self._folder = MlflowClient, folder

    def start(self, settings: Mapping[str, Any]) -> None:
        import os

        self._client = self._make_client()
        self._id = _remembered(self._folder / "mlflow_id")
        if not self._id:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
            experiment = self._client.get_experiment_by_name(name)
            number = (
                experiment.experiment_id
                if experiment
                else self._client.create_experiment(name)
            )
            run = self._client.create_run(number, run_name=self._folder.name)
            self._id = run.info.run_id
            for key in ("total_steps", "batch_size", "seed"):
                self._client.log_param(self._id, key, settings[key])
            _remember(self._folder / "mlflow_id", self._id)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _missing(name: str) -> ImportError:
    return ImportError(
        f"`{name}=True` (--{name}) needs {name}: pip install 'keras-mixer[{name}]'"
    )


def _remembered(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _remember(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
