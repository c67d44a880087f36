"""The house has floors: a file imports only from files above it."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import brittle

ROOT = Path(brittle.__file__).parent
FLOORS = [
    "errors",
    "arguments",
    "progress",
    "threads",
    "summary",
    "reading",
    "download",
    "data",
    "networks",
    "softmax",
    "training",
    "distillation",
    "attacks.options",
    "attacks.streams",
    "attacks.result",
    "attacks.flips",
    "attacks.search",
    "attacks.carlini",
    "attacks.descent",
    "attacks.square",
    "attacks.pixels",
    "attacks.targets",
    "attacks.masks",
    "attacks",
    "measures",
    "auditing.views",
    "auditing.door",
    "auditing.gradients",
    "auditing.ledger",
    "auditing.battery",
    "auditing.checks",
    "auditing.verdict",
    "auditing",
    "transfer",
    "units.unit",
    "units.hooks",
    "units.gradients",
    "units.watching",
    "units.silencing",
    "units",
    "naming",
    "fingerprint",
    "disk",
    "store",
    "unit_cells",
    "carrier_cells",
    "mask_cells",
    "audit_cells",
    "cells",
    "study",
    "plan",
    "working",
    "engine",
    "estimating.rates",
    "estimating.counting",
    "estimating",
    "processes",
    "on_ray",
    "opening",
    "report",
    "console",
    "running",
    "inspecting",
    "cli",
    "__main__",
]
UPWARDS = {"auditing": {"report.audit"}}  # inside methods alone: a result that can write its own page
MAY_ATTACKS = {"errors", "progress", "networks", "softmax", "attacks"}
MAY_REPORT = {"errors", "store", "cells", "measures", "attacks", "softmax", "report"}
MAY_REPORT |= {"units", "unit_cells", "carrier_cells", "mask_cells", "audit_cells"}


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


def floor(name: str) -> int:
    while name not in FLOORS:
        name, _, _ = name.rpartition(".")
    return FLOORS.index(name)


@pytest.mark.parametrize("name", sorted(set(modules()) - {""}))
def test_a_file_imports_only_from_files_above_it(name):
    below = {other for other in imported(modules()[name]) if floor(other) > floor(name)}
    assert not below - UPWARDS.get(name, set())


@pytest.mark.parametrize("name", sorted(set(modules()) - {""}))
def test_attacks_and_reports_keep_to_their_rooms(name):
    room = name.split(".")[0]
    allowed = {"attacks": MAY_ATTACKS, "report": MAY_REPORT}.get(room)
    if allowed is not None:
        assert {other.split(".")[0] for other in imported(modules()[name])} <= allowed


def loads(tree: ast.AST) -> list[ast.Call]:
    """Every call of `torch.load`."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [call for call in calls if ast.unparse(call.func) == "torch.load"]


def test_no_file_loads_pickles_but_one_that_reads_weights_only_unless_trusted():
    for name, path in modules().items():
        assert "import pickle" not in path.read_text()
        if name != "opening":
            assert "torch.load(" not in path.read_text()
    calls = loads(ast.parse(modules()["opening"].read_text()))
    assert calls
    for call in calls:
        assert [ast.unparse(word.value) for word in call.keywords if word.arg == "weights_only"] == ["not trust"]


def test_help_needs_no_torch():
    code = (
        "import sys, brittle.cli; print([m for m in ('torch', 'matplotlib', 'sklearn', 'numpy') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_every_exported_name_is_there():
    for name in brittle.__all__:
        assert getattr(brittle, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = brittle.nothing
    assert importlib.import_module("brittle.attacks").song_1
