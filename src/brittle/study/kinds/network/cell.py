"""Cells that hold a network, and the soft labels that one gives another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brittle.data import Data
from brittle.errors import InputError
from brittle.models import users_code
from brittle.models.distill import soft_labels
from brittle.models.fit import fit
from brittle.models.networks import build, channels_last
from brittle.study import lookup
from brittle.study.kinds.work import Counts, Function, Needs, Work
from brittle.study.store.cell import Cell, Context, Outcome, Parents
from brittle.study.store.results import Reader
from brittle.study.store.store import Stored, printable

GENERATIONS = 50  # networks in a row that learn from each other, at most: a cell is pickled with all that it needs
NETWORKS = ("train", "adopt")  # functions of cells that hold a network
FITTED = ("channels", "classes", "size")  # options of a network that the data decides
_NAMED = 4  # keys of weights that an error lists


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


def fitted_options(make: Callable[..., nn.Module], options: Mapping[str, Any], data: Data) -> dict[str, Any]:
    """The network's options, with channels, classes and size as the data has them unless they are given."""
    channels, height, width = data.image_shape
    known = dict(zip(FITTED, (channels, len(data.classes), height), strict=True))
    if lookup.takes(make, "size") and height != width:
        raise InputError(f"this network takes square images, those of {data.name} are {height} x {width}")
    return {name: value for name, value in known.items() if lookup.takes(make, name)} | dict(options)


def _built(network: str, options: Mapping[str, Any], seed: int = 0) -> nn.Module:
    """The network of a cell, whose import path has been checked."""
    with users_code.users_code(f"network {network} cannot be built"):
        made = build(lookup.network(network, trust=True), seed=seed, **options)
        if not isinstance(made, nn.Module):
            raise InputError(f"network {network} must build an nn.Module, got a {type(made).__name__}")
        return made


def adopt(cell: Cell, _parents: Parents, _context: Context) -> Outcome:
    """The command that is given a network from outside stores it; from its cell alone it cannot be made again."""
    raise InputError(f"{cell.title}: the network is not in the store any more: run the command that it was given to")


def fill(model: nn.Module, state: Mapping[str, Tensor], fault: str) -> None:
    """Loads weights into a model that has exactly these.

    Raises:
        InputError: that begins with `fault`, if names, shapes or kinds of numbers are others, or a tensor is not dense.
    """
    if state and all(name.startswith("module.") for name in state):  # written by DataParallel
        state = {name.removeprefix("module."): value for name, value in state.items()}
    with users_code.users_code(fault):
        wanted = model.state_dict()
        both = [(name, state[name], value) for name, value in wanted.items() if name in state]
        faults = {
            "missing": [name for name in wanted if name not in state],
            "unexpected": [name for name in state if name not in wanted],
            "of another shape": [
                f"{name} is {tuple(found.shape)}, expected {tuple(value.shape)}"
                for name, found, value in both
                if found.shape != value.shape
            ],
            "of another kind": [
                f"{name} is {_number_kind(found)}, expected {_number_kind(value)}"
                for name, found, value in both
                if _number_kind(found) != _number_kind(value)
            ],
        }
        if said := [f"{what}: {_shortened(names)}" for what, names in faults.items() if names]:
            raise InputError(f"{fault}; {'; '.join(said)}")
        model.load_state_dict(state)


def _number_kind(tensor: Tensor) -> str:
    """What conversion must not change unseen: 'floating-point' of any precision, another dtype, or no dense numbers."""
    if tensor.is_meta or tensor.layout is not torch.strided:
        return "without values" if tensor.is_meta else "sparse"
    return "floating-point" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def untrained(cell: Cell, data: Data) -> nn.Module:
    """A network of the shape that a `train` or `adopt` cell has, with other weights."""
    make = lookup.network(cell.params["network"], trust=True)
    return _built(cell.params["network"], fitted_options(make, cell.params["network_options"], data)).eval()


def load_network(cell: Cell, stored: Stored, device: torch.device) -> nn.Module:
    """The network of a `train` or `adopt` cell, in evaluation mode.

    The store gives its weights and sizes. The code to import is what the cell names, never what a file names.
    """
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
