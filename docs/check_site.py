"""Check the built site: every public name is there, and no page asks another host.

    python docs/check_site.py site

reads the names from the `__all__` of the package's files, without importing it.
"""

import ast
import re
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "keras_mixer"
# What a browser fetches by itself; a link that a person clicks is another thing.
_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]+?src=["']?((?:https?:)?//[^"'>\s]+)"""
    r"""|<link[^>]+?rel=["']?(?:stylesheet|preconnect|icon|preload)[^>]+?"""
    r"""href=["']?((?:https?:)?//[^"'>\s]+)"""
    r"""|@import\s+["']?(?:url\()?["']?((?:https?:)?//[^"'>\s]+)"""
)


def public_names(path: Path) -> list[str]:
    """Return the `__all__` of a Python file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise ValueError(f"{path} has no `__all__`")


def main(site: Path) -> int:
    """Print what is wrong; return the exit status."""
    faults = []
    for page in sorted(site.rglob("*.html")):
        for found in _FETCHED.findall(page.read_text(encoding="utf-8")):
            faults.append(f"{page}: asks {''.join(found)}")
    for page in sorted((site / "reference").glob("*/index.html")):
        wing = page.parent.name
        door = PACKAGE / wing / "__init__.py"
        if not door.exists():
            door = PACKAGE / f"{wing}.py"
        if wing == "keras_mixer":
            continue
        text = page.read_text(encoding="utf-8")
        for name in public_names(door):
            if not re.search(rf'id="?keras_mixer\.[\w.]*\b{name}"?[\s>]', text):
                faults.append(f"{page}: {name} is missing")
    print("\n".join(faults) or f"{site}: every public name, no request elsewhere")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
