"""What is known of a model without an attack."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from brittle.measures import Mean, Share, learned, why_not_learned
from brittle.study.store.results import Reader
from brittle.study.store.store import Stored


@dataclass(frozen=True)
class Saliency:
    """dCE/dx on one image of each class."""

    rows: Tensor  # (S,) int64
    sign: Tensor  # (S, C, H, W)
    log10: Tensor  # (S, C, H, W), float64, exact
    float32: Tensor  # (S, C, H, W), as published


@dataclass(frozen=True)
class Measured:
    """A model's numbers without an attack."""

    accuracy: Share
    saturated: Share
    confidence: Mean
    sensitivity: Mapping[str, Share]  # by arithmetic
    amplitudes: Mapping[str, Tensor]  # (R,) log10 of an image's mean |dF/dx|, -inf where it is 0: 'float32' and 'exact'
    # as the network is used, at T = 1; 'trained' exactly, at its own temperature
    logits: Tensor  # (N, K) of the test images
    labels: Tensor  # (N,) of the test images
    saliency: Saliency | None

    def as_json(self) -> dict[str, Any]:
        """Each number with its interval."""
        return {
            "accuracy": self.accuracy,
            "learned": learned(self.accuracy, self.labels),
            "why_not_learned": why_not_learned(self.accuracy, self.labels) or None,
            "saturated": self.saturated,
            "confidence": self.confidence,
            "sensitivity": self.sensitivity,
            "log10_amplitudes": self.amplitudes,
        }


def read(reader: Reader, key: str, model: str) -> Measured | None:
    """What the cell of this key measured; None if it is not done."""
    return reader.read(f"measure {model}", key, _measured)


def _measured(stored: Stored) -> Measured:
    scalars, test = stored.scalars, stored.tensors("logits")
    value, low, high = (
        math.nan if x is None else float(x)
        for x in (scalars["confidence"]["value"], *scalars["confidence"]["interval"])
    )
    return Measured(
        accuracy=Share(**scalars["accuracy"]),
        saturated=Share(**scalars["saturated"]),
        confidence=Mean(value, (low, high), scalars["confidence"]["rows"]),
        sensitivity={name: Share(**values) for name, values in scalars["sensitivity"].items()},
        amplitudes=dict(sorted(stored.tensors("amplitudes").items())),
        logits=test["test"],
        labels=test["labels"],
        saliency=Saliency(**stored.tensors("saliency")),
    )
