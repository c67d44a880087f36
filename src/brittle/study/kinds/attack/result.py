"""What is known of an attack on a model, over those of its cells that are finished."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F

from brittle import measures
from brittle.attacks.packing import unpack
from brittle.attacks.result import AttackResult, Bound
from brittle.measures import Flips, Robustness, Share, robustness_of
from brittle.study.kinds.attack.cell import attacked_rows
from brittle.study.kinds.rows.cell import Rows
from brittle.study.kinds.table import Name
from brittle.study.store.results import Reader
from brittle.study.store.store import Stored

if TYPE_CHECKING:
    from brittle.study.store.results import Report

BOTH = ("float32", "exact")  # the two arithmetics, in the order in which they are shown
NORMS = {0.0: "l0", 1.0: "l1", 2.0: "l2", math.inf: "linf"}
_PADDING = {"pixels": -1, "levels": 0}  # of lists that are as long as a shard's longest


@dataclass(frozen=True)
class Steps:
    """How the logits of some images change with each pixel that an attack sets."""

    rows: Tensor  # (R,) int64: which of the report's images
    logits: Tensor  # (R, S + 1, K) at first and after each pixel; NaN after the last, and at once where it failed


@dataclass(frozen=True)
class Found:
    """What one attack in one arithmetic did to one model, over the images whose cells are finished."""

    arithmetic: str  # 'float32', 'exact', or 'result' for an attack that has no choice of arithmetic
    success: Share  # of the images that the model got right before the attack
    robust: Share  # images still classified correctly after the attack, of all that were attacked
    flips: Flips | None  # pixel attacks only
    curve: Tensor | None  # (trials + 1,): share fooled by at most so many pixels; pixel attacks only
    sizes: Mapping[float, Tensor]  # by norm, 0, 1, 2 and inf: (R,) as `measures.distances` has them
    forwards: float  # images put through the model, mean an image
    backwards: float  # gradients taken, mean an image
    trivial: Tensor  # (R,) bool: wrong before the attack
    packed: Mapping[str, Tensor]  # as `attacks.packing.pack` stores it, all shards together
    steps: Steps | None  # pixel attacks only, once the first shard is done

    def as_json(self) -> dict[str, Any]:
        """Success, pixels, sizes and cost."""
        flips = None
        if self.flips is not None:
            low, high = self.flips.quartiles
            flips = asdict(self.flips) | {"q1": low, "q3": high}
            del flips["quartiles"]
        fooled = {p: sizes[(sizes > 0) & sizes.isfinite()] for p, sizes in self.sizes.items()}
        return {
            "success": self.success,
            "wrong_before": int(self.trivial.sum()),
            "flips": flips,
            "success_by_pixels": None if self.curve is None else self.curve.tolist(),
            "mean_change": {NORMS[p]: float(sizes.mean()) for p, sizes in fooled.items()},
            "forwards_mean": self.forwards,
            "backwards_mean": self.backwards,
        }


@dataclass(frozen=True)
class Attack:
    """One attack on one model."""

    name: str
    label: str
    function: str
    options: Mapping[str, Any]
    minimises: float | None  # 0, 1, 2 or inf: the norm whose size it makes small; None if it makes none small
    bound: Bound | None  # the budget that it works within; None if it has none
    over_temperature: bool  # of the logits divided by the temperature that the model was trained at
    rows: Tensor  # (R,) int64: which of the report's images are done; each as often as it has targets
    found: Mapping[str, Found]  # by arithmetic; empty if nothing is finished
    complete: bool  # every shard was there

    @property
    def norm(self) -> float | None:
        """The norm that it makes small or that bounds it; None if it says neither."""
        return self.minimises if self.bound is None else self.bound.norm

    @cached_property
    def robustness(self) -> Mapping[str, Robustness]:
        """By arithmetic, how large the smallest perturbations are in the norm that it minimises; computed once."""
        if self.minimises is None:
            return {}
        return {name: robustness_of(found.sizes[self.minimises]) for name, found in self.found.items()}

    @property
    def targeted(self) -> bool:
        """Whether it aimed at classes; False while nothing is finished."""
        return any("targets" in found.packed for found in self.found.values())

    @property
    def sized(self) -> bool:
        """Whether it is reported by the sizes that it minimises: not a pixel attack, which counts its flips."""
        flips = any(found.flips is not None for found in self.found.values())
        return bool(self.found) and self.minimises is not None and not flips

    @property
    def bounded(self) -> bool:
        """Whether it is reported by the robust accuracy within its budget."""
        return bool(self.found) and self.bound is not None and not self.targeted

    @property
    def last(self) -> str:
        """The arithmetic that counts: the exact one if there is a choice."""
        return "exact" if "exact" in self.found else list(self.found)[-1]

    @property
    def arithmetics(self) -> list[str]:
        """Those that are there, float32 first."""
        return [name for name in BOTH if name in self.found] or list(self.found)

    def result(self, arithmetic: str, row: int, report: Report, target: int | None = None) -> AttackResult | None:
        """What became of one of the report's images, a batch of one: the first result of it, or that with this target;
        None if it is not done."""
        if arithmetic not in self.found or report.images is None or report.labels is None:
            return None
        packed = self.found[arithmetic].packed
        wanted = self.rows == row
        if target is not None:
            wanted = wanted & (packed["targets"] == target if "targets" in packed else torch.tensor(False))
        places = wanted.nonzero().flatten().tolist()
        if not places:
            return None
        one = {name: values[places[0]][None] for name, values in packed.items()}
        return unpack(one, report.images[row][None], report.labels[row][None])

    def as_json(self) -> dict[str, Any]:
        """What it was asked for, and what it found in each arithmetic."""
        found = {}
        for name, one in self.found.items():
            robustness = None
            if self.sized:  # `over_all` counts images that were wrong before as 0, none counts those not fooled
                of = self.robustness[name]
                robustness = {name: getattr(of, name) for name in ("mean", "median", "maximum", "over_all")}
                robustness |= {"wrong_before": of.trivial, "withstood": of.failures}
            robust = one.robust if self.bounded else None
            found[name] = one.as_json() | {"robust_accuracy": robust, "robustness": robustness}
        return {
            "attack": self.name,
            "label": self.label,
            "function": self.function,
            "options": self.options,
            "rows": len(self.rows),
            "complete": self.complete,
            "minimises": _norm(self.minimises),
            "bound": self.bound and {"norm": _norm(self.bound.norm), "eps": self.bound.eps},
            "over_temperature": self.over_temperature,
            "targeted": self.targeted,
            "arithmetic": found,
        }


def _norm(norm: float | None) -> int | str | None:
    """As it is stored: 0, 1, 2 or 'inf'."""
    return norm if norm is None else "inf" if math.isinf(norm) else int(norm)


# Reading ------------------------------------------------------------------------------------------------------------


class Entry(BaseModel):
    """What a study's record says of an attack on a model."""

    model_config = ConfigDict(frozen=True)

    name: Name
    label: Name
    function: Name
    options: dict[str, Any]
    arithmetic: list[str] | None
    over_temperature: bool = False
    cells: list[str]


@dataclass(frozen=True)
class _Shard:
    rows: Tensor
    packed: dict[str, dict[str, Tensor]]  # by arithmetic
    steps: dict[str, Steps]
    aim: tuple[float | None, Bound | None]


def read(reader: Reader, entries: Sequence[Entry], model: str, chosen: Rows | None) -> tuple[Attack, ...]:
    """The attacks on a model, each over those of its shards that are finished, in order."""
    return tuple(_attack(reader, entry, model, chosen) for entry in entries)


def _attack(reader: Reader, entry: Entry, model: str, chosen: Rows | None) -> Attack:
    arithmetics = tuple(entry.arithmetic or ["result"])
    shards: list[_Shard] = []
    for number, key in enumerate(entry.cells, 1):
        part = f", shard {number} of {len(entry.cells)}" if len(entry.cells) > 1 else ""
        shard = reader.read(f"{entry.label} on {model}{part}", key, lambda stored: _shard(stored, arithmetics))
        if shard is not None and chosen is not None:
            shards.append(shard)
    rows = torch.cat([shard.rows for shard in shards]) if shards else torch.empty(0).long()
    found = {}
    for name in arithmetics if shards else ():
        assert chosen is not None
        packed = _joined([shard.packed[name] for shard in shards])
        steps = [shard.steps[name] for shard in shards if name in shard.steps]
        found[name] = _found(name, packed, chosen.images[rows], chosen.labels[rows], entry.options, [*steps, None][0])
    aims = {shard.aim for shard in shards}
    minimises, bound = aims.pop() if len(aims) == 1 else (None, None)
    return Attack(
        name=entry.name,
        label=entry.label,
        function=entry.function,
        options=entry.options,
        minimises=minimises,
        bound=bound,
        over_temperature=entry.over_temperature,
        rows=rows,
        found=found,
        complete=len(shards) == len(entry.cells),
    )


def _shard(stored: Stored, arithmetics: Sequence[str]) -> _Shard:
    rows = attacked_rows(stored.record["params"])
    packed = {arithmetic: stored.tensors(arithmetic) for arithmetic in arithmetics}
    targets = max(1, len(packed[arithmetics[0]]["success"]) // len(rows))  # of each image
    for tensors in packed.values():
        for name in ("success", "prediction", "forwards", "backwards"):
            if len(tensors[name]) != len(rows) * targets:
                raise ValueError(f"{name} has {len(tensors[name])} entries for {len(rows)} images")
    steps = {}
    for arithmetic in arithmetics:
        if f"{arithmetic}.steps.safetensors" in stored.record["files"]:
            kept = stored.tensors(f"{arithmetic}.steps")
            steps[arithmetic] = Steps(rows[kept["rows"]], kept["logits"])
    minimises, bound = (stored.scalars.get(name) for name in ("minimises", "bound"))  # a norm is 0, 1, 2 or "inf"
    aim = (
        None if minimises is None else float(minimises),
        None if bound is None else Bound(float(bound["norm"]), float(bound["eps"])),
    )
    return _Shard(rows.repeat_interleave(targets), packed, steps, aim)


def _joined(shards: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Shards as one, padded to the longest list of pixels."""
    joined = {}
    for name in shards[0]:
        parts = [shard[name] for shard in shards]
        if name in _PADDING:
            width = max(part.shape[1] for part in parts)
            parts = [F.pad(part, (0, width - part.shape[1]), value=_PADDING[name]) for part in parts]
        joined[name] = torch.cat(parts)
    return joined


def _found(
    name: str,
    packed: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    options: Mapping[str, Any],
    steps: Steps | None,
) -> Found:
    result = unpack(packed, images, labels)
    flips = curve = None
    if result.pixels is not None:
        flips = measures.flips_needed(result)
        trials = options.get("max_pixels")
        curve = measures.success_curve(result, trials if isinstance(trials, int) else int(result.flips.max()))
    forwards, backwards = (float(spent.double().mean()) for spent in (result.forwards, result.backwards))
    return Found(
        arithmetic=name,
        success=measures.success_rate(result),
        robust=measures.share(result.prediction == labels),
        flips=flips,
        curve=curve,
        sizes={p: measures.distances(result, p) for p in NORMS},
        forwards=forwards,
        backwards=backwards,
        trivial=result.trivial,
        packed=packed,
        steps=steps,
    )
