"""The log of a training, as columns of numbers."""

import csv
from pathlib import Path


def read_log(path: str | Path) -> dict[str, list[float]]:
    """Return column -> numbers of a `log.csv`; what was not measured is NaN.

    Args:
        path: A log of `training.finetune` or `pretrain`, or of Keras's `CSVLogger`.

    Raises:
        OSError: If it cannot be read.
        ValueError: If a cell is not a number.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {
            name: [float(row[name] or "nan") for row in rows]
            for name in (rows[0] if rows else ())
        }
    except (TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{str(path)!r} is not a log of numbers: {error}") from error
