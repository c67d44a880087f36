"""A request of the command line, carried out: a study run into a store, its table printed, its page written."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from brittle.cli import options
from brittle.cli.bars import Bars, duration, err, out
from brittle.cli.options import Images, Named
from brittle.errors import InputError, unknown

if TYPE_CHECKING:
    import torch
    from torch import nn

    from brittle.data import Data
    from brittle.study.expand import Plan
    from brittle.study.run.estimate import Cost
    from brittle.study.run.scheduler import Executor, Ran
    from brittle.study.schema import Study
    from brittle.study.store.cell import Cell
    from brittle.study.store.store import Store


ENGINES = ("here", "ray")
FEW = 3  # cells, of which no more are timed before they are run: that takes longer than it tells


@dataclass(frozen=True)
class Request:
    """The options that commands share: where things lie, what computes, and what is printed.

    Attributes:
        again: the command as it was typed.
    """

    store: options.Store = None
    data_root: options.DataRoot = None
    device: options.Device = "auto"
    dtype: options.Dtype = "auto"
    threads: options.Threads = None
    batch_size: options.BatchSize = None
    workers: options.Workers = None
    engine: options.Engine = "here"
    address: options.Address = None
    gpus_per_cell: options.GpusPerCell = None
    fresh: options.Fresh = False
    trust: options.Trust = False
    output: options.Output = None
    as_json: options.AsJson = False
    quiet: options.Quiet = False
    verbose: options.Verbose = False
    again: str = ""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise unknown("engine", self.engine, ENGINES)
        for name, value in (("--address", self.address), ("--gpus-per-cell", self.gpus_per_cell)):
            if value is not None and self.engine != "ray":
                raise InputError(f"{name} goes with --engine ray, got {value} for the engine {self.engine}")
        if self.address is not None and self.workers is not None:
            raise InputError(f"--workers is for a Ray that is started here; that at {self.address} has its own")

    @property
    def silent(self) -> bool:
        """Whether nothing but results is printed."""
        return self.quiet or self.as_json

    def try_output(self) -> None:
        """Makes the page's folder now, not after hours of work.

        Raises:
            InputError: if it cannot be written.
        """
        if self.output is None:
            return
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.output).close()
        except OSError as error:
            raise InputError(f"--output {self.output} cannot be written: {error.strerror or error}") from error

    def say(self, sentence: str) -> None:
        """Prints what was done that the user should know."""
        if not self.silent:
            err.print(f"[dim]note:[/] {escape(sentence)}", highlight=False, soft_wrap=True)

    def command(self, *words: str) -> str:
        """A command on the same store and data."""
        places = (("--store", self.store), ("--data-root", self.data_root))
        return shlex.join(["brittle", *words, *(w for name, at in places if at for w in (name, str(at)))])

    def open_store(self) -> Store:
        """The store that was asked for."""
        from brittle.study.store.store import Store

        return Store(self.store)

    def torch_device(self) -> torch.device:
        """The device that was asked for, with the number of threads set."""
        import torch

        from brittle.models.fit import resolve_device
        from brittle.study.run.threads import idle_cores

        torch.set_num_threads(self.threads or max(1, idle_cores() // (self.workers or 1)))
        if self.engine == "ray" and self.device.startswith("cuda"):
            return torch.device("cuda")  # which this machine need not have
        return resolve_device(self.device)

    def costs(
        self, cells: Sequence[Cell], data: Data, device: torch.device, store: Store | None, bars: Bars
    ) -> Mapping[str, Cost]:
        """What cells cost on this machine, by key."""
        from brittle.study.run.estimate import estimate, measured

        rates = measured(cells, data, device, progress=bars.work("timing this machine"))
        return estimate(cells, data, rates, store)

    def executor(self, study: Study, store: Store, load: Callable[[str], Data], device: torch.device) -> Executor:
        """Who does the cells: this process; with several workers so many others; or a Ray cluster's."""
        import torch

        from brittle.models import users_code
        from brittle.study.run import scheduler as engine
        from brittle.study.run.local_pool import LocalPool
        from brittle.study.run.ray_pool import Ray
        from brittle.study.run.worker import Worker, WorkerConfig

        threads = self.threads or (1 if self.engine == "ray" else torch.get_num_threads())
        path = tuple(os.path.abspath(folder) for folder in sys.path)
        code = users_code.shipped(filter(users_code.is_users, [*sys.modules]))
        place = WorkerConfig(store.root, self.data_root, study.layout, str(device), threads, path, code)
        if self.engine == "ray":
            gpus = (self.gpus_per_cell or 1.0) if device.type == "cuda" else 0.0
            return Ray(place, address=self.address, workers=self.workers, gpus_per_cell=gpus)
        if (self.workers or 1) > 1:
            loaded = load(study.data)
            held = sum(split.pixels.nbytes for split in (loaded.train, loaded.validation, loaded.test))
            return LocalPool(place, self.workers or 1, held)
        return engine.InProcess(Worker(store, load, device))

    def load(self, study: Study, bars: Bars, images: Images | None = None, **how: Any) -> Callable[[str], Data]:
        """Loads a data set once, with a bar; as `images` asks for it."""
        asked = images or Images()

        @functools.cache
        def load(place: str) -> Data:
            progress = bars.work(f"data {place}")
            return asked.read(place, self.data_root, layout=study.layout, progress=progress, say=self.say, **how)

        return load

    def plan(self, study: Study, device: torch.device, loaded: Data, given: Mapping[str, Cell] | None) -> Plan:
        """The study's cells on this machine."""
        from brittle.models.fit import resolve_dtype
        from brittle.study.expand import expand

        dtype = str(resolve_dtype(self.dtype, device)).removeprefix("torch.")
        return expand(study, loaded, device=device.type, dtype=dtype, given=given)


# The model that a command is about ------------------------------------------------------------------------------------


def opened(
    named: Named, how: Request, data: Data, device: torch.device, model: str | None = None
) -> tuple[nn.Module, Mapping[str, Any]]:
    """The model that a command names, or another that is named beside it; and the options that it was built with.

    A file of weights that is named beside it is for the same network.
    """
    from brittle.models import load
    from brittle.models.classifier import PROBED
    from brittle.study.load_model import is_key, load_model

    asked = named.named if model is None else named.beside(model)
    if is_key(asked.text):
        found = load_model(
            asked.text,
            weights=asked.weights,
            network=asked.network,
            mean=None if model else asked.mean,
            std=None if model else asked.std,
            data=data,
            device=device,
            store=how.open_store(),
            trust=how.trust,
        )
        return found, {}
    options = load.options_for(asked, data)
    images = data.test[:PROBED].images
    found = load.opened(asked, options=options, images=images, device=device, trust=how.trust, say=how.say)
    return found, options


def as_cell(named: Named, how: Request, data: Data, device: torch.device, store: Store) -> Cell:
    """A model as a cell of a study: the stored one that its key names, or one that says how it is opened.

    Raises:
        InputError: if it cannot be opened, is no network, or does not take the images.
    """
    from brittle.study import load_model
    from brittle.study.kinds import new_cell
    from brittle.study.kinds.network.cell import hold, opened_params
    from brittle.study.run import scheduler as engine
    from brittle.study.run import worker
    from brittle.study.store.cell import Outcome

    model, options = opened(named, how, data, device)
    warn_of_other_data(named, data, store)
    check_fits(model, data, device)
    if named.is_key and not (named.mean or named.std):
        return engine.recall(store, store.find(named.model), trust=how.trust)
    if named.is_key:
        raise InputError("--mean and --std do not go with a cell here: it was trained on images as they are")
    digest = load_model.digest(model, named.model, data.image_shape)
    params = opened_params(named.named, model, options, trust=how.trust, shape=data.image_shape, digest=digest)
    cell = new_cell(f"adopt {named.short}", "adopt", params)
    hold(cell, model, device)
    with store.lock(cell.key):
        if store.get(cell.key) is None:
            worker.compute_and_store(cell, store, device, lambda: Outcome({"network_options": dict(options)}, {}))
    return cell


def check_fits(model: nn.Module, data: Data, device: torch.device) -> None:
    """Raises InputError where a model cannot take the images, or has fewer outputs than the data have classes."""
    import torch

    from brittle.models.networks import frozen, logits_of

    try:
        with frozen(model), torch.no_grad():
            logits = logits_of(model, data.test[:2].images.to(device))
    except InputError as error:
        raise InputError(f"{data.name}: {error}") from error
    shape, classes = tuple(logits.shape), len(data.classes)
    if len(shape) != 2 or shape[0] != min(2, len(data.test)) or shape[1] < classes:
        raise InputError(f"the network must return {classes} logits an image of {data.name}, got {shape}")
    if not torch.isfinite(logits).all():
        raise InputError(f"the network answers images of {data.name} with numbers that are not finite")
    if shape[1] > classes:
        warnings.warn(
            f"the network has {shape[1]} outputs, {data.name} has {classes} classes: say with --classes which output "
            "each class is, unless the first ones are meant",
            stacklevel=2,
        )


def warn_of_other_data(named: Named, data: Data, store: Store) -> None:
    """Warns where a cell's network was trained on other images than it is used on."""
    stored = store.get(store.find(named.model)) if named.is_key else None
    digest = stored.record["data"] if stored else ""
    if digest not in ("", data.digest):
        places = {record.get("digest"): record["study"]["data"] for record in map(store.read_study, store.studies())}
        was = places.get(digest, "another data set")
        warnings.warn(f"this network was trained on {was}; {data.name} has other images", stacklevel=2)


def reading(named: Named, *, split: str | None = None, count: int | None = None) -> dict[str, Any]:
    """How a model's data are read: in its size, and which are test images unless it was trained here."""
    own = named.is_key
    expected = None if own else named.named.expected()
    return {"images": named, "split": None if own else split, "count": None if own else count, "expected": expected}


# Running -------------------------------------------------------------------------------------------------------------

Given = Callable[["Data", "torch.device", "Store"], Mapping[str, "Cell"]]


def file_name(words: Sequence[str], keys: Iterable[str]) -> str:
    """A short name of files: plain words, and six characters of a hash of the cells' keys, so that it is no other's."""
    plain = (re.sub(r"[^A-Za-z0-9._]+", "-", word).strip("-.") for word in words)
    digest = hashlib.sha256(" ".join(sorted(keys)).encode()).hexdigest()[:6]
    return "-".join([word for word in plain if word])[:80].rstrip("-.") + f"-{digest}"


def run_study(
    study: Study, how: Request, given: Given | None = None, *words: str, reading: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    """Runs a study into the store, then prints its table and writes its page: the record that was stored of it.

    `given` makes the models that exist already. With `words` the study is kept under a name made of these. `reading`
    says how the data are read, see `Request.load`.

    Raises:
        InputError: if cells failed, after all that does not need them has been done and shown.
    """
    from brittle.models.inference import asking
    from brittle.report import claims
    from brittle.study.run import scheduler as engine

    if study.claims is not None:
        claims.of(study.claims)  # a wrong name is told now, not after hours
    how.try_output()
    store = how.open_store()
    with store.in_use(), Bars(quiet=how.silent, verbose=how.verbose) as bars, asking(how.batch_size):
        device = how.torch_device()
        load = how.load(study, bars, **(reading or {}))
        loaded = load(study.data)
        _check_rows(study, loaded)
        models = given(loaded, device, store) if given else {}
        plan = how.plan(study, device, loaded, models)
        name = file_name(words, (cell.key for cell in plan.cells)) if words else study.name
        chosen = reading["images"].chosen if reading else {}
        record = {**plan.record, "name": name, "again": how.again, **({"images": chosen} if chosen else {})}
        store.write_study(name, record)
        if how.fresh:
            engine.forget([cell for cell in plan.cells if cell not in models.values()], store)
        left = [cell for cell in plan.cells if store.get(cell.key) is None]
        costs = how.costs(left, loaded, device, None, bars) if len(left) > FEW else {}
        seconds = {key: cost.seconds for key, cost in costs.items()}
        bars.expect(seconds, how.workers or 1, functools.partial(_news, store))
        ran = engine.run(plan.cells, store, how.executor(study, store, load, device), bars)
    if not how.silent:
        was = f"{ran.done} cells computed, {ran.cached} from the store, {ran.seconds:.1f} s"
        err.print(f"[dim]{was}[/]", highlight=False)
    if ran.done + ran.cached > 1:  # more than the rows
        report_study(store, name, how, record, whole=not ran.failed)
    if ran.failed:
        raise _failed(ran, how)
    return record


def _check_rows(study: Study, data: Data) -> None:
    """Says that there are fewer test images than were asked for."""
    if study.rows != "all" and study.rows > len(data.test):
        warnings.warn(f"{data.name} has only {len(data.test)} test images; all are used", stacklevel=2)


def _news(store: Store, cell: Cell) -> str | None:
    """What a finished cell has to say at once: an audit its verdict, a measurement that the network has not learned."""
    from brittle.measures import Share, why_not_learned
    from brittle.study.kinds.audit.page import headline

    stored = store.get(cell.key) if cell.function in ("audit", "measure") else None
    if stored is None:
        return None
    if cell.function == "audit":
        return f"{cell.title}: {headline(stored.scalars['audit'])}"
    why = why_not_learned(Share(**stored.scalars["accuracy"]), stored.tensors("logits")["labels"])
    return f"{cell.parents['model'].title}: this network has not learned: {why}" if why else None


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


def report_study(
    store: Store, name: str, how: Request, record: Mapping[str, Any] | None = None, *, whole: bool = True
) -> None:
    """Prints a study's table and writes its page; one that is not `whole` does not replace a page that is there.

    `record`: of the study; read from the store when not given.
    """
    from brittle.report import audit_table, claims_table, gather, table, write

    found = gather(store, name, record)
    folder = how.output or store.root / "reports" / name
    page = folder / "report.html"
    if kept := not whole and page.exists():
        err.print(f"[yellow]note:[/] the page of an earlier run was kept: {escape(str(page))}", soft_wrap=True)
    else:
        page = write(found, folder)
    if how.as_json and not kept:
        out.print_json((folder / "results.json").read_text(encoding="utf-8"))
    if how.as_json:
        return
    shown = [table(found), claims_table(found), audit_table(found)]
    for number, one in enumerate([one for one in shown if one]):
        out.print(*[""] * (number > 0), one, sep="\n")
    if not kept:
        out.print(f"\nThe whole page: {page}", highlight=False, soft_wrap=True)


def print_status(study: Study, how: Request) -> None:
    """Says which cells of a study are in the store."""
    store = how.open_store()
    with Bars(quiet=how.silent) as bars:
        plan = how.plan(study, how.torch_device(), how.load(study, bars)(study.data), None)
    _show(study.name, plan.cells, {cell.key for cell in plan.cells if store.get(cell.key) is not None}, {}, how)


def print_dry_run(study: Study, how: Request) -> None:
    """Says what a study would do here, and what that would cost."""
    from brittle.study.run.estimate import longest, total

    store = how.open_store()
    with Bars(quiet=how.silent) as bars:
        device = how.torch_device()
        data = how.load(study, bars)(study.data)
        cells = how.plan(study, device, data, None).cells
        stored = {cell.key for cell in cells if store.get(cell.key) is not None}
        left = [cell for cell in cells if cell.key not in stored]
        costs = how.costs(left, data, device, store, bars)
    if left and not how.as_json:
        whole, workers = total(costs.values()), how.workers or 1
        seconds = max(whole.seconds / workers, longest(left, costs))
        by = f" by {workers} workers" if workers > 1 else ""
        out.print(f"to do{by}: about {duration(seconds)} on this machine, as busy as it is now;", highlight=False)
        out.print(f"{whole.operations:.1e} operations", highlight=False)
    _show(study.name, cells, stored, costs, how)


def _show(name: str, cells: Sequence[Cell], stored: Collection[str], costs: Mapping[str, Cost], how: Request) -> None:
    """Prints how many cells are stored; with --verbose each of them, and what it costs where that is known."""
    if how.as_json:
        rows = [{"key": cell.key, "title": cell.title, "stored": cell.key in stored} for cell in cells]
        told = [row | ({"cost": asdict(costs[row["key"]])} if row["key"] in costs else {}) for row in rows]
        out.print_json(json.dumps(told))
        return
    done = sum(cell.key in stored for cell in cells)
    out.print(f"{name}: {len(cells)} cells, {done} in the store, {len(cells) - done} to do", highlight=False)
    for cell in cells if how.verbose else ():
        took = duration(costs[cell.key].seconds) if cell.key in costs else ""
        mark = "in the store" if cell.key in stored else "to do"
        line = f"{cell.key[:12]}  {mark:<12}  {took:>8}  {escape(cell.title)}"
        out.print(line, highlight=False, soft_wrap=True)
