"""What units put out, and which layers are worth asking about."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from brittle.errors import InputError
from brittle.models.networks import frozen, logits_of
from brittle.models.softmax import SignedLog
from brittle.progress import Progress, barred, silent
from brittle.units.hooks import door, replaced, same_shape


@barred("activity of units")
def activity(
    model: nn.Module, images: Tensor, layers: Sequence[str], *, batch: int = 32, progress: Progress | None = None
) -> dict[str, SignedLog]:
    """How much each map or dense unit puts out: the mean of |o| over images and positions.

    Arguments and errors are those of `prediction_gradient`.

    Returns:
        For each layer (1, units), which `rank_units` takes.
    """
    progress = progress or silent
    door(model, images, layers, batch=batch)
    totals: dict[str, Tensor] = {}
    numbers = dict.fromkeys(layers, 0)

    def watched(name: str) -> Callable[[Tensor], Tensor]:
        def run(output: Tensor) -> Tensor:
            sizes = output.abs().sum((0, *range(2, output.ndim))).double()
            totals[name] = sizes + (same_shape(name, totals[name], sizes) if name in totals else 0)
            numbers[name] += output[:, 0].numel()
            return output

        return run

    with frozen(model), torch.no_grad(), replaced(model, {name: watched(name) for name in layers}):
        for start in range(0, len(images), batch):
            logits_of(model, images[start : start + batch])
            progress(min(start + batch, len(images)), len(images))
    return {name: SignedLog.of((totals[name] / numbers[name])[None]) for name in layers}


def outputs(model: nn.Module, images: Tensor, layers: Sequence[str], *, batch: int = 32) -> dict[str, Tensor]:
    """What the units put out: for each layer (N, units, ...), on the CPU; of one that is used again, the last.

    Arguments and errors are those of `prediction_gradient`.
    """
    door(model, images, layers, batch=batch)
    parts: list[dict[str, Tensor]] = []

    def kept(name: str) -> Callable[[Tensor], Tensor]:
        def run(output: Tensor) -> Tensor:
            parts[-1][name] = output.cpu()
            return output

        return run

    with frozen(model), torch.no_grad(), replaced(model, {name: kept(name) for name in layers}):
        for some in images.split(batch):
            parts.append({})
            logits_of(model, some)
    return {name: torch.cat([part[name] for part in parts]) for name in layers}


def telling_layers(model: nn.Module, image: Tensor) -> list[str]:
    """Layers worth asking about: the activations after convolutions; if there are none, all; if there are none, all
    convolutions and dense layers but the last.

    Args:
        model: images in [0, 1] to logits.
        image: (1, C, H, W).

    Returns:
        Names in the order in which they are called, each once.

    Raises:
        InputError: if the model cannot take the image, or has no such layer.
    """
    called: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def run(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim >= 2 and output.is_floating_point():
                called.setdefault(name, output)

        return run

    leaves = {name: layer for name, layer in model.named_modules() if name and not any(True for _ in layer.children())}
    handles = [layer.register_forward_hook(note(name)) for name, layer in leaves.items()]
    try:
        door(model, image, (), some=False)
    finally:
        for handle in handles:
            handle.remove()
    active = [name for name in called if type(leaves[name]).__module__ == "torch.nn.modules.activation"]
    maps = [name for name in active if called[name].ndim == 4]
    weighted = [name for name in called if isinstance(leaves[name], nn.Conv2d | nn.Linear)][:-1]
    if not (maps or active or weighted):
        raise InputError(f"the model has no layer to ask about among {', '.join(called) or 'none'}: name some")
    return maps or active or weighted
