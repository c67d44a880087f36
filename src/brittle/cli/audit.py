"""An audit asked for on the command line, carried out: the model opened, each norm audited once, a page written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from brittle.cli import options
from brittle.cli.bars import Bars, err, out
from brittle.cli.options import Named
from brittle.cli.run import Request, file_name, opened, reading, warn_of_other_data
from brittle.errors import InputError, unknown

if TYPE_CHECKING:
    import torch
    from torch import nn

    from brittle.data import Data
    from brittle.progress import Progress
    from brittle.study.store.cell import Cell
    from brittle.study.store.store import Store, Stored

Norm = Literal["linf", "l2", "l0"]
NORMS: tuple[Norm, ...] = ("linf", "l2", "l0")
WORDS = {"linf": "L-infinity", "l2": "L2", "l0": "L0"}
TRAIN = "train"  # in place of a reference: make one
ROBUST, BROKEN, INCONCLUSIVE = 0, 1, 3  # exit codes


@dataclass(frozen=True, kw_only=True)
class Question(Named):
    """What is to be audited, and how; see `brittle.audit`."""

    norm: options.Norm = "linf"
    eps: options.Eps = None
    rows: options.Rows = 1000
    budget: Annotated[str, typer.Option(help="quick, standard or thorough.")] = "standard"
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="An undefended network of the same shape and training; a file of weights is of the same network; "
            "'train' trains one, for a cell of the store. [default: that one, if it is in the store]",
        ),
    ] = None
    seed: options.OneSeed = 0

    def norms(self) -> tuple[Norm, ...]:
        """Those to audit, in their order.

        Raises:
            InputError: if the norm is unknown, or an eps is given for all.
        """
        wanted: list[Norm] = [norm for norm in NORMS if self.norm in ("all", norm)]
        if not wanted:
            raise unknown("norm", self.norm, (*NORMS, "all"))
        if self.norm == "all" and self.eps is not None:
            raise InputError(f"--eps goes with one norm, as each has its own unit; got {self.eps:g} for all")
        if self.eps is not None and self.norm == "linf" and self.eps > 1:
            hint = f"; did you mean {self.eps:g}/255?" if self.eps <= 255 else ""
            raise InputError(f"eps must be at most 1 in L-infinity, as images are in [0, 1], got {self.eps:g}{hint}")
        return tuple(wanted)


def run_audit(asked: Question, how: Request) -> int:
    """Audits a model, prints what came of it and writes its page: the exit code, 0, 1 or 3.

    A norm that was audited before is taken from the store; one that was begun goes on from where it was.

    Raises:
        InputError: if the model, the data or an option is not as expected.
    """
    from brittle.study.kinds.audit import page as report
    from brittle.study.kinds.audit.cell import record_of

    store = how.open_store()
    asked_norms = asked.norms()
    how.try_output()
    with Bars(quiet=how.silent, verbose=how.verbose) as bars:
        device = how.torch_device()
        asked = asked.resolved(store)
        place = asked.data or ""
        wanted = reading(asked, split="evaluation", count=max(1, asked.rows))
        del wanted["images"]
        data = asked.read(place, how.data_root, say=how.say, progress=bars.work(f"data {place}"), **wanted)
        warn_of_other_data(asked, data, store)
        twin = _trained_twin(asked, how, data, device, store, bars) if asked.reference in (None, TRAIN) else None
        if twin is not None:
            asked = replace(asked, reference=twin.key)
        model, reference = _models(asked, how, data, device)
        cells = [_cell(asked, how, norm, model, reference, data, device, store) for norm in asked_norms]
        found = [_audited(cell, model, reference, data, device, how, bars) for cell in cells]
    audits, about = [record_of(one) for one in found], _about(asked, how, found, model, data)
    kind = report.worst(audits)["verdict"]["kind"]
    eps = f"{audits[0]['eps']:.3g}" if len(audits) == 1 else ""
    name = file_name(["audit", asked.short, Path(place).stem, asked.norm, eps], (cell.key for cell in cells))
    page = report.write_audit(audits, about, how.output or store.root / "reports" / name)
    if how.as_json:
        out.print_json(report.as_json(audits, about))
    else:
        out.print(report.terminal(audits), highlight=False)
        out.print(f"\nThe whole page: {page}", highlight=False, soft_wrap=True)
    return {"robust": ROBUST, "inconclusive": INCONCLUSIVE}.get(kind, BROKEN)


def _models(asked: Question, how: Request, data: Data, device: torch.device) -> tuple[nn.Module, nn.Module | None]:
    """The model and the undefended one, where there is one."""
    model, _ = opened(asked, how, data, device)
    return model, None if asked.reference is None else opened(asked, how, data, device, asked.reference)[0]


# One norm -----------------------------------------------------------------------------------------------------------


def _cell(
    asked: Question,
    how: Request,
    norm: Norm,
    model: nn.Module,
    reference: nn.Module | None,
    data: Data,
    device: torch.device,
    store: Store,
) -> Cell:
    """The cell of one norm: its key is made of all that decides what an audit finds. Of cells it is that of a study."""
    from brittle.study import load_model
    from brittle.study.kinds import new_cell

    params = {"norm": norm, **{name: getattr(asked, name) for name in ("eps", "rows", "budget", "seed")}}
    title = f"audit of {asked.model} on {data.name}, {WORDS[norm]}"
    parents = _parents(asked, how, store)
    if not parents:
        shape = data.image_shape
        params["model"] = load_model.digest(model, asked.model, shape)
        params["reference"] = None if reference is None else load_model.digest(reference, asked.reference or "", shape)
    return new_cell(title, "audit", params, parents, digest=data.digest, environment={"device": device.type})


def _parents(asked: Question, how: Request, store: Store) -> dict[str, Cell]:
    """The cells that are audited, where all are cells and are audited as they are; else none."""
    from brittle.study.load_model import KEY
    from brittle.study.run import scheduler

    named = {"model": asked.model} | ({} if asked.reference is None else {"reference": asked.reference})
    if asked.mean or asked.std or not all(re.fullmatch(KEY, text) for text in named.values()):
        return {}
    try:
        return {role: scheduler.recall(store, store.find(text), trust=how.trust) for role, text in named.items()}
    except InputError:  # of another version of brittle
        return {}


def _audited(
    cell: Cell,
    model: nn.Module,
    reference: nn.Module | None,
    data: Data,
    device: torch.device,
    how: Request,
    bars: Bars,
) -> Stored:
    """One norm: from the store where it is there, else from where an audit that was killed had come."""
    from brittle.models.inference import asking
    from brittle.study.kinds.audit.cell import audited
    from brittle.study.run import scheduler, worker
    from brittle.study.store.cell import Outcome

    store = how.open_store()
    if how.fresh:
        scheduler.forget([cell], store)
    if stored := store.get(cell.key):
        return stored
    words = WORDS[cell.params["norm"]]
    told = _told(bars.work(f"audit, {words}"), how)
    with store.lock(cell.key), asking(how.batch_size):
        folder = store.scratch(cell.key)
        made = store.get(cell.key) or worker.compute_and_store(
            cell, store, device, lambda: Outcome(*audited(model, reference, data, cell.params, folder, told))
        )
    if not how.silent:
        seconds = made.record["provenance"]["seconds"]
        err.print(f"[dim]{words}: audited in {seconds:.1f} s[/]", highlight=False)
    return made


def _told(step: Progress, how: Request) -> Progress:
    """The bar; with --verbose also a line for each thing tried, with the share of images still right."""
    if not how.verbose or how.silent:
        return step

    def tell(done: int, total: int, note: str = "") -> None:
        step(done, total, note)
        err.print(f"[dim]{escape(note)}[/]", highlight=False)

    return tell


# An undefended network ----------------------------------------------------------------------------------------------


def _plain_twin(asked: Question, how: Request, store: Store) -> Cell | None:
    """Of a cell that was trained at another temperature, or from soft labels: the same, trained plainly; else None.

    The same network, settings and first weights, at T = 1 on the labels of the data.
    """
    from brittle.study.run import scheduler

    if not asked.is_key or asked.mean or asked.std:
        return None
    cell = scheduler.recall(store, store.find(asked.model), trust=how.trust)
    first = cell
    while "labels" in first.parents:
        first = first.parents["labels"].parents["teacher"]
    if cell.function != "train" or (cell.params["temperature"] == 1 and first is cell):
        return None
    params = {**cell.params, "temperature": 1.0, "seed": first.params["seed"]}
    return replace(
        cell, title=f"train the plain twin of {cell.key[:8]}", params=params, parents={}, place=asked.data or ""
    )


def _trained_twin(
    asked: Question, how: Request, data: Data, device: torch.device, store: Store, bars: Bars
) -> Cell | None:
    """The plain twin, where it is in the store; with `--reference train` it is brought there."""
    from brittle.study.run import scheduler
    from brittle.study.run.worker import Worker

    try:
        twin = _plain_twin(asked, how, store)
    except InputError:  # of a cell that is not there, `load_model` says so
        twin = None
    if asked.reference == TRAIN:
        if twin is None:
            raise InputError(
                f"--reference {TRAIN} goes with a cell that was trained at another temperature or from soft labels, "
                f"without --mean and --std; got {asked.model!r}"
            )
        if twin.digest != data.digest:
            raise InputError(
                f"--reference {TRAIN} needs the data that cell {asked.model} learned from, got {data.name}"
            )
        ran = scheduler.run([twin], store, scheduler.InProcess(Worker(store, lambda _: data, device)), bars)
        for failure in ran.failed:
            raise InputError(f"{failure.cell.title}: {failure.why}")
    return twin if twin and store.get(twin.key) else None


# What was done ------------------------------------------------------------------------------------------------------


def _about(asked: Question, how: Request, found: Sequence[Stored], model: nn.Module, data: Data) -> dict[str, Any]:
    """What was audited and how, for the page and the JSON."""
    from brittle.study import load_model

    made = found[0].record["provenance"]
    seconds = sum(one.record["provenance"]["seconds"] for one in found)
    rows = min(asked.rows, len(data.test))
    facts = [
        ("model", asked.model),
        ("weights and code", f"sha256 {load_model.digest(model, asked.model, data.image_shape)[:16]}"),
        ("data", f"{data.name}: {data.source}; the first {rows} of {len(data.test)} test images"),
        ("digest of the data", data.digest),
        ("budget", f"{asked.budget}, seed {asked.seed}"),
        ("reference", asked.reference or "none; an undefended network is given with --reference MODEL"),
        ("computing time", f"{seconds:.0f} s, begun {made['started']}"),
        ("brittle, torch, python", f"{made['brittle']}, {made['torch']}, {made['python']}"),
        ("machine", f"{made['processor']}, {made['device']}, {made['threads']} thread{'s' * (made['threads'] > 1)}"),
    ]
    return {
        "model": asked.model,
        "data": data.name,
        "source": data.source,
        "classes": list(data.classes),
        "rows": rows,
        "facts": [list(fact) for fact in facts],
        "again": how.again,
    }
