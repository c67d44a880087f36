"""What the options of an attack may be: read from its annotations, and checked before any work begins."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import reprlib
import types
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from brittle.errors import InputError, unknown
from brittle.models.classifier import as_classifier
from brittle.models.inference import asking
from brittle.models.softmax import TEMPERATURES

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Range:
    """What an annotation says of a number beyond its type, and of a list the least number of its entries."""

    fits: Callable[[Any], bool]
    said: str  # 'above 0', after the name of the type


Count = Annotated[int, Range(lambda value: value >= 1, "of at least 1")]
Natural = Annotated[int, Range(lambda value: value >= 0, "of at least 0")]
Seed = Annotated[int, Range(lambda value: 0 <= value < 2**63, "of at least 0 and below 2^63")]
Positive = Annotated[float, Range(lambda value: value > 0, "above 0")]
NonNegative = Annotated[float, Range(lambda value: value >= 0, "of at least 0")]
Portion = Annotated[float, Range(lambda value: 0 < value <= 1, "above 0 and at most 1")]
Temperature = Annotated[float, Range(lambda value: TEMPERATURES[0] <= value <= TEMPERATURES[1], "from 1e-30 to 1e30")]
BATCH_SIZE = inspect.Parameter("batch_size", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Count | None)
Strengths = Annotated[Sequence[NonNegative], Range(lambda values: len(values) > 0, "and not empty")]


def checked(attack: Callable[P, R]) -> Callable[P, R]:
    """The attack with its options checked before it begins, and with gradients wherever it is called.

    A model that is a plain function, or has one output for two classes, is given to it as a classifier.

    It takes a further option, `batch_size`: how many images go through a model at once, at most; as many as fit into
    memory when not given. An attack that has one of its own, the examples of a step, keeps that.
    """
    signature = inspect.signature(attack)
    own = BATCH_SIZE.name in signature.parameters

    @functools.wraps(attack)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        batch_size: Any = None if own else kwargs.pop(BATCH_SIZE.name, None)
        check_options(attack, kwargs)
        call: Callable[..., R] = attack
        with asking(batch_size) as asked, torch.inference_mode(False), torch.enable_grad():
            found = call(*_as_classifier(*args), **kwargs)
        if asked.unfit and not asked.known:
            said = f"{asked.unfit:,} of {asked.answered:,} answers of the model were NaN or infinity"
            warnings.warn(f"{said}: none counts as fooled", stacklevel=2)
        return found

    if not own:
        vars(run)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), BATCH_SIZE])
    return run


def _as_classifier(*given: Any) -> Sequence[Any]:
    """The arguments with the model as a classifier, where the next argument is images to ask it about."""
    model, images, *_ = *given, None, None
    if isinstance(images, Tensor) and images.ndim == 4 and images.is_floating_point() and images.numel() > 0:
        return [as_classifier(model, images) if callable(model) else model, *given[1:]]
    return given


def check_options(function: Callable[..., Any], options: Mapping[str, object], *, given: Collection[str] = ()) -> None:
    """Checks the keyword-only arguments of an attack against its signature and its annotations.

    An argument without an annotation, or with one that names a class of somebody else's, may be anything.

    Args:
        function: an attack, brittle's or another's.
        options: what its keyword-only arguments are to be.
        given: names of arguments that are given otherwise, such as the targets where a study attacks every class.

    Raises:
        InputError: if an option is not one of the function's, if its value is not as annotated, or if an argument
            without a default is neither among `options` nor `given`. The message says if it is one that Python code
            alone can give, such as a tensor.
    """
    parameters = inspect.signature(function).parameters
    named = {name: one for name, one in parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY}
    hints = _hints(function)
    for name, value in options.items():
        if name in named:
            _check(name, hints.get(name, Any), value)
        elif name not in parameters and not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            raise unknown(f"option of {_name(function)}", name, named)
    for name, one in named.items():
        if one.default is one.empty and name not in options and name not in given:
            said = _said(hints.get(name, Any))
            only = ", which Python code alone can give" if "tensor" in said or "network" in said else ""
            raise InputError(f"{_name(function)} needs {name}, {said}{only}: it has no default")


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return {BATCH_SIZE.name: BATCH_SIZE.annotation, **get_type_hints(inspect.unwrap(function), include_extras=True)}
    except (NameError, TypeError, AttributeError):  # annotations of somebody else's that name what is not there
        return {}


def _check(name: str, hint: Any, value: object) -> None:
    choices = [choice for one in _alternatives(hint) if get_origin(one) is Literal for choice in get_args(one)]
    if choices and isinstance(value, str) and value not in choices:
        raise unknown(name, value, choices)
    if not any(_fits(one, value) for one in _alternatives(hint)):
        raise InputError(f"{name} must be {_said(hint)}, got {shown(value)}")


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(hint: Any, value: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin is Annotated:
        inner, *ranges = get_args(hint)
        return _fits(inner, value) and all(one.fits(value) for one in ranges if isinstance(one, Range))
    if origin is Literal:
        return isinstance(value, str | int) and value in get_args(hint)
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if origin is Sequence:
        listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        return listed and all(_fits(get_args(hint)[0], one) for one in value)
    if origin is tuple and Ellipsis not in get_args(hint):
        parts = get_args(hint)
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, parts, value))
    if getattr(hint, "_is_protocol", False):
        return callable(value)
    if hint is None or hint is type(None):
        return value is None
    return isinstance(value, hint) if isinstance(hint, type) and not origin else True


def _said(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_said(one) for one in get_args(hint))
    if origin is Annotated:
        inner, *ranges = get_args(hint)
        return " ".join([_said(inner), *(one.said for one in ranges if isinstance(one, Range))])
    if origin is Literal:
        return " or ".join(repr(choice) for choice in get_args(hint))
    if origin is Sequence:
        return f"a list in which each entry is {_said(get_args(hint)[0])}"
    if origin is tuple and Ellipsis not in get_args(hint):
        return f"a tuple of {' and '.join(_said(one) for one in get_args(hint))}"
    if getattr(hint, "_is_protocol", False):
        return "a function"
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", Tensor: "a tensor"}
    names |= {torch.nn.Module: "a network (torch.nn.Module)", type(None): "none", Any: "a value"}
    return names[hint] if hint in names else f"a {getattr(hint, '__name__', hint)}"


def shown(value: object) -> str:
    """A value as a message has it: on one line, and short."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} {value.dtype}"
    return " ".join(reprlib.repr(value).split())
