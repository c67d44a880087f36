"""A network's numbers without an attack: logits, gradient amplitudes, saliency maps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from brittle import measures
from brittle.attacks.result import logits_in_batches
from brittle.errors import InputError
from brittle.models.checkpoint import save
from brittle.models.softmax import Arithmetic, loss_gradient, loss_gradient_float32
from brittle.progress import part
from brittle.study.kinds.network.cell import loaded
from brittle.study.kinds.plan import Point
from brittle.study.kinds.rows.cell import first_of_each_class
from brittle.study.kinds.work import Counts, Function, Needs, Work
from brittle.study.store.cell import Cell, Context, Outcome, Parents

MANY = 50  # classes, beyond which a Jacobian takes minutes an image
MEASURED = 1000  # rows whose amplitudes are computed between one save and the next


def measure(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """Logits of the whole test split, gradient amplitudes of the selected rows, saliency maps of one row a class.

    Amplitudes are those of the network as it is used, at T = 1, in both arithmetics, and as it was trained, exactly: of
    all classes, or of the label's alone where there are MANY.
    """
    data = context.data(cell.place, cell.digest)
    model = loaded("model", cell, parents, context)
    test = data.test.to(context.device)
    logits = logits_in_batches(model, test.images)
    if unfit := len(logits) - int(logits.isfinite().all(1).sum()):
        raise InputError(f"the network answers {unfit} of {len(logits)} test images with NaN or infinity: no measure")
    rows = parents["rows"].tensors("rows")
    images, labels = rows["images"].to(context.device), rows["labels"].to(context.device)
    of = labels if logits.shape[1] > MANY else None
    amplitudes = _amplitudes(model, images, of, cell.params["temperature"], context)
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


def _amplitudes(
    model: nn.Module, images: Tensor, labels: Tensor | None, temperature: float, context: Context
) -> dict[str, Tensor]:
    """By kind, (N,) log10 of each image's mean |dF/dx|; each MEASURED images are kept for a run that was killed."""
    kinds: dict[str, tuple[Arithmetic, float]] = {
        "float32": ("float32", 1.0),
        "exact": ("exact", 1.0),
        "trained": ("exact", temperature),
    }
    blocks = torch.arange(len(images)).split(MEASURED)
    found = {}
    for number, (kind, (arithmetic, at)) in enumerate(kinds.items()):
        parts = []
        for place, block in enumerate(blocks):
            begin = number * len(images) + place * MEASURED
            told = part(context.progress, begin, begin + len(block), len(kinds) * len(images))
            of = None if labels is None else labels[block]
            options = {"labels": of, "temperature": at, "arithmetic": arithmetic, "progress": told}
            compute = functools.partial(measures.gradient_amplitudes, model, images[block], **options)
            parts.append(_kept(context.folder() / f"{kind}-{place}.safetensors", compute))
        found[kind] = torch.cat(parts)
    return found


def _kept(path: Path, compute: Callable[[], Tensor]) -> Tensor:
    """What `compute` gives; once it has been computed, from the file where it was left before a kill."""
    with suppress(OSError, SafetensorError):
        return load_file(path)["values"]
    values = compute()
    save(path, {"values": values})
    return values


def planned(point: Point) -> Cell:
    """The cell that measures a network."""
    title, params = f"measure {point.title}", {"temperature": point.temperature}
    return point.base.cell(FUNCTIONS, title, "measure", params, {"model": point.network, "rows": point.rows})


def cost(cell: Cell, counts: Counts) -> Needs:
    """Logits of the test split, and Jacobians of the rows: one in float32, two exactly, K ways back each."""
    rows, classes = counts.rows(cell.parents["rows"]), counts.classes if counts.classes <= MANY else 1
    jacobians = Work(gradients=3 * rows * (1 + classes) / 2)  # a gradient goes once through and once back
    exactly = Work(logarithms=2 * rows * classes**2 * counts.values)
    return [(cell.parents["model"], Work(forwards=len(counts.data.test)) + jacobians + exactly)]


FUNCTIONS = {"measure": Function(3, measure, cost)}
