"""The kinds of cells, a folder each.

What a kind must have in its `cell.py`:

- `FUNCTIONS`: the functions that compute its cells, by the name that stands in their keys.

A kind that a study file asks for by tables, as `[units.NAME]`, has besides:

- `NAME`: of its tables in a study file, of its part of a study's record and of results.json.
- `Table`: a table of it, a `ModelTable`.
- `Result`: a dataclass, what a report knows of a finished cell. `Result.of(name, stored, store)` reads the cell of the
  table of that name; `as_json()` is what results.json has of it, in which tensors may stand for lists of numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from brittle.study.kinds.attack import cell as attack_cell
from brittle.study.kinds.audit import cell as audit_cell
from brittle.study.kinds.carriers import cell as carriers_cell
from brittle.study.kinds.masks import cell as masks_cell
from brittle.study.kinds.measure import cell as measure_cell
from brittle.study.kinds.network import cell as network_cell
from brittle.study.kinds.rows import cell as rows_cell
from brittle.study.kinds.units import cell as units_cell
from brittle.study.store.cell import Cell, Context, Outcome, Parents

TABLES = (units_cell, carriers_cell, masks_cell, audit_cell)  # kinds that a study file asks for by tables
KINDS = (rows_cell, network_cell, measure_cell, attack_cell, *TABLES)
FUNCTIONS = {name: function for kind in KINDS for name, function in kind.FUNCTIONS.items()}


def new_cell(
    title: str,
    function: str,
    params: Mapping[str, Any],
    parents: Mapping[str, Cell] | None = None,
    *,
    digest: str = "",
    place: str = "",
    environment: Mapping[str, str] | None = None,
) -> Cell:
    """A cell with the version that its function has now; see `Cell`."""
    known = FUNCTIONS[function]
    version = known.versions.get(params.get("function", ""), known.version)
    return Cell(title, function, version, params, parents or {}, digest, place, environment or {})


def run(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """Computes a cell."""
    return FUNCTIONS[cell.function].run(cell, parents, context)
