"""Sample images as Song 2017 shows them in appendices A and B: their saliency in numbers, and the pixels it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from brittle.models.softmax import SignedLog
from brittle.study.kinds.attack.result import BOTH
from brittle.study.store.results import Model, Report, remembered


@dataclass(frozen=True)
class Sample:
    """One image and one model. A number is its sign and the log10 of its magnitude: (-1, -60.2) is about -6e-61."""

    row: int  # of the report
    label: int
    model: Model
    mean: Mapping[str, tuple[int, float]]  # of dCE/dx over the image, by arithmetic
    largest: Mapping[str, tuple[int, float]]
    pixels: Mapping[tuple[str, str], int | None]  # by attack and arithmetic: how many were set; None: not fooled

    def set_by(self, attack: str) -> str:
        """'12 → –': how many pixels an attack set, by arithmetic."""
        counts = [self.pixels[attack, name] for name in BOTH if (attack, name) in self.pixels]
        return " → ".join("–" if count is None else str(count) for count in counts) or "·"

    def as_json(self) -> dict[str, Any]:
        """Numbers as their sign and log10."""
        numbers = {"mean": self.mean, "largest": self.largest}
        return {
            "row": self.row,
            "label": self.label,
            "model": self.model.label,
            "seed": self.model.seed,
            **{
                f"{name}_{what}": {"sign": sign, "log10": log10}
                for name, values in numbers.items()
                for what, (sign, log10) in values.items()
            },
            "pixels": [
                {"attack": attack, "arithmetic": name, "pixels": count} for (attack, name), count in self.pixels.items()
            ],
        }


@remembered
def samples(report: Report) -> list[Sample]:
    """One image a class and every model that is measured: those whose saliency maps are kept."""
    if report.labels is None:
        return []
    found = []
    for model in report.models:
        maps = model.measured.saliency if model.measured else None
        if maps is None:
            continue
        for place, row in enumerate(maps.rows.tolist()):
            of = {
                "float32": SignedLog.of(maps.float32[place]),
                "exact": SignedLog(maps.sign[place], maps.log10[place]),
            }
            found.append(
                Sample(
                    row=row,
                    label=int(report.labels[row]),
                    model=model,
                    mean={name: mean_of(values) for name, values in of.items()},
                    largest={name: largest_of(values) for name, values in of.items()},
                    pixels=_pixels(model, row),
                )
            )
    return sorted(found, key=lambda sample: (sample.label, sample.row))  # models keep their order


def _pixels(model: Model, row: int) -> dict[tuple[str, str], int | None]:
    counts = {}
    for attack in model.attacks:
        places = (attack.rows == row).nonzero().flatten().tolist()
        for arithmetic in BOTH:
            one = attack.found.get(arithmetic)
            if places and one is not None and "pixels" in one.packed:
                fooled = bool(one.packed["success"][places[0]])
                count = int((one.packed["pixels"][places[0]] >= 0).sum())
                counts[attack.label, arithmetic] = count if fooled else None
    return counts


def mean_of(values: SignedLog) -> tuple[int, float]:
    """Sign and log10 of the mean, without underflow."""
    flat = SignedLog(values.sign.flatten(), values.log10.flatten())
    total = flat.sum(0)
    return int(total.sign), float(total.log10) - float(np.log10(flat.sign.numel()))


def largest_of(values: SignedLog) -> tuple[int, float]:
    """Sign and log10 of the largest number, as numpy's max would find it if it could."""
    sign, log10 = values.sign.flatten(), values.log10.flatten()
    if (sign > 0).any():
        return 1, float(log10[sign > 0].max())
    return (0, -np.inf) if (sign == 0).any() else (-1, float(log10.min()))
