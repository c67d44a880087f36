"""A request of the command line, carried out: a study run into a store, its table printed, its page written."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from brittle.console import Bars, err, out
from brittle.errors import InputError

if TYPE_CHECKING:
    import torch

    from brittle.cells import Cell
    from brittle.data import Data
    from brittle.plan import Plan
    from brittle.store import Store
    from brittle.study import Study


@dataclass(frozen=True)
class Request:
    """The options with which a study is run."""

    store: Path | None = None
    data_root: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    fresh: bool = False
    output: Path | None = None
    workers: int = 1

    def open_store(self) -> Store:
        """The store that was asked for."""
        from brittle.store import Store

        return Store(self.store)

    def torch_device(self) -> torch.device:
        """The device that was asked for, with the number of threads set."""
        import torch

        from brittle.training import resolve_device

        if self.threads is not None or self.workers > 1:
            torch.set_num_threads(self.threads or max(1, (os.cpu_count() or 1) // self.workers))
        return resolve_device(self.device)

    def load(self, study: Study, bars: Bars) -> Callable[[str], Data]:
        """Loads a data set once, with a bar."""
        from brittle import data

        @functools.cache
        def load(place: str) -> Data:
            return data.load(place, self.data_root, layout=study.layout, progress=bars.work(f"data {place}"))

        return load

    def plan(self, study: Study, device: torch.device, loaded: Data, given: Mapping[str, Cell] | None) -> Plan:
        """The study's cells on this machine."""
        from brittle.plan import expand
        from brittle.training import resolve_dtype

        dtype = str(resolve_dtype(self.dtype, device)).removeprefix("torch.")
        return expand(study, loaded, device=device.type, dtype=dtype, given=given)


Given = Callable[["Data"], Mapping[str, "Cell"]]


def run_study(study: Study, how: Request, given: Given | None = None) -> None:
    """Runs a study into the store, then prints its table and writes its page."""
    from brittle import engine
    from brittle.report import claims

    if study.claims is not None:
        claims.of(study.claims)  # a wrong name is told now, not after hours
    store = how.open_store()
    with Bars(quiet=how.quiet or how.as_json, verbose=how.verbose) as bars:
        device = how.torch_device()
        load = how.load(study, bars)
        loaded = load(study.data)
        plan = how.plan(study, device, loaded, given(loaded) if given else None)
        store.write_study(study.name, plan.record)
        if how.fresh:
            engine.forget(plan.cells, store)
        with _hands(how, study, plan.cells):
            ran = engine.run(plan.cells, store, load=load, device=device, watch=bars)
    if not how.quiet and not how.as_json:
        was = f"{ran.done} cells computed, {ran.cached} from the store, {ran.seconds:.1f} s"
        err.print(f"[dim]{was}[/]", highlight=False)
    report_study(store, study.name, how)


@contextmanager
def _hands(how: Request, study: Study, cells: Sequence[Cell]) -> Iterator[None]:
    """All workers but this process, at the same cells while it is; stopped when it fails or is stopped.

    A cell that fails in one of them is free again, and fails here when its turn comes: here it is said.
    """
    started = multiprocessing.get_context("spawn")
    hands = [started.Process(target=_lend, args=(how, study, cells), daemon=True) for _ in range(how.workers - 1)]
    for hand in hands:
        hand.start()
    try:
        yield
        for hand in hands:
            hand.join()
    finally:
        for hand in hands:
            hand.terminate()


def _lend(how: Request, study: Study, cells: Sequence[Cell]) -> None:
    """What a worker process does; it says nothing, and ends with the process that began it."""
    from brittle import engine

    class Orphaned(engine.Quiet):
        def step(self, done: int, total: int, note: str = "") -> None:
            parent = multiprocessing.parent_process()
            if parent is not None and not parent.is_alive():
                raise KeyboardInterrupt

    with suppress(InputError, KeyboardInterrupt), Bars(quiet=True) as bars:
        load = how.load(study, bars)
        engine.run(cells, how.open_store(), load=load, device=how.torch_device(), watch=Orphaned())


def report_study(store: Store, name: str, how: Request) -> None:
    """Prints a stored study's table and writes its page."""
    from brittle.report import audit_table, claims_table, gather, table, write

    found = gather(store, name)
    page = write(found, how.output or store.root / "reports" / name)
    if how.as_json:
        out.print_json((page.parent / "results.json").read_text(encoding="utf-8"))
        return
    out.print(table(found))
    if said := claims_table(found):
        out.print()
        out.print(said)
    if audits := audit_table(found):
        out.print()
        out.print(audits)
    out.print(f"\nThe whole page: {page}", highlight=False, soft_wrap=True)


def show_cells(study: Study, how: Request, *, every: bool) -> None:
    """Says which cells of a study are in the store."""
    store = how.open_store()
    with Bars(quiet=how.quiet or how.as_json) as bars:
        plan = how.plan(study, how.torch_device(), how.load(study, bars)(study.data), None)
    stored = {cell.key: store.get(cell.key) is not None for cell in plan.cells}
    if how.as_json:
        rows = [{"key": cell.key, "title": cell.title, "stored": stored[cell.key]} for cell in plan.cells]
        out.print_json(json.dumps(rows))
        return
    if every:
        for cell in plan.cells:
            mark = "in the store" if stored[cell.key] else "to do"
            out.print(f"{cell.key[:12]}  {mark:<12}  {escape(cell.title)}", highlight=False)
    done = sum(stored.values())
    out.print(f"{study.name}: {len(stored)} cells, {done} in the store, {len(stored) - done} to do", highlight=False)
