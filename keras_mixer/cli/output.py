"""Numbers that a command writes to a file."""

import json
from pathlib import Path
from typing import Any

from keras_mixer.cli.messages import escaped
from keras_mixer.files import atomic_write


def write_json(path: Path, numbers: dict[str, Any]) -> None:
    """Write numbers to a file, whole or not at all, and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "t", encoding="utf-8") as file:
        json.dump(numbers, file, indent=1)
    print(f"Written: {escaped(path)}")
