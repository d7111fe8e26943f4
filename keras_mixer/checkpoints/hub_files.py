"""Files of repositories on the Hugging Face Hub: fetched, checked, failures explained.

The client caches, resumes and writes atomically, but it compares no content with a
hash, retries no failed download, and lets raw network errors out. This adds that, and
makes one builtin error with one explanation out of each of its many exceptions.
"""

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from keras_mixer.checkpoints.download import retry_after
from keras_mixer.files import NoSuchFileError, mismatch, open_regular

_Result = TypeVar("_Result")

_WAITS = (1, 2, 4)  # seconds before another attempt
_ADDRESS = re.compile(
    r"hf://(?P<repo_id>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w.-]*(/\w[\w.-]*)*))?",
    re.ASCII,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class OtherContentError(OSError):
    """A file was fetched twice, and its content is not what it must be."""


def parse_address(address: object) -> tuple[str, str]:
    """Return `("owner/name", revision)` of `"hf://owner/name[@revision]"`.

    The revision is a branch, a tag or a commit; `"main"` without one.

    Raises:
        ValueError: If the address is not of that form.
    """
    match = _ADDRESS.fullmatch(str(address))
    if match is None:
        raise ValueError(
            "An address on the Hub is hf://owner/name or hf://owner/name@revision. "
            f"Received: {str(address)!r}"
        )
    return match["repo_id"], match["revision"] or "main"


def resolve_revision(repo_id: str, revision: str) -> str:
    """Return the commit (40 hex digits) that a branch or tag points to.

    A commit is returned as it is, without a request. Without a connection it is the
    commit that `remember_revision` noted last.

    Raises:
        OSError: As in `download_file`.
    """
    from huggingface_hub import HfApi

    if _COMMIT.fullmatch(revision):
        return revision
    try:
        api = HfApi(library_name="keras_mixer")
        info = with_retries(lambda: api.model_info(repo_id, revision=revision), repo_id)
        return str(info.sha)
    except ConnectionError:
        reference = _reference(repo_id, revision)
        noted = reference.read_text(errors="replace") if reference.is_file() else ""
        if not _COMMIT.fullmatch(noted.strip()):
            raise
        return noted.strip()


def remember_revision(repo_id: str, revision: str, commit: str) -> None:
    """Note in the cache, as the client does, where a branch or tag pointed to.

    Done once all files of the commit are there, so that without a connection the last
    whole set of files is found, never half of a newer one.
    """
    if revision != commit:
        reference = _reference(repo_id, revision)
        try:
            reference.parent.mkdir(parents=True, exist_ok=True)
            reference.write_text(commit)
        except OSError:
            pass  # a cache that is shared and read-only serves as well


def download_file(
    repo_id: str,
    filename: str,
    commit: str,
    *,
    sha256: str | None = None,
    size: int | None = None,
    max_size: int | None = None,
    token: str | None = None,
    kind: str = "model",
) -> Path:
    """Return the path of one file of a repository, fetched unless it is cached.

    Args:
        repo_id: `"owner/name"`.
        filename: Path in the repository.
        commit: 40 hex digits: what they stand for cannot change.
        sha256: Of the content, also checked where the file is cached. A file that is
            something else is fetched once more, and then refused. `None`: the hash
            that the cache keeps of each file is compared.
        size: In bytes, checked like `sha256`.
        max_size: Bytes above which the file is refused before it is fetched.
        token: Of the Hub; `None` for that of the environment.
        kind: What the repository is: `"model"` or `"space"`.

    Raises:
        ConnectionError: If the Hub cannot be reached or fails.
        FileNotFoundError: If there is no such repository or commit;
            `NoSuchFileError` if there is no such file.
        PermissionError: If the repository is gated or the token is not accepted.
        OSError: If the content is not what it must be or cannot be written.
        ValueError: If the file is larger than `max_size`.
    """
    from huggingface_hub import hf_hub_download

    def fetch(*, again: bool = False) -> Path:
        return Path(
            with_retries(
                lambda: hf_hub_download(
                    repo_id,
                    filename,
                    revision=commit,
                    repo_type=kind,
                    force_download=again,
                    token=token,
                    library_name="keras_mixer",
                ),
                f"{repo_id}/{filename} at {commit}",
            )
        )

    if max_size is not None and not is_cached(repo_id, filename, commit):
        _check_announced_size(repo_id, filename, commit, max_size, token)
    path = fetch()
    if problem := _problem(path, sha256, size):
        path = fetch(again=True)
        problem = _problem(path, sha256, size)
    if problem:
        raise OtherContentError(
            f"{repo_id}/{filename} at {commit} was fetched twice and is damaged or not "
            f"what was published: {problem}. It is not used. Try again later, or "
            "report it to the owner of the repository."
        )
    return path


def _problem(path: Path, sha256: str | None, size: int | None) -> str:
    """Return in which way a cached file is not what it must be, or ''."""
    problem = mismatch(path, sha256, size)
    if problem or sha256 is not None:
        return problem
    # The client names the content by the hash that the Hub stated: SHA-256 of a large
    # file, SHA-1 of git of a small one.
    stated = Path(os.path.realpath(path)).name
    if re.fullmatch("[0-9a-f]{64}", stated):
        return mismatch(path, stated, None)
    if re.fullmatch("[0-9a-f]{40}", stated) and (actual := git_sha1(path)) != stated:
        return f"the hash {stated} of git was expected, it is {actual}"
    return ""


def git_sha1(path: Path) -> str:
    """Return the SHA-1 by which git, and the Hub, knows the content of a file."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        while data := file.read(2**20):
            digest.update(data)
    return digest.hexdigest()


def is_cached(repo_id: str, filename: str, commit: str) -> bool:
    """Whether the client's cache has the file, intact or not."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo_id, filename, revision=commit), str)


def with_retries(request: Callable[[], _Result], subject: str) -> _Result:
    """Return `request()`, tried again where waiting may help, its errors explained.

    Args:
        request: A function that calls the client.
        subject: What is asked for, for the message.

    Raises:
        OSError: As in `download_file`.
    """
    from huggingface_hub.errors import HTTPError  # of httpx or httpx2, as installed

    failures = 0
    while True:
        try:
            return request()
        # hf_xet raises RuntimeError.
        except (HTTPError, OSError, ValueError, RuntimeError) as error:
            explained = _explain(_root(error), subject)
            if explained is None:
                raise
            if failures == len(_WAITS) or not _may_pass(error):
                raise explained from error
            response = getattr(_root(error), "response", None)
            asked = retry_after(getattr(response, "headers", None))
        time.sleep(max(_WAITS[failures], asked))
        failures += 1


def _root(error: BaseException) -> BaseException:
    """Return what made the client give up, where it says so, else the error."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    # Of a second download that fails, it says that it was wrong to ask for it.
    wrapped = type(error) is ValueError or isinstance(error, LocalEntryNotFoundError)
    return error.__cause__ or error if wrapped else error


def _may_pass(error: BaseException) -> bool:
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    if isinstance(error, LocalEntryNotFoundError):
        return False  # the client has waited itself
    error = _root(error)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429, 500, 502, 503, 504)
    if isinstance(error, OfflineModeIsEnabled):
        return False
    # An `OSError` without a number is a body of another length than announced.
    return isinstance(error, HTTPError | RuntimeError | ConnectionError) or (
        isinstance(error, OSError) and error.errno is None
    )


def _explain(error: BaseException, subject: str) -> OSError | None:
    """Return a builtin error that says what happened and what to do; else `None`."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    log_in = "Log in with `hf auth login`, or set HF_TOKEN"
    cache = f"the cache {constants.HF_HUB_CACHE}"
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(
            f"{subject}: the repository is gated. Accept its conditions on its page at "
            f"{hub}. {log_in}."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"{subject}: there is no such repository at {hub}, or it is private. Check "
            f"the name. {log_in}, if it is private."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(
            f"{subject}: the repository has no such branch, tag or commit. Choose one "
            f"of those listed on its page at {hub}."
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return NoSuchFileError(f"{subject}: the repository has no such file.")
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (400, 422):
            return None  # the request was wrong, and its error says how
        if status == 412:
            return OSError(
                f"{subject}: somebody else changed the repository in the meantime. "
                "Nothing was published. Look at what changed, then publish again."
            )
        if status in (401, 403):
            return PermissionError(
                f"{subject}: {hub} does not allow this (status {status}: "
                f"{error.server_message}). {log_in}, with a token that has the right."
            )
        return ConnectionError(
            f"{subject}: {hub} failed (status {status}: {error.server_message}). "
            "Try again later."
        )
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        return ConnectionError(
            f"{subject}: there is no intact copy in {cache}, and {hub} cannot be "
            "reached or HF_HUB_OFFLINE is set. Connect once, or copy the cache of "
            "another machine and set HF_HOME."
        )
    if isinstance(error, errors.HTTPError | RuntimeError | ConnectionError) or (
        isinstance(error, OSError) and error.errno is None
    ):
        return ConnectionError(
            f"{subject}: the connection to {hub} failed ({_first_line(error)}). Try "
            "again later; a proxy is set by HTTPS_PROXY."
        )
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "Make room" if full else "Make it writable"
        return OSError(
            error.errno,
            f"{subject}: cannot be written to {cache} ({error.strerror}). {advice}, or "
            "set HF_HOME to another place",
        )
    return None


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _check_announced_size(
    repo_id: str, filename: str, commit: str, max_size: int, token: str | None
) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo_id, filename, revision=commit)
    subject = f"{repo_id}/{filename} at {commit}"
    announced = with_retries(
        lambda: get_hf_file_metadata(url, token=token), subject
    ).size
    if announced is not None and announced > max_size:
        raise ValueError(
            f"{subject} must have at most {max_size} bytes. Received: {announced}. It "
            "is not fetched; ask the owner of the repository what it is."
        )


def _reference(repo_id: str, revision: str) -> Path:
    from huggingface_hub import constants

    folder = f"models--{repo_id.replace('/', '--')}"
    return Path(constants.HF_HUB_CACHE) / folder / "refs" / revision
