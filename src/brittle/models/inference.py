"""How a model is asked: as many images at once as fit into memory, with or without the gradient.

Every evaluation of a model goes through `answers` or `differentiated`. How many images go through it at once is what
the caller asked for (`asking`), and else what one image has been seen to take. Where memory runs out all the same, the
batch is halved and the same images are asked for again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from brittle.errors import InputError, first_line
from brittle.models.networks import frozen, logits_of, out_of_memory

T = TypeVar("T")
BATCH = 256  # images a forward pass at most: 128 and 256 measure alike on a CPU, 512 falls out of its cache
ROOM = 2**30  # bytes that the outputs of all layers may take for one batch; eight times as many on an accelerator

_sizes: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], int]] = WeakKeyDictionary()  # that have been seen to fit


@dataclass
class Asking:
    """How models are asked inside a call of an attack or an audit, and what came of it.

    Attributes:
        batch_size: images at once at most; None for as many as fit.
        known: whether it is known already if the models vary, or look at the other images of a batch.
        answered: images that models have answered; unfit: those of them with NaN or infinity among the logits.
    """

    batch_size: int | None = None
    known: bool = False
    answered: int = 0
    unfit: int = 0


_asking: ContextVar[Asking | None] = ContextVar("asking", default=None)


@contextmanager
def asking(batch_size: int | None = None, *, known: bool = False) -> Iterator[Asking]:
    """Models are asked for at most `batch_size` images at once inside; what is not said is as it is outside.

    Raises:
        InputError: if the batch size is no whole number of at least 1.
    """
    if not (batch_size is None or (isinstance(batch_size, int) and batch_size >= 1 and batch_size is not True)):
        raise InputError(f"batch_size must be a whole number of at least 1, or None, got {batch_size!r}")
    outside = _asking.get() or Asking()
    inside = Asking(batch_size or outside.batch_size, known or outside.known)
    token = _asking.set(inside)
    try:
        yield inside
    finally:
        _asking.reset(token)
        outside.answered += inside.answered
        outside.unfit += inside.unfit


def asked_how() -> Asking:
    """How models are asked here."""
    return _asking.get() or Asking()


def answers(model: nn.Module, images: Tensor) -> Tensor:
    """(N, K) logits without gradients, of a model that is `frozen`; as many images at a time as fit into memory."""
    with torch.no_grad():
        found = in_parts(model, images, lambda rows: logits_of(model, images[rows]))
    return _noted(found[0] if len(found) == 1 else torch.cat(found))


def logits_in_batches(model: nn.Module, images: Tensor) -> Tensor:
    """(N, K) logits without gradients; the model is left as it was."""
    with frozen(model):
        return answers(model, images)


def differentiated(
    model: nn.Module, images: Tensor, objective: Callable[[Tensor, slice], Tensor]
) -> tuple[Tensor, Tensor | None]:
    """The logits, and the gradient of a number a row with respect to its image, of a model that is `frozen`.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K).
        images: (N, C, H, W), at least one.
        objective: from the logits of some rows (n, K), and these rows, to their numbers (n,).

    Returns:
        (N, K), and (N, C, H, W); None where nothing that can be differentiated lies between image and number.
    """

    def part(rows: slice) -> tuple[Tensor, Tensor | None]:
        inputs = images[rows].detach().clone().requires_grad_(True)
        with torch.enable_grad():
            logits = logits_of(model, inputs)
            total = objective(logits, rows).sum()
            gradient = torch.autograd.grad(total, inputs, allow_unused=True)[0] if total.requires_grad else None
        return logits.detach(), gradient

    found = in_parts(model, images, part)
    gradients = [gradient for _, gradient in found if gradient is not None]
    logits = _noted(torch.cat([logits for logits, _ in found]))
    return logits, torch.cat(gradients) if len(gradients) == len(found) else None


class OutOfMemory(InputError):
    """Memory does not hold what was asked for, however little at a time."""


def in_parts(model: nn.Module, images: Tensor, work: Callable[[slice], T]) -> list[T]:
    """What `work`, which asks the model, gives for one part of the images after another; of none, for an empty part.

    Raises:
        OutOfMemory: if memory does not even hold one image.
    """
    if not len(images):
        return [work(slice(0, 0))]
    found: list[T] = []
    done = 0
    while done < len(images):
        size = min(at_once(model, images), len(images) - done)
        try:
            found.append(work(slice(done, done + size)))
            done += size
        except Exception as error:
            if not out_of_memory(error):
                raise
            if size == 1:
                said = f"memory does not hold one image {tuple(images.shape[1:])} in this model: {first_line(error)}"
                raise OutOfMemory(said) from error
            too_many = size
        else:
            continue
        _halve(model, images, too_many)  # once what the failed attempt held is free
    return found


def _noted(logits: Tensor) -> Tensor:
    """The same, counted."""
    if (here := _asking.get()) is not None:
        here.answered += len(logits)
        here.unfit += len(logits) - int(logits.isfinite().flatten(1).all(1).sum())
    return logits


def at_once(model: nn.Module, images: Tensor) -> int:
    """How many of these images go through the model at once."""
    asked, kind = asked_how().batch_size, _kind(images)
    sizes = _sizes.setdefault(model, {})
    if asked is not None:
        return min(asked, sizes.get(("halved", *kind), asked))
    if kind not in sizes:
        room = ROOM if images.device.type == "cpu" else 8 * ROOM
        sizes[kind] = min(BATCH, max(1, room // max(1, _bytes_of(model, images[:1]))))
    return min(sizes[kind], sizes.get(("halved", *kind), BATCH))


def _kind(images: Tensor) -> tuple[object, ...]:
    return (tuple(images.shape[1:]), images.dtype, images.device)


def _halve(model: nn.Module, images: Tensor, size: int) -> None:
    sizes, key = _sizes.setdefault(model, {}), ("halved", *_kind(images))
    if key not in sizes:
        warnings.warn(
            f"memory does not hold {size} images {tuple(images.shape[1:])} in the model at once: it is asked for fewer",
            stacklevel=4,
        )
    sizes[key] = size // 2


class _Bytes(TorchDispatchMode):
    """Adds up the bytes of all that is computed, but for views and what is written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        given = {one.untyped_storage()._cdata for one in tree_leaves(args) if _is_plain(one)}
        for one in tree_leaves(outputs):
            if _is_plain(one) and one.untyped_storage()._cdata not in given:
                self.total += one.numel() * one.element_size()
        return outputs


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def _bytes_of(model: nn.Module, image: Tensor) -> int:
    """The bytes that one image (1, C, H, W) takes in the model; 0 where it cannot be asked for one."""
    devices = range(torch.cuda.device_count())
    try:
        with torch.random.fork_rng(devices=devices), frozen(model), torch.no_grad(), _Bytes() as counted:
            logits_of(model, image)
    except Exception:  # who asks for its answer says what is wrong
        return 0
    return counted.total
