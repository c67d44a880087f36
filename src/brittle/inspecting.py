"""An audit asked for on the command line, carried out: the model opened, each norm audited once, a page written."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from brittle.console import Bars, err, out
from brittle.errors import InputError, unknown
from brittle.running import Request

if TYPE_CHECKING:
    import torch
    from torch import nn

    from brittle.data import Data
    from brittle.progress import Progress
    from brittle.store import Store

NORMS = ("linf", "l2", "l0")
WORDS = {"linf": "L-infinity", "l2": "L2", "l0": "L0"}
VERSION = 1  # raise it when a change to the audit, or to what it calls, changes what it finds
ROBUST, BROKEN, INCONCLUSIVE = 0, 1, 3  # exit codes


@dataclass(frozen=True)
class Question:
    """What is to be audited, and how.

    Attributes:
        model, weights, network, mean, std: see `brittle.opening.open_model`.
        data: see `brittle.data.load`.
        norm: 'linf', 'l2', 'l0' or 'all'.
        eps, rows, budget, seed: see `brittle.audit`.
        reference: an undefended network, as `model` names one; `network`, `mean` and `std` hold for it too.
    """

    model: str
    data: str
    weights: Path | None = None
    network: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    norm: str = "linf"
    eps: float | None = None
    rows: int = 1000
    budget: str = "standard"
    reference: str | None = None
    seed: int = 0

    def norms(self) -> tuple[str, ...]:
        """Those to audit, in their order.

        Raises:
            InputError: if the norm is unknown, or an eps is given for all.
        """
        if self.norm not in (*NORMS, "all"):
            raise unknown("norm", self.norm, (*NORMS, "all"))
        if self.norm == "all" and self.eps is not None:
            raise InputError(f"--eps goes with one norm, as each has its own unit; got {self.eps:g} for all")
        return NORMS if self.norm == "all" else (self.norm,)

    def command(self) -> str:
        """The command line that asks the same."""
        words = ["brittle", "audit", self.model, "--data", self.data]
        for name in ("weights", "network", "mean", "std", "norm", "eps", "rows", "budget", "reference", "seed"):
            value = getattr(self, name)
            if value is not None:
                words += [f"--{name}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
        return shlex.join(words)


def run_audit(asked: Question, how: Request) -> int:
    """Audits a model, prints what came of it and writes its page: the exit code, 0, 1 or 3.

    A norm that was audited before is taken from the store.

    Raises:
        InputError: if the model, the data or an option is not as expected.
    """
    from brittle.report import audit as report

    store = how.open_store()
    asked_norms = asked.norms()
    sys.path[:] = [*sys.path, *({os.getcwd()} - set(sys.path))]  # the command is no module of the user's folder
    with Bars(quiet=how.quiet or how.as_json, verbose=how.verbose) as bars:
        device = how.torch_device()
        data = _data(asked, how, bars)
        model, reference = _models(asked, data, device, store)
        keys = {norm: _key(asked, norm, model, reference, data, device) for norm in asked_norms}
        found = [_audited(asked, norm, keys[norm], model, reference, data, how, bars) for norm in asked_norms]
    audits, about = [one["audit"] for one in found], _about(asked, found, model, data, device)
    kind = report.worst(audits)["verdict"]["kind"]
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in Path(asked.model).name)
    page = report.write_audit(audits, about, how.output or store.root / "reports" / f"audit-{name}")
    if how.as_json:
        out.print_json(report.as_json(audits, about))
    else:
        out.print(report.terminal(audits, about), highlight=False, soft_wrap=True)
        out.print(f"\nThe whole page: {page}", highlight=False, soft_wrap=True)
    return {"robust": ROBUST, "inconclusive": INCONCLUSIVE}.get(kind, BROKEN)


def _data(asked: Question, how: Request, bars: Bars) -> Data:
    from brittle import data

    return data.load(asked.data, how.data_root, progress=bars.work(f"data {asked.data}"))


def _models(asked: Question, data: Data, device: torch.device, store: Store) -> tuple[nn.Module, nn.Module | None]:
    """The model and the undefended one, where there is one."""
    from brittle.opening import WEIGHTS, open_model

    shared: dict[str, Any] = {"data": data, "device": device, "store": store}
    scaled = {"mean": asked.mean, "std": asked.std}
    model = open_model(asked.model, weights=asked.weights, network=asked.network, **scaled, **shared)
    if asked.reference is None:
        return model, None
    network = asked.network if Path(asked.reference).suffix in WEIGHTS else None
    own = {} if Path(asked.reference).suffix == "" and ":" not in asked.reference else scaled
    return model, open_model(asked.reference, network=network, **own, **shared)


# One norm -----------------------------------------------------------------------------------------------------------


def _key(
    asked: Question, norm: str, model: nn.Module, reference: nn.Module | None, data: Data, device: torch.device
) -> str:
    """32 hexadecimal characters, made of all that decides what an audit finds."""
    from brittle import __version__, cells, opening

    made_from = {
        "versions": [__version__, VERSION, cells.VERSIONS["attack"], cells.ATTACKS],
        "model": opening.digest(model, asked.model),
        "reference": None if reference is None else opening.digest(reference, asked.reference or ""),
        "data": data.digest,
        "options": [norm, asked.eps, asked.rows, asked.budget, asked.seed],
        "device": device.type,
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]


def _audited(
    asked: Question,
    norm: str,
    key: str,
    model: nn.Module,
    reference: nn.Module | None,
    data: Data,
    how: Request,
    bars: Bars,
) -> dict[str, Any]:
    """The record of one norm, from the store where it is there."""
    from brittle.auditing import audit

    path = how.open_store().root / "audits" / f"{key}.json"
    kept = None if how.fresh else _read(path)
    if kept is not None:
        return kept
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    options: dict[str, Any] = {"eps": asked.eps, "rows": asked.rows, "budget": asked.budget, "seed": asked.seed}
    told = _told(bars.work(f"audit, {WORDS[norm]}"), how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, on copying an exported graph
        made = audit(model, data.test, norm=norm, reference=reference, progress=told, **options)
    seconds = round(time.monotonic() - clock, 1)
    record = {"audit": made.record(), "started": started, "seconds": seconds}
    _write(path, record)
    if not (how.quiet or how.as_json):
        err.print(f"[dim]{WORDS[norm]}: audited in {seconds:.1f} s[/]", highlight=False)
    return record


def _told(step: Progress, how: Request) -> Progress:
    """The bar; with --verbose also a line for each thing tried, with the share of images still right."""
    if not how.verbose or how.quiet or how.as_json:
        return step

    def tell(done: int, total: int, note: str = "") -> None:
        step(done, total, note)
        err.print(f"[dim]{escape(note)}[/]", highlight=False)

    return tell


def _read(path: Path) -> dict[str, Any] | None:
    """What was written before; None if there is nothing, or it is damaged."""
    from brittle import disk

    try:
        text = path.read_bytes()
        record = json.loads(text)
        del record["seal"]
        return record if text == disk.sealed(record) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, record: dict[str, Any]) -> None:
    """Writes a record with its seal, whole or not at all."""
    from brittle import disk

    disk.check_json(record, "audit")
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    with disk.writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            disk.write(temporary, disk.sealed(record))
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()
        disk.sync_folder(path.parent)


# What was done ------------------------------------------------------------------------------------------------------


def _about(
    asked: Question, found: Sequence[dict[str, Any]], model: nn.Module, data: Data, device: torch.device
) -> dict[str, Any]:
    """What was audited and how, for the page and the JSON."""
    from brittle import engine, opening

    made = engine.provenance(device)
    rows = min(asked.rows, len(data.test))
    facts = [
        ("model", asked.model),
        ("weights and code", f"sha256 {opening.digest(model, asked.model)[:16]}"),
        ("data", f"{data.name}: {data.source}; the first {rows} of {len(data.test)} test images"),
        ("digest of the data", data.digest),
        ("budget", f"{asked.budget}, seed {asked.seed}"),
        ("reference", asked.reference or "none; an undefended network is given with --reference MODEL"),
        ("computing time", f"{sum(one['seconds'] for one in found):.0f} s, begun {found[0]['started']}"),
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
        "again": asked.command(),
    }
