"""The claims of Mandal and Guo, "Improving Defensive Distillation using Teacher Assistant".

Two networks of one chain are compared image by image, over those that both have right. What is claimed of a way to
train is judged over seeds: the interval is Student's, of the seeds' means. With one seed it is that of the images, and
says nothing of another training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from brittle import measures
from brittle.measures import NEGLIGIBLE, Mean
from brittle.report.claims import Claim, Number, Verdict, both, once
from brittle.report.contents import Attack, Model, Report

PUBLISHED = {"mnist": (99.38, 0.15), "cifar10": (77.72, 1.2)}  # accuracy at T = 1, %; by how much it varies, points
NORMS = {0.0: "L0", 2.0: "L2", math.inf: "L∞"}
Rows = Callable[[Model], Tensor | None]  # (N,) of a model, NaN where an image does not count; None if not done


def claims(report: Report) -> list[Claim]:
    """Each claim that the paper makes, in its order, and what it takes for granted; see `claims.of`."""
    chains = _Chains(report)
    return [
        *_accuracy(chains),
        *_sensitivity(chains),
        *(claim for p in NORMS for claim in _robustness(chains, p)),
        _order_of_norms(chains),
        _confidence(chains),
    ]


# What is compared ---------------------------------------------------------------------------------------------------


class _Chains:
    """The study's networks by temperature, generation and seed; and the control, which is of no chain."""

    def __init__(self, report: Report) -> None:
        self.report = report
        taught = {(model.teacher, model.seed) for model in report.models if model.teacher}
        self.models: dict[tuple[float, int, int], Model] = {}
        self.control: dict[int, Model] = {}
        for model in report.models:
            if model.generation or (model.name, model.seed) in taught:
                self.models.setdefault((model.temperature, model.generation, model.seed), model)
            else:
                self.control.setdefault(model.seed, model)
        self.temperatures, self.generations, self.seeds = (sorted(set(axis)) for axis in self._axes())

    def _axes(self) -> Iterator[tuple]:
        yield from zip(*self.models, strict=True) if self.models else ((), (), ())

    def hotter(self) -> list[tuple[Model, Model]]:
        """The networks of the highest temperature, each beside that of the lowest in its generation and seed."""
        if len(self.temperatures) < 2:
            return []
        low, high = self.temperatures[0], self.temperatures[-1]
        return self._pairs((high, g, s, low, g, s) for g in self.generations for s in self.seeds)

    def later(self, generation: int, than: int) -> list[tuple[Model, Model]]:
        """The networks of a generation, each beside that of an earlier one, at every temperature and seed."""
        return self._pairs((t, generation, s, t, than, s) for t in self.temperatures for s in self.seeds)

    def _pairs(self, wanted: Iterator[tuple]) -> list[tuple[Model, Model]]:
        found = [(self.models.get(key[:3]), self.models.get(key[3:])) for key in wanted]
        return [(one, other) for one, other in found if one and other]

    def against_control(self) -> list[tuple[Model, Model]]:
        """The students, each beside the control of its seed."""
        last = max((g for g in self.generations if g <= 2), default=0)
        return [
            (m, self.control[s]) for (_, g, s), m in self.models.items() if g == last and last and s in self.control
        ]

    def over(self, pairs: Sequence[tuple[Model, Model]]) -> str:
        """'T = 40 against 1, 3 seeds'."""
        seeds = len({model.seed for model, _ in pairs})
        return f"{len(pairs)} pair{'s' if len(pairs) != 1 else ''} of networks, {seeds} seed{'s' if seeds != 1 else ''}"


def difference(pairs: Sequence[tuple[Model, Model]], rows: Rows, other_rows: Rows | None = None) -> Mean:
    """How much larger a quantity is in the one network of each pair than it, or another quantity, is in the other.

    Image by image; images for which the difference is not finite, as of one that a network has wrong, do not count.
    """
    by_seed: dict[int, list[Tensor]] = {}
    for one, other in pairs:
        first, second = rows(one), (other_rows or rows)(other)
        if first is None or second is None or len(first) != len(second):
            continue
        known = (first - second)[(first - second).isfinite()]
        if len(known):
            by_seed.setdefault(one.seed, []).append(known)
    if len(by_seed) == 1:
        return measures.mean(torch.cat(next(iter(by_seed.values()))))
    return measures.mean_of_seeds([sum(float(d.mean()) for d in found) / len(found) for found in by_seed.values()])


def _of_test(value: Callable[[Tensor, Tensor], Tensor]) -> Rows:
    """A quantity of each test image, from its logits and label."""
    return lambda model: value(model.measured.logits, model.measured.labels) if model.measured else None


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) == labels).double()


def _confident(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.softmax(logits.double(), 1).amax(1) * _right(logits, labels)


def _amplitudes(kind: str) -> Rows:
    """log10 of each image's mean |dF/dx|."""
    return lambda model: model.measured.amplitudes.get(kind) if model.measured else None


def _looks_insensitive(kind: str) -> Rows:
    def rows(model: Model) -> Tensor | None:
        values = _amplitudes(kind)(model)
        return None if values is None else (values < math.log10(NEGLIGIBLE)).double()

    return rows


def _sizes(p: float, *, of: float | None = None, over_temperature: bool = False) -> Rows:
    """ln of the size in the norm `of`, p when not given, of each image's change by the attack in p."""

    def rows(model: Model) -> Tensor | None:
        attack = _attack(model, p, over_temperature=over_temperature)
        if attack is None:
            return None
        (found,) = attack.found.values()
        sizes = torch.full((int(attack.rows.max()) + 1,), torch.nan, dtype=torch.float64)
        sizes[attack.rows] = found.sizes[p if of is None else of]
        return sizes.log()  # wrong before: -inf; withstood: inf

    return rows


def _attack(model: Model, p: float, *, over_temperature: bool = False) -> Attack | None:
    """The finished untargeted attack that keeps the norm p small."""
    for attack in model.attacks:
        untargeted = all("targets" not in found.packed for found in attack.found.values())
        same = (attack.norm, attack.over_temperature) == (p, over_temperature)
        if same and untargeted and set(attack.found) == {"result"}:
            return attack
    return None


def _times(ratio: Mean) -> Number | None:
    """What a mean difference of logarithms comes to."""
    if math.isnan(ratio.value):
        return None
    return Number(math.exp(ratio.value), math.exp(ratio.interval[0]), math.exp(ratio.interval[1]), "times", 2)


def _points(mean: Mean, digits: int = 2) -> Number:
    return Number.of(mean, "points", scale=100, digits=digits)


# V-A: accuracy ------------------------------------------------------------------------------------------------------


def _accuracy(chains: _Chains) -> list[Claim]:
    right = _of_test(_right)
    accuracy, varies = PUBLISHED.get(chains.report.data, (math.nan, math.nan))
    plain = [m.measured.accuracy for (t, g, _), m in chains.models.items() if t == 1 and g == 0 and m.measured]
    base = Number.of(measures.mean_of_seeds([share.value for share in plain]), "%", scale=100, digits=2)
    if len(plain) == 1:
        base = Number.percent(plain[0])
    hotter, later = chains.hotter(), chains.later(max(chains.generations, default=0), 0)
    furthest = max(
        (difference(pairs, right) for pairs in _each_from_plain(chains)), key=lambda mean: abs(mean.value), default=None
    )
    return [
        Claim(
            "The teacher at T = 1 reads the test images right.",
            "section V-A",
            f"{accuracy} %" if accuracy == accuracy else "–",
            *once(base, lambda n: n.high >= accuracy),
            f"Holds if the interval reaches it; {len(plain)} seed{'s' if len(plain) != 1 else ''}.",
        ),
        Claim(
            "Temperature and distillation change the accuracy very little.",
            "section V-A, figure 3",
            f"≤ {varies} points",
            *once(_points(furthest) if furthest else None, lambda n: n.meets(-varies, varies)),
            "Of all networks of the chains, that which differs most from the teacher at T = 1; holds if its interval "
            f"reaches {varies} points.",
        ),
        Claim(
            "The accuracy falls as the temperature rises.",
            "section V-A, figure 3",
            "–",
            *once(_points(difference(hotter, right)), lambda n: n.high < 0),
            f"Accuracy at {_from_to(chains)}; holds if the interval lies below 0; {chains.over(hotter)}.",
        ),
        Claim(
            "At the same temperature distilled networks are more accurate than their teacher.",
            "section V-A, “in most cases”",
            "–",
            *once(_points(difference(later, right)), lambda n: n.low > 0),
            f"The last generation less the teacher; holds if the interval lies above 0; {chains.over(later)}.",
        ),
    ]


def _each_from_plain(chains: _Chains) -> Iterator[list[tuple[Model, Model]]]:
    """Every temperature and generation, beside the teacher at T = 1 of its seed."""
    for t in chains.temperatures:
        for g in chains.generations:
            pairs = [(chains.models.get((t, g, s)), chains.models.get((1.0, 0, s))) for s in chains.seeds]
            if known := [(one, other) for one, other in pairs if one and other and one is not other]:
                yield known


def _from_to(chains: _Chains, against: str = "less") -> str:
    if len(chains.temperatures) < 2:
        return "one temperature only"
    return f"T = {chains.temperatures[-1]:g} {against} T = {chains.temperatures[0]:g}"


# III-B, V-B: sensitivity --------------------------------------------------------------------------------------------


def _sensitivity(chains: _Chains) -> list[Claim]:
    teachers = [(one, other) for one, other in chains.hotter() if one.generation == 0]

    def share_rises(arithmetic: str) -> tuple[Number, bool] | None:
        rise = difference(teachers, _looks_insensitive(arithmetic))
        return None if math.isnan(rise.value) else (_points(rise, 1), rise.interval[0] > 0)

    used, trained = (
        Number.of(difference(teachers, _amplitudes(kind)), "decades", digits=2) for kind in ("exact", "trained")
    )
    return [
        Claim(
            "With the temperature rises the share of images whose mean gradient is below 10⁻¹⁰.",
            "section V-B, figure 4",
            "figure only",
            *both(share_rises),
            f"Teachers as they are used, at T = 1; {_from_to(chains)}; holds if the interval lies above 0; "
            f"{chains.over(teachers)}.",
        ),
        Claim(
            "The gradients are smaller because of the factor 1/T of the softmax.",
            "section III-B, equation (11)",
            "–",
            *once(trained, lambda n: n.high < 0),
            "Mean log₁₀ |dF/dx| read at the training temperature, the only reading that has the factor; "
            f"{_from_to(chains)}; holds if the interval lies below 0. Read at 1, as used: {used}.",
        ),
    ]


# V-C, VI: robustness ------------------------------------------------------------------------------------------------


def _robustness(chains: _Chains, p: float) -> list[Claim]:
    name, sizes = NORMS[p], _sizes(p)
    hotter = chains.hotter()
    chain = chains.later(2, 0), chains.later(2, 1), chains.against_control()
    last = max(chains.generations, default=0)
    multi = chains.later(last, 0) if last > 2 else []
    both_ways = [(m, m) for (t, _, _), m in chains.models.items() if t != 1]
    scaled = _times(difference(both_ways, _sizes(p, over_temperature=True), sizes))
    above = "holds if the interval lies above 1"
    return [
        Claim(
            f"Robustness against the {name} attack rises with the temperature.",
            "section V-C, figure 5",
            "figure only",
            *_larger(hotter, sizes),
            f"Geometric mean of the ratio of the smallest changes, {_from_to(chains, 'over')}; {above}; "
            f"{chains.over(hotter)}.",
        ),
        Claim(
            f"The student of an assistant is more robust against {name} than its teacher.",
            "section V-C, figure 5",
            "figure only",
            *_larger(chain[0], sizes),
            f"Student over teacher, all temperatures; {above}; {chains.over(chain[0])}.",
        ),
        Claim(
            f"The assistant makes it so: its student is more robust against {name} than the assistant itself.",
            "abstract, section V-C",
            "figure only",
            *_larger(chain[1], sizes),
            "The assistant is what defensive distillation without one would end with. Student over assistant; "
            f"{above}; {chains.over(chain[1])}.",
        ),
        Claim(
            f"Robustness against {name} rises from generation to generation.",
            "section VI, figure 8",
            "figure only",
            *_larger(multi, sizes),
            f"Generation {last + 1} over the first, all temperatures; {above}; {chains.over(multi)}."
            if multi
            else "Needs more generations than three.",
        ),
        Claim(
            f"A student is more robust against {name} than a network trained as long without distillation.",
            "not in the paper: its control",
            "–",
            *_larger(chain[2], sizes),
            f"Student, every temperature, over the control; {above}; {chains.over(chain[2])}.",
        ),
        Claim(
            f"What the {name} attack measures is the network and not its own trouble with large logits.",
            "not in the paper",
            "–",
            *once(scaled, lambda n: n.low > 0.98 and n.high < 1.02),
            "The same attack on logits / T over that on logits, of the same network; holds if within 2 %.",
        ),
    ]


def _larger(pairs: Sequence[tuple[Model, Model]], rows: Rows) -> tuple[None, Number | None, Verdict]:
    return once(_times(difference(pairs, rows)), lambda n: n.low > 1)


def _order_of_norms(chains: _Chains) -> Claim:
    """In L2, the one norm in which all three can be measured."""
    every = [(model, model) for model in chains.models.values()]
    ratios = [_times(difference(every, _sizes(p, of=2.0), _sizes(2.0))) for p in (math.inf, 0.0)]
    known = [ratio for ratio in ratios if ratio]
    smallest = len(known) == 2 and all(ratio.low > 1 for ratio in known) and known[0].high < known[1].low
    return Claim(
        "L2 finds the smallest changes of the three attacks, L0 the largest.",
        "section V-C",
        "figure only",
        *once(known[-1] if len(known) == 2 else None, lambda _: smallest),
        "The paper does not say in which norm; here all in L2: the L0 attack's change over the L2 attack's. The L∞ "
        f"attack's over it: {known[0] if len(known) == 2 else '–'}. Holds if both lie above 1 and L∞ below L0.",
    )


# V-D: confidence ----------------------------------------------------------------------------------------------------


def _confidence(chains: _Chains) -> Claim:
    hotter = chains.hotter()
    return Claim(
        "The confidence shows no trend over the temperature.",
        "section V-D, figure 6, CIFAR-10",
        "figure only",
        *once(_points(difference(hotter, _of_test(_confident))), lambda n: n.low > -1 and n.high < 1),
        f"Equation (14), with max; {_from_to(chains)}; holds if the interval lies within a point of 0; "
        f"{chains.over(hotter)}.",
    )
