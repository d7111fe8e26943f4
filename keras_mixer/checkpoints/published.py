"""Where the checkpoints lie on the Hub. Written by `weights/record_commits.py`."""

from typing import Any

# (variant, name): (repository, commit, files), a file being (name, sha256, size).
PUBLISHED: dict[tuple[str, str], Any] = {}
