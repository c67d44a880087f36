"""A request of the command line, carried out: a study run into a store, its table printed, its page written."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from brittle.console import Bars, duration, err, out
from brittle.errors import InputError, unknown

if TYPE_CHECKING:
    import torch

    from brittle.cells import Cell
    from brittle.data import Data
    from brittle.engine import Hands, Ran
    from brittle.estimating import Cost
    from brittle.plan import Plan
    from brittle.store import Store
    from brittle.study import Study


ENGINES = ("here", "ray")
FEW = 3  # cells, of which no more are timed before they are run: that takes longer than it tells


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
    workers: int | None = None
    engine: str = "here"
    address: str | None = None
    gpus_per_cell: float | None = None

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise unknown("engine", self.engine, ENGINES)
        for name, value in (("--address", self.address), ("--gpus-per-cell", self.gpus_per_cell)):
            if value is not None and self.engine != "ray":
                raise InputError(f"{name} goes with --engine ray, got {value} for the engine {self.engine}")
        if self.address is not None and self.workers is not None:
            raise InputError(f"--workers is for a Ray that is started here; that at {self.address} has its own")

    def open_store(self) -> Store:
        """The store that was asked for."""
        from brittle.store import Store

        return Store(self.store)

    def torch_device(self) -> torch.device:
        """The device that was asked for, with the number of threads set."""
        import torch

        from brittle.threads import idle_cores
        from brittle.training import resolve_device

        torch.set_num_threads(self.threads or max(1, idle_cores() // (self.workers or 1)))
        if self.engine == "ray" and self.device.startswith("cuda"):
            return torch.device("cuda")  # which this machine need not have
        return resolve_device(self.device)

    def costs(
        self, cells: Sequence[Cell], data: Data, device: torch.device, store: Store | None, bars: Bars
    ) -> Mapping[str, Cost]:
        """What cells cost on this machine, by key."""
        from brittle.estimating import estimate, measured

        rates = measured(cells, data, device, progress=bars.work("timing this machine"))
        return estimate(cells, data, rates, store)

    def hands(
        self, study: Study, store: Store, load: Callable[[str], Data], device: torch.device, memory: Mapping[str, float]
    ) -> Hands:
        """Who does the cells: this process; with several workers so many others; or a Ray cluster's.

        `memory`: bytes that Ray keeps free for a cell, by key.
        """
        import torch

        from brittle import engine
        from brittle.on_ray import Ray
        from brittle.processes import Processes
        from brittle.working import Worker, Workplace

        threads = self.threads or (1 if self.engine == "ray" else torch.get_num_threads())
        path = tuple(os.path.abspath(folder) for folder in sys.path)
        place = Workplace(store.root, self.data_root, study.layout, str(device), threads, path)
        if self.engine == "ray":
            gpus = (self.gpus_per_cell or 1.0) if device.type == "cuda" else 0.0
            return Ray(place, address=self.address, workers=self.workers, gpus_per_cell=gpus, memory=memory)
        if (self.workers or 1) > 1:
            loaded = load(study.data)
            held = sum(split.images.nbytes for split in (loaded.train, loaded.validation, loaded.test))
            return Processes(place, self.workers or 1, held)
        return engine.Here(Worker(store, load, device))

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
    """Runs a study into the store, then prints its table and writes its page.

    Raises:
        InputError: if cells failed, after all that does not need them has been done and shown.
    """
    from brittle import engine
    from brittle.report import claims

    if study.claims is not None:
        claims.of(study.claims)  # a wrong name is told now, not after hours
    store = how.open_store()
    with store.in_use(), Bars(quiet=how.quiet or how.as_json, verbose=how.verbose) as bars:
        device = how.torch_device()
        load = how.load(study, bars)
        loaded = load(study.data)
        plan = how.plan(study, device, loaded, given(loaded) if given else None)
        store.write_study(study.name, plan.record)
        if how.fresh:
            engine.forget(plan.cells, store)
        left = [cell for cell in plan.cells if store.get(cell.key) is None]
        costs = how.costs(left, loaded, device, None, bars) if len(left) > FEW else {}
        bars.expect(
            {key: cost.seconds for key, cost in costs.items()}, how.workers or 1, functools.partial(_news, store)
        )
        on_ray = how.engine == "ray" and device.type == "cpu"
        memory = {key: cost.memory for key, cost in costs.items()} if on_ray else {}
        ran = engine.run(plan.cells, store, how.hands(study, store, load, device, memory), bars)
    if not how.quiet and not how.as_json:
        was = f"{ran.done} cells computed, {ran.cached} from the store, {ran.seconds:.1f} s"
        err.print(f"[dim]{was}[/]", highlight=False)
    if ran.done + ran.cached > 1:  # more than the rows
        report_study(store, study.name, how)
    if ran.failed:
        raise _failed(ran, how)


def _news(store: Store, cell: Cell) -> str | None:
    """What a finished cell has to say at once: an audit its verdict."""
    from brittle.report.audit import headline

    stored = store.get(cell.key) if cell.function == "audit" else None
    return None if stored is None else f"{cell.title}: {headline(stored.scalars['audit'])}"


def _failed(ran: Ran, how: Request) -> InputError:
    """What failed, in one line after a line for each of the others; with --verbose where."""
    for number, failure in enumerate(ran.failed):
        if number:
            err.print(
                f"[red]failed:[/] {escape(failure.cell.title)}: {escape(failure.why)}", highlight=False, soft_wrap=True
            )
        if how.verbose:
            err.print(escape(failure.trace), highlight=False, soft_wrap=True)
    said = f"{ran.failed[0].cell.title}: {ran.failed[0].why}"
    others = [f"other cells that failed: {len(ran.failed) - 1}"] * (len(ran.failed) > 1)
    others += [f"cells left out, as they need what failed: {len(ran.left)}"] * (len(ran.left) > 0)
    return InputError("; ".join([said, *others, *["the same command goes on from here"] * (len(others) > 0)]))


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
    _show(study.name, plan.cells, {cell.key for cell in plan.cells if store.get(cell.key) is not None}, {}, how, every)


def foresee(study: Study, how: Request) -> None:
    """Says what a study would do here, and what that would cost."""
    from brittle.estimating import longest, total

    store = how.open_store()
    with Bars(quiet=how.quiet or how.as_json) as bars:
        device = how.torch_device()
        data = how.load(study, bars)(study.data)
        cells = how.plan(study, device, data, None).cells
        stored = {cell.key for cell in cells if store.get(cell.key) is not None}
        left = [cell for cell in cells if cell.key not in stored]
        costs = how.costs(left, data, device, store, bars)
    _show(study.name, cells, stored, costs, how, every=True)
    if how.as_json or not left:
        return
    whole, workers = total(costs.values()), how.workers or 1
    seconds = max(whole.seconds / workers, longest(left, costs))
    by = f" by {workers} workers" if workers > 1 else ""
    out.print(f"to do{by}: about {duration(seconds)} on this machine, as busy as it is now;", highlight=False)
    out.print(
        f"{whole.operations:.1e} operations, {workers * whole.memory / 1e9:.1f} GB of memory, "
        f"{whole.disk / 1e6:.1f} MB of disk",
        highlight=False,
    )


def _show(
    name: str, cells: Sequence[Cell], stored: Collection[str], costs: Mapping[str, Cost], how: Request, every: bool
) -> None:
    """Prints the cells, those that are not stored with what they cost where that is known."""
    if how.as_json:
        rows = [{"key": cell.key, "title": cell.title, "stored": cell.key in stored} for cell in cells]
        told = [row | ({"cost": asdict(costs[row["key"]])} if row["key"] in costs else {}) for row in rows]
        out.print_json(json.dumps(told))
        return
    if every:
        for cell in cells:
            took = duration(costs[cell.key].seconds) if cell.key in costs else ""
            mark = "in the store" if cell.key in stored else "to do"
            line = f"{cell.key[:12]}  {mark:<12}  {took:>8}  {escape(cell.title)}"
            out.print(line, highlight=False, soft_wrap=True)
    done = sum(cell.key in stored for cell in cells)
    out.print(f"{name}: {len(cells)} cells, {done} in the store, {len(cells) - done} to do", highlight=False)
