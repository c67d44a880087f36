"""What units put out, and which layers are worth asking about."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from brittle.errors import InputError
from brittle.models.inference import at_once
from brittle.models.networks import frozen, logits_of
from brittle.models.softmax import SignedLog
from brittle.progress import Progress, barred, silent
from brittle.units.hooks import door, first_of, hooks_allowed, named_layers, replaced, same_shape

_ACTIVATIONS = nn.ReLU.__module__


@barred("activity of units")
def activity(
    model: nn.Module, images: Tensor, layers: Sequence[str], *, batch_size: int = 32, progress: Progress | None = None
) -> dict[str, SignedLog]:
    """How much each map or dense unit puts out: the mean of |o| over images and positions.

    Arguments and errors are those of `prediction_gradient`.

    Returns:
        For each layer (1, units), which `rank_units` takes.
    """
    progress = progress or silent
    door(model, images, layers, batch_size=batch_size)
    batch_size = min(batch_size, at_once(model, images))
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
        for start in range(0, len(images), batch_size):
            logits_of(model, images[start : start + batch_size])
            progress(min(start + batch_size, len(images)), len(images))
    return {name: SignedLog.of((totals[name] / numbers[name])[None]) for name in layers}


def outputs(model: nn.Module, images: Tensor, layers: Sequence[str], *, batch_size: int = 32) -> dict[str, Tensor]:
    """What the units put out: for each layer (N, units, ...), on the CPU; of one that is used again, the last.

    Arguments and errors are those of `prediction_gradient`.
    """
    door(model, images, layers, batch_size=batch_size)
    batch_size = min(batch_size, at_once(model, images))
    parts: list[dict[str, Tensor]] = []

    def kept(name: str) -> Callable[[Tensor], Tensor]:
        def run(output: Tensor) -> Tensor:
            parts[-1][name] = output.to("cpu", copy=True)  # the model may go on in place
            return output

        return run

    with frozen(model), torch.no_grad(), replaced(model, {name: kept(name) for name in layers}):
        for some in images.split(batch_size):
            parts.append({})
            logits_of(model, some)
    return {name: torch.cat([part[name] for part in parts]) for name in layers}


def telling_layers(model: nn.Module, image: Tensor) -> list[str]:
    """Layers worth asking about: the activations after convolutions, and attention and the activations of tokens; if
    there are none, all activations; if there are none, all convolutions and dense layers but the last.

    A layer that is used several times for units of different shapes is left out.

    Args:
        model: images in [0, 1] to logits.
        image: (1, C, H, W).

    Returns:
        Names in the order in which they are called, each once.

    Raises:
        InputError: if the model cannot take the image, or has no such layer.
    """
    called: dict[str, list[tuple[int, ...]]] = {}  # the shapes of what each puts out, without the batch
    mixing: list[str] = []  # attention: modules that mix tokens by dense layers alone

    def note(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def run(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            tensor = first_of(output)
            if not (isinstance(tensor, Tensor) and tensor.ndim >= 2 and tensor.is_floating_point()):
                return
            called.setdefault(name, []).append(tuple(tensor.shape[1:]))
            if tensor.ndim == 3 and inputs and getattr(inputs[0], "shape", None) == tensor.shape and _mixes(module):
                mixing.append(name)

        return run

    layers = {name: layer for name, layer in named_layers(model).items() if name}
    with hooks_allowed():
        handles = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    try:
        door(model, image, (), some=False)
    finally:
        for handle in handles:
            handle.remove()
    leaves = [name for name in called if not any(True for _ in layers[name].children()) and len({*called[name]}) == 1]
    active = [name for name in leaves if type(layers[name]).__module__ == _ACTIVATIONS]
    maps = [name for name in active if len(called[name][0]) == 3]
    tokens = [name for name in active if len(called[name][0]) == 2]
    outermost = {name for name in mixing if not any(name.startswith(f"{other}.") for other in mixing)}
    weighted = [name for name in leaves if isinstance(layers[name], nn.Conv2d | nn.Linear)][:-1]
    told = [name for name in called if name in outermost or name in maps or name in tokens]
    if not (told or active or weighted):
        raise InputError(f"the model has no layer to ask about among {', '.join(called) or 'none'}: name some")
    return told or active or weighted


def _mixes(module: nn.Module) -> bool:
    """Whether a module consists of dense layers, without activations and normalisations."""
    inside = [one for one in module.modules() if one is not module]
    kinds = (_ACTIVATIONS, nn.LayerNorm.__module__)
    return any(isinstance(one, nn.Linear) for one in inside) and all(
        type(one).__module__ not in kinds for one in inside
    )
