"""The rooms of the package: a lower room never imports an upper one, and the environment needs no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "dailydialog_gym"
GROUND = {
    "caching",
    "commands",
    "embedded",
    "errors",
    "extras",
    "files",
    "hub",
    "objects",
    "ranges",
    "templates",
    "text",
}
# From the lowest floor to the highest; rooms of one floor do not import each other.
FLOORS = [
    GROUND,
    {"env", "reports"},
    {"models"},
    {"rewards"},
    {"wrappers", "agent"},
    {"evaluate"},
    {"runs"},
    {"distributed", "chat", "recipes"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """The room of a module such as ``dailydialog_gym.env.mdp``."""
    return module.split(".")[1]


def imports_of(path: Path) -> set[str]:
    """The modules of the package that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= (
                {node.module} if node.module != "dailydialog_gym" else {f"{node.module}.{a.name}" for a in node.names}
            )
    return {name for name in found if name.startswith("dailydialog_gym.")}


def test_every_file_is_in_a_room_or_on_the_ground_floor():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    folders = {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*/*.py")}
    assert files == GROUND
    assert folders == FLOOR_OF.keys() - GROUND


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*/*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_lower_room_never_imports_an_upper_one(path):
    room = path.relative_to(PACKAGE).parts[0]
    for module in imports_of(path):
        other = room_of(module)
        if other not in (room, "__version__"):
            assert FLOOR_OF[other] < FLOOR_OF[room], f"{path.relative_to(ROOT)} in {room}/ imports {module}"


def test_the_ground_floor_imports_no_room():
    for name in GROUND:
        assert {room_of(module) for module in imports_of(PACKAGE / f"{name}.py")} <= GROUND


IMPORT_LIGHT = """
import importlib, sys

for room in ("", ".env", ".rewards", ".wrappers", ".wrappers.vector"):
    importlib.import_module("dailydialog_gym" + room)
    if heavy := {"torch", "transformers", "datasets"} & sys.modules.keys():
        sys.exit(f"dailydialog_gym{room} imports {heavy}")
"""


def test_the_light_rooms_import_neither_torch_nor_transformers_nor_datasets():
    done = subprocess.run([sys.executable, "-c", IMPORT_LIGHT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_room_says_what_it_is_for():
    for init in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))), init


def test_tests_mirror_the_rooms():
    rooms = FLOOR_OF.keys() - GROUND
    assert {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.glob("*.py"))} == rooms
