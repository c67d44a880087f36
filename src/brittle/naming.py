"""Import paths in study files and on the command line, and whose code they run.

`brittle.attacks.song_1`, or `song_1` alone, is brittle's own. `mylab.attack.fast`, `mylab.attack:fast` and
`folder/attack.py:fast` are somebody else's code: they are imported only with `trust`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from brittle import attacks, networks
from brittle.errors import InputError, first_line, unknown

_LIBRARY = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))


@functools.cache
def network_names() -> list[str]:
    """brittle's own networks: the public functions of `brittle.networks` that take a number of classes."""
    return [
        name
        for name, value in vars(networks).items()
        if inspect.isfunction(value) and not name.startswith("_") and "classes" in inspect.signature(value).parameters
    ]


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
    name = path.replace(":", ".").removeprefix(f"{home.__name__}.")
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


def imported(kind: str, path: str) -> Any:
    """What `package.module:name`, `package.module.name` or `folder/file.py:name` names. Importing it runs its code.

    The current folder is searched last. A file's own folder is searched too, for what the file imports.

    Raises:
        InputError: if it cannot be imported, whatever its code raises, or has no such name.
    """
    module_name, _, name = path.rpartition(":" if ":" in path else ".")
    folder = str(Path(module_name).resolve().parent) if module_name.endswith(".py") else os.getcwd()
    if folder not in sys.path:
        sys.path.append(folder)
    with users_code(f"{kind} {path!r} cannot be imported"):
        try:
            found = _of_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            where = f"looked in {folder} and in the installed packages"
            raise InputError(f"{kind} {path!r} cannot be imported: {reason(error)} ({where})") from error
        for part in name.split("."):
            if not hasattr(found, part):
                near = [n for n, value in vars(found).items() if callable(value) and not n.startswith("_")]
                raise unknown(f"{kind} in {module_name}", name, near)
            found = getattr(found, part)
    return found


def _of_file(path: Path) -> ModuleType:
    """The module of a file, imported once, under the file's path as its name."""
    name = str(path.resolve())
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, name)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """The user's code runs inside: what it raises, sys.exit too, becomes an InputError of one line after `what`."""
    try:
        yield
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise InputError(f"{what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """The kind of an error, and the first line of what it says."""
    if isinstance(error, SystemExit):
        return f"its code called sys.exit({error.code!r})"
    kind, said = type(error).__name__, first_line(error)
    return kind if said == kind else f"{kind}: {said}"


def full_path(function: Callable[..., Any], path: str, home: str) -> str:
    """The import path of a function that may have been named by its bare name."""
    if ".py:" in path:
        return path
    return path.replace(":", ".") if "." in path or ":" in path else f"{home}.{function.__name__}"


def source_digest(function: Callable[..., Any]) -> str | None:
    """sha256 of the files that a foreign function is made of, so that editing them makes new cells; None for brittle's.

    brittle's own functions carry a version instead: not every edit of a file changes what it computes.
    """
    found = sources([getattr(function, "__module__", None) or ""])
    return hashlib.sha256(b"".join(found)).hexdigest() if found else None


def sources(modules: Iterable[str]) -> list[bytes]:
    """The files of imported modules, and of what these import in turn, as far as neither is torch's or brittle's.

    What is installed, in site-packages, is not followed further.
    """
    found: dict[str, bytes] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        file = _file_of(name)
        if file and file not in found and name.partition(".")[0] not in ("torch", "brittle"):
            found[file] = Path(file).read_bytes()
            if is_users(name) and file.endswith(".py"):
                waiting += filter(is_users, _imports(found[file], name))
    return [content for _, content in sorted(found.items())]


def _file_of(module: str) -> str | None:
    """The file of an imported module; None where there is none, as of an archive's."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return file if file and Path(file).is_file() else None


def is_users(module: str) -> bool:
    """Whether an imported module is the user's own: of a file, but neither installed nor brittle's."""
    file = _file_of(module)
    installed = file is None or file.startswith(_LIBRARY) or {"site-packages", "dist-packages"} & {*Path(file).parts}
    return not installed and module.partition(".")[0] != "brittle"


def _imports(source: bytes, name: str) -> Iterator[str]:
    """The modules that a module's source may import, and the packages that they are in, by their full names."""
    package = getattr(sys.modules[name], "__package__", None) or ""
    with suppress(SyntaxError, ImportError):  # of a file edited since, or of a line that never ran
        for node in ast.walk(ast.parse(source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                names = [f"{base}.{one}" for one in names]
            for one in names:
                yield from accumulate(one.split("."), "{}.{}".format)


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
