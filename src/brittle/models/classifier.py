"""Any callable that answers images, as a module that returns logits of two classes or more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from brittle.errors import InputError
from brittle.models.networks import frozen, parameter_dtype
from brittle.models.outputs import tensor_of

PROBED = 64  # images at most that decide whether one output is a logit or a probability
# Steps of a graph as autograd names them
_SQUASHING = ("Sigmoid", "Softmax", "Exp", "Tanh", "Clamp", "Hardtanh", "Clip", "Graph", "Function")
_WEIGHTED = ("Addmm", "Mm", "Bmm", "Mv", "Convolution", "Linear")


class Function(nn.Module):
    """Any callable, images to logits, as a module. It has no weights and, unless it is of torch, no gradient."""

    def __init__(self, function: Callable[[Tensor], Any]):
        super().__init__()
        self.function, self.training = function, False

    def forward(self, images: Tensor) -> Any:
        """(B, C, H, W) -> whatever the callable returns."""
        return self.function(images)


class TwoClasses(nn.Module):
    """A model with one output (B,) or (B, 1), as a classifier of two classes.

    A logit z becomes (0, z), a probability p of class 1 becomes the probabilities (1 - p, p).
    """

    def __init__(self, model: nn.Module, probability: bool):
        super().__init__()
        self.model, self.probability = model, probability
        self.training = getattr(model, "training", False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2)."""
        one = tensor_of(self.model(images)).reshape(-1, 1)
        return torch.cat([1 - one if self.probability else torch.zeros_like(one), one], 1)


def as_classifier(model: Any, images: Tensor) -> nn.Module:
    """The model as a module, and with two outputs where it has one; a model that fails is left as it is.

    Args:
        model: a module or any callable, images in [0, 1] to outputs.
        images: (N, C, H, W), some of those that it is for: on them and on noise one output is told from a probability.

    Raises:
        InputError: if the model cannot be called.
    """
    if not callable(model):
        raise InputError(f"the model must be a torch.nn.Module or a function of images, got {_kind(model)}")
    module = model if isinstance(model, nn.Module) else Function(model)
    try:
        shape = tuple(_answers(module, images[:2]).shape)
        if shape in ((len(images[:2]),), (len(images[:2]), 1)):
            return TwoClasses(module, _is_probability(module, images[:PROBED]))
    except Exception:  # who attacks or audits it says so, with the model's own words
        return module
    return module


def _answers(module: nn.Module, images: Tensor, *, graph: bool = False) -> Tensor:
    with frozen(module), torch.set_grad_enabled(graph):
        return tensor_of(module(images.to(parameter_dtype(module), copy=True)))


def _is_probability(module: nn.Module, images: Tensor) -> bool:
    """Whether one output lies in [0, 1] on all images and on noise, and its graph, where it has one, tells why."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((8, *images.shape[1:]), generator=generator).to(images.device, images.dtype)
    seen = torch.cat([_answers(module, part).flatten() for part in (images, noise, noise.round(), 0 * noise)])
    squashed = _is_squashed(_answers(module, images[:1].detach().clone().requires_grad_(), graph=True).grad_fn)
    return bool((seen >= 0).all() and (seen <= 1).all()) and squashed is not False


def _is_squashed(last: Any) -> bool | None:
    """Whether a sigmoid or the like comes after the last layer with weights; None where there is no graph."""
    waiting = [] if last is None else [last]
    while waiting:
        at = waiting.pop()
        if any(name in at.name() for name in _SQUASHING):
            return True
        if not any(name in at.name() for name in _WEIGHTED):
            waiting += [before for before, _ in at.next_functions if before is not None]
    return None if last is None else False


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
