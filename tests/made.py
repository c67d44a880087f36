"""Reports made by hand, of networks whose accuracy, gradients and attacks are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from brittle.measures import Mean, Share
from brittle.report.contents import Attack, Found, Measured, Model, Provenance, Report, Saliency

ROWS = 1000
ALL = range(ROWS)


def found(arithmetic: str, fooled: Sequence[int], wrong: Sequence[int], flips: int = 1) -> Found:
    """Rows `wrong` were wrong before; `fooled` took so many flips each."""
    success = torch.zeros(ROWS, dtype=torch.bool)
    success[torch.tensor([*fooled, *wrong]).long()] = True
    trivial = torch.zeros(ROWS, dtype=torch.bool)
    trivial[torch.tensor([*wrong]).long()] = True
    pixels = torch.where((success & ~trivial)[:, None], torch.arange(flips), -1)
    return Found(
        arithmetic=arithmetic,
        success=Share(int((success & ~trivial).sum()), int((~trivial).sum())),
        flips=None,
        curve=None,
        sizes={},
        forwards=1,
        backwards=1,
        trivial=trivial,
        packed={"success": success, "pixels": pixels},
        steps=None,
    )


def model(
    name: str,
    *,
    attacks: Mapping[int, tuple[Sequence[int], Sequence[int]]],
    wrong: Sequence[int] = (),
    amplitude: float = -3.0,
    trained: float = -3.0,
    right: int = 990,
    used: int = 1000,
    flips: Mapping[int, int] | None = None,
    seed: int = 0,
) -> Model:
    """A network of Song's: `attacks` gives for each algorithm the rows fooled in float32 and exactly."""
    labels = torch.zeros(1000, dtype=torch.int64)
    logits = torch.tensor([[1.0, 0.0]]).repeat(1000, 1)
    logits[right:] = torch.tensor([0.0, 1.0])
    shape = (5, 1, 2, 2)
    measured = Measured(
        accuracy=Share(right, 1000),
        saturated=Share(1000 - used, 1000),
        confidence=Mean(1, (1, 1), 1000),
        sensitivity={},
        amplitudes={
            "exact": torch.full((ROWS,), amplitude, dtype=torch.float64),
            "float32": torch.zeros(ROWS, dtype=torch.float64),
            "trained": torch.full((ROWS,), trained, dtype=torch.float64),
        },
        logits=logits,
        labels=labels,
        saliency=Saliency(
            torch.arange(5), torch.ones(shape), torch.full(shape, amplitude, dtype=torch.float64), torch.zeros(shape)
        ),
    )
    return Model(
        name=name,
        label=name,
        title=name,
        seed=seed,
        axes={},
        temperature=1.0 if name == "standard" else 20.0,
        teacher="tempered" if name == "distilled" else None,
        trained=None,
        measured=measured,
        attacks=tuple(
            Attack(
                name=f"song_{number}",
                label=f"song_{number}",
                function=f"brittle.attacks.song_{number}",
                options={},
                rows=torch.arange(ROWS),
                found={
                    arithmetic: found(arithmetic, fooled, wrong, (flips or {}).get(number, 1))
                    for arithmetic, fooled in zip(("float32", "exact"), by, strict=True)
                },
                complete=True,
            )
            for number, by in attacks.items()
        ),
    )


def report(*models: Model, paper: str | None = "song-2017") -> Report:
    return Report(
        name="made",
        title="made",
        about="",
        paper=paper,
        data="made",
        source="",
        classes=("0", "1"),
        images=torch.zeros(ROWS, 1, 2, 2),
        labels=torch.zeros(ROWS, dtype=torch.int64),
        models=models,
        cells=1,
        lost=(),
        provenance=Provenance({}, 0.0, "", ""),
    )
