"""The claims of Mandal and Guo over chains made by hand, in which every size is known."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import pytest
import torch

from brittle.measures import Mean, Share
from brittle.report import claims
from brittle.report.claims import Claim
from brittle.study.kinds.attack.result import Attack, Found
from brittle.study.kinds.measure.result import Measured
from brittle.study.store.results import Model, Provenance, Report

N = 200  # test images, all attacked
NAMES = ("teacher", "assistant", "student", "fourth")
ATTACKS = {0.0: "carlini_l0", 2.0: "carlini_l2", math.inf: "carlini_linf"}
Size = Callable[[float, int, int, float], float]  # temperature, generation, seed, norm -> size of every change


def attack(p: float, size: float, *, over: bool = False, targets: bool = False) -> Attack:
    """Every row needs `size` in the norm p, but row 0, which was wrong before, and row 1, which withstood."""
    sizes = {q: torch.full((N,), size * (1 if q == p else {0.0: 3, 2.0: 1, math.inf: 2}[p])).double() for q in ATTACKS}
    for values in sizes.values():
        values[0], values[1] = 0.0, torch.inf
    packed = {"success": sizes[p].isfinite()} | ({"targets": torch.zeros(N)} if targets else {})
    found = Found("result", Share(N - 2, N - 1), Share(1, N), None, None, sizes, 1, 1, sizes[p] == 0, packed, None)
    label = ATTACKS[p] + ("_over_T" if over else "") + ("_every" if targets else "")
    return Attack(
        label, label, f"brittle.attacks.{ATTACKS[p]}", {}, p, None, over, torch.arange(N), {"result": found}, True
    )


def network(
    name: str,
    temperature: float,
    generation: int,
    seed: int,
    size: Size,
    *,
    over: float = 1.0,
    wrong: int = 10,
    insensitive: int = 0,
    trained: float = -9.0,
) -> Model:
    """`wrong` images are misread; `insensitive` have a gradient below 1e-10 in float32, half as many exactly."""
    labels = torch.arange(N) % 2
    logits = 5 * torch.nn.functional.one_hot(torch.where(torch.arange(N) < wrong, 1 - labels, labels), 2).float()
    exact = torch.full((N,), -5.0, dtype=torch.float64)
    float32 = exact.clone()
    float32[:insensitive], exact[: insensitive // 2] = -torch.inf, -20.0
    measured = Measured(
        accuracy=Share(N - wrong, N),
        saturated=Share(0, N),
        confidence=Mean(1, (1, 1), N),
        sensitivity={},
        amplitudes={"float32": float32, "exact": exact, "trained": torch.full((N,), trained, dtype=torch.float64)},
        logits=logits,
        labels=labels,
        saliency=None,
    )
    attacks = [attack(p, 100.0, targets=True) for p in ATTACKS]  # aimed at classes: not what robustness is
    for p in ATTACKS:
        attacks.append(attack(p, size(temperature, generation, seed, p)))
        if temperature != 1:
            attacks.append(attack(p, over * size(temperature, generation, seed, p), over=True))
    label = f"{name} T={temperature:g}"
    teacher = NAMES[generation - 1] if generation else None
    axes = {"temperature": temperature}
    return Model(name, label, label, seed, axes, temperature, teacher, generation, None, measured, tuple(attacks))


def report(*models: Model) -> Report:
    nothing = Provenance({}, 0.0, "", "")
    return Report("made", "made", "", "mandal-guo", "mnist", "", ("0", "1"), None, None, models, 1, (), nothing)


def constantly(value: float, *_: float) -> float:
    return value


def chains(
    size: Size, *, seeds: Sequence[int] = (0, 1, 2), generations: int = 3, control: float | None = None, **hot: float
) -> list[Claim]:
    """`hot`: what is different at T = 40."""
    models = [
        network(NAMES[g], t, g, seed, size, **(hot if t == 40 else {}))  # type: ignore[arg-type]
        for seed in seeds
        for t in (1.0, 40.0)
        for g in range(generations)
    ]
    if control is not None:
        models += [network("control", 1.0, 0, seed, functools.partial(constantly, control)) for seed in seeds]
    return claims.of("mandal-guo")(report(*models))


def the(rows: Sequence[Claim], *words: str) -> Claim:
    found = [claim for claim in rows if all(word in claim.says for word in words)]
    assert len(found) == 1, words
    return found[0]


def test_a_rise_with_the_temperature_is_a_ratio_with_students_interval_over_the_seeds():
    rows = chains(lambda t, g, seed, p: 1.0 if t == 1 else (1.2, 1.3, 1.4)[seed])
    for p in ("L0", "L2", "L∞"):
        claim = the(rows, p, "rises with the temperature")
        number = claim.exact
        assert claim.float32 is None
        assert number is not None
        logs = [math.log(r) for r in (1.2, 1.3, 1.4)]
        middle = sum(logs) / 3
        reach = 4.302653 * math.sqrt(sum((x - middle) ** 2 for x in logs) / 2 / 3)  # Student, two degrees of freedom
        assert number.value == pytest.approx(math.exp(middle))
        assert (number.low, number.high) == (
            pytest.approx(math.exp(middle - reach)),
            pytest.approx(math.exp(middle + reach)),
        )
        assert claim.verdict == "holds"
        assert "9 pairs of networks, 3 seeds" in claim.why


def test_seeds_that_disagree_bear_out_no_rise():
    rows = chains(lambda t, g, seed, p: 1.0 if t == 1 else (0.9, 1.3, 1.4)[seed])
    assert the(rows, "L2", "rises with the temperature").verdict == "undecided"


def test_with_one_seed_the_images_have_the_interval():
    number = the(chains(lambda t, *_: t, seeds=[3]), "L2", "rises with the temperature").exact
    assert number is not None
    assert (number.low, number.high) == (pytest.approx(40), pytest.approx(40))  # all images alike


def test_a_student_is_set_beside_its_teacher_its_assistant_and_the_control():
    rows = chains(lambda t, g, seed, p: (1.0, 1.5, 1.5)[g], control=2.0)
    assert the(rows, "L2", "than its teacher").verdict == "holds"
    assert the(rows, "L2", "than the assistant itself").verdict == "contradicted"
    against = the(rows, "L2", "trained as long")
    assert against.verdict == "contradicted"
    assert against.exact is not None
    assert against.exact.value == pytest.approx(0.75)
    assert the(rows, "L2", "generation to generation").verdict == "not judged"


def test_many_generations_are_judged_by_the_last():
    rows = chains(lambda t, g, seed, p: 1 + 0.1 * g, generations=4)
    claim = the(rows, "L2", "generation to generation")
    assert claim.verdict == "holds"
    assert claim.exact is not None
    assert claim.exact.value == pytest.approx(1.3)


@pytest.mark.parametrize(("over", "verdict"), [(1.01, "holds"), (0.7, "contradicted")])
def test_the_same_attack_on_logits_over_t_tells_the_network_from_the_optimiser(over: float, verdict: str):
    claim = the(chains(lambda *_: 1.0, over=over), "L∞", "difficulty of its own")
    assert claim.verdict == verdict
    assert claim.exact is not None
    assert claim.exact.value == pytest.approx(over)


def test_the_attacks_are_ordered_by_what_they_change_in_l2():
    claim = the(chains(lambda *_: 1.0), "finds the smallest")
    assert claim.exact is not None
    assert claim.exact.value == pytest.approx(3)
    assert "L∞ over L2: 2.00 times" in claim.why
    assert claim.verdict == "holds"


def test_a_share_of_small_gradients_that_only_float32_has_is_an_artefact():
    rows = chains(lambda *_: 1.0, insensitive=100)
    share = the(rows, "below 10⁻¹⁰")
    assert share.verdict == "holds"
    assert (share.float32 is not None, share.exact is not None) == (True, True)
    assert share.float32 is not None
    assert share.exact is not None
    assert (share.float32.value, share.exact.value) == (pytest.approx(50), pytest.approx(25))
    only_there = the(chains(lambda *_: 1.0, insensitive=1), "below 10⁻¹⁰")
    assert (only_there.verdict, only_there.in_float32) == ("contradicted", "holds")


def test_the_factor_1_over_t_is_read_where_it_applies():
    assert the(chains(lambda *_: 1.0, trained=-8.0), "factor 1/T").verdict == "contradicted"
    claim = the(chains(lambda *_: 1.0, trained=-10.5), "factor 1/T")
    assert claim.verdict == "holds"
    assert claim.exact is not None
    assert claim.exact.value == pytest.approx(-1.5)


def test_accuracy_is_compared_image_by_image():
    rows = chains(lambda *_: 1.0, wrong=14)
    falls = the(rows, "accuracy falls")
    assert falls.exact is not None
    assert falls.exact.value == pytest.approx(-2)
    assert falls.verdict == "holds"
    assert the(rows, "very little").verdict == "contradicted"  # 2 points, not 0.15
    assert the(chains(lambda *_: 1.0), "very little").verdict == "holds"
    base = the(rows, "test accuracy at T = 1")
    assert base.published == "99.38 %"
    assert base.exact is not None
    assert base.exact.value == pytest.approx(95)


def test_what_was_not_computed_is_not_tested():
    for rows in (claims.of("mandal-guo")(report()), chains(lambda *_: 1.0, generations=1, seeds=[0])):
        assert {claim.verdict for claim in rows if "student" in claim.says} == {"not judged"}
    assert {claim.verdict for claim in claims.of("mandal-guo")(report())} == {"not judged"}
