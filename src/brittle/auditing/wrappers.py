"""Wrappers that restore useful gradients: rescaled logits, EOT, log-probabilities, BPDA (straight-through).

A wrapper has the predictions of the model that it wraps (the mean of many runs: nearly), and better gradients. Attacks
run on a wrapper; whether an image fools the model is always measured on the model itself.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from brittle.errors import first_line
from brittle.models.inference import OutOfMemory, differentiated, logits_in_batches
from brittle.models.networks import frozen, logits_of, out_of_memory

SHARPNESS = 10.0  # of the sigmoid in place of a step: a tenth of the pixels' range wide


class Scaled(nn.Module):
    """Logits over `scale`."""

    def __init__(self, model: nn.Module, scale: float):
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return logits_of(self.model, images) / self.scale


class LogProbabilities(nn.Module):
    """Logits, but for a constant a row, of a model that returns probabilities."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        outputs = logits_of(self.model, images)
        return outputs.clamp(min=torch.finfo(outputs.dtype).tiny).log()


class EOT(nn.Module):
    """The mean logits of `runs` runs of a model that answers differently each time: Athalye et al. 2018, section 4.3.

    The mean's gradient is the mean of the gradients, the expectation over what the model draws.
    """

    def __init__(self, model: nn.Module, runs: int):
        super().__init__()
        self.model, self.runs = model, runs

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return torch.stack([logits_of(self.model, images) for _ in range(self.runs)]).mean(0)


class BPDA(nn.Module):
    """The same outputs, with gradients through what has none: Athalye et al. 2018, section 4.1.

    On the way back rounding, signs, cuts and detaching are taken as if they were not there, a comparison as a sigmoid,
    and an argmax made one-hot as a softmax. What happens out of torch's sight (numpy, no_grad) stays a wall.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        with _Passable():
            return logits_of(self.model, images)


def widened(model: nn.Module) -> nn.Module | None:
    """A copy in float64; None where the model cannot be copied or cast.

    Raises:
        OutOfMemory: if memory does not hold it.
    """
    try:
        return copy.deepcopy(model).double()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        if out_of_memory(error):
            raise OutOfMemory(f"memory does not hold a copy of the model in float64: {first_line(error)}") from error
        return None


def works(view: nn.Module, model: nn.Module, images: Tensor, *, deterministic: bool) -> bool:
    """Whether a view runs, and predicts of the images (n, C, H, W) what the model predicts if that does not vary."""
    try:
        with frozen(view):
            seen, _ = differentiated(view, images, lambda logits, _: logits.sum(1))
        plain = logits_in_batches(model, images)
    except OutOfMemory:  # the view may work: nothing is known of it
        raise
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return False
    same = seen.shape == plain.shape and bool(seen.isfinite().all())
    return same and (not deterministic or bool((seen.argmax(1) == plain.argmax(1)).all()))


class _Through(torch.autograd.Function):
    """The first value forward, the gradient to the second."""

    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None, gradients[0]


def _named(*names: str) -> set[Any]:
    """The functions of torch and the methods of tensors that have one of these names."""
    return {getattr(home, name) for home in (torch, torch.Tensor) for name in names if hasattr(home, name)}


_IDENTITIES = _named("round", "floor", "ceil", "trunc", "fix", "sign", "clamp", "clip", "clamp_min", "clamp_max")
_DETACHING = _named("detach")
_ABOVE = _named("gt", "greater", "ge", "greater_equal", "__gt__", "__ge__", "eq", "__eq__")
_BELOW = _named("lt", "less", "le", "less_equal", "__lt__", "__le__")
_CASTS = _named("float", "double", "half", "to", "type", "type_as", "long", "int")
_PRODUCTS = _named("mul", "multiply", "__mul__", "__rmul__", "sum", "mean")
_ARGMAX = _named("argmax")
_SHAPES = _named("flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "__getitem__")


class _Passable(TorchFunctionMode):
    """Runs functions as they are and notes, on what they return, where a gradient may go instead."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if source is None:
            return func(*args, **kwargs)
        if func in _DETACHING:
            return source
        if func in _PRODUCTS:
            args = [_carried(value) for value in args]
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor):
            return out
        if func in _IDENTITIES and source.is_floating_point() and source.requires_grad and out.shape == source.shape:
            return _Through.apply(out.detach(), source)
        soft = _surrogate(func, source, args, kwargs)
        if soft is None or (soft.shape != out.shape and func not in _ARGMAX):
            return out
        if out.is_floating_point():
            return _Through.apply(out.detach(), soft.to(out.dtype))
        out.surrogate = soft  # type: ignore[attr-defined]
        return out


def _carried(value: Any) -> Any:
    """A tensor of truths or counts as floats that pass its surrogate's gradient on."""
    soft = getattr(value, "surrogate", None)
    return value if soft is None else _Through.apply(value.to(soft.dtype), soft)


def _surrogate(func: Any, source: Tensor, args: Any, kwargs: Any) -> Tensor | None:
    """What has the gradient that the result of `func` lacks."""
    noted = getattr(source, "surrogate", None)
    if noted is not None:
        if func in _CASTS:
            return noted
        if func in _SHAPES:
            return func(noted, *args[1:], **kwargs)
        return noted if func is F.one_hot else None
    if not (source.is_floating_point() and source.requires_grad):
        return None
    if func in _ABOVE | _BELOW:
        sign = 1 if func in _ABOVE else -1
        return torch.sigmoid(SHARPNESS * sign * (source - args[1]))
    if func in _ARGMAX and (args[1:] in [(1,), (-1,)] or kwargs.get("dim") in (1, -1)) and source.ndim == 2:
        return source  # one-hot, this is what its columns grow with
    return None
