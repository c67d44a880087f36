"""What tells two models apart: a hash of all that decides what a model computes, as far as that can be seen."""

from __future__ import annotations

import copy
import functools
import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brittle.models import users_code
from brittle.models.networks import frozen, seeded

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_PROBES = 4  # images whose logits are part of a digest


def digest(model: nn.Module, text: str, shape: Sequence[int]) -> str:
    """Hexadecimal sha256 of what a model computes, as far as can be seen without running it on all images.

    It covers weights, buffers and other attributes of all modules; the functions that they hold, with the numbers that
    these close over; the files of the user's code; and the logits of a few fixed images.

    Args:
        model: what `load_model` gave.
        text: what it was opened by; of an import path, the file is hashed too.
        shape: (C, H, W), of the data's images.

    Raises:
        InputError: if the model's own code raises something while it is looked at.
    """
    hashed = hashlib.sha256()
    with users_code.users_code(f"model {text!r} cannot be looked at"):
        for part in _parts(model, {}):
            hashed.update(f"{len(part)}:".encode() + part)
        path = text.rpartition(":" if ":" in text else ".")[0]
        code = str(Path(path).resolve()) if path.endswith(".py") else path
        for source in users_code.sources([code, *(type(module).__module__ for module in model.modules())]):
            hashed.update(source)
        hashed.update(_answers(model, shape))
    return hashed.hexdigest()


def _parts(value: Any, seen: dict[int, Any]) -> Iterator[bytes]:
    """What decides what a value computes, in a fixed order; of a kind that is not known here, the type alone.

    `seen` holds what may contain itself, and so is visited once.
    """
    yield type(value).__qualname__.encode()
    if isinstance(value, _PLAIN):
        yield repr(value).encode()
    elif isinstance(value, Tensor | np.ndarray):
        yield from _numbers(value)
    elif isinstance(value, tuple):
        for one in value:
            yield from _parts(one, seen)
    elif isinstance(value, CodeType):
        yield value.co_code
        yield from _parts((value.co_names, value.co_consts), seen)
    elif id(value) not in seen:
        seen[id(value)] = value
        for name, inner in _inside(value):
            yield name.encode()
            yield from _parts(inner, seen)


def _numbers(value: Tensor | np.ndarray) -> Iterator[bytes]:
    yield f"{value.dtype} {tuple(value.shape)}".encode()
    if isinstance(value, np.ndarray):
        yield value.tobytes()
    else:
        yield value.detach().cpu().to_dense().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """What a container, module, function or class of the user's is made of, by name."""
    if isinstance(value, nn.Module):
        held = {name: one for name, one in vars(value).items() if name not in ("_parameters", "_buffers", "_modules")}
        yield from sorted(held.items())
        yield from [*value.named_parameters(recurse=False), *value.named_buffers(recurse=False)]
        yield from value.named_children()
        yield from [("class", type(value)), ("code", getattr(value, "code", None))]  # of an exported graph
    elif isinstance(value, Mapping):
        yield from ((key if isinstance(key, str) else "", one) for key, one in value.items())
    elif isinstance(value, list):
        yield from (("", one) for one in value)
    elif isinstance(value, set | frozenset):
        yield from (("", one) for one in sorted(value, key=repr) if isinstance(one, _PLAIN))
    elif isinstance(value, functools.partial):
        yield from [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    elif isinstance(value, MethodType | staticmethod | classmethod):
        yield "function", value.__func__
    elif isinstance(value, FunctionType) and users_code.is_users(value.__module__):
        yield from [("code", value.__code__), ("defaults", (value.__defaults__, value.__kwdefaults__))]
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # an empty one
                yield "closure", cell.cell_contents
        yield from ((name, value.__globals__.get(name)) for name in value.__code__.co_names)
    elif isinstance(value, type) and users_code.is_users(value.__module__):
        own = {name: one for name, one in vars(value).items() if not name.startswith("__") or callable(one)}
        yield from [*sorted(own.items()), ("bases", value.__bases__)]
    elif isinstance(value, type | FunctionType):
        yield f"{value.__module__}.{value.__qualname__}", None


def _answers(model: nn.Module, shape: Sequence[int]) -> bytes:
    """The rounded logits of fixed images, by one thread; nothing of a model that has none, or draws others each time.

    A copy is asked, as a model may change with every answer.
    """
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(), seeded(0), frozen(copy.deepcopy(model)) as asked, torch.no_grad():
            warnings.simplefilter("ignore")
            images = torch.rand(_PROBES, *shape).to(device)
            first, second = (_rounded(asked(images.clone())) for _ in range(2))
        return first if first == second else b""
    except (Exception, SystemExit):  # the audit says what a model does that cannot answer
        return b""
    finally:
        torch.set_num_threads(threads)


def _rounded(logits: Tensor) -> bytes:
    """To a thousandth of the largest: what another order of sums changes is a thousandth of that."""
    values = torch.nan_to_num(logits.double().cpu())
    largest = float(values.abs().max())
    return f"{largest:.3g}".encode() + (values / max(largest, 1e-300) * 1000).round().long().numpy().tobytes()
