"""A repository on the Hub to publish to: looked at, changed at once, verified."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from keras_mixer.checkpoints import (
    LABELS,
    METADATA,
    TIMM_WEIGHTS,
    download_file,
    git_sha1,
    with_retries,
)
from keras_mixer.files import sha256_of
from keras_mixer.hub.repository import CHECKSUMS

if TYPE_CHECKING:  # slow to import, and only publishing needs it
    from huggingface_hub import ModelInfo, SpaceInfo

Kind = Literal["model", "space"]


class RemoteRepository:
    """A repository to publish to, as it was when it was looked at.

    Args:
        repo_id: `"owner/name"`; made if it is missing.
        private: Whether only its owner sees it; `None` leaves it as it is.
        token: Of the Hub; `None` for that of the environment.
        kind: `"model"`, or `"space"` for a demo made with Gradio.
    """

    def __init__(
        self,
        repo_id: str,
        private: bool | None,
        token: str | None,
        kind: Kind = "model",
    ) -> None:
        from huggingface_hub import HfApi, get_token

        if not (token or get_token()):
            raise PermissionError(
                "Publishing needs a token of the Hub with the right to write. Log in "
                "with `hf auth login`, or set HF_TOKEN."
            )
        self.repo_id, self.token, self.kind = repo_id, token, kind
        self.api = HfApi(token=token, library_name="keras_mixer")
        sdk = {"space_sdk": "gradio"} if kind == "space" else {}
        self._ask(self.api.create_repo, private=private, exist_ok=True, **sdk)
        info = self._info("main")
        if private not in (None, info.private):
            raise ValueError(
                f"{repo_id} exists and is {'private' if info.private else 'public'}. "
                f"Received: private={private}. Leave `private` out, or change the "
                "settings of the repository first."
            )
        self.head, self.hashes = str(info.sha), _hashes(info)

    def fetch(self, filename: str) -> Path:
        """Return the path of a file as it was."""
        return download_file(
            self.repo_id, filename, self.head, token=self.token, kind=self.kind
        )

    def commit_of(self, revision: str) -> str | None:
        """Return the commit of a branch or tag, `None` if there is none."""
        try:
            return self._info(revision).sha
        except FileNotFoundError:
            return None

    def changed(self, folder: Path) -> set[str]:
        """Return the names of the files that `folder` adds, changes or lacks."""
        changed = {path.name for path in folder.iterdir() if not self._holds(path)}
        for name in (LABELS, TIMM_WEIGHTS):
            if not (folder / name).exists() and self._is_ours(name):
                changed.add(name)
        # Another date of saving alone is no change.
        if changed <= {METADATA, CHECKSUMS} and METADATA in self.hashes:
            old, new = (
                json.loads(path.read_bytes()) | {"date_saved": None}
                for path in (self.fetch(METADATA), folder / METADATA)
            )
            if old == new:
                return set()
        return changed

    def commit(self, folder: Path, filenames: Iterable[str], message: str) -> str:
        """Send the files, unless somebody else sent some since; return the commit."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        def send(repo_id: str, repo_type: str) -> Any:
            paths = (folder / filename for filename in sorted(filenames))
            return self.api.create_commit(
                repo_id,
                [
                    CommitOperationAdd(path.name, str(path))
                    if path.exists()
                    else CommitOperationDelete(path.name)
                    for path in paths
                ],
                commit_message=message,
                parent_commit=self.head,
                repo_type=repo_type,
            )

        return str(self._ask(send).oid)

    def verify(self, folder: Path, commit: str) -> None:
        """Check that the Hub holds what was sent."""
        self.head, self.hashes = commit, _hashes(self._info(commit))
        other = [path.name for path in folder.iterdir() if not self._holds(path)]
        sent = (folder / CHECKSUMS).read_bytes()
        if other or self.fetch(CHECKSUMS).read_bytes() != sent:
            raise OSError(
                f"{self.repo_id} at {commit} does not hold what was sent: "
                f"{', '.join(other) or CHECKSUMS}. Do not use this commit; publish "
                "again."
            )

    def tag(self, tag: str, commit: str) -> None:
        """Give the commit a tag."""
        # It was new a moment ago: if it exists now, it is ours.
        self._ask(self.api.create_tag, tag=tag, revision=commit, exist_ok=True)

    def _is_ours(self, filename: str) -> bool:
        """Whether the Hub has a file of this name that this package published."""
        if filename not in self.hashes or CHECKSUMS not in self.hashes:
            return False
        return filename in json.loads(self.fetch(CHECKSUMS).read_bytes())

    def _holds(self, path: Path) -> bool:
        """Whether the Hub has the content of this file under its name."""
        return self.hashes.get(path.name) in (sha256_of(path), git_sha1(path))

    def _info(self, revision: str) -> "ModelInfo | SpaceInfo":
        return self._ask(self.api.repo_info, revision=revision, files_metadata=True)

    def _ask(self, method: Callable[..., Any], **arguments: Any) -> Any:
        def ask() -> Any:
            return method(self.repo_id, repo_type=self.kind, **arguments)

        return with_retries(ask, self.repo_id)


def _hashes(info: "ModelInfo | SpaceInfo") -> dict[str, str | None]:
    """Return filename -> sha256 of a large file, SHA-1 of git of a small one."""
    return {
        file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id
        for file in info.siblings or ()
    }
