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
from brittle.report.claims import Claim, Number, above, below, between, both, claim, far_from, near, p_value
from brittle.report.contents import Found, Model, Report

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
        return {role: torch.cat(found) if found else torch.zeros(0, dtype=torch.bool) for role, found in parts.items()}

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

    def success(self, role: str, algorithm: int) -> dict[str, Number | None]:
        """How many images an algorithm fools, in both arithmetics."""

        def number(arithmetic: str) -> Number | None:
            fooled = self.fooled(algorithm, arithmetic)[role]
            return Number.percent(measures.share(fooled)) if len(fooled) else None

        return both(number)

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
        right = _right(song, role)
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
    pair = measures.paired(_right(song, "tempered"), _right(song, "distilled"))
    rows.append(
        claim(
            "The tempered network is slightly more accurate than the distilled one.",
            "section 5",
            "0.27 points",
            above(0),
            f"Difference of the test accuracies, McNemar's p = {p_value(pair.p)}, {song.over(pair.difference.rows)}",
            exact=Number.of(pair.difference, "points", scale=100, digits=2),
            lacking=song.far("tempered", "distilled"),
        )
    )
    return rows


def _right(song: _Song, role: str) -> Tensor:
    """(n,) bool: the test images that a network classifies correctly, all seeds."""
    measured = [song.models[role][seed].measured for seed in song.seeds]
    if not measured or any(one is None for one in measured):
        return torch.zeros(0, dtype=torch.bool)
    return torch.cat([one.logits.argmax(1) == one.labels for one in measured if one])


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
    return [*found, _more_from_an_image(song), _fewer_pixels(song)]


def _more_from_an_image(song: _Song) -> Claim:
    notes = []

    def number(arithmetic: str) -> Number | None:
        one, other = (song.fooled(algorithm, arithmetic)["standard"] for algorithm in (2, 1))
        if not len(one) or len(one) != len(other):
            return None
        pair = measures.paired(one, other)
        notes.append(f"{p_value(pair.p)} {arithmetic}")
        return Number.of(pair.difference, "points", scale=100)

    numbers = both(number)
    return claim(
        "Algorithm 2, which also uses falling losses, fools more images than algorithm 1.",
        "section 3.2",
        "66 → 95 %",
        above(0),
        f"Difference of the shares fooled, McNemar's p: {', '.join(notes) or '–'}",
        **numbers,
        lacking=song.far("standard", algorithm=2),
    )


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

    def gap(arithmetic: str) -> Number | None:
        fooled = song.fooled(2, arithmetic)
        difference = measures.paired(fooled["tempered"], fooled["distilled"]).difference
        return Number.of(difference, "points", scale=100) if difference.rows else None

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
            **both(gap),
            also=[(above(10), tempered["float32"], tempered["exact"])],
            lacking=every,
        )
    )
    return found


# Section 4: why -----------------------------------------------------------------------------------------------------


def _gradients(song: _Song) -> list[Claim]:
    usable = _usable(song)
    at_1, at_t, plain = (_decades(song, *which) for which in _AMPLITUDES)
    maxima = [_largest(song, role) for role in ("standard", "tempered")]
    fall, factor, total = (measures.mean(values) for values in (maxima[0] - maxima[1], plain - at_t, plain - at_1))
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


def _decades(song: _Song, role: str, kind: str) -> Tensor:
    """(n,) log10 of each attacked image's mean |dF/dx|, all seeds; images for which it is 0 exactly are left out."""
    if not song.seeds or any(song.models[r][seed].measured is None for r, _ in _AMPLITUDES for seed in song.seeds):
        return torch.zeros(0, dtype=torch.float64)
    finite, wanted = [], []
    for seed in song.seeds:
        values = {which: _amplitudes(song.models[which[0]][seed], which[1]) for which in _AMPLITUDES}
        finite.append(torch.stack(list(values.values())).isfinite().all(0))
        wanted.append(values[role, kind])
    return torch.cat(wanted)[torch.cat(finite)]


def _amplitudes(model: Model, kind: str) -> Tensor:
    assert model.measured is not None
    return model.measured.amplitudes[kind]


def _largest(song: _Song, role: str) -> Tensor:
    """(n,) log10 of the largest |dL/dx| of each sample image, all seeds."""
    maps = [song.models[role][seed].measured for seed in song.seeds]
    found = [one.saliency.log10.flatten(1).amax(1) for one in maps if one and one.saliency]
    return torch.cat(found) if found and len(found) == len(maps) else torch.zeros(0, dtype=torch.float64)


def _usable(song: _Song) -> Share:
    """Test images whose published gradient is not exactly zero, on the tempered network."""
    saturated = [one.saturated for one in _measured(song.models["tempered"], song.seeds)]
    total = sum(one.total for one in saturated)
    return Share(total - sum(one.count for one in saturated), total)


def _losses(song: _Song, role: str) -> str:
    """'the float32 loss is not 0 for 3.2 % of the test images', with its interval."""
    from brittle.softmax import cross_entropy_float32

    measured = _measured(song.models[role], song.seeds)
    losses = [cross_entropy_float32(one.logits, one.labels) for one in measured]
    share = measures.share(torch.cat(losses) != 0) if losses else Share(0, 0)
    return f"the float32 loss, which algorithm 2 rests on, is not 0 for {Number.percent(share)} of the test images"


def _measured(models: dict[int, Model], seeds: Sequence[int]) -> list:
    return [models[seed].measured for seed in seeds if models[seed].measured is not None]
