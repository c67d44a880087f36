"""The kinds of cells, a folder each.

What a kind must have in its `cell.py`:

- `FUNCTIONS`: the functions that compute its cells, by the name that stands in their keys.

A kind that a study file asks for by tables, as `[units.NAME]`, has besides:

- `NAME`: of its tables in a study file, of its part of a study's record and of results.json.
- `Table`: a table of it, a `ModelTable`.
- `Result`: a dataclass, what a report knows of a finished cell. `Result.of(name, stored, store)` reads the cell of the
  table of that name; `as_json()` is what results.json has of it, in which tensors may stand for lists of numbers.

Any kind may have a `view.py`, whose `section(report)` gives what its `section.html` shows on the page of a study, or
nothing if that is empty, and a `style.css`. Beside these a folder has what it needs for itself.

Every study has images, networks, measurements and attacks: these kinds plan and read their cells by themselves, in
`planned` and `read`.
"""

from __future__ import annotations

import functools
from importlib import import_module

from brittle.study.kinds.work import cell_of
from brittle.study.store.cell import Cell, Context, Outcome, Parents

# In each list the most general first. A page shows their sections, and a plan has their cells, the last kind first.
BASIC = ("rows", "network", "measure", "attack")  # every study has these
ASKED = ("masks", "carriers", "units", "certify", "audit")  # that a study file asks for by tables

TABLES = tuple(import_module(f"{__name__}.{name}.cell") for name in ASKED)
KINDS = (*(import_module(f"{__name__}.{name}.cell") for name in BASIC), *TABLES)
FUNCTIONS = {name: function for kind in KINDS for name, function in kind.FUNCTIONS.items()}
new_cell = functools.partial(cell_of, FUNCTIONS)


def run(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """Computes a cell."""
    return FUNCTIONS[cell.function].run(cell, parents, context)
