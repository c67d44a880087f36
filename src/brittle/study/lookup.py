"""Import paths in study files and on the command line, and whose code they run.

`brittle.attacks.song_1`, or `song_1` alone, is brittle's own. `mylab.attack.fast`, `mylab.attack:fast` and
`folder/attack.py:fast` are somebody else's code: they are imported only with `trust`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from brittle import attacks
from brittle.errors import InputError, unknown
from brittle.models import networks
from brittle.models.load import network_names
from brittle.models.load import takes as takes
from brittle.models.users_code import imported, users_code


@functools.cache  # signatures are slow, and a plan of ten thousand cells asks for as many attacks
def attack_names() -> list[str]:
    """brittle's own attacks that can be named: functions of a model that need nothing but images and labels."""
    exported = {name: getattr(attacks, name) for name in attacks.__all__}
    taken = {name: inspect.signature(f).parameters for name, f in exported.items() if inspect.isfunction(f)}
    needed = {name: [p.name for p in ps.values() if p.default is p.empty] for name, ps in taken.items()}
    return [name for name, parameters in needed.items() if parameters == ["model", "images", "labels"]]


def network(path: str, trust: bool = False) -> Callable[..., Any]:
    """The function that builds a network, by its import path or by the bare name of one of brittle's own.

    Args:
        path: see above.
        trust: whether code from outside brittle may run: the user typed the path, or trusts the file that holds it.

    Raises:
        InputError: if the path is not brittle's and not trusted, cannot be imported, or names no function or class.
    """
    return _resolve("network", path, networks, network_names(), trust)


def attack(path: str, trust: bool = False) -> Callable[..., Any]:
    """The attack behind an import path, or behind the bare name of one of brittle's own; see `network`."""
    return _resolve("attack", path, attacks, attack_names(), trust)


def _resolve(kind: str, path: str, home: ModuleType, known: list[str], trust: bool) -> Callable[..., Any]:
    name = path.replace(":", ".").removeprefix(f"brittle.{kind}s.")
    if name in known:
        return getattr(home, name)
    if "." not in name:
        raise unknown(kind, name, known)
    if not trust:
        raise InputError(f"{kind} {path!r} is code from outside brittle, and was not run: --trust allows it")
    found = imported(kind, path)
    if not callable(found) or isinstance(found, nn.Module):
        raise InputError(f"{kind} {path!r} must be a function or a class, got a {type(found).__name__}")
    with users_code(f"{kind} {path!r} has no readable parameters"):
        inspect.signature(found)
    return found


def full_path(function: Callable[..., Any], path: str, home: str) -> str:
    """The import path of a function that may have been named by its bare name."""
    if ".py:" in path:
        return path
    return path.replace(":", ".") if "." in path or ":" in path else f"{home}.{function.__name__}"


def check_options(kind: str, path: str, function: Callable[..., Any], options: Mapping[str, object]) -> None:
    """Raises InputError, with the nearest names, for an option that the function does not take."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    named = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in named:
            raise unknown(f"option of {kind} {path}", option, named)
