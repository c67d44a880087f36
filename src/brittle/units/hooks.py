"""What a request for units is checked for, and the hooks by which layers are watched and changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from brittle.errors import InputError, first_line, unknown
from brittle.models.networks import frozen, logits_of

_COMPILED = "_orig_mod"
_OF_SEQUENCES = (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d)  # (B, units, length)

# The request ----------------------------------------------------------------------------------------------------------


def door(model: nn.Module, images: Tensor, layers: Sequence[str], *, some: bool = True, batch_size: int = 1) -> int:
    """Checks a request, with one image put through the model, and gives K."""
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(images, Tensor):
        raise InputError(f"images must be a tensor (N, C, H, W), got {type(images).__name__}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    if images.ndim != 4 or not images.is_floating_point() or len(images) == 0:
        raise InputError(f"images must be (N, C, H, W), floating and some, got {tuple(images.shape)} {images.dtype}")
    low, high = images.min().item(), images.max().item()
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # written so that NaN fails it
        raise InputError(f"images must lie in [0, 1], got [{low:.3g}, {high:.3g}]")
    if isinstance(layers, str) or (some and not layers):
        raise InputError(f"layers must be the names of at least one layer, got {layers!r}")
    with frozen(model), torch.no_grad(), replaced(model, dict.fromkeys(layers, lambda output: output)):
        logits = logits_of(model, images[:1])
    if logits.ndim != 2 or len(logits) != 1 or logits.shape[1] < 2:
        raise InputError(f"the model must return logits (1, K) with K >= 2 for an image, got {tuple(logits.shape)}")
    return logits.shape[1]


def each_class(classes: Tensor | int, images: Tensor, outputs: int) -> Tensor:
    """(N,) int64: the class of each image, on its device."""
    if isinstance(classes, int):
        classes = torch.full((len(images),), classes)
    if not isinstance(classes, Tensor):
        raise InputError(f"classes must be a tensor ({len(images)},) of int64, got {type(classes).__name__}")
    if classes.dtype != torch.int64 or classes.shape != images.shape[:1]:
        expected = f"int64 with one entry an image, ({len(images)},)"
        raise InputError(f"classes must be {expected}, got {tuple(classes.shape)} {classes.dtype}")
    low, high = classes.min().item(), classes.max().item()
    if not 0 <= low <= high < outputs:
        raise InputError(f"classes must lie in 0..{outputs - 1}, as the model has {outputs} outputs, got {low}..{high}")
    return classes.to(images.device)


# Hooks ----------------------------------------------------------------------------------------------------------------


@contextmanager
def replaced(model: nn.Module, changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Each named layer's output is what `changes` make of it, for as long as the context lasts."""
    layers = named_layers(model)
    used: dict[str, None] = {}
    rows: list[int] = []

    def begin(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        used.clear()
        rows[:] = [len(inputs[0])]

    def end(_module: nn.Module, _inputs: object, _output: object) -> None:
        if unused := [name for name in changes if name not in used]:
            raise InputError(f"layer {unused[0]!r} is not called by the model: name one that is")

    def changed(name: str) -> Callable[[nn.Module, tuple[object, ...], object], object]:
        def run(module: nn.Module, inputs: tuple[object, ...], output: object) -> object:
            used[name] = None
            tensor = _tensor(name, first_of(output), rows)
            shared = any(tensor is given for given in inputs) or any(True for _ in module.children())
            # What Identity gives, or a block with a way around, is used elsewhere too: gradients tell it apart
            tensor = tensor.clone() if shared and torch.is_grad_enabled() else tensor
            last = _units_last(module, tensor)
            made = changes[name](tensor.movedim(-1, 1) if last else tensor)
            made = made.movedim(1, -1) if last else made
            return made if isinstance(output, Tensor) else (made, *cast("tuple[object, ...]", output)[1:])

        return run

    handles = []
    try:
        with hooks_allowed():
            handles.extend(layer_of(layers, name).register_forward_hook(changed(name)) for name in changes)
            handles += [model.register_forward_pre_hook(begin), model.register_forward_hook(end)]
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def hooks_allowed() -> Iterator[None]:
    """Says in one line that a model takes no hooks, where torch says so inside."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(f"the layers of this model cannot be watched: {first_line(error)}") from error


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """All modules inside a model by name; those inside what torch.compile has made by the names they had before."""
    modules = model.named_modules(remove_duplicate=False)
    return {stripped(name): layer for name, layer in modules if stripped(name) and not hasattr(layer, _COMPILED)}


def stripped(name: str) -> str:
    """A layer's name without what torch.compile puts in."""
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def layer_of(layers: Mapping[str, nn.Module], name: str) -> nn.Module:
    """The layer of this name among `named_layers`; an InputError if there is none."""
    if stripped(name) not in layers:
        raise unknown("layer", name, layers)
    return layers[stripped(name)]


def first_of(output: object) -> object:
    """What a layer puts out: of a tuple, as attention returns one, the first."""
    return output[0] if isinstance(output, tuple) and output else output


def _units_last(module: nn.Module, output: Tensor) -> bool:
    """Whether units are the last dimension of a layer's output, as of (B, tokens, channels), and not the second."""
    if isinstance(module, nn.Linear | nn.LayerNorm):
        return output.ndim > 2
    return output.ndim == 3 and not any(isinstance(one, _OF_SEQUENCES) for one in module.modules())


def _tensor(name: str, output: object, rows: Sequence[int]) -> Tensor:
    expected = "a tensor (B, units, ...) of floating numbers; name a layer that does"
    if not isinstance(output, Tensor):
        raise InputError(f"layer {name!r} returns a {type(output).__name__}, not {expected}")
    if output.ndim < 2 or not output.is_floating_point() or (rows and len(output) != rows[0]):
        raise InputError(f"layer {name!r} returns {tuple(output.shape)} {output.dtype}, not {expected}")
    return output


def same_shape(name: str, before: Tensor, now: Tensor) -> Tensor:
    """`before`, if a layer that is used again has units of the same shape."""
    if before.shape != now.shape:
        shapes = f"{tuple(before.shape)} and {tuple(now.shape)}"
        raise InputError(f"layer {name!r} is used several times, with outputs {shapes}: name the layers ahead of it")
    return before
