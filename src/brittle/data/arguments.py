"""The types of what a function of the library is given, checked before it begins."""

from __future__ import annotations

import functools
import inspect
import numbers
import os
import reprlib
import types
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from brittle.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

_KINDS: dict[Any, tuple[type | tuple[type, ...], str]] = {
    bool: (bool, "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "text"),
    Sequence: (Iterable, "a list"),  # or an array
    Path: ((str, os.PathLike), "a path"),
    Tensor: (Tensor, "a tensor"),
    nn.Module: (nn.Module, "a network (torch.nn.Module)"),
    type(None): (type(None), "none"),
}


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which refuses arguments of another type than they are annotated with.

    Numbers, texts, truths, paths, tensors and networks are looked at; the function itself asks for more. What is
    annotated otherwise may be anything.
    """
    signature = inspect.signature(function)

    @functools.cache
    def hints() -> dict[str, Any]:
        return get_type_hints(inspect.unwrap(function))

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
                check_type(name, hints()[name], value)
        return function(*args, **kwargs)

    return run


def check_type(name: str, hint: Any, value: object) -> None:
    """Raises InputError, with the name of the argument, for a value that is not as annotated."""
    kinds = [_kind(one) for one in (get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,))]
    if any(kind is None or _fits(kind[0], value) for kind in kinds):
        return
    expected = " or ".join(kind[1] for kind in kinds if kind)
    raise InputError(f"{name} must be {expected}, got {_shown(value)}")


def _kind(hint: Any) -> tuple[type | tuple[type, ...], str] | None:
    """What a value may be an instance of, and how that is said; None where it may be anything."""
    return _KINDS.get({Literal: str, Sequence: Sequence}.get(get_origin(hint), hint))


def _fits(kind: type | tuple[type, ...], value: object) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} {value.dtype}"
    return " ".join(reprlib.repr(value).split())
