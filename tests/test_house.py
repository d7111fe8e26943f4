"""The house: every import goes through a door, to a lower floor, and in no circle."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "keras_mixer"
WINGS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}

pytestmark = pytest.mark.backend_free


def floors():
    """Room (wing or ground file) -> floor, from the table in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return {
        name.removesuffix("/").removesuffix(".py"): int(floor)
        for floor, rooms in re.findall(r"^\| (\d) \| (`.+?) \|", text, re.M)
        for name in re.findall(r"`([\w/.]+)`", rooms)
    }


def room_of(module):
    return module.split(".")[0]


def imports_of(source):
    """Yield (line, module, name) of what a file imports of this package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "keras_mixer":
                for alias in node.names:
                    yield node.lineno, alias.name, None
            elif node.module.startswith("keras_mixer."):
                for alias in node.names:
                    module = node.module.removeprefix("keras_mixer.")
                    yield node.lineno, module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("keras_mixer."):
                    module = alias.name.removeprefix("keras_mixer.")
                    yield node.lineno, module, None


def door_of(wing):
    """Names that a wing gives to the outside."""
    tree = ast.parse((PACKAGE / wing / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def faults(path, source):
    """Yield what is wrong with the imports of a file, as sentences."""
    own = room_of(
        path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
    )
    level = floors()
    for line, module, name in imports_of(source):
        where = f"{path.relative_to(ROOT)}:{line} imports {module}.{name or '*'}"
        room = room_of(module)
        if room == own:
            continue
        if room not in level:
            if module != "__version__":  # the package itself: a public name
                yield f"{where}: {room} is no wing and no ground file"
            continue
        if level[room] >= level[own]:
            yield f"{where}: floor {level[room]} is not below floor {level[own]}"
        if room in WINGS:
            if "." in module:
                yield f"{where}: it does not go through the door of {room}"
            elif name and name not in door_of(room):
                yield f"{where}: the door of {room} does not give it"


def modules():
    # The door of the house imports its wings lazily, for type checkers only.
    return [p for p in PACKAGE.rglob("*.py") if p not in {PACKAGE / "__init__.py"}]


def test_every_room_stands_in_the_table():
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | WINGS
    assert set(floors()) == rooms


def test_imports_go_through_doors_and_downwards():
    found = [
        fault
        for path in modules()
        for fault in faults(path, path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "file, line, fault",
    [
        ("data/x.py", "from keras_mixer.models import MLPMixer", "not below floor 2"),
        ("models/x.py", "from keras_mixer.layers.mixer import TokenMixing", "the door"),
        ("models/x.py", "from keras_mixer.layers import Hidden", "does not give it"),
        ("layers/x.py", "from keras_mixer import data", "not below floor 2"),
        ("cli/x.py", "import keras_mixer.export.writer", "through the door of export"),
    ],
)
def test_a_wrong_import_is_named(file, line, fault):
    (found,) = faults(PACKAGE / file, line)
    assert fault in found and f"{file}:1" in found


def test_doors_hold_imports_and_names_alone():
    for wing in sorted(WINGS):
        path = PACKAGE / wing / "__init__.py"
        first, *body = ast.parse(path.read_text(encoding="utf-8")).body
        assert isinstance(first.value, ast.Constant), f"{path} has no docstring"
        for node in body:
            assert isinstance(node, ast.ImportFrom | ast.Assign), (
                f"{path}:{node.lineno}"
            )


def test_every_name_of_a_door_is_imported_there():
    for wing in sorted(WINGS):
        path = PACKAGE / wing / "__init__.py"
        given = {
            alias.asname or alias.name
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        assert given == door_of(wing), wing


def arrows():
    """Pairs of rooms, one of which imports the other."""
    pairs = set()
    for path in modules():
        own = room_of(path.relative_to(PACKAGE).as_posix().split("/")[0].split(".")[0])
        for _, module, _ in imports_of(path.read_text(encoding="utf-8")):
            if room_of(module) in floors() and room_of(module) != own:
                pairs.add((own, room_of(module)))
    return pairs


def test_the_picture_stays_small():
    assert len(set(floors().values())) <= 7
    assert len(arrows()) <= 80


def test_files_inside_a_wing_import_in_no_circle():
    for wing in sorted(WINGS):
        graph = {}
        for path in (PACKAGE / wing).glob("*.py"):
            if path.stem == "__init__":
                continue
            inside = set()
            source = path.read_text(encoding="utf-8")
            for _, module, name in imports_of(source):
                parts = module.split(".")
                if parts[0] == wing:
                    inside.add(parts[1] if len(parts) > 1 else name)
            graph[path.stem] = inside
        assert not circle(graph), f"{wing}: {circle(graph)}"


def circle(graph):
    """Return the nodes that cannot be ordered; an empty set without a circle."""
    left = {node: set(edges) & graph.keys() for node, edges in graph.items()}
    while free := {node for node, edges in left.items() if not edges & left.keys()}:
        left = {node: edges for node, edges in left.items() if node not in free}
    return set(left)


def test_no_module_imports_a_backend_at_import_time():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = {alias.name for alias in getattr(node, "names", ())}
            names.add(getattr(node, "module", None) or "")
            tops = {name.split(".")[0] for name in names}
            assert not tops & {"jax", "tensorflow", "torch"}, path
