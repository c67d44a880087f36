"""The claims of Song 2017, "Temperature of Output Layer rather than Distillation Technique ...", March 26 2017.

Success rates are those of the images that all three networks have right before the attack, as in the author's code, so
that two networks are compared on the same images; several seeds are taken together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from brittle import measures
from brittle.measures import Share
from brittle.report.claims import Claim, Number, Verdict, both, once, p_value
from brittle.report.contents import Found, Model, Report

T = 20.0  # the paper's only temperature
ROLES = ("standard", "tempered", "distilled")


def claims(report: Report) -> list[Claim]:
    """Each claim that the paper makes, in its order; what the study has no numbers for is not tested."""
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
            if attack.function.rpartition(".")[2] == f"song_{algorithm}" and arithmetic in attack.found:
                return attack.rows, attack.found[arithmetic]
        return None

    def over(self, rows: int) -> str:
        """'over 9 870 images, seed 0'."""
        seeds = ", ".join(map(str, self.seeds))
        counted = f"{rows:,}".replace(",", " ")
        return f"over {counted} images, seed{'s' if len(self.seeds) > 1 else ''} {seeds}"


def _success(
    song: _Song, algorithm: int, role: str, holds: Callable[[Number], bool]
) -> tuple[Number | None, Number | None, Verdict]:
    """How many images an algorithm fools, in both arithmetics, and the verdict."""

    def test(arithmetic: str) -> tuple[Number, bool] | None:
        fooled = song.fooled(algorithm, arithmetic)[role]
        if not len(fooled):
            return None
        number = Number.percent(measures.share(fooled))
        return number, holds(number)

    return both(test)


# Section 5: accuracy ------------------------------------------------------------------------------------------------


def _accuracies(song: _Song) -> list[Claim]:
    rows = []
    published = {"standard": 99.57, "distilled": 99.07, "tempered": 99.34}
    for role, percent in published.items():
        right = _right(song, role)
        number = Number.percent(measures.share(right)) if len(right) else None
        rows.append(
            Claim(
                f"The {role} network reads {percent} % of the test images right.",
                "section 5, (5) to (7)",
                f"{percent} %",
                *once(number, lambda n, p=percent: n.high >= p),
                f"Holds if the interval reaches it; {song.over(len(right))}.",
            )
        )
    pair = measures.paired(_right(song, "tempered"), _right(song, "distilled"))
    rows.append(
        Claim(
            "The tempered network is a bit more accurate than the distilled one.",
            "section 5",
            "0.27 points",
            *once(Number.of(pair.difference, "points", scale=100, digits=2), lambda n: n.low > 0),
            f"Holds if the interval lies above 0; McNemar's p = {p_value(pair.p)}, {song.over(pair.difference.rows)}.",
        )
    )
    return rows


def _right(song: _Song, role: str) -> Tensor:
    """(n,) bool: the test images that a network has right, all seeds."""
    measured = [song.models[role][seed].measured for seed in song.seeds]
    if not measured or any(one is None for one in measured):
        return torch.zeros(0, dtype=torch.bool)
    return torch.cat([one.logits.argmax(1) == one.labels for one in measured if one])


# Section 3: the algorithms, on the undefended network ---------------------------------------------------------------


def _attacks_on_standard(song: _Song) -> list[Claim]:
    def success(algorithm: int, low: float, high: float) -> tuple[Number | None, Number | None, Verdict]:
        return _success(song, algorithm, "standard", lambda number: number.meets(low, high))

    def rows(algorithm: int) -> str:
        return song.over(len(song.fooled(algorithm, "exact")["standard"]))

    found = [
        Claim(
            "Algorithm 1 fools two thirds of the images of the standard network within 100 pixels.",
            "section 3.1; 72 % in the draft",
            "66 %",
            *success(1, 66, 72),
            f"Holds if the interval meets 66 to 72 %; {rows(1)}.",
        )
    ]
    found += [
        Claim(
            f"Algorithm {algorithm} fools more than 95 % of them.",
            "section 3.1",
            "> 95 %",
            *success(algorithm, 95, 100),
            f"Holds if the interval reaches 95 %; {rows(algorithm)}.",
        )
        for algorithm in (2, 3)
    ]
    found.append(
        Claim(
            "Algorithm 2 fools 37 to 39 % of them, as the results have it where section 3.1 has more than 95 %.",
            "section 5",
            "37 to 39 %",
            *success(2, 37, 39.01),
            f"Holds if the interval meets 37 to 39.01 %; {rows(2)}. {_losses(song, 'standard')}.",
        )
    )
    found += [_more_from_an_image(song), _fewer_pixels(song)]
    return found


def _more_from_an_image(song: _Song) -> Claim:
    notes = []

    def test(arithmetic: str) -> tuple[Number, bool] | None:
        one, other = (song.fooled(algorithm, arithmetic)["standard"] for algorithm in (2, 1))
        if not len(one) or len(one) != len(other):
            return None
        pair = measures.paired(one, other)
        notes.append(f"{p_value(pair.p)} {arithmetic}")
        return Number.of(pair.difference, "points", scale=100), pair.difference.interval[0] > 0

    return Claim(
        "Algorithm 2, which also uses falling losses, fools more images than algorithm 1.",
        "section 3.2",
        "66 → 95 %",
        *both(test),
        f"Holds if the difference lies above 0; McNemar's p: {', '.join(notes) or '–'}.",
    )


def _fewer_pixels(song: _Song) -> Claim:
    """Over the images that both algorithms fool, those of all seeds."""
    counts = []

    def test(arithmetic: str) -> tuple[Number, bool] | None:
        saved = []
        for seed in song.seeds:
            found = [song.found("standard", seed, algorithm, arithmetic) for algorithm in (2, 4)]
            if any(one is None for one in found):
                return None
            flips = torch.full((2, song.report.rows), -1)
            for place, one in enumerate(found):
                assert one is not None
                rows, result = one
                fooled = result.packed["success"] & ~result.trivial
                flips[place, rows[fooled]] = (result.packed["pixels"] >= 0).sum(1)[fooled]
            both = (flips > 0).all(0)
            saved.append((flips[0] - flips[1])[both])
        if not saved:
            return None
        mean = measures.mean(torch.cat(saved))
        counts.append(f"{mean.rows:,}".replace(",", " "))
        return Number.of(mean, "pixels"), mean.interval[0] > 0

    float32, exact, verdict = both(test)
    return Claim(
        "Algorithm 4, with a new map after each pixel, is more effective than algorithm 2: it needs fewer pixels.",
        "section 3.2; not run by the author",
        "–",
        float32,
        exact,
        verdict,
        f"Pixels saved an image, over the images that both fool ({', '.join(counts) or '–'}); holds if above 0.",
    )


# Section 5: the defences --------------------------------------------------------------------------------------------


def _defences(song: _Song) -> list[Claim]:
    def times_harder(role: str, arithmetic: str) -> tuple[Number, bool] | None:
        fooled = song.fooled(2, arithmetic)
        if not len(fooled[role]):
            return None
        ratio = measures.paired(fooled["standard"], fooled[role]).ratio
        return None if math.isnan(ratio.value) else (Number.of(ratio, "times"), ratio.interval[1] >= 10)

    def temperature_decides(arithmetic: str) -> tuple[Number, bool] | None:
        fooled = song.fooled(2, arithmetic)
        harder = times_harder("tempered", arithmetic)
        if harder is None:
            return None
        gap = measures.paired(fooled["tempered"], fooled["distilled"]).difference
        return Number.of(gap, "points", scale=100), harder[1] and gap.interval[0] <= 0

    over = song.over(len(song.fooled(2, "exact")["standard"]))
    found = [
        Claim(
            f"Algorithm 2 fools {percent} % of the images of the {role} network.",
            "section 5; under 1.4 % in its last paragraph",
            f"{percent} %",
            *_success(song, 2, role, lambda number: number.low <= 1.4),
            f"Holds if the interval reaches down to 1.4 %; {over}.",
        )
        for role, percent in (("distilled", 1.31), ("tempered", 0.81))
    ]
    found += [
        Claim(
            f"The {role} network is many times harder to fool than the standard one.",
            "table 2, which prints the inverse; a factor of 10 in the abstract",
            f"{times} times",
            *both(lambda arithmetic, role=role: times_harder(role, arithmetic)),
            f"Success on the standard network over that on the {role} one; holds if the interval reaches 10; {over}.",
        )
        for role, times in (("distilled", 29.8), ("tempered", 44.1))
    ]
    found.append(
        Claim(
            "It is the temperature, not distillation, that makes the network robust.",
            "title, section 5",
            "−0.5 points",
            *both(temperature_decides),
            "Success on the tempered network less that on the distilled one; holds if the tempered network is 10 times "
            f"harder to fool than the standard one and no easier than the distilled one; {over}.",
        )
    )
    return found


# Section 4: why -----------------------------------------------------------------------------------------------------


def _gradients(song: _Song) -> list[Claim]:
    usable = _usable(song)
    at_1, at_t, plain = (_decades(song, *which) for which in _AMPLITUDES)
    maxima = [_largest(song, role) for role in ("standard", "tempered")]
    fall = measures.mean(maxima[0] - maxima[1])
    total = plain - at_1
    return [
        Claim(
            "Training at T = 20 makes the loss gradient of an image smaller by a factor of at least 10¹⁰.",
            "abstract; appendices A and B: from 9.8e−5 to 8.7e−38, 33 decades",
            "10 to 33 decades",
            *once(Number.of(fall, "decades"), lambda n: n.low >= 10),
            f"Fall of log₁₀ max |dL/dx| from the standard to the tempered network, over {fall.rows} images.",
        ),
        Claim(
            "At T = 20 the average gradient is about 10⁻⁶⁰.",
            "section 4",
            "log₁₀ = −60",
            *once(Number.of(measures.mean(at_1), ""), lambda n: n.meets(-65, -55)),
            f"Mean of log₁₀ mean |dF/dx|, computed exactly; holds if between −65 and −55; {song.over(len(at_1))}.",
        ),
        Claim(
            "Only about 30 % of the images can be used at T = 20: the others underflow.",
            "section 4",
            "30 %",
            *once(Number.percent(usable) if usable.total else None, lambda n: n.meets(25, 35)),
            "Test images whose float32 gradient is not exactly 0; holds if between 25 and 35 %. "
            f"{_losses(song, 'tempered')}.",
        ),
        Claim(
            "It is the factor 1/T of the softmax that makes the gradient small.",
            "section 4, (4)",
            "1/T",
            *once(
                Number.of(measures.mean(plain - at_t), "decades"),
                lambda n: n.high >= 0.5 * measures.mean(total).value,
            ),
            f"Fall of log₁₀ mean |dF/dx| from the standard network to the tempered one as it was trained, read at "
            f"T = 20, factor included. Read at T = 1, as it is attacked, where the factor is 1, it has fallen by "
            f"{Number.of(measures.mean(total), 'decades')}: the logits have grown, and the softmax saturates. Holds "
            f"if the first is half of the second.",
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
    """'The float32 loss is not 0 for 3.2 % of the test images', with its interval."""
    from brittle.softmax import cross_entropy_float32

    measured = _measured(song.models[role], song.seeds)
    losses = [cross_entropy_float32(one.logits, one.labels) for one in measured]
    share = measures.share(torch.cat(losses) != 0) if losses else Share(0, 0)
    return f"The float32 loss, which algorithm 2 rests on, is not 0 for {Number.percent(share)} of the test images"


def _measured(models: dict[int, Model], seeds: Sequence[int]) -> list:
    return [models[seed].measured for seed in seeds if models[seed].measured is not None]
