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
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from brittle.cli.bars import Bars, duration, err, out
from brittle.errors import InputError, first_line, unknown

if TYPE_CHECKING:
    import torch

    from brittle.data import Data
    from brittle.study.expand import Plan
    from brittle.study.run.estimate import Cost
    from brittle.study.run.scheduler import Executor, Ran
    from brittle.study.schema import Study
    from brittle.study.store.cell import Cell
    from brittle.study.store.store import Store


ENGINES = ("here", "ray")
FEW = 3  # cells, of which no more are timed before they are run: that takes longer than it tells


def folder(text: str) -> Path:
    """The folder that an option names."""
    if not text.strip():
        raise typer.BadParameter("a folder must be named, got an empty text")
    if "\0" in text:
        raise typer.BadParameter(f"a folder's name has no NUL, got {text!r}")
    return Path(text)


def _folder(*names: str, help: str) -> Any:
    return typer.Option(*names, parser=folder, metavar="FOLDER", help=help)


@dataclass(frozen=True)
class Request:
    """The options that commands share: where things lie, what computes, and what is printed.

    Attributes:
        again: the command as it was typed.
    """

    store: Annotated[
        Path | None,
        _folder("--store", help="Folder of finished cells. [default: $BRITTLE_HOME, or the user's data folder]"),
    ] = None
    data_root: Annotated[
        Path | None,
        _folder("--data-root", help="Folder with data sets, searched before $BRITTLE_DATA and the cache."),
    ] = None
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")] = "auto"
    dtype: Annotated[
        str, typer.Option(help="Of training: auto, float32 or bfloat16. Attacks always run in float32.")
    ] = "auto"
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads. [default: the idle cores]")] = None
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Processes that share the cells and the threads. [default: 1]"),
    ] = None
    engine: Annotated[str, typer.Option(help="Where cells are computed: here, or ray.")] = "here"
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Address of a Ray cluster, or auto. [default: a Ray started here]"),
    ] = None
    gpus_per_cell: Annotated[
        float | None,
        typer.Option(min=0.01, help="GPUs that Ray reserves for a cell; may be a part of one. [default: 1]"),
    ] = None
    fresh: Annotated[bool, typer.Option("--fresh", help="Compute everything anew, even what is in the store.")] = False
    trust: Annotated[
        bool,
        typer.Option(
            "--trust", help="Run code from outside brittle: of a pickle, an archive, a study file, or another's store."
        ),
    ] = False
    output: Annotated[
        Path | None, _folder("--output", "-o", help="Folder for the page. [default: reports/NAME in the store]")
    ] = None
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results only, no progress.")] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print a line for each cell, and tracebacks of errors.")
    ] = False
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

        from brittle.study.run import scheduler as engine
        from brittle.study.run.local_pool import LocalPool
        from brittle.study.run.ray_pool import Ray
        from brittle.study.run.worker import Worker, WorkerConfig

        threads = self.threads or (1 if self.engine == "ray" else torch.get_num_threads())
        path = tuple(os.path.abspath(folder) for folder in sys.path)
        place = WorkerConfig(store.root, self.data_root, study.layout, str(device), threads, path)
        if self.engine == "ray":
            gpus = (self.gpus_per_cell or 1.0) if device.type == "cuda" else 0.0
            return Ray(place, address=self.address, workers=self.workers, gpus_per_cell=gpus)
        if (self.workers or 1) > 1:
            loaded = load(study.data)
            held = sum(split.pixels.nbytes for split in (loaded.train, loaded.validation, loaded.test))
            return LocalPool(place, self.workers or 1, held)
        return engine.InProcess(Worker(store, load, device))

    def load(self, study: Study, bars: Bars) -> Callable[[str], Data]:
        """Loads a data set once, with a bar."""
        from brittle import data

        @functools.cache
        def load(place: str) -> Data:
            return data.load(place, self.data_root, layout=study.layout, progress=bars.work(f"data {place}"))

        return load

    def plan(self, study: Study, device: torch.device, loaded: Data, given: Mapping[str, Cell] | None) -> Plan:
        """The study's cells on this machine."""
        from brittle.models.fit import resolve_dtype
        from brittle.study.expand import expand

        dtype = str(resolve_dtype(self.dtype, device)).removeprefix("torch.")
        return expand(study, loaded, device=device.type, dtype=dtype, given=given)


# The model that a command is about ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Named:
    """A model that exists, and the data that it is for; see `open_model` and `data.load`."""

    model: Annotated[
        str,
        typer.Argument(
            help="A trained cell's key (its beginning will do), package.module:callable, or a file of weights with "
            "--network."
        ),
    ]
    data: Annotated[
        str | None,
        typer.Option(
            help="A data set's name, a folder of class folders, or an .npz file. [default: what a cell was trained on]"
        ),
    ] = None
    weights: Annotated[
        Path | None,
        typer.Option(help="Weights for package.module:callable: .safetensors, or a state dict in .pt or .pth."),
    ] = None
    network: Annotated[
        str | None,
        typer.Option(
            help="Network that a file of weights, given as MODEL, is for: brittle's, or package.module:callable."
        ),
    ] = None

    @property
    def is_key(self) -> bool:
        """Whether the model is a cell of the store."""
        from brittle.study.load_model import KEY

        return re.fullmatch(KEY, self.model) is not None

    @property
    def short(self) -> str:
        """The model's name in titles and in names of files."""
        if self.is_key:
            return self.model[:12]
        name = self.model.replace(":", ".") if ":" in self.model else Path(self.model).stem
        return f"{name}-{self.weights.stem}" if self.weights else name

    def place(self, store: Store) -> tuple[str, str | None]:
        """The data set's name or path, and its layout: what was asked for, else what the cell was trained on.

        Raises:
            InputError: if nothing says so.
        """
        if self.data is not None:
            return self.data, None
        if not self.is_key:
            raise InputError(
                f"--data is needed: only a cell of the store says what it was trained on, got {self.model!r}"
            )
        key = store.find(self.model)
        stored = store.get(key)
        digest = stored.record["data"] if stored else ""
        for name in store.studies():
            record = store.read_study(name)
            trained = any(model.get("train") == key for model in record.get("models", ()))
            if trained and digest in ("", record.get("digest")):
                return record["study"]["data"], record["study"].get("layout")
        raise InputError(f"no study in the store says what data cell {key[:8]} was trained on: name them with --data")


def as_cell(named: Named, data: Data, device: torch.device, store: Store, trust: bool) -> Cell:
    """A model as a cell of a study: the stored one that its key names, or one that is made and stored now.

    Raises:
        InputError: if it cannot be opened, is no network, or does not take the images.
    """
    from brittle.models import users_code
    from brittle.study import load_model, lookup
    from brittle.study.kinds import new_cell
    from brittle.study.kinds.network.cell import fitted_options
    from brittle.study.run import scheduler as engine
    from brittle.study.run import worker
    from brittle.study.store.cell import Outcome

    file = named.weights or (Path(named.model) if named.network else None)
    before = _file_digest(file)
    model = load_model.open_model(
        named.model,
        data=data,
        device=device,
        network=named.network,
        weights=named.weights,
        store=store,
        trust=trust,
    )
    if _file_digest(file) != before:
        raise InputError(f"{file} changed while it was read: give a file that nobody writes to")
    warn_of_other_data(named, data, store)
    check_fits(model, data, device)
    if named.is_key:
        return engine.recall(store, store.find(named.model), trust=trust)
    path = named.network or named.model
    if named.network is None and ":" not in named.model:
        raise InputError(f"{named.model}: only `brittle audit` takes such a model, as no cell can be made of it yet")
    make = lookup.network(path, trust=True)
    path = lookup.full_path(make, path, "brittle.networks")
    options = fitted_options(make, {}, data) if path.startswith("brittle.") else {}
    digest = before or load_model.digest(model, named.model, data.image_shape)
    params = {"network": path, "network_options": options, "sha256": digest}
    if code := users_code.source_digest(make):
        params["code"] = code
    cell = new_cell(f"adopt {named.short}", "adopt", params)
    weights = {"weights": model.state_dict()}
    with store.lock(cell.key):
        if store.get(cell.key) is None:
            worker.compute_and_store(cell, store, device, lambda: Outcome({"network_options": options}, weights))
    return cell


def _file_digest(file: Path | None) -> str | None:
    """Hexadecimal sha256 of a file; None of none, and of one that `open_model` will refuse."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() if file and file.is_file() else None
    except OSError:
        return None


def check_fits(model: Any, data: Data, device: torch.device) -> None:
    """Raises InputError where a model cannot take the images, or answers with other classes than the data have."""
    import torch

    try:
        with torch.no_grad():
            logits = model(data.test[:2].images.to(device))
    except Exception as error:  # it may be anybody's code
        shape = tuple(data.image_shape)
        raise InputError(f"the network does not take images of {data.name}, {shape}: {first_line(error)}") from error
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (min(2, len(data.test)), len(data.classes)):
        raise InputError(f"the network must return {len(data.classes)} logits an image of {data.name}, got {shape}")
    if not torch.isfinite(logits).all():
        raise InputError(f"the network answers images of {data.name} with numbers that are not finite")


def warn_of_other_data(named: Named, data: Data, store: Store) -> None:
    """Warns where a cell's network was trained on other images than it is used on."""
    stored = store.get(store.find(named.model)) if named.is_key else None
    digest = stored.record["data"] if stored else ""
    if digest not in ("", data.digest):
        places = {record.get("digest"): record["study"]["data"] for record in map(store.read_study, store.studies())}
        was = places.get(digest, "another data set")
        warnings.warn(f"this network was trained on {was}; {data.name} has other images", stacklevel=2)


# Running -------------------------------------------------------------------------------------------------------------

Given = Callable[["Data", "torch.device", "Store"], Mapping[str, "Cell"]]


def file_name(words: Sequence[str], keys: Iterable[str]) -> str:
    """A short name of files: plain words, and six characters of a hash of the cells' keys, so that it is no other's."""
    plain = (re.sub(r"[^A-Za-z0-9._]+", "-", word).strip("-.") for word in words)
    digest = hashlib.sha256(" ".join(sorted(keys)).encode()).hexdigest()[:6]
    return "-".join([word for word in plain if word])[:80].rstrip("-.") + f"-{digest}"


def run_study(study: Study, how: Request, given: Given | None = None, *words: str) -> Mapping[str, Any]:
    """Runs a study into the store, then prints its table and writes its page: the record that was stored of it.

    `given` makes the models that exist already. With `words` the study is kept under a name made of these.

    Raises:
        InputError: if cells failed, after all that does not need them has been done and shown.
    """
    from brittle.report import claims
    from brittle.study.run import scheduler as engine

    if study.claims is not None:
        claims.of(study.claims)  # a wrong name is told now, not after hours
    how.try_output()
    store = how.open_store()
    with store.in_use(), Bars(quiet=how.silent, verbose=how.verbose) as bars:
        device = how.torch_device()
        load = how.load(study, bars)
        loaded = load(study.data)
        _check_rows(study, loaded)
        models = given(loaded, device, store) if given else {}
        plan = how.plan(study, device, loaded, models)
        name = file_name(words, (cell.key for cell in plan.cells)) if words else study.name
        record = {**plan.record, "name": name, "again": how.again}
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
