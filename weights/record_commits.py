"""Record in the package where the checkpoints were published.

    python weights/record_commits.py

For every commit in `weights/published.json` (see `publish_checkpoints.py`) the names,
SHA-256 and sizes of its files are taken from its `checksums.json`, and
`keras_mixer/checkpoints/published.py` is written anew: from then on the package gets
these files.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from keras_mixer.checkpoints import published
from keras_mixer.checkpoints.hub_files import download_file, parse_address
from keras_mixer.checkpoints.manifest import CHECKSUMS, read_checksums
from keras_mixer.checkpoints.records import find_checkpoint
from keras_mixer.files import sha256_of

# Repository, commit, and the name, SHA-256 and size of every file.
Record = tuple[str, str, tuple[tuple[str, str, int], ...]]

PUBLISHED = Path(__file__).parent / "published.json"

_HEAD = '''\
"""Where the checkpoints lie on the Hub. Written by `weights/record_commits.py`."""

from typing import Any

# (variant, name): (repository, commit, files), a file being (name, sha256, size).
PUBLISHED: dict[tuple[str, str], Any] = {'''


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--published", type=Path, default=PUBLISHED, help="default: %(default)s"
    )
    parser.add_argument(
        "--module",
        type=Path,
        default=Path(published.__file__),
        help="what to write (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        text = write_module(read_records(options.published))
        options.module.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"record_commits: {error}", file=sys.stderr)
        return 1
    print(f"Written: {options.module}")
    return 0


def read_records(path: Path) -> dict[tuple[str, str], Record]:
    """Return (variant, name) -> (repository, commit, files) of what is published."""
    records = {}
    for title, record in json.loads(path.read_text(encoding="utf-8")).items():
        variant, name = title.split()
        find_checkpoint(variant, name)  # there is such a one
        repository, commit = record["repository"], record["commit"]
        if parse_address(f"hf://{repository}@{commit}") != (repository, commit):
            raise ValueError(f"{path}: {repository!r} is no repository")
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise ValueError(f"{path}: the commit of {title} is {commit!r}")
        records[variant, name] = (repository, commit, files_of(repository, commit))
        print(f"{title}: hf://{repository}@{commit}", flush=True)
    return records


def files_of(repository: str, commit: str) -> tuple[tuple[str, str, int], ...]:
    """Return the (name, sha256, size) of every file at a commit, sorted."""
    path = download_file(repository, CHECKSUMS, commit)
    checksums = read_checksums(path, f"hf://{repository}@{commit}")
    checksums[CHECKSUMS] = {"sha256": sha256_of(path), "size": path.stat().st_size}
    files = []
    for name, record in sorted(checksums.items()):
        sha256, size = str(record["sha256"]), int(record["size"])
        # They come from outside, and become a part of a Python module.
        if not re.fullmatch(r"[\w.-]+ [0-9a-f]{64}", f"{name} {sha256}", re.ASCII):
            raise ValueError(f"{CHECKSUMS} of {repository} has the entry {name!r}")
        files.append((name, sha256, size))
    return tuple(files)


def write_module(records: dict[tuple[str, str], Record]) -> str:
    """Return the text of `keras_mixer/checkpoints/published.py`."""
    if not records:
        return _HEAD + "}\n"
    lines = []
    for (variant, name), (repository, commit, files) in sorted(records.items()):
        lines += [
            f'    ("{variant}", "{name}"): (',
            f'        "{repository}",',
            f'        "{commit}",',
            "        (",
        ]
        for file, sha256, size in files:
            lines += [
                "            (",
                f'                "{file}",',
                f'                "{sha256}",',
                f"                {size},",
                "            ),",
            ]
        lines += ["        ),", "    ),"]
    return _HEAD + "\n".join(["", *lines, "}"]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
