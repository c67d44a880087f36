"""The claims table over reports made by hand, in which the outcome of every attack is known."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from made import ALL, model, report
from rich.console import Console

from brittle.errors import InputError
from brittle.report import claims, claims_table
from brittle.report.claims import Claim, Number, Rule, above, below, between, claim, near
from brittle.study.kinds.network.cell import Trained
from brittle.study.store.results import Report


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


def test_a_defence_that_only_float32_sees_is_contradicted_and_says_so():
    rows = claims.of("song-2017")(masked())
    for words in (
        "fools only 0.81 %",
        "fools only 1.31 %",
        "The tempered network is many times",
        "The distilled network is many",
        "It is the temp",
    ):
        assert (the(rows, words).verdict, the(rows, words).in_float32) == ("contradicted", "holds"), words
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
    assert the(rows, "Algorithm 1 fools two thirds").verdict == "undecided"  # 70 % (67 to 73), claimed 66 to 72
    assert the(rows, "Algorithm 2 fools more than 95 %").verdict == "holds"
    assert the(rows, "37 to 39 %").verdict == "contradicted"
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
    assert the(claims.of("song-2017")(of), "factor 1/T").verdict == "contradicted"
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
def test_what_was_not_computed_is_not_judged(models: list[str]):
    rows = claims.of("song-2017")(report(*(model(name, attacks={}) for name in models)))
    assert {claim.verdict for claim in rows} == {"not judged"}
    assert {claim.lacking for claim in rows} == {"this study has no number for it"}


def test_networks_without_attacks_have_their_accuracy_and_gradients_judged():
    three = [model(name, attacks={}) for name in ("standard", "tempered", "distilled")]
    rows = claims.of("song-2017")(report(*three))
    assert the(rows, "The distilled network's test accuracy is 99.07 %").verdict == "undecided"  # 99.0 (98.2 to 99.5)
    assert the(rows, "slightly more accurate").verdict == "undecided"  # the same images are right in both
    assert the(rows, "Algorithm 1 fools").verdict == "not judged"


@pytest.mark.parametrize(
    ("rule", "interval", "verdict"),
    [
        (above(0), (0.1, 0.5), "holds"),
        (above(0), (-0.1, 0.5), "undecided"),
        (above(0), (0, 0), "contradicted"),  # nothing is not more than nothing
        (above(1), (0.84, 1.36), "undecided"),
        (below(25, "%"), (13.8, 32.1), "undecided"),
        (below(25, "%"), (13.8, 24.9), "holds"),
        (below(25, "%"), (25, 32), "contradicted"),
        (between(4, 8), (4, 8), "holds"),
        (between(4, 8), (3, 5), "undecided"),
        (between(4, 8), (1, 12), "undecided"),
        (between(4, 8), (8.1, 9), "contradicted"),
        (near(99.57, 0.5, "%"), (99.3, 99.6), "holds"),
        (near(99.57, 0.5, "%"), (98, 99.9), "undecided"),  # covers the value, and is wide
        (near(99.57, 0.5, "%"), (98, 99), "contradicted"),
        (above(10), (130, math.inf), "holds"),
        (above(0), (math.nan, math.nan), "not judged"),
    ],
)
def test_one_burden_of_proof_holds_for_every_rule(rule: Rule, interval: tuple[float, float], verdict: str):
    assert rule(Number(sum(interval) / 2, *interval)) == verdict
    assert rule(None) == "not judged"


def test_a_rule_says_what_it_asks():
    said = [
        rule.words for rule in (above(0), below(25, "%"), between(5000, 10_000), near(-60, 5), near(99.57, 0.5, "%"))
    ]
    assert said == ["above 0", "below 25 %", "between 5 000 and 10 000", "within 5 of −60", "within 0.5 of 99.57 %"]


def test_a_claim_of_several_parts_holds_if_each_does():
    yes, no, open_ = Number(2, 1, 3), Number(-2, -3, -1), Number(1, -1, 3)

    def verdict(*numbers: Number | None) -> str:
        also = [(above(0), None, number) for number in numbers[1:]]
        return claim("It.", "here", "–", above(0), "What", exact=numbers[0], also=also).verdict

    assert verdict(yes, yes) == "holds"
    assert verdict(yes, open_) == "undecided"
    assert verdict(open_, no) == "contradicted"
    assert verdict(no, None) == "not judged"


def test_exact_arithmetic_decides_and_float32_only_where_it_is_alone():
    yes, no = Number(2, 1, 3), Number(-2, -3, -1)
    found = claim("It.", "here", "–", above(0), "What", exact=no, float32=yes)
    assert (found.verdict, found.in_float32) == ("contradicted", "holds")
    assert claim("It.", "here", "–", above(0), "What", exact=None, float32=yes).verdict == "holds"
    assert found.why == "What; holds if the 95 % interval lies above 0."


def short(epochs: int, attacked: Sequence[int] = ALL, right: int = 990) -> Report:
    """Song's three networks after so many epochs, attacked on so many images."""
    of = masked()
    trained = Trained({"epochs": epochs}, "float32", (), ())
    left_out = sorted(set(ALL) - set(attacked))
    models = [
        model(one.name, attacks={2: (ALL, ALL)}, wrong=left_out, right=right if one.name == "distilled" else 990)
        for one in of.models
    ]
    return report(*(replace(one, trained=trained) for one in models))


def test_a_run_far_from_the_paper_s_judges_nothing_and_says_why():
    rows = claims.of("song-2017")(short(1, attacked=range(11), right=520))
    assert {one.verdict for one in rows} == {"not judged"}
    harder = the(rows, "The distilled network is many times")
    assert harder.lacking == (
        "1 epoch where the paper has 50; distilled has not learned; 11 images where at least 100 are needed"
    )
    assert harder.why.startswith("Not judged: 1 epoch where the paper has 50; ")
    assert "distilled" not in the(rows, "The standard network's test accuracy").lacking


def test_half_of_the_paper_s_epochs_are_enough_to_judge():
    assert the(claims.of("song-2017")(short(25)), "The distilled network is many").verdict == "contradicted"
    assert the(claims.of("song-2017")(short(24)), "The distilled network is many").verdict == "not judged"


def test_a_defence_of_which_nothing_is_fooled_has_a_number_from_the_two_intervals():
    rows = claims.of("song-2017")(
        report(
            model("standard", attacks={2: (range(500), range(500))}),
            *(model(name, attacks={2: (range(0), range(500))}) for name in ("tempered", "distilled")),
        )
    )
    number = the(rows, "The tempered network is many").float32
    assert number is not None
    low = 0.46905 / (3.841459 / 1003.841459)  # Wilson: 500 of 1000, and 0 of 1000
    assert number.low == pytest.approx(low, rel=1e-3)
    assert str(number) == "more than 122.6 times"


def test_numbers_are_written_with_their_interval():
    assert str(Number(1.314, 1.1, 1.52, "%", 2)) == "1.31 % (1.10 to 1.52)"
    assert str(Number(-0.5, -1, 12345.6, "points")) == "−0.5 points (−1.0 to 12 345.6)"
    assert str(Number(math.inf, 20, math.inf, "times")) == "more than 20.0 times"
    assert str(Number(math.nan, math.nan, math.nan)) == "–"


def test_an_unknown_paper_is_named():
    with pytest.raises(InputError, match="unknown claims 'song-2018': did you mean 'song-2017'"):
        claims.of("song-2018")


def test_the_terminal_shows_every_claim():
    shown = claims_table(masked())
    assert shown is not None
    assert shown.row_count == len(claims.of("song-2017")(masked()))
    assert claims_table(report(paper=None)) is None


@pytest.mark.parametrize("width", [60, 80])
def test_every_verdict_is_whole_in_a_narrow_terminal(width: int):
    of = masked()
    text = Console(width=width, file=io.StringIO(), color_system=None)
    shown = claims_table(of)
    assert shown is not None
    text.print(shown)
    assert isinstance(text.file, io.StringIO)
    lines = text.file.getvalue().splitlines()
    verdicts = [one.verdict for one in claims.of("song-2017")(of)]
    begun = [line[:14].strip() for line in lines]
    words = {"holds", "contradicted", "undecided", "not judged"}
    found = [one for one, after in zip(begun, [*begun[1:], ""], strict=True) if one in words and after != "in float32"]
    assert found == verdicts
    assert max(map(len, lines)) <= width
    assert "…" not in text.file.getvalue()
    assert "nan" not in text.file.getvalue()
