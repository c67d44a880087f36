"""Sample images as Song 2017 shows them in appendices A and B: their saliency in numbers, and the pixels it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from brittle.models.softmax import SignedLog
from brittle.report.contents import BOTH, Model, Report, remembered
from brittle.report.pictures import largest_of, mean_of


@dataclass(frozen=True)
class Sample:
    """One image and one model. A number is its sign and the log10 of its magnitude: (-1, -60.2) is about -6e-61."""

    row: int  # of the report
    label: int
    model: Model
    mean: Mapping[str, tuple[int, float]]  # of dCE/dx over the image, by arithmetic
    largest: Mapping[str, tuple[int, float]]
    pixels: Mapping[tuple[str, str], int | None]  # by attack and arithmetic: how many were set; None: it withstood


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
