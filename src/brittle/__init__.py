"""Tells you whether an image classifier is robust or only looks robust, and why.

The names below are loaded when they are first used: importing torch takes a second, and `brittle --help` needs none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from brittle import attacks, data, measures, networks, softmax, transfer, units
    from brittle.auditing import audit
    from brittle.distillation import distill, soft_labels
    from brittle.training import fit

_MODULES = ("attacks", "data", "measures", "networks", "softmax", "transfer", "units")
_FUNCTIONS = {"audit": "auditing", "distill": "distillation", "soft_labels": "distillation", "fit": "training"}

__all__ = [
    "attacks",
    "audit",
    "data",
    "distill",
    "fit",
    "measures",
    "networks",
    "soft_labels",
    "softmax",
    "transfer",
    "units",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"brittle.{name}")
    if name in _FUNCTIONS:
        return getattr(import_module(f"brittle.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'brittle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
