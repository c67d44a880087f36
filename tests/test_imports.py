"""The house has rooms: each imports only from rooms below it."""

import ast
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import brittle

ROOT = Path(brittle.__file__).parent
ROOMS = [
    "errors",
    "arguments",
    "progress",
    "data",
    "models",
    "attacks",
    "measures",
    "certify",
    "units",
    "auditing",
    "drawing",
    "study.lookup",
    "study.store",
    "study.kinds",
    "study.schema",
    "study.expand",
    "study.run",
    "study.load_model",
    "study",
    "report",
    "cli",
    "__main__",
]
UPWARDS = {("auditing", "study.kinds.audit.page")}  # inside methods alone: a result that can write its own page
MAY_ATTACKS = {"errors", "progress", "models", "attacks"}
MAY_REPORT = {"errors", "drawing", "study.store", "study.kinds", "measures", "attacks", "models", "units", "report"}


def modules() -> dict[str, Path]:
    """Name below `brittle` and file of every module."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> set[str]:
    """Modules of brittle that a file imports anywhere, but for type checking."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "brittle":
            base = (node.module or "").removeprefix("brittle").removeprefix(".")
            names = [f"{base}.{alias.name}".lstrip(".") for alias in node.names]
            found |= {name if name in modules() else base for name in names}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("brittle.") for a in node.names if a.name.startswith("brittle.")}
    return found - {""}


def room(name: str) -> str:
    """The room that a module is in."""
    while name not in ROOMS:
        name, _, _ = name.rpartition(".")
    return name


@pytest.mark.parametrize("name", sorted(set(modules()) - {""}))
def test_a_room_imports_only_from_itself_and_from_rooms_below(name):
    floor = ROOMS.index(room(name))
    above = {other for other in imported(modules()[name]) if ROOMS.index(room(other)) > floor}
    assert not {other for other in above if (name, other) not in UPWARDS}


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: imported(path) & modules().keys() for name, path in modules().items() if name}
    graph = {name: {other for other in below if (name, other) not in UPWARDS} for name, below in graph.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", sorted(set(modules()) - {""}))
def test_attacks_and_reports_keep_to_their_rooms(name):
    allowed = {"attacks": MAY_ATTACKS, "report": MAY_REPORT}.get(room(name))
    if allowed is not None:
        assert {room(other) for other in imported(modules()[name])} <= allowed


def loads(tree: ast.AST) -> list[ast.Call]:
    """Every call of `torch.load`."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [call for call in calls if ast.unparse(call.func) == "torch.load"]


def test_no_file_loads_pickles_but_one_that_reads_weights_only_unless_trusted():
    for name, path in modules().items():
        assert "import pickle" not in path.read_text()
        if name != "models.checkpoints":
            assert "torch.load(" not in path.read_text()
    calls = loads(ast.parse(modules()["models.checkpoints"].read_text()))
    assert calls
    for call in calls:
        assert [ast.unparse(word.value) for word in call.keywords if word.arg == "weights_only"] == ["not trust"]


def test_help_needs_no_torch():
    code = "import sys, brittle.cli.main as _; print({'torch', 'matplotlib', 'sklearn', 'numpy'} & {*sys.modules})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "set()"


def test_every_exported_name_is_there():
    for name in brittle.__all__:
        assert getattr(brittle, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = brittle.nothing
    assert importlib.import_module("brittle.attacks").song_1
