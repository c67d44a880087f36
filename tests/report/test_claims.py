"""The claims table over reports made by hand, in which the outcome of every attack is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from made import ALL, model, report

from brittle.errors import InputError
from brittle.report import claims, claims_table
from brittle.report.claims import Claim, Number, judged
from brittle.report.contents import Report


def masked() -> Report:
    """The paper's result in float32, and nothing left of it when computed exactly."""
    of = {1: (range(700), range(700)), 2: (ALL, ALL), 3: (ALL, ALL), 4: (ALL, ALL)}
    hidden = {n: (range(10), ALL) for n in of}
    return report(
        model("standard", attacks=of, wrong=(0, 1), flips={2: 9, 4: 5}),
        model("tempered", attacks=hidden, wrong=(1, 2), amplitude=-60, trained=-3.2, used=300),
        model("distilled", attacks=hidden, wrong=(3,), amplitude=-70, trained=-3.2),
    )


def the(rows: Sequence[Claim], words: str) -> Claim:
    found = [claim for claim in rows if words in claim.says]
    assert len(found) == 1, words
    return found[0]


def test_a_defence_that_only_float32_sees_is_an_artefact():
    rows = claims.of("song-2017")(masked())
    for words in (
        "0.81 %",
        "1.31 %",
        "The tempered network is many times",
        "The distilled network is many",
        "It is the temp",
    ):
        assert the(rows, words).verdict == "artefact of float32", words
    harder = the(rows, "The tempered network is many times")
    assert harder.float32 is not None
    assert harder.float32.value == pytest.approx(996 / 6)  # of rows 0 to 9, four are wrong in one of the networks
    assert harder.exact is not None
    assert harder.exact.value == 1


def test_rows_that_any_of_the_three_has_wrong_are_left_out():
    rows = claims.of("song-2017")(masked())
    fooled = the(rows, "0.81 %").float32
    assert fooled is not None
    assert fooled.value == pytest.approx(100 * 6 / 996)
    assert "over 996 images, seed 0" in the(rows, "0.81 %").why


def test_a_claim_that_is_so_in_exact_arithmetic_holds():
    rows = claims.of("song-2017")(masked())
    assert the(rows, "Algorithm 1 fools two thirds").verdict == "holds"
    assert the(rows, "Algorithm 2 fools more than 95 %").verdict == "holds"
    assert the(rows, "37 to 39 %").verdict == "does not hold"
    assert the(rows, "about 30 %").verdict == "holds"
    assert the(rows, "about 10⁻⁶⁰").verdict == "holds"
    assert the(rows, "of at least 10¹⁰").exact == Number(57, 57, 57, "decades")
    assert the(rows, "Algorithm 2, which also").verdict == "holds"


def test_pixels_saved_are_counted_over_the_images_that_both_algorithms_fool():
    saved = the(claims.of("song-2017")(masked()), "Algorithm 4")
    assert saved.exact == Number(4, 4, 4, "pixels")
    assert "(998, 998)" in saved.why


def test_the_factor_1_over_t_is_not_the_cause_when_the_gradient_only_vanishes_at_another_temperature():
    of = masked()
    assert the(claims.of("song-2017")(of), "factor 1/T").verdict == "does not hold"
    guilty = report(of.models[0], model("tempered", attacks={}, amplitude=-60, trained=-50), of.models[2])
    assert the(claims.of("song-2017")(guilty), "factor 1/T").verdict == "holds"


def test_seeds_are_taken_together():
    both = [
        model(name, attacks={2: (rows, rows)}, seed=seed)
        for seed, rows in ((0, range(100)), (1, range(300)))
        for name in ("standard", "tempered", "distilled")
    ]
    fooled = the(claims.of("song-2017")(report(*both)), "37 to 39 %")
    assert fooled.exact is not None
    assert fooled.exact.value == pytest.approx(20)
    assert "over 2 000 images, seeds 0, 1" in fooled.why


@pytest.mark.parametrize("models", [[], ["standard"], ["standard", "tempered"]])
def test_what_was_not_computed_is_not_tested(models: list[str]):
    rows = claims.of("song-2017")(report(*(model(name, attacks={}) for name in models)))
    assert {claim.verdict for claim in rows} == {"not tested"}


def test_networks_without_attacks_have_their_accuracy_and_gradients_judged():
    three = [model(name, attacks={}) for name in ("standard", "tempered", "distilled")]
    rows = claims.of("song-2017")(report(*three))
    assert the(rows, "The distilled network reads 99.07 %").verdict == "holds"  # ours: 99.0 (98.2 to 99.5)
    assert the(rows, "The standard network reads 99.57 %").verdict == "does not hold"
    assert the(rows, "Algorithm 1 fools").verdict == "not tested"


@pytest.mark.parametrize(
    ("float32", "exact", "verdict"),
    [
        (True, True, "holds"),
        (False, True, "holds"),
        (True, False, "artefact of float32"),
        (False, False, "does not hold"),
        (None, True, "holds"),
        (None, False, "does not hold"),
        (True, None, "holds"),
        (None, None, "not tested"),
    ],
)
def test_the_verdict_is_that_of_exact_arithmetic(float32: bool | None, exact: bool | None, verdict: str):
    assert judged(float32, exact) == verdict


def test_numbers_are_written_with_their_interval():
    assert str(Number(1.314, 1.1, 1.52, "%", 2)) == "1.31 % (1.10 to 1.52)"
    assert str(Number(-0.5, -1, 12345.6, "points")) == "−0.5 points (−1.0 to 12 345.6)"
    assert str(Number(math.inf, 20, math.inf, "times")) == "∞ times (20.0 to ∞)"
    assert str(Number(math.nan, math.nan, math.nan)) == "–"


def test_an_unknown_paper_is_named():
    with pytest.raises(InputError, match="unknown claims 'song-2018': did you mean 'song-2017'"):
        claims.of("song-2018")


def test_the_terminal_shows_every_claim():
    shown = claims_table(masked())
    assert shown is not None
    assert shown.row_count == len(claims.of("song-2017")(masked()))
    assert claims_table(report(paper=None)) is None
