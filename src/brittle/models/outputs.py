"""The logits in what a classifier returns: a tensor, a tuple, a dict, an object with `.logits`.

`networks.logits_of` asks for them for every batch. What has to be decided once, on some images, `classifier` decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from brittle.errors import InputError


def tensor_of(outputs: Any) -> Tensor:
    """The logits among what a model returned.

    A tensor is taken as it is, of an object with `.logits` these, of a dict its 'logits', or its only tensor, of a
    tuple or list its first tensor. A NumPy array becomes a tensor. Trailing dimensions of size 1 are dropped, as of
    (B, K, 1, 1).

    Raises:
        InputError: if there is no such tensor; the message says what came.
    """
    found = outputs if isinstance(outputs, Tensor) else _inside(outputs)
    return found.flatten(1) if found.ndim > 2 and found[0].numel() == found.shape[1] else found


def _inside(outputs: Any) -> Tensor:
    if isinstance(logits := getattr(outputs, "logits", None), Tensor):
        return logits
    if hasattr(outputs, "__array__"):
        return torch.as_tensor(outputs.__array__())
    if isinstance(outputs, Mapping):
        tensors = {name: value for name, value in outputs.items() if isinstance(value, Tensor)}
        if "logits" in tensors or len(tensors) == 1:
            return tensors.get("logits", next(iter(tensors.values())))
        got = f"a dict with {', '.join(map(repr, outputs)) or 'nothing in it'}"
    elif isinstance(outputs, Sequence) and not isinstance(outputs, str):
        for one in outputs:
            if isinstance(one, Tensor):
                return one
        got = f"a {type(outputs).__name__} without a tensor"
    else:
        got = f"a {type(outputs).__name__}"
    raise InputError(f"the model must return one tensor of logits, or a dict or an object with 'logits', got {got}")
