"""Code that is not brittle's: how it is imported, what it raises, and the files that it is made of."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import logging
import os
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

from brittle.errors import InputError, first_line, unknown

_LIBRARY = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))


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


@contextmanager
def unlogged() -> Iterator[None]:
    """Nothing is logged inside: packages log a traceback or their attempts of their own before they raise."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def reason(error: BaseException) -> str:
    """The kind of an error, and the first line of what it says."""
    if isinstance(error, SystemExit):
        return f"its code called sys.exit({error.code!r})"
    kind, said = type(error).__name__, first_line(error)
    return kind if said == kind else f"{kind}: {said}"


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
    return [content for _, content in sorted(dict(_files(modules).values()).items())]  # a file once


def shipped(modules: Iterable[str]) -> tuple[tuple[str, bytes], ...]:
    """Those of the same files that are the user's own, by the path that Python looks for each one under.

    Another machine has them not. A file that was named by its path, `folder/file.py:name`, is not among them.
    """
    found = _files(part for name in modules for part in accumulate(name.split("."), "{}.{}".format))
    own = {name: one for name, one in found.items() if is_users(name) and not name.endswith((".py", "__main__"))}
    ends = {name: "/__init__.py" if Path(file).name == "__init__.py" else ".py" for name, (file, _) in own.items()}
    return tuple(sorted((name.replace(".", "/") + ends[name], content) for name, (_, content) in own.items()))


def unpack(files: Iterable[tuple[str, bytes]]) -> None:
    """Makes what `shipped` gave importable here, as far as this machine has no module of that name."""
    lacking = [(path, content) for path, content in files if not _is_here(path.partition("/")[0].removesuffix(".py"))]
    if not lacking:
        return
    folder = Path(tempfile.mkdtemp(prefix="brittle-code-"))
    for path, content in lacking:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    sys.path.append(str(folder))


def _is_here(module: str) -> bool:
    return module in sys.modules or importlib.util.find_spec(module) is not None


def _files(modules: Iterable[str]) -> dict[str, tuple[str, bytes]]:
    """File and content of imported modules, by their names, and of what these import in turn; see `sources`."""
    found: dict[str, tuple[str, bytes]] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        file = _file_of(name)
        if file and name not in found and name.partition(".")[0] not in ("torch", "brittle"):
            found[name] = file, Path(file).read_bytes()
            if is_users(name) and file.endswith(".py"):
                waiting += filter(is_users, _imports(found[name][1], name))
    return found


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
