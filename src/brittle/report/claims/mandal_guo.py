"""The claims of Mandal and Guo, "Improving Defensive Distillation using Teacher Assistant".

Two networks of one chain are compared image by image, over those that both classify correctly. What is claimed of a way
to train is judged over seeds: the interval is Student's, of the seeds' means. With one seed it is that of the images,
and says nothing of another training.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from brittle import measures
from brittle.measures import NEGLIGIBLE, Mean
from brittle.report.claims import Claim, Number, above, below, between, both, claim, far_from, near, seeds
from brittle.study.kinds.attack.result import Attack
from brittle.study.store.results import Model, Report

EPOCHS = 50  # section IV
MARGIN = {"mnist": 0.5, "cifar10": 1.0}  # points by which the accuracy may differ from the published one
PUBLISHED = {"mnist": (99.38, 0.15), "cifar10": (77.72, 1.2)}  # accuracy at T = 1, %; by how much it varies, points
NORMS = {0.0: "L0", 2.0: "L2", math.inf: "L∞"}
Made = Callable[..., Claim]  # `claims.claim`, and what the study lacks
Rows = Callable[[Model], Tensor | None]  # (N,) of a model, NaN where an image does not count; None if not done


def claims(report: Report) -> list[Claim]:
    """Each claim that the paper makes, in its order, and what it takes for granted; see `claims.of`."""
    chains = _Chains(report)
    made, attacked = (
        functools.partial(claim, lacking=far_from(chains.all(), EPOCHS, n)) for n in (None, chains.images())
    )
    return [
        *_accuracy(chains, made),
        *_sensitivity(chains, attacked),
        *(one for p in NORMS for one in _robustness(chains, p, attacked)),
        _order_of_norms(chains, attacked),
        _confidence(chains, made),
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
        self.temperatures = sorted({temperature for temperature, _, _ in self.models})
        self.generations = sorted({generation for _, generation, _ in self.models})
        self.seeds = sorted({seed for _, _, seed in self.models})

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

    def all(self) -> list[Model]:
        """Every network of the chains, and the controls."""
        return [*self.models.values(), *self.control.values()]

    def images(self) -> int | None:
        """How many are under attack; None if none are."""
        attacks = (attack for model in self.all() for attack in model.attacks if attack.found and not attack.targeted)
        return max((len(attack.rows) for attack in attacks), default=None)


def over(pairs: Sequence[tuple[Model, Model]]) -> str:
    """'9 pairs of networks, 3 seeds'."""
    return f"{len(pairs)} pair{'s' if len(pairs) != 1 else ''} of networks, {seeds(len({m.seed for m, _ in pairs}))}"


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
    """The finished untargeted attack that minimises the norm p."""
    for attack in model.attacks:
        untargeted = all("targets" not in found.packed for found in attack.found.values())
        same = (attack.minimises, attack.over_temperature) == (p, over_temperature)
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


def _accuracy(chains: _Chains, made: Made) -> list[Claim]:
    right = _of_test(_right)
    accuracy, varies = PUBLISHED.get(chains.report.data, (math.nan, math.nan))
    plain = [m.measured.accuracy for (t, g, _), m in chains.models.items() if t == 1 and g == 0 and m.measured]
    mean = Number.of(measures.mean_of_seeds([share.value for share in plain]), "%", scale=100, digits=2)
    hotter, later = chains.hotter(), chains.later(max(chains.generations, default=0), 0)
    apart = [_points(difference(pairs, right)) for pairs in _each_from_plain(chains)]
    furthest = max(apart, key=lambda number: abs(number.value), default=None)
    return [
        made(
            f"The teacher's test accuracy at T = 1 is {accuracy} %.",
            "section V-A",
            f"{accuracy} %",
            near(accuracy, MARGIN[chains.report.data], "%"),
            f"Test accuracy, {seeds(len(plain))}",
            exact=Number.percent(plain[0]) if len(plain) == 1 else mean,
        ),
        made(
            "Temperature and distillation change the accuracy very little.",
            "section V-A, figure 3",
            f"≤ {varies} points",
            between(-varies, varies, "points"),
            "The largest difference of any network of the chains from the teacher at T = 1",
            exact=furthest,
        ),
    ] * (chains.report.data in PUBLISHED) + [
        made(
            "The accuracy falls as the temperature rises.",
            "section V-A, figure 3",
            "–",
            below(0),
            f"Accuracy at {_from_to(chains)}, {over(hotter)}",
            exact=_points(difference(hotter, right)),
        ),
        made(
            "At the same temperature distilled networks are more accurate than their teacher.",
            "section V-A, “in most cases”",
            "–",
            above(0),
            f"Accuracy of the last generation less the teacher's, {over(later)}",
            exact=_points(difference(later, right)),
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


def _sensitivity(chains: _Chains, made: Made) -> list[Claim]:
    teachers = [(one, other) for one, other in chains.hotter() if one.generation == 0]
    used, trained = (
        Number.of(difference(teachers, _amplitudes(kind)), "decades", digits=2) for kind in ("exact", "trained")
    )
    return [
        made(
            "The share of images whose mean gradient is below 10⁻¹⁰ rises with the temperature.",
            "section V-B, figure 4",
            "figure only",
            above(0),
            f"Teachers as they are used, at T = 1, {_from_to(chains)}, {over(teachers)}",
            **both(lambda arithmetic: _points(difference(teachers, _looks_insensitive(arithmetic)), 1)),
        ),
        made(
            "The gradients are smaller because of the factor 1/T of the softmax.",
            "section III-B, equation (11)",
            "–",
            below(0),
            f"Mean log₁₀ |dF/dx| read at the training temperature, the only reading that has the factor, "
            f"{_from_to(chains)}; read at 1, as used: {used}",
            exact=trained,
        ),
    ]


# V-C, VI: robustness ------------------------------------------------------------------------------------------------


def _robustness(chains: _Chains, p: float, made: Made) -> list[Claim]:
    name, last = NORMS[p], max(chains.generations, default=0)
    said = [
        (
            f"Robustness against the {name} attack rises with the temperature.",
            "section V-C, figure 5",
            f"Ratio of the sizes, {_from_to(chains, 'over')}",
            chains.hotter(),
        ),
        (
            f"The student of an assistant is more robust against {name} than its teacher.",
            "section V-C, figure 5",
            "Ratio of the sizes, student over teacher, all temperatures",
            chains.later(2, 0),
        ),
        (
            f"The assistant is the reason: its student is more robust against {name} than the assistant itself.",
            "abstract, section V-C",
            "Ratio of the sizes, student over assistant, with which defensive distillation without one would end",
            chains.later(2, 1),
        ),
        (
            f"Robustness against {name} rises from generation to generation.",
            "section VI, figure 8",
            f"Ratio of the sizes, generation {last + 1} over the first; needs more than three generations",
            chains.later(last, 0) if last > 2 else [],
        ),
        (
            f"A student is more robust against {name} than a network trained as long without distillation.",
            "not in the paper: its control",
            "Ratio of the sizes, student over control, every temperature",
            chains.against_control(),
        ),
    ]
    sizes = _sizes(p)
    own = [(model, model) for (t, _, _), model in chains.models.items() if t != 1]
    return [
        *(
            made(
                says,
                where,
                "–" if where.startswith("not") else "figure only",
                above(1),
                f"{compared}, geometric mean, {over(pairs)}",
                exact=_times(difference(pairs, sizes)),
            )
            for says, where, compared, pairs in said
        ),
        made(
            f"The {name} attack measures the network, not a difficulty of its own with large logits.",
            "not in the paper",
            "–",
            near(1, 0.02),
            "Ratio of the sizes that the same attack finds on logits / T and on the logits of the same network",
            exact=_times(difference(own, _sizes(p, over_temperature=True), sizes)),
        ),
    ]


def _order_of_norms(chains: _Chains, made: Made) -> Claim:
    """In L2, the one norm in which all three can be measured."""
    every = [(model, model) for model in chains.models.values()]
    linf, two, zero = (_sizes(p, of=2.0) for p in (math.inf, 2.0, 0.0))
    largest, middle, order = (_times(difference(every, *pair)) for pair in ((zero, two), (linf, two), (zero, linf)))
    return made(
        "The L2 attack finds the smallest perturbations of the three attacks, the L0 attack the largest.",
        "section V-C",
        "figure only",
        above(1, "for this and for the other two ratios"),
        "Ratio of the sizes, L0 attack over L2 attack, all in L2, as the paper names no norm; "
        f"L∞ over L2: {middle or '–'}; L0 over L∞: {order or '–'}",
        exact=largest,
        also=[(above(1), None, middle), (above(1), None, order)],
    )


# V-D: confidence ----------------------------------------------------------------------------------------------------


def _confidence(chains: _Chains, made: Made) -> Claim:
    hotter = chains.hotter()
    return made(
        "The confidence shows no trend over the temperature.",
        "section V-D, figure 6, CIFAR-10",
        "figure only",
        near(0, 1, "points"),
        f"Equation (14), with max, {_from_to(chains)}, {over(hotter)}",
        exact=_points(difference(hotter, _of_test(_confident))),
    )
