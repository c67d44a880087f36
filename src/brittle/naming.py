"""Import paths in study files and on the command line: `brittle.attacks.song_1`, `mylab.attack.fast`."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from brittle import attacks, networks
from brittle.errors import InputError, first_line, unknown


def network_names() -> list[str]:
    """brittle's own networks: the public functions of `brittle.networks` that take a number of classes."""
    return [
        name
        for name, value in vars(networks).items()
        if inspect.isfunction(value) and not name.startswith("_") and "classes" in inspect.signature(value).parameters
    ]


def attack_names() -> list[str]:
    """brittle's own attacks that can be named: functions of a model that need nothing but images and labels."""
    exported = {name: getattr(attacks, name) for name in attacks.__all__}
    taken = {name: inspect.signature(f).parameters for name, f in exported.items() if inspect.isfunction(f)}
    needed = {name: [p.name for p in ps.values() if p.default is p.empty] for name, ps in taken.items()}
    return [name for name, parameters in needed.items() if parameters == ["model", "images", "labels"]]


def network(path: str) -> Callable[..., Any]:
    """The function behind a network's import path, or behind the bare name of one of brittle's own."""
    return _resolve("network", path, networks, network_names())


def attack(path: str) -> Callable[..., Any]:
    """The function behind an attack's import path, or behind the bare name of one of brittle's own."""
    return _resolve("attack", path, attacks, attack_names())


def _resolve(kind: str, path: str, home: ModuleType, known: list[str]) -> Callable[..., Any]:
    module_name, _, name = path.replace(":", ".").rpartition(".")
    if module_name in ("", home.__name__):
        if name not in known:
            raise unknown(kind, name, known)
        return getattr(home, name)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # it is the user's file that is run here
        raise InputError(f"{kind} {path!r} cannot be imported: {first_line(error)}") from error
    if not callable(getattr(module, name, None)):
        functions = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise unknown(f"{kind} in {module_name}", name, functions)
    return getattr(module, name)


def full_path(function: Callable[..., Any], path: str, home: str) -> str:
    """The import path of a function that may have been named by its bare name."""
    return path.replace(":", ".") if "." in path or ":" in path else f"{home}.{function.__name__}"


def source_digest(function: Callable[..., Any]) -> str | None:
    """sha256 of the file that a foreign function stands in, so that editing it makes new cells; None for brittle's own.

    brittle's own functions carry a version instead: not every edit of a file changes what it computes.
    """
    if function.__module__.partition(".")[0] == "brittle":
        return None
    file = inspect.getsourcefile(function)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


def check_options(kind: str, path: str, function: Callable[..., Any], options: Mapping[str, object]) -> None:
    """Raises InputError, with the nearest names, for an option that the function does not take."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    named = [name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in named:
            raise unknown(f"option of {kind} {path}", option, named)


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of that name."""
    return name in inspect.signature(function).parameters
