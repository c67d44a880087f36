"""What a cell does: select rows, train, label, measure, attack, look at units and masks, audit.

Plain functions of plain parameters and of parents.

A cell's key is a hash of its function and version, its parameters, its parents' keys, the data's digest, and the
precision and kind of device it runs at. Paths and titles are not in it, as they do not change what is computed. The
number of threads is not in it either: the same number of threads gives the same bits, another number gives results that
agree in distribution only. A record's provenance says how many there were.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn

from brittle import measures
from brittle.attacks.all_targets import every_target
from brittle.attacks.pixel_flips import flip_logits
from brittle.attacks.result import AttackResult, Bound, logits_in_batches
from brittle.data import Data
from brittle.errors import InputError
from brittle.models import users_code
from brittle.models.distill import soft_labels
from brittle.models.fit import fit
from brittle.models.networks import Scaled, build, channels_last
from brittle.models.softmax import Arithmetic, loss_gradient, loss_gradient_float32
from brittle.progress import Progress, part
from brittle.study import lookup
from brittle.study.kinds.audit import audited
from brittle.study.kinds.carriers import carriers
from brittle.study.kinds.masks import masks
from brittle.study.kinds.units import units
from brittle.study.store.store import Stored

# Raise a function's version when a change to it, or to what it calls, changes what it computes.
VERSIONS = {
    "select": 1,
    "train": 1,
    "adopt": 1,
    "label": 1,
    "measure": 2,
    "attack": 5,
    "units": 2,
    "carriers": 2,
    "masks": 1,
    "audit": 4,
}
ATTACKS = {"brittle.attacks.carlini_l2": 6}  # those whose version is not that of all
GENERATIONS = 50  # networks in a row that learn from each other, at most: a cell is pickled with all that it needs
NETWORKS = ("train", "adopt")  # functions of cells that hold a network
FITTED = ("channels", "classes", "size")  # options of a network that the data decides
_NAMED = 4  # keys of weights that an error lists
MEASURED = 1000  # rows whose amplitudes are computed between one save and the next


@dataclass(frozen=True)
class Cell:
    """One step of a study, before it is run.

    Who makes one has checked the import paths in `params`, as `study.check` and `engine.recall` do: they are imported.
    """

    title: str  # for people: 'train tempered, seed 0'
    function: str  # one of VERSIONS
    params: Mapping[str, Any]  # JSON
    parents: Mapping[str, Cell] = field(default_factory=dict)
    digest: str = ""  # of the data set, where the function reads it
    place: str = ""  # where that data set, or the file it reads, lies; not in the key
    environment: Mapping[str, str] = field(default_factory=dict)  # device kind and dtype

    @property
    def version(self) -> int:
        """Of its function, or of the attack that it runs."""
        return ATTACKS.get(self.params.get("function", ""), VERSIONS[self.function])

    @cached_property
    def key(self) -> str:
        """32 hexadecimal characters."""
        made_from = {
            "function": self.function,
            "version": self.version,
            "params": self.params,
            "parents": {role: parent.key for role, parent in self.parents.items()},
            "data": self.digest,
            "environment": self.environment,
        }
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Context:
    """What a cell's function is given besides its parameters and parents."""

    device: torch.device
    folder: Callable[[], Path]  # scratch that survives a kill until the cell is finished
    data: Callable[[str, str], Data]  # (name or path, digest) -> the data set
    progress: Progress


@dataclass(frozen=True)
class Outcome:
    """What a cell's function gives back to be stored."""

    scalars: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]


Parents = Mapping[str, Stored]


def run(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """Does what the cell says."""
    functions = {
        "select": _select,
        "train": _train,
        "adopt": _adopt,
        "label": _label,
        "measure": _measure,
        "attack": _attack,
        "units": _units,
        "carriers": _carriers,
        "masks": _masks,
        "audit": _audit,
    }
    return functions[cell.function](cell, parents, context)


# Rows ---------------------------------------------------------------------------------------------------------------


def _select(cell: Cell, _parents: Parents, context: Context) -> Outcome:
    """The first rows of the test split, kept so that a report can show them without the data set."""
    data = context.data(cell.place, cell.digest)
    rows = cell.params["rows"]
    count = len(data.test) if rows == "all" else min(rows, len(data.test))
    images, labels = data.test.images[:count].clone(), data.test.labels[:count].clone()
    scalars = {"rows": count, "data": data.name, "source": data.source, "classes": list(data.classes)}
    return Outcome(scalars, {"rows": {"images": images, "labels": labels}})


# Models -------------------------------------------------------------------------------------------------------------


def _train(cell: Cell, parents: Parents, context: Context) -> Outcome:
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
            "validation_accuracy": [_number(epoch.accuracy) for epoch in fitted.history],
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


def adopted(path: Path, network: str, options: Mapping[str, Any], data: Data) -> Cell:
    """The cell of weights that were trained elsewhere, from a safetensors file; the user typed the network's path.

    Raises:
        InputError: if the file cannot be read.
    """
    make = lookup.network(network, trust=True)
    lookup.check_options("network", network, make, options)
    params = {
        "network": network,
        "network_options": fitted_options(make, options, data),
        "sha256": hashlib.sha256(_content(path)).hexdigest(),
    }
    return Cell(f"adopt {path.name}", "adopt", params, place=str(path))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"weights {path} cannot be read: {error.strerror}") from error


def _adopt(cell: Cell, _parents: Parents, _context: Context) -> Outcome:
    network, options = cell.params["network"], cell.params["network_options"]
    content = _content(Path(cell.place))
    if hashlib.sha256(content).hexdigest() != cell.params["sha256"]:
        raise InputError(f"weights {cell.place} have changed since they were first read; run the command again")
    built = _built(network, options)
    try:
        state = load(content)
    except SafetensorError as error:
        raise InputError(f"weights {cell.place} cannot be read: {users_code.reason(error)}") from error
    fill(built, state, f"{cell.place} does not fit {network}")
    return Outcome({"network_options": options}, {"weights": built.state_dict()})


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


def load_model(cell: Cell, stored: Stored, device: torch.device) -> nn.Module:
    """The network of a `train` or `adopt` cell, in evaluation mode.

    The store gives its weights and sizes. The code to import is what the cell names, never what a file names.
    """
    network, sizes = cell.params["network"], stored.scalars["network_options"]
    options = {name: sizes[name] for name in FITTED if name in sizes} | cell.params["network_options"]
    built = _built(network, options)
    fill(built, stored.tensors("weights"), f"the weights of cell {cell.key[:8]} do not fit {network}")
    return channels_last(built.eval().to(device))


def _loaded(role: str, cell: Cell, parents: Parents, context: Context) -> nn.Module:
    return load_model(cell.parents[role], parents[role], context.device)


def _label(cell: Cell, parents: Parents, context: Context) -> Outcome:
    data = context.data(cell.place, cell.digest)
    model = _loaded("teacher", cell, parents, context)
    labels = soft_labels(model, data.train.images, cell.params["temperature"], progress=context.progress)
    return Outcome({}, {"tensors": {"labels": labels}})


# Measures -----------------------------------------------------------------------------------------------------------


def _measure(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """Logits of the whole test split, gradient amplitudes of the selected rows, saliency maps of one row a class.

    Amplitudes are those of the network as it is used, at T = 1, in both arithmetics, and as it was trained, exactly.
    """
    data = context.data(cell.place, cell.digest)
    model = _loaded("model", cell, parents, context)
    test = data.test.to(context.device)
    logits = logits_in_batches(model, test.images)
    rows = parents["rows"].tensors("rows")
    images, labels = rows["images"].to(context.device), rows["labels"].to(context.device)
    amplitudes = _amplitudes(model, images, cell.params["temperature"], context)
    shown = first_of_each_class(labels)
    exact = loss_gradient(model, images[shown], labels[shown])
    scalars = {
        "accuracy": asdict(measures.accuracy(logits, test.labels)),
        "saturated": asdict(measures.saturated(logits)),
        "confidence": asdict(measures.confidence(logits, test.labels)),
        "sensitivity": {name: asdict(measures.sensitivity(amplitudes[name])) for name in get_args(Arithmetic)},
    }
    tensors = {
        "logits": {"test": logits, "labels": test.labels},
        "amplitudes": amplitudes,
        "saliency": {
            "rows": shown,
            "sign": exact.sign,
            "log10": exact.log10,
            "float32": loss_gradient_float32(model, images[shown], labels[shown]),
        },
    }
    return Outcome(scalars, tensors)


def _amplitudes(model: nn.Module, images: Tensor, temperature: float, context: Context) -> dict[str, Tensor]:
    """By kind, (N,) log10 of each image's mean |dF/dx|; each MEASURED images are kept for a run that was killed."""
    kinds: dict[str, tuple[Arithmetic, float]] = {
        "float32": ("float32", 1.0),
        "exact": ("exact", 1.0),
        "trained": ("exact", temperature),
    }
    blocks = images.split(MEASURED)
    found = {}
    for number, (kind, (arithmetic, at)) in enumerate(kinds.items()):
        parts = []
        for place, block in enumerate(blocks):
            begin = number * len(images) + place * MEASURED
            told = part(context.progress, begin, begin + len(block), len(kinds) * len(images))
            options = {"temperature": at, "arithmetic": arithmetic, "progress": told}
            compute = functools.partial(measures.gradient_amplitudes, model, block, **options)
            parts.append(_kept(context.folder() / f"{kind}-{place}.safetensors", compute))
        found[kind] = torch.cat(parts)
    return found


def _kept(path: Path, compute: Callable[[], Tensor]) -> Tensor:
    """What `compute` gives; once it has been computed, from the file where it was left before a kill."""
    with suppress(OSError, SafetensorError):
        return load_file(path)["values"]
    values = compute()
    temporary = path.with_suffix(".tmp")
    save_file({"values": values}, temporary)
    os.replace(temporary, path)
    return values


def first_of_each_class(labels: Tensor) -> Tensor:
    """(classes,) int64: the first row of each class that is there, in the order of the classes."""
    return torch.stack([(labels == label).nonzero()[0, 0] for label in labels.unique()])


def _units(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """Which units matter, and what breaks when they go; see `unit_cells.units`."""
    data = context.data(cell.place, cell.digest)
    model = _loaded("model", cell, parents, context)
    return Outcome(*units(model, data, cell.params, context.device, context.progress))


def _carriers(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """Which units carry an adversarial change; see `carrier_cells.carriers`."""
    data = context.data(cell.place, cell.digest)
    model = _loaded("model", cell, parents, context)
    return Outcome(*carriers(model, data, cell.params, context.device, context.progress))


def _masks(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """What additive masks do; see `mask_cells.masks`."""
    data = context.data(cell.place, cell.digest)
    model = _loaded("model", cell, parents, context)
    other = _loaded("other", cell, parents, context) if "other" in parents else None
    return Outcome(*masks(model, other, data, cell.params, context.device, context.progress))


def _audit(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """Whether the model is robust; see `audit_cells.audited`."""
    data = context.data(cell.place, cell.digest)
    model = _loaded("model", cell, parents, context)
    reference = _loaded("reference", cell, parents, context) if "reference" in parents else None
    return Outcome(*audited(model, reference, data, cell.params, context.folder(), context.progress))


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


# Attacks ------------------------------------------------------------------------------------------------------------


def _attack(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """One attack on some of the rows, in every arithmetic that is asked for.

    An attack that takes `flips` gets the logits of all one-pixel changes, computed once for all arithmetics; one that
    takes `progress` is listened to. The first shard of a pixel attack also keeps the logits after each pixel, of one
    row a class, so that a page can show how a prediction gives way.
    """
    params = cell.params
    attack = lookup.attack(params["function"], trust=True)
    model = _loaded("model", cell, parents, context)
    if "temperature" in params:
        model = nn.Sequential(model, Scaled(1 / params["temperature"])).eval()
    rows = parents["rows"].tensors("rows")
    shard = attacked_rows(params)
    images, labels = rows["images"][shard].to(context.device), rows["labels"][shard].to(context.device)
    options = dict(params["options"])
    if lookup.takes(attack, "progress"):
        options["progress"] = context.progress
    if lookup.takes(attack, "flips"):
        clean = logits_in_batches(model, images)
        options["flips"] = flip_logits(model, images, clean, progress=context.progress)
    if params.get("targets") == "every":
        attack = functools.partial(every_target, attack)
    tensors, said = {}, {}
    for arithmetic in params["arithmetic"] or [None]:
        chosen = {} if arithmetic is None else {"arithmetic": arithmetic}
        found = attack(model, images, labels, **options, **chosen)
        tensors[arithmetic or "result"], said = pack(found), aims(found)
        if found.pixels is not None and found.targets is None and params.get("start") == 0:
            tensors[f"{arithmetic or 'result'}.steps"] = _steps(model, found, first_of_each_class(labels))
    return Outcome({"rows": len(images)} | said, tensors)


def attacked_rows(params: Mapping[str, Any]) -> Tensor:
    """(n,) int64: which of the selected rows an attack cell with these parameters is for."""
    return torch.tensor(params["indices"] if "indices" in params else range(params["start"], params["stop"]))


def _steps(model: nn.Module, found: AttackResult, rows: Tensor) -> dict[str, Tensor]:
    """Rows (R,) and their logits (R, S + 1, K) at first and after each of their pixels, NaN when they have no more."""
    assert found.pixels is not None
    flips, pixels = found.flips[rows], found.pixels[rows]
    image, final = found.images[rows].flatten(2), found.adversarial[rows].flatten(2)
    each = [logits_in_batches(model, image.view_as(found.images[rows]))]
    for step in range(int(flips.max())):
        live = (step < flips).nonzero().flatten()
        pixel = pixels[live, step]
        image = image.clone()
        image[live, :, pixel] = final[live, :, pixel]
        logits = torch.full_like(each[0], torch.nan)
        logits[live] = logits_in_batches(model, image[live].view(-1, *found.images.shape[1:]))
        each.append(logits)
    return {"rows": rows, "logits": torch.stack(each, 1)}


def aims(found: AttackResult) -> dict[str, Any]:
    """What a result says of its attack, as a cell's scalars: norms are 0, 1, 2 or the text 'inf'."""

    def norm(p: float) -> int | str:
        return "inf" if math.isinf(p) else int(p)

    bound = None if found.bound is None else {"norm": norm(found.bound.norm), "eps": found.bound.eps}
    return {"minimises": None if found.minimises is None else norm(found.minimises), "bound": bound}


def pack(found: AttackResult) -> dict[str, Tensor]:
    """What must be stored of a result beside its clean images: a pixel attack's few pixels, or the whole images."""
    packed = {
        "success": found.success,
        "prediction": found.prediction,
        "forwards": found.forwards.int(),
        "backwards": found.backwards.int(),
    }
    if found.targets is not None:
        packed["targets"] = found.targets
    if found.pixels is None:
        return packed | {"adversarial": found.adversarial}
    pixels = found.pixels[:, : max(1, int(found.flips.max()))]
    levels = found.adversarial.flatten(2)[:, 0].gather(1, pixels.clamp(min=0))
    return packed | {"pixels": pixels.int(), "levels": levels.to(torch.uint8)}


def unpack(
    packed: Mapping[str, Tensor], images: Tensor, labels: Tensor, scalars: Mapping[str, Any] | None = None
) -> AttackResult:
    """The result that `pack` took apart, given its clean images and labels, and the cell's scalars for its aims."""
    told = scalars or {}
    minimises, bound = told.get("minimises"), told.get("bound")
    pixels, adversarial = packed.get("pixels"), packed.get("adversarial")
    if pixels is not None:
        pixels = pixels.long()
        flat = images.flatten(2).clone()
        row, place = (pixels >= 0).nonzero(as_tuple=True)
        flat[row, :, pixels[row, place]] = packed["levels"][row, place, None].to(flat.dtype)
        adversarial = flat.view_as(images)
    assert adversarial is not None
    return AttackResult(
        images=images,
        labels=labels,
        targets=packed.get("targets"),
        adversarial=adversarial,
        success=packed["success"],
        prediction=packed["prediction"],
        forwards=packed["forwards"].long(),
        backwards=packed["backwards"].long(),
        pixels=pixels,
        minimises=None if minimises is None else float(minimises),
        bound=None if bound is None else Bound(float(bound["norm"]), bound["eps"]),
    )
