"""The claims of Song 2017, "Temperature of Output Layer rather than Distillation Technique ...", March 26 2017.

Success rates are those over the images that all three networks classify correctly before the attack, as in the author's
code, so that networks are compared on the same images; several seeds are taken together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from brittle import measures
from brittle.measures import Share
from brittle.report.claims import Both, Claim, Number, above, below, between, both, claim, far_from, near
from brittle.study.kinds.attack.result import Found
from brittle.study.kinds.measure.result import Measured
from brittle.study.store.results import Model, Report

T = 20.0  # the paper's only temperature
EPOCHS = 50  # table 1
ROLES = ("standard", "tempered", "distilled")
MARGIN = 0.5  # points: two trainings of one network on MNIST differ by a few tenths


def claims(report: Report) -> list[Claim]:
    """Each claim that the paper makes, in its order; see `claims.of`."""
    song = _Song(report)
    return [
        *_accuracies(song),
        *_attacks_on_standard(song),
        *_defences(song),
        *_gradients(song),
    ]


# What is compared ---------------------------------------------------------------------------------------------------


class _Song:
    """The study's networks by the part that they play in the paper, and what its algorithms did to them."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.models: dict[str, dict[int, Model]] = {role: {} for role in ROLES}
        for model in report.models:
            role = "distilled" if model.teacher else "standard" if model.temperature == 1 else "tempered"
            if model.temperature == (1 if role == "standard" else T):
                self.models[role].setdefault(model.seed, model)

    @property
    def seeds(self) -> list[int]:
        """Those that have all three networks."""
        return sorted(set.intersection(*(set(models) for models in self.models.values())))

    def measured(self, role: str) -> list[Measured]:
        """A network's numbers without an attack, one a seed; none unless every seed has them."""
        found = [self.models[role][seed].measured for seed in self.seeds]
        return [one for one in found if one] if all(found) else []

    def right(self, role: str) -> Tensor:
        """(n,) bool: the test images that a network classifies correctly, all seeds."""
        return _joined([one.logits.argmax(1) == one.labels for one in self.measured(role)]).bool()

    def fooled(self, algorithm: int, arithmetic: str) -> dict[str, Tensor]:
        """By role, (n,) bool: the images that all three networks have right, those of all seeds one after another."""
        parts: dict[str, list[Tensor]] = {role: [] for role in ROLES}
        for seed in self.seeds:
            known = {role: self._outcome(role, seed, algorithm, arithmetic) for role in ROLES}
            if any(one is None for one in known.values()):
                continue
            right = torch.stack([one[0] for one in known.values() if one]).all(0)
            for role, one in known.items():
                assert one is not None
                parts[role].append(one[1][right])
        return {role: _joined(found).bool() for role, found in parts.items()}

    def _outcome(self, role: str, seed: int, algorithm: int, arithmetic: str) -> tuple[Tensor, Tensor] | None:
        """Over the report's rows: which were attacked and right before, and which were fooled."""
        found = self.found(role, seed, algorithm, arithmetic)
        if found is None:
            return None
        rows, one = found
        right, success = torch.zeros(2, self.report.rows, dtype=torch.bool)
        right[rows[~one.trivial]] = True
        success[rows] = one.packed["success"]
        return right, success

    def found(self, role: str, seed: int, algorithm: int, arithmetic: str) -> tuple[Tensor, Found] | None:
        """Which rows an algorithm was tried on, and what it did."""
        for attack in self.models[role][seed].attacks:
            if attack.function == f"brittle.attacks.song_{algorithm}" and arithmetic in attack.found:
                return attack.rows, attack.found[arithmetic]
        return None

    def success(self, role: str, algorithm: int) -> Both:
        """How many images an algorithm fools, in both arithmetics."""

        def number(arithmetic: str) -> Number | None:
            fooled = self.fooled(algorithm, arithmetic)[role]
            return Number.percent(measures.share(fooled)) if len(fooled) else None

        return both(number)

    def gap(self, one: tuple[int, str], other: tuple[int, str], arithmetic: str) -> Number | None:
        """What one algorithm fools more images of one network than another of another, in points."""
        first, second = (self.fooled(algorithm, arithmetic)[role] for algorithm, role in (one, other))
        if not len(first) or len(first) != len(second):
            return None
        return Number.of(measures.paired(first, second).difference, "points", scale=100)

    def attacked(self, algorithm: int) -> int:
        """Over how many images the success of an algorithm is."""
        return max(len(self.fooled(algorithm, arithmetic)["standard"]) for arithmetic in ("float32", "exact"))

    def far(self, *roles: str, algorithm: int | None = None) -> str:
        """Why these networks, or the images under attack, cannot stand for the paper's; empty if they can."""
        models = [self.models[role][seed] for role in roles for seed in self.seeds]
        return far_from(models, EPOCHS, None if algorithm is None else self.attacked(algorithm))

    def over(self, rows: int) -> str:
        """'over 9 870 images, seed 0'."""
        seeds = ", ".join(map(str, self.seeds))
        counted = f"{rows:,}".replace(",", " ")
        return f"over {counted} images, seed{'s' if len(self.seeds) > 1 else ''} {seeds}"


# Section 5: accuracy ------------------------------------------------------------------------------------------------


def _accuracies(song: _Song) -> list[Claim]:
    rows = []
    for role, percent in {"standard": 99.57, "distilled": 99.07, "tempered": 99.34}.items():
        right = song.right(role)
        rows.append(
            claim(
                f"The {role} network's test accuracy is {percent} %.",
                "section 5, (5) to (7)",
                f"{percent} %",
                near(percent, MARGIN, "%"),
                f"Test accuracy, {song.over(len(right))}",
                exact=Number.percent(measures.share(right)),
                lacking=song.far(role),
            )
        )
    pair = measures.paired(song.right("tempered"), song.right("distilled"))
    rows.append(
        claim(
            "The tempered network is slightly more accurate than the distilled one.",
            "section 5",
            "0.27 points",
            above(0),
            f"Difference of the test accuracies, {song.over(pair.difference.rows)}",
            exact=Number.of(pair.difference, "points", scale=100, digits=2),
            lacking=song.far("tempered", "distilled"),
        )
    )
    return rows


# Section 3: the algorithms, on the undefended network ---------------------------------------------------------------


def _attacks_on_standard(song: _Song) -> list[Claim]:
    said = [
        (1, "two thirds of the standard network's images", "section 3.1; 72 % in the draft", "66 %", between(66, 72)),
        (2, "more than 95 % of them", "section 3.1", "> 95 %", above(95)),
        (3, "more than 95 % of them", "section 3.1", "> 95 %", above(95)),
        (2, "37 to 39 % of them; section 3.1 says more than 95 %", "section 5", "37 to 39 %", between(37, 39.01)),
    ]
    found = [
        claim(
            f"Algorithm {algorithm} fools {what}.",
            where,
            published,
            rule,
            f"Images fooled within 100 pixels, {song.over(song.attacked(algorithm))}; {_losses(song, 'standard')}",
            **song.success("standard", algorithm),
            lacking=song.far("standard", algorithm=algorithm),
        )
        for algorithm, what, where, published, rule in said
    ]
    more = claim(
        "Algorithm 2, which also uses falling losses, fools more images than algorithm 1.",
        "section 3.2",
        "66 → 95 %",
        above(0),
        f"Difference of the shares fooled, {song.over(song.attacked(2))}",
        **both(lambda arithmetic: song.gap((2, "standard"), (1, "standard"), arithmetic)),
        lacking=song.far("standard", algorithm=2),
    )
    return [*found, more, _fewer_pixels(song)]


def _fewer_pixels(song: _Song) -> Claim:
    """Over the images that both algorithms fool, those of all seeds."""
    counts: list[int] = []

    def number(arithmetic: str) -> Number | None:
        saved = []
        for seed in song.seeds:
            found = [song.found("standard", seed, algorithm, arithmetic) for algorithm in (2, 4)]
            flips = torch.full((2, song.report.rows), -1)
            for place, one in enumerate(found):
                if one is None:
                    return None
                rows, result = one
                fooled = result.packed["success"] & ~result.trivial
                flips[place, rows[fooled]] = (result.packed["pixels"] >= 0).sum(1)[fooled]
            saved.append((flips[0] - flips[1])[(flips > 0).all(0)])
        if not saved:
            return None
        mean = measures.mean(torch.cat(saved))
        counts.append(mean.rows)
        return Number.of(mean, "pixels")

    numbers = both(number)
    return claim(
        "Algorithm 4, which computes a new map after each pixel, needs fewer pixels than algorithm 2.",
        "section 3.2; not run by the author",
        "–",
        above(0),
        f"Pixels saved an image, over the images that both fool ({', '.join(map(str, counts)) or '–'})",
        **numbers,
        lacking=far_from([song.models["standard"][seed] for seed in song.seeds], EPOCHS, max(counts, default=None)),
    )


# Section 5: the defences --------------------------------------------------------------------------------------------


def _times_harder(song: _Song, role: str, arithmetic: str) -> Number | None:
    """Success of algorithm 2 on the standard network over that on a defended one.

    Where no image of the defended network is fooled, from the lower end of the one interval over the upper end of the
    other on.
    """
    fooled = song.fooled(2, arithmetic)
    if not fooled["standard"].any():
        return None
    ratio = Number.of(measures.paired(fooled["standard"], fooled[role]).ratio, "times")
    if not math.isinf(ratio.value):
        return ratio
    one, other = (measures.share(fooled[which]).interval for which in ("standard", role))
    return Number(math.inf, one[0] / other[1], math.inf, "times")


def _defences(song: _Song) -> list[Claim]:
    over, every = song.over(song.attacked(2)), song.far(*ROLES, algorithm=2)
    harder = {role: both(lambda arithmetic, role=role: _times_harder(song, role, arithmetic)) for role in ROLES[1:]}

    found = [
        claim(
            f"Algorithm 2 fools only {percent} % of the images of the {role} network.",
            "section 5; under 1.4 % in its last paragraph",
            f"{percent} %",
            below(1.4, "%"),
            f"Images fooled, {over}",
            **song.success(role, 2),
            lacking=every,
        )
        for role, percent in (("distilled", 1.31), ("tempered", 0.81))
    ]
    found += [
        claim(
            f"The {role} network is many times harder to fool than the standard one.",
            "table 2, which prints the inverse; a factor of 10 in the abstract",
            f"{times} times",
            above(10),
            f"Success on the standard network over that on the {role} one, {over}",
            **harder[role],
            lacking=every,
        )
        for role, times in (("distilled", 29.8), ("tempered", 44.1))
    ]
    tempered = harder["tempered"]
    found.append(
        claim(
            "It is the temperature, not distillation, that makes the network robust.",
            "title, section 5",
            "−0.5 points",
            below(1, "points; and if the tempered network is more than 10 times harder to fool than the standard one"),
            f"Success on the tempered network less that on the distilled one, {over}",
            **both(lambda arithmetic: song.gap((2, "tempered"), (2, "distilled"), arithmetic)),
            also=[(above(10), tempered["float32"], tempered["exact"])],
            lacking=every,
        )
    )
    return found


# Section 4: why -----------------------------------------------------------------------------------------------------


def _gradients(song: _Song) -> list[Claim]:
    saturated = [one.saturated for one in song.measured("tempered")]
    usable = Share(sum(one.total - one.count for one in saturated), sum(one.total for one in saturated))
    at_1, at_t, plain = _decades(song)
    highest, lowest = (_largest(song, role) for role in ("standard", "tempered"))
    same = len(highest) == len(lowest)
    fall = measures.mean(highest - lowest if same else torch.zeros(0))
    factor, total = measures.mean(plain - at_t), measures.mean(plain - at_1)
    return [
        claim(
            "Training at T = 20 makes the loss gradient of an image smaller by a factor of at least 10¹⁰.",
            "abstract; appendices A and B: from 9.8e−5 to 8.7e−38, 33 decades",
            "10 to 33 decades",
            above(10, "decades"),
            f"Fall of log₁₀ max |dL/dx| from the standard to the tempered network, over {fall.rows} images",
            exact=Number.of(fall, "decades"),
            lacking=song.far("standard", "tempered"),
        ),
        claim(
            "At T = 20 the average gradient is about 10⁻⁶⁰.",
            "section 4",
            "log₁₀ = −60",
            near(-60, 5),
            f"Mean of log₁₀ mean |dF/dx|, computed exactly, {song.over(len(at_1))}",
            exact=Number.of(measures.mean(at_1), ""),
            lacking=song.far("tempered"),
        ),
        claim(
            "Only about 30 % of the images can be used at T = 20: the others underflow.",
            "section 4",
            "30 %",
            near(30, 5, "%"),
            f"Test images whose float32 gradient is not exactly 0; {_losses(song, 'tempered')}",
            exact=Number.percent(usable),
            lacking=song.far("tempered"),
        ),
        claim(
            "It is the factor 1/T of the softmax that makes the gradient small.",
            "section 4, (4)",
            "1/T",
            above(round(total.value / 2, 1) if total.rows else 0, "decades, half of the second number"),
            f"Fall of log₁₀ mean |dF/dx| from the standard network to the tempered one, read at T = 20, factor "
            f"included. Read at T = 1, as it is attacked, where the factor is 1, it has fallen by "
            f"{Number.of(total, 'decades')}: the logits have grown, and the softmax saturates",
            exact=Number.of(factor, "decades"),
            lacking=song.far("standard", "tempered"),
        ),
    ]


_AMPLITUDES = (("tempered", "exact"), ("tempered", "trained"), ("standard", "exact"))


def _decades(song: _Song) -> tuple[Tensor, ...]:
    """Of each of _AMPLITUDES, (n,) log10 of each attacked image's mean |dF/dx|, all seeds, where none is 0 exactly."""
    values = [_joined([one.amplitudes[kind] for one in song.measured(role)]) for role, kind in _AMPLITUDES]
    if len({len(one) for one in values}) > 1:
        return (torch.zeros(0),) * len(_AMPLITUDES)
    finite = torch.stack(values).isfinite().all(0)
    return tuple(one[finite] for one in values)


def _largest(song: _Song, role: str) -> Tensor:
    """(n,) log10 of the largest |dL/dx| of each sample image, all seeds."""
    maps = [one.saliency for one in song.measured(role)]
    return _joined([one.log10.flatten(1).amax(1) for one in maps if one]) if all(maps) else torch.zeros(0)


def _losses(song: _Song, role: str) -> str:
    """'the float32 loss is not 0 for 3.2 % of the test images', with its interval."""
    from brittle.models.softmax import cross_entropy_float32

    losses = _joined([cross_entropy_float32(one.logits, one.labels) for one in song.measured(role)])
    share = Number.percent(measures.share(losses != 0))
    return f"the float32 loss, which algorithm 2 rests on, is not 0 for {share} of the test images"


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.zeros(0)
