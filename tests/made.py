"""Reports made by hand, of networks whose accuracy, gradients and attacks are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from brittle.attacks.result import Bound
from brittle.measures import Flips, Mean, Share
from brittle.study.kinds.attack.result import Attack, Found
from brittle.study.kinds.measure.result import Measured, Saliency
from brittle.study.store.results import Model, Provenance, Report

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
        robust=Share(int((~success).sum()), len(success)),
        flips=Flips(flips, flips, (flips, flips), flips, len(fooled), ROWS - len(fooled) - len(wrong)),
        curve=None,
        sizes={0: pixels.ge(0).sum(1).double().masked_fill(~success, torch.inf)},
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
    labels = torch.arange(1000) % 2
    logits = torch.nn.functional.one_hot(torch.where(torch.arange(1000) < right, labels, 1 - labels), 2).float()
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
        generation=int(name == "distilled"),
        trained=None,
        measured=measured,
        attacks=tuple(
            Attack(
                name=f"song_{number}",
                label=f"song_{number}",
                function=f"brittle.attacks.song_{number}",
                options={},
                minimises=0.0,
                bound=None,
                over_temperature=False,
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


# Chains over temperatures -------------------------------------------------------------------------------------------


def sized(
    label: str,
    sizes: Sequence[float] | Tensor,
    *,
    norm: float | None = 2.0,
    bound: Bound | None = None,
    function: str = "brittle.attacks.carlini_l2",
    over_temperature: bool = False,
    rows: Tensor | None = None,
    targets: Tensor | None = None,
    adversarial: Tensor | None = None,
) -> Attack:
    """An attack that minimises the norm, or works within a bound, and found these: 0 wrong before, inf not fooled."""
    sizes = torch.as_tensor(sizes, dtype=torch.float64)
    success, trivial = sizes.isfinite(), sizes == 0
    count = torch.zeros(len(sizes), dtype=torch.int64)
    packed = {"success": success, "prediction": success.long(), "forwards": count, "backwards": count}
    if targets is not None:
        packed |= {"targets": targets, "prediction": targets}
    one = Found(
        arithmetic="result",
        success=Share(int((success & ~trivial).sum()), int((~trivial).sum())),
        robust=Share(int((~success).sum()), len(success)),
        flips=None,
        curve=None,
        sizes=dict.fromkeys((0.0, 1.0, 2.0, math.inf), sizes),
        forwards=400.0,
        backwards=200.0,
        trivial=trivial,
        packed=packed | {"adversarial": torch.zeros(len(sizes), 1, 2, 2) if adversarial is None else adversarial},
        steps=None,
    )
    return Attack(
        name=label,
        label=label,
        function=function,
        options={"max_iterations": 200},
        minimises=None if bound else norm,
        bound=bound,
        over_temperature=over_temperature,
        rows=torch.arange(len(sizes)) if rows is None else rows,
        found={"result": one},
        complete=True,
    )


def network(
    name: str,
    temperature: float,
    attacks: Sequence[Attack] = (),
    *,
    teacher: str | None = None,
    generation: int = 0,
    seed: int = 0,
    seeds: int = 1,
    accuracy: Share | None = None,
    small: Mapping[str, Share] | None = None,
    confidence: float = 0.9,
) -> Model:
    """A network of a chain, as a study labels it."""
    label = f"{name} T={temperature:g}"
    return Model(
        name=name,
        label=label,
        title=f"{label}, seed {seed}" if seeds > 1 else label,
        seed=seed,
        axes={"temperature": temperature},
        temperature=temperature,
        teacher=teacher,
        generation=generation,
        trained=None,
        measured=Measured(
            accuracy=accuracy or Share(990, 1000),
            saturated=Share(0, 1000),
            confidence=Mean(confidence, (confidence - 0.01, confidence + 0.01), 1000),
            sensitivity=small or {},
            amplitudes={},
            logits=torch.zeros(2, 2),
            labels=torch.arange(2),
            saliency=None,
        ),
        attacks=tuple(attacks),
    )


def chain(
    attacks: Callable[[int, float, int], Sequence[Attack]],
    *,
    names: Sequence[str] = ("teacher", "assistant", "student"),
    temperatures: Sequence[float] = (1.0, 5.0, 20.0, 40.0),
    seeds: Sequence[int] = (0,),
    **options: Mapping[tuple[int, float], object],
) -> list[Model]:
    """Each generation at each temperature from each seed; `attacks` of (generation, temperature, seed)."""
    return [
        network(
            name,
            temperature,
            attacks(generation, temperature, seed),
            teacher=names[generation - 1] if generation else None,
            generation=generation,
            seed=seed,
            seeds=len(seeds),
            **{option: values[generation, temperature] for option, values in options.items()},  # type: ignore[arg-type]
        )
        for seed in seeds
        for generation, name in enumerate(names)
        for temperature in temperatures
    ]


def audit_share(count: int, total: int = 200) -> dict[str, Any]:
    one = Share(count, total)
    return {"count": count, "total": total, "value": one.value, "interval": list(one.interval)}


def audit_check(name: str, passed: bool = True, **more: Any) -> dict[str, Any]:
    wanted = {"quantity": 0.5, "threshold": 0.1, "source": "Somebody 2020", "needed": True, "next": ""}
    return {"name": name, "passed": passed, "sentence": f"What {name} found.", **wanted, **more}


def audit_record(kind: str = "masked", norm: str = "linf", **more: Any) -> dict[str, Any]:
    """A record as `audit_cells.record_of` gives it."""
    plane = torch.tensor([[[0.1 * (row + column) / 2 for column in range(6)] for row in range(6)]])
    changed = plane.clone()
    changed[0, 2, 3] += 0.25
    step = {"mends": None, "tried": 200, "broken": 4, "left": 0.96, "seconds": 0.4}
    made = {
        "verdict": {
            "kind": kind,
            "causes": ["scale"] if kind == "masked" else [],
            "sentences": ["Robust accuracy is 70 %, but this is not shown to hold.", "scale: what scale found."],
            "next": ["audit more rows"] if kind == "inconclusive" else [],
        },
        "norm": norm,
        "eps": {"linf": 0.3, "l2": 1.5, "l0": 10}[norm],
        "compared": "the usual one",
        "chosen": "the first 200 of 1000",
        "budget": "quick",
        "seed": 0,
        "door": {
            "classes": 10,
            "accuracy": audit_share(196),
            "chance": 0.1,
            "deterministic": True,
            "margin": 41.2,
            "remedies": ["The model came in training mode: call model.eval() before use."],
        },
        "common": audit_share(192),
        "left": audit_share(0),
        "reference": audit_share(1),
        "steps": [
            {"name": "PGD on cross entropy in float32", **step},
            {"name": "PGD on logits brought to scale", **step, "mends": "scale", "broken": 192, "left": 0.0},
        ],
        "curves": [
            {"name": "baseline attack", "eps": [0.1, 0.3, 1.0], "left": [0.97, 0.96, 0.9], "rows": 200},
            {"name": "all attacks", "eps": [0.1, 0.3, 1.0], "left": [0.2, 0.0, 0.0], "rows": 200},
        ],
        "checks": [
            audit_check("accuracy"),
            audit_check("scale", False, next="report it"),
            audit_check("8-bit images", False, needed=False),
        ],
        "gradients": None,
        "pictures": [
            {
                "row": 3,
                "label": 1,
                "prediction": 2,
                "size": 0.25,
                "attack": "PGD",
                "minimal": False,
                "clean": plane,
                "adversarial": changed,
            }
        ],
    }
    return {**made, **more}
