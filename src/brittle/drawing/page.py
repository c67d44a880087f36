"""How every page is written: whole or not at all, and with all that users named escaped."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from brittle.errors import InputError

if TYPE_CHECKING:
    from jinja2 import Environment  # a page is not written whenever the package is imported


def write_all(texts: Mapping[str, str], folder: Path) -> None:
    """Writes files, by name, into a folder that is made if need be; what was there is replaced.

    Raises:
        InputError: if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            _replace(folder / name, text)
    except OSError as error:
        raise InputError(f"the report cannot be written to {folder}: {error.strerror or error}") from error


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def templates() -> Environment:
    """Where the templates of pages are found; only figures made by brittle are put in as they are."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=ChoiceLoader([PackageLoader("brittle", "report"), PackageLoader("brittle", "study/kinds")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
