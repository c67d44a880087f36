"""Cells that hold a network, and the soft labels that one gives another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from brittle.data import Data
from brittle.errors import InputError
from brittle.models import users_code
from brittle.models.checkpoints import fill
from brittle.models.classifier import TwoClasses
from brittle.models.distill import soft_labels
from brittle.models.fingerprint import digest
from brittle.models.fit import fit
from brittle.models.load import FITTED, Named, fitted_options, opened
from brittle.models.networks import build, channels_last
from brittle.study import lookup
from brittle.study.kinds.work import Counts, Function, Needs, Work
from brittle.study.store.cell import Cell, Context, Outcome, Parents
from brittle.study.store.results import Reader
from brittle.study.store.store import Stored, printable

GENERATIONS = 50  # networks in a row that learn from each other, at most: a cell is pickled with all that it needs
NETWORKS = ("train", "adopt")  # functions of cells that hold a network
OPENED = "opened"  # parameter of an `adopt` cell whose model stays where it lies: how it is opened


@dataclass(frozen=True)
class Trained:
    """How a model was trained, and how that went."""

    params: Mapping[str, Any]
    dtype: str
    loss: tuple[float, ...]  # an entry an epoch
    validation_accuracy: tuple[float, ...]  # NaN where there was nothing to validate on

    @property
    def network(self) -> str:
        """The import path of the network."""
        return printable(self.params.get("network", ""))


def read(reader: Reader, key: str, model: str) -> Trained | None:
    """How the network of this cell was trained; None if it is not done."""

    def take(stored: Stored) -> Trained:
        history = (stored.scalars.get(name, ()) for name in ("loss", "validation_accuracy"))
        loss, accuracy = (tuple(math.nan if x is None else float(x) for x in values) for values in history)
        dtype = str(stored.record.get("environment", {}).get("dtype", ""))
        return Trained(stored.record["params"], dtype, loss, accuracy)

    trained = reader.read(f"train {model}", key, take)
    if trained is not None:
        reader.parents(key)
    return trained


def train(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """A network is trained, on hard labels or on those of a parent."""
    data = context.data(cell.place, cell.digest)
    params = dict(cell.params)
    make = lookup.network(params.pop("network"), trust=True)
    params.pop("code", None)
    options = fitted_options(make, params.pop("network_options"), data)
    network = _built(cell.params["network"], options, params["seed"])
    labels = parents["labels"].tensors()["labels"] if "labels" in parents else None
    fitted = fit(
        network,
        data,
        labels=labels,
        device=str(context.device),
        dtype=cell.environment["dtype"],
        checkpoint=context.folder() / "checkpoint.safetensors",
        progress=context.progress,
        **params,
    )
    return Outcome(
        {
            "network_options": options,
            "loss": [epoch.loss for epoch in fitted.history],
            "validation_accuracy": [x if math.isfinite(x := epoch.accuracy) else None for epoch in fitted.history],
        },
        {"weights": fitted.model.state_dict()},
    )


def _built(network: str, options: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """The network of a cell, whose import path has been checked."""
    with users_code.users_code(f"network {network} cannot be built"):
        made = build(lookup.network(network, trust=True), seed=seed, **options)
        if not isinstance(made, nn.Module):
            raise InputError(f"network {network} must build an nn.Module, got a {type(made).__name__}")
        return made


def opened_params(
    named: Named, model: nn.Module, options: Mapping[str, Any], *, trust: bool, shape: Sequence[int], digest: str
) -> dict[str, Any]:
    """The parameters of the `adopt` cell of a model that stays where it lies.

    Args:
        named: how it is named.
        model: it.
        options: that its network was built with.
        trust: whether its code may run.
        shape: (C, H, W), of the images that it was seen with.
        digest: of what it computes, see `fingerprint`.
    """
    outputs = None
    if isinstance(model, TwoClasses):
        outputs = "probability" if model.probability else "logit"
    told = {
        name: list(v) if isinstance(v, tuple) else v for name, v in asdict(replace(named, one_output=outputs)).items()
    }
    return {
        "network": named.label,
        "network_options": dict(options),
        "sha256": digest,
        OPENED: {**told, "trust": trust, "shape": shape},
    }


_held: dict[str, nn.Module] = {}  # the model that was opened last, by the key of its cell and the device


def hold(cell: Cell, model: nn.Module, device: torch.device) -> None:
    """Keeps the model of an `adopt` cell in this process, so that the cells that need it do not open it again."""
    _held.clear()
    _held[f"{cell.key} {device}"] = model


def _opened(cell: Cell, device: torch.device) -> nn.Module:
    """The model of an `adopt` cell that says how it is opened, from where it lies."""
    if f"{cell.key} {device}" not in _held:
        asked = cell.params[OPENED].items()
        told: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in asked}
        trust, shape = told.pop("trust"), told.pop("shape")
        options = cell.params["network_options"]
        model = opened(Named(**told), options=options, images=None, device=device, trust=trust, say=lambda _: None)
        if digest(model, told["text"], shape) != cell.params["sha256"]:
            raise InputError(f"model {told['text']} has changed since it became cell {cell.key[:8]}: name it anew")
        hold(cell, model, device)
    return _held[f"{cell.key} {device}"]


def check_trusted(params: Mapping[str, Any], trust: bool) -> None:
    """Raises InputError where the network of a cell is code from outside brittle, unless it is trusted."""
    if OPENED not in params:
        lookup.network(params["network"], trust)
    elif not trust and (
        params[OPENED]["trust"] or Named(params[OPENED]["text"], network=params[OPENED]["network"]).is_import
    ):
        raise InputError(
            f"model {params[OPENED]['text']!r} is code from outside brittle, and was not run: --trust allows it"
        )


def adopt(cell: Cell, _parents: Parents, _context: Context) -> Outcome:
    """The command that is given a network from outside stores it; from its cell alone it cannot be made again."""
    raise InputError(f"{cell.title}: the network is not in the store any more: run the command that it was given to")


def untrained(cell: Cell, data: Data) -> nn.Module:
    """A network of the shape that a `train` or `adopt` cell has, with other weights."""
    if OPENED in cell.params:
        return _opened(cell, torch.device("cpu"))
    make = lookup.network(cell.params["network"], trust=True)
    return _built(cell.params["network"], fitted_options(make, cell.params["network_options"], data)).eval()


def load_network(cell: Cell, stored: Stored, device: torch.device) -> nn.Module:
    """The network of a `train` or `adopt` cell, in evaluation mode.

    The store gives its weights and sizes. The code to import is what the cell names, never what a file names.
    """
    if OPENED in cell.params:
        return _opened(cell, device)
    network, sizes = cell.params["network"], stored.scalars["network_options"]
    options = {name: sizes[name] for name in FITTED if name in sizes} | cell.params["network_options"]
    built = _built(network, options)
    fill(built, stored.tensors("weights"), f"the weights of cell {cell.key[:8]} do not fit {network}")
    return channels_last(built.eval().to(device))


def loaded(role: str, cell: Cell, parents: Parents, context: Context) -> nn.Module:
    """The network of a parent, on the device that the cell runs on."""
    return load_network(cell.parents[role], parents[role], context.device)


def label(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """The teacher's soft labels of the training images."""
    data = context.data(cell.place, cell.digest)
    model = loaded("teacher", cell, parents, context)
    labels = soft_labels(model, data.train.images, cell.params["temperature"], progress=context.progress)
    return Outcome({}, {"tensors": {"labels": labels}})


def training_cost(cell: Cell, counts: Counts) -> Needs:
    """Each epoch a step for each training image; one for validation goes without the way back, a third of it."""
    images = len(counts.data.train) + len(counts.data.validation) / 3
    return [(cell, Work(steps=cell.params.get("epochs", 0) * images))]


def label_cost(cell: Cell, counts: Counts) -> Needs:
    """The teacher sees each training image."""
    return [(cell.parents["teacher"], Work(forwards=len(counts.data.train)))]


FUNCTIONS = {
    "train": Function(1, train, training_cost),
    "adopt": Function(1, adopt, training_cost),
    "label": Function(1, label, label_cost),
}
