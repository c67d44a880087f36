"""Where a network's gradients went: what the factor 1/T takes from them, and what the grown logits do.

With F = softmax(z / t) a gradient is dF/dx = (F / t) (dz/dx - sum F dz/dx). Song (2017, section 4) blames the factor
1/t at t = T. But a network trained at T has logits about T times larger, which undoes it: read at t = T, its gradients
are those of any network. It is attacked at t = 1, where the factor is 1, and the large logits saturate the softmax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from brittle import measures
from brittle.measures import Mean
from brittle.study.store.results import Model, Report, remembered


@dataclass(frozen=True)
class Split:
    """Decades, log10, by which a network's gradients differ from those of the plain network of its seed.

    trained - plain = factor + slopes and used - trained = saturation, each a mean over the same images.
    """

    model: Model
    margin: float  # median difference of the two largest logits, over the test images
    plain: Mean  # mean over images of log10 mean |dF/dx|: of the plain network, at T = 1
    trained: Mean  # of this network, at the temperature that it was trained at
    used: Mean  # of this network, at T = 1
    factor: float  # -log10 T
    slopes: Mean  # the rest of what separates `trained` from `plain`: logits that grew, margins that did not
    saturation: Mean  # from `trained` to `used`

    def as_json(self) -> dict[str, Any]:
        """Each number with its interval."""
        return {
            "model": self.model.label,
            "seed": self.model.seed,
            "temperature": self.model.temperature,
            "margin": self.margin,
            **{f"log10_{name}": getattr(self, name) for name in ("plain", "trained", "used")},
            **{name: getattr(self, name) for name in ("factor", "slopes", "saturation")},
        }


@remembered
def splits(report: Report) -> list[Split]:
    """One of each model that is measured, as its seed's plain network is; images of gradient 0 are left out."""
    found = []
    for model in report.models:
        plain = next((m for m in report.models if m.seed == model.seed and m.temperature == 1 and not m.teacher), None)
        if plain is None or plain.measured is None or model.measured is None:
            continue
        kinds = [
            one.amplitudes.get(kind)
            for one, kind in ((plain.measured, "exact"), (model.measured, "trained"), (model.measured, "exact"))
        ]
        if any(one is None for one in kinds):
            continue
        values = torch.stack([one for one in kinds if one is not None])
        base, trained, used = values[:, values.isfinite().all(0)]
        factor = math.log10(1 / model.temperature)
        gaps = model.measured.logits.topk(2).values
        found.append(
            Split(
                model=model,
                margin=(gaps[:, 0] - gaps[:, 1]).median().item(),
                plain=measures.mean(base),
                trained=measures.mean(trained),
                used=measures.mean(used),
                factor=factor,
                slopes=measures.mean(trained - base - factor),
                saturation=measures.mean(used - trained),
            )
        )
    return found
