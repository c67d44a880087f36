"""Tells you whether an image classifier is robust or only looks robust, and why.

    import brittle

    data = brittle.data.load("digits")
    model = brittle.fit(brittle.networks.papernot_mnist(), data, epochs=5, batch_size=16).model
    print(brittle.audit(model, (data.test.images, data.test.labels), eps=0.1, budget="quick"))
    found = brittle.attacks.song_3(model, data.test.images[:100], data.test.labels[:100])

A model is any `torch.nn.Module` that maps images in [0, 1] to logits. `brittle.data.as_split` says in which forms
images and labels are taken. A mistake in a request is a `brittle.InputError` of one line.

The names below are loaded when they are first used: importing torch takes a second, and `brittle --help` needs none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from brittle import attacks, certify, data, measures, progress, units
    from brittle.attacks.result import AttackResult
    from brittle.auditing import Audit, audit
    from brittle.data import Data, Split
    from brittle.errors import InputError
    from brittle.measures import transfer
    from brittle.models import networks, softmax
    from brittle.models.distill import distill, soft_labels
    from brittle.models.fit import fit
    from brittle.study.load_model import load_model

_MODULES = {
    "attacks": "attacks",
    "certify": "certify",
    "data": "data",
    "measures": "measures",
    "networks": "models.networks",
    "progress": "progress",
    "softmax": "models.softmax",
    "transfer": "measures.transfer",
    "units": "units",
}
_HOMES = {
    "AttackResult": "attacks.result",
    "Audit": "auditing",
    "Data": "data",
    "InputError": "errors",
    "Split": "data",
    "audit": "auditing",
    "distill": "models.distill",
    "fit": "models.fit",
    "load_model": "study.load_model",
    "soft_labels": "models.distill",
}

__all__ = [
    "AttackResult",
    "Audit",
    "Data",
    "InputError",
    "Split",
    "attacks",
    "audit",
    "certify",
    "data",
    "distill",
    "fit",
    "load_model",
    "measures",
    "networks",
    "progress",
    "soft_labels",
    "softmax",
    "transfer",
    "units",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"brittle.{_MODULES[name]}")
    if name in _HOMES:
        return getattr(import_module(f"brittle.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'brittle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
