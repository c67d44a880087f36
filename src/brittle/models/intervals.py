"""Interval bounds, which a network can be trained on: Gowal et al. 2018."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brittle.errors import InputError
from brittle.models.networks import Scaled

_RISING = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def worst_logits(network: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Logits that are no better for the label than those of any image within eps, in L-infinity: (B, K).

    The label's is 0, every other's the upper end of z_k - z_label; the last dense layer is taken together with that
    difference (section 3.2). Gradients flow through.

    Args:
        network: an `nn.Sequential` of layers that are affine or never fall, the last of them dense.
        images: (B, C, H, W), in [0, 1]; labels: (B,), int64.
        eps: radius in pixel units; the ball is cut to [0, 1].

    Raises:
        InputError: if a layer is none of these; the message names it.
    """
    layers = _layers(network)
    *body, last = layers
    low, high = (images - eps).clamp(min=0), (images + eps).clamp(max=1)
    for name, layer in body:
        low, high = _through(name, layer, low, high)
    if not isinstance(last[1], nn.Linear):
        raise InputError(f"certified training needs a dense last layer, got {type(last[1]).__name__}")
    weight = last[1].weight - last[1].weight[labels][:, None]  # (B, K, F)
    middle, spread = (high + low) / 2, (high - low) / 2
    worst = torch.einsum("bkf,bf->bk", weight, middle) + torch.einsum("bkf,bf->bk", weight.abs(), spread)
    if last[1].bias is not None:
        worst = worst + last[1].bias - last[1].bias[labels][:, None]
    return worst


def _layers(network: nn.Module) -> Sequence[tuple[str, nn.Module]]:
    """The layers in order, with their names."""
    if type(network) is not nn.Sequential:
        kind = type(network).__name__
        raise InputError(f"certified training needs a network that is an nn.Sequential of known layers, got a {kind}")
    found = []
    for name, layer in network.named_children():
        inner = _layers(layer) if type(layer) is nn.Sequential else [("", layer)]
        found += [(f"{name}.{below}".rstrip("."), one) for below, one in inner]
    return found


def _through(name: str, layer: nn.Module, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer's outputs lie between."""
    if isinstance(layer, nn.Dropout | nn.Identity):  # what is dropped is not bounded: training is on all units
        return low, high
    if isinstance(layer, _RISING):
        return layer(low), layer(high)
    middle, spread = (high + low) / 2, (high - low) / 2
    if isinstance(layer, Scaled):
        middle, spread = middle * layer.factor, spread * abs(layer.factor)
    elif isinstance(layer, nn.Linear):
        middle, spread = layer(middle), F.linear(spread, layer.weight.abs())
    elif isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros":
        middle, spread = layer(middle), layer._conv_forward(spread, layer.weight.abs(), None)
    else:
        raise InputError(f"certified training cannot bound layer {name} ({type(layer).__name__})")
    return middle - spread, middle + spread
