"""The README as PyPI shows it: links within the repository become addresses.

PyPI has the text alone, without the files beside it. Links lead to the tag of the
version, so that the page of a release goes on to show the pages of that release.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class ReadmeHook(MetadataHookInterface):
    """Fills the field `readme`, which `pyproject.toml` calls dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository, tag = metadata["urls"]["Repository"], f"v{metadata['version']}"
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": with_addresses(readme, repository, tag),
        }


def with_addresses(text: str, repository: str, tag: str) -> str:
    """Return Markdown whose links and images lead to a tag of a GitHub repository."""
    raw = repository.replace("//github.com/", "//raw.githubusercontent.com/")

    def address(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        place = f"{raw}/{tag}" if image else f"{repository}/blob/{tag}"
        return f"{image}[{label}]({place}/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)", address, text)
