"""Where the files of a published model lie: a folder here, or one commit of the Hub."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from keras_mixer.checkpoints.hub_files import (
    download_file,
    parse_address,
    remember_revision,
    resolve_revision,
)
from keras_mixer.checkpoints.manifest import (
    CHECKSUMS,
    CONFIG,
    MAX_CHECKSUMS_SIZE,
    MAX_CONFIG_SIZE,
    WEIGHTS,
    Entry,
    not_ours,
    read_checksums,
    read_config,
)
from keras_mixer.checkpoints.timm_repository import open_timm
from keras_mixer.files import NoSuchFileError, mismatch
from keras_mixer.variants import parameter_count

_Result = TypeVar("_Result")


class Fetch(Protocol):
    """Returns the path of a file of a repository, with the content that is expected."""

    def __call__(
        self,
        filename: str,
        *,
        sha256: str | None = None,
        size: int | None = None,
        max_size: int | None = None,
    ) -> Path: ...


def locate(source: object) -> tuple[Entry, Path]:
    """Return the `Entry` and the path of the weights of what `from_pretrained` takes.

    For models that are built in another way than they were published; raises the same.
    """
    return read_published(source, open_repository)


def read_published(source: object, read: Callable[[Fetch, str], _Result]) -> _Result:
    """Return `read(fetch, source)`, all files of one folder or one commit."""
    if not str(source).startswith("hf://"):
        return read(in_folder(source), str(source))
    repo_id, revision = parse_address(source)
    commit = resolve_revision(repo_id, revision)

    def fetch(filename: str, **expected: Any) -> Path:
        return download_file(repo_id, filename, commit, **expected)

    result = read(fetch, str(source))
    remember_revision(repo_id, revision, commit)
    return result


def open_repository(fetch: Fetch, source: str) -> tuple[Entry, Path]:
    """Return the `Entry` of a published model and the path of its weights.

    A repository of this package is recognised by its checksums, one of timm by its
    config.

    Args:
        fetch: How a file of the repository is found.
        source: What to call the repository in messages.

    Raises:
        ValueError: If the files are not those of an `MLPMixer`.
        OSError: As `fetch` does.
    """
    try:
        path = fetch(CHECKSUMS, max_size=MAX_CHECKSUMS_SIZE)
    except NoSuchFileError as error:
        if opened := open_timm(fetch, source):
            return opened
        raise not_ours(
            source, f"it has no {CHECKSUMS}, and no {CONFIG} of a model of timm"
        ) from error
    checksums = read_checksums(path, source)
    path = fetch(CONFIG, **checksums[CONFIG], max_size=MAX_CONFIG_SIZE)
    entry = read_config(path, source)
    # Beside its numbers the file holds groups of layers, and the states of dropouts.
    max_size = 4 * parameter_count(entry.architecture) + 2**20
    max_size += 2**16 * entry.architecture["num_blocks"]
    return entry, fetch(WEIGHTS, **checksums[WEIGHTS], max_size=max_size)


def in_folder(folder: object) -> Fetch:
    """Return the `Fetch` of a folder of this machine.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    name = os.path.expanduser(str(folder))
    folder = Path(name)
    if not os.path.isdir(name):  # `Path("")` is the working directory
        raise FileNotFoundError(
            f"There is no folder {name!r}. A repository on the Hub is hf://owner/name."
        )

    def fetch(
        filename: str,
        *,
        sha256: str | None = None,
        size: int | None = None,
        max_size: int | None = None,
    ) -> Path:
        path = folder / filename
        try:
            problem = mismatch(path, sha256, size)
        except FileNotFoundError as error:
            raise NoSuchFileError(
                f"There is no {filename} in {str(folder)!r}: {error}"
            ) from error
        if problem:
            raise OSError(f"{path} is damaged: {problem}. Get it again.")
        if max_size is not None and (actual := path.stat().st_size) > max_size:
            raise ValueError(
                f"{path} has more than {max_size} bytes. Received: {actual}"
            )
        return path

    return fetch
