"""Sizes of smallest changes in words, over seeds, and in the verdict."""

from __future__ import annotations

import math

import pytest
import torch
from made import chain, model, network, report, sized

from brittle.attacks.result import Bound
from brittle.drawing import text as words
from brittle.measures import Mean, Share
from brittle.report import verdict_sentences
from brittle.study.kinds.attack import sizes
from brittle.study.kinds.lines import plain

BASE = torch.linspace(0.5, 1.5, 200, dtype=torch.float64)


@pytest.mark.parametrize(
    ("value", "like", "text"),
    [
        (1.1, None, "1.10"),
        (0.005234, None, "0.00523"),
        (117.4, None, "117"),
        (1.2, 117.4, "1"),
        (12345.6, None, "12 346"),
        (0.0, None, "0"),
        (math.nan, None, "–"),
        (1.0, math.nan, "1.00"),
    ],
)
def test_a_size_has_three_digits(value: float, like: float | None, text: str):
    assert words.size(value, like) == text


def test_a_phrase_gives_value_and_interval_in_the_same_digits():
    assert words.with_interval(Mean(0.0521, (0.05, 0.0549), 9)) == "0.0521 (0.0500 to 0.0549)"


def test_one_seed_is_the_attack_s_own_mean():
    attack = sized("l2", [0, 1, 2, 3, math.inf])
    assert sizes.together([(attack, "result")]) is attack.robustness["result"].mean


def test_rows_of_several_seeds_are_counted_once_each():
    found = sizes.together([(sized("l2", [0, 1, 2, math.inf]), "result"), (sized("l2", [3, 0, 0, 4]), "result")])
    assert (found.value, found.rows) == (2.5, 4)


def test_a_seed_that_says_the_same_again_makes_no_interval_narrower():
    """Rows are the same in all seeds: two that agree bear out no more than one."""
    one = sized("l2", BASE)
    low, high = sizes.together([(one, "result")]).interval
    assert sizes.together([(one, "result")] * 2).interval == pytest.approx((low, high), abs=0.1 * (high - low))


def test_seeds_that_differ_widen_the_interval():
    """Means 1 and 2: a quarter of the draws have the first seed alone, a quarter the second."""
    low, high = sizes.together([(sized("l2", BASE), "result"), (sized("l2", BASE + 1), "result")]).interval
    assert low < 1.01
    assert high > 1.99


def test_nothing_fooled_in_any_seed_is_not_a_number():
    assert math.isnan(sizes.together([(sized("l2", [0.0, math.inf]), "result")] * 2).value)


# In the verdict -----------------------------------------------------------------------------------------------------


def test_each_of_a_few_networks_has_its_mean_and_only_intervals_that_lie_apart_are_compared():
    models = [
        network("plain", 1, [sized("l2", BASE)]),
        network("same", 20, [sized("l2", BASE + 0.01)]),
        network("harder", 20, [sized("l2", BASE + 1)]),
        network("easier", 40, [sized("l2", BASE / 2)]),
    ]
    first, second = verdict_sentences(report(*models, paper=None))
    assert first == (
        "Harder T=20 needs larger perturbations than plain T=1 and easier T=40 needs smaller perturbations than plain "
        "T=1 to be fooled; for the other one that cannot be said."
    )
    assert second.startswith("In L2, the smallest perturbations that l2 finds are on average 1.00 (0.9")
    assert "for plain T=1, 1.01 (0.9" in second
    assert second.endswith("for easier T=40.")


def test_no_difference_is_claimed_where_intervals_overlap():
    models = [network("plain", 1, [sized("l2", BASE)]), network("same", 20, [sized("l2", BASE + 0.01)])]
    assert verdict_sentences(report(*models, paper=None))[0] == (
        "No network differs from plain T=1 in how large a perturbation fools it, as far as these images can show."
    )


def test_more_than_one_attack_must_agree():
    def both(more: float) -> list:
        return [sized("l2", BASE), sized("linf", BASE + more, norm=math.inf, function="carlini_linf")]

    for more in (1, -0.45):
        models = [network("plain", 1, both(0)), network("half", 20, both(more))]
        assert verdict_sentences(report(*models, paper=None))[0].startswith("No network differs under every attack")
    both_larger = [sized("l2", BASE + 1), sized("linf", BASE + 1, norm=math.inf, function="carlini_linf")]
    models = [network("plain", 1, both(0)), network("all", 20, both_larger)]
    assert verdict_sentences(report(*models, paper=None))[0] == (
        "All T=20 needs larger perturbations than plain T=1 to be fooled, by both attacks."
    )


def test_many_networks_are_told_by_the_two_that_lie_farthest_apart():
    models = chain(lambda generation, t, seed: [sized("l2", [generation + t / 100, math.inf])], seeds=(0, 1))
    sentences = verdict_sentences(report(*models, paper=None))
    assert sentences[-1] == (
        "In L2, the smallest perturbations that l2 finds are on average between 0.0100 (0.0100 to 0.0100) for teacher "
        "T=1 and 2.40 (2.40 to 2.40) for student T=40, without 24 images that were not fooled."
    )
    assert sentences[0] == "All eleven other networks need larger perturbations than teacher T=1 to be fooled."


def test_a_network_that_is_weaker_when_its_logits_are_divided_by_t_only_looks_robust():
    models = [
        network("plain", 1, [sized("l2", BASE), sized("l2 / T", BASE, over_temperature=True)]),
        network("hot", 40, [sized("l2", BASE + 1), sized("l2 / T", BASE, over_temperature=True)]),
    ]
    said = verdict_sentences(report(*models, paper=None))
    assert said[-1].startswith("Hot T=40 only looks as robust as l2 shows: on the logits over T it finds smaller per")
    assert not any("l2 / T finds" in sentence for sentence in said)


def test_networks_of_which_nothing_is_known_are_told_together():
    said = verdict_sentences(report(network("one", 1), network("two", 20), paper=None))
    assert said == ["One T=1 and two T=20: test accuracy 99.0 % (98.2 to 99.5)."]


# Attacks that do not minimise ---------------------------------------------------------------------------------------

PGD = Bound(math.inf, 0.3)


def test_an_attack_within_a_budget_is_told_by_the_robust_accuracy():
    attack = sized("pgd", [0.0, *[4.29] * 49], bound=PGD)
    assert verdict_sentences(report(network("plain", 1, [attack]), paper=None)) == [
        "Under pgd (L∞ ≤ 0.3) 0 % (0 to 7) of 50 test images are still classified correctly by plain T=1."
    ]


def test_robust_accuracy_counts_images_that_were_wrong_before_as_lost():
    attacks = [sized("pgd", [0.0, 1.0, *[math.inf] * 8], bound=PGD)], [sized("pgd", [0.0, *[1.0] * 9], bound=PGD)]
    models = [network(name, 1, each) for name, each in zip(("plain", "soft"), attacks, strict=True)]
    assert verdict_sentences(report(*models, paper=None)) == [
        "Under pgd (L∞ ≤ 0.3) the robust accuracy is 80 % (49 to 94) for plain T=1 and 0 % (0 to 28) for soft T=1."
    ]


def test_an_attack_that_says_nothing_is_told_by_the_share_fooled_and_by_no_norm():
    attack = sized("mine", [0.0, 1.0, 2.0, math.inf], norm=None, function="mylab.mine_l2")
    assert (attack.sized, attack.bounded, attack.robustness) == (False, False, {})
    assert verdict_sentences(report(network("plain", 1, [attack]), paper=None)) == [
        "Plain T=1: 67 % of the test images were fooled."
    ]
    assert sizes.aim(attack) == "–"


def test_what_an_attack_aims_at_is_written_with_its_norm():
    assert sizes.aim(sized("l2", [1.0])) == "smallest L2"
    assert sizes.aim(sized("pgd", [1.0], bound=PGD)) == "L∞ ≤ 0.3"
    assert sizes.aim(sized("few", [1.0], bound=Bound(0.0, 10))) == "≤ 10 pixels"


def test_a_targeted_attack_within_a_budget_has_no_robust_accuracy():
    attack = sized("pgd", [1.0, 2.0], bound=PGD, targets=torch.tensor([0, 1]))
    assert not attack.bounded


def test_images_that_were_all_wrong_before_are_not_called_an_unfinished_attack():
    attack = sized("mine", [0.0, 0.0], norm=None)
    assert verdict_sentences(report(network("plain", 1, [attack]), paper=None)) == [
        "Plain T=1: no test image was classified correctly before the attack."
    ]


# Networks that have not learned -------------------------------------------------------------------------------------


def test_a_network_that_has_not_learned_is_told_first_and_compared_with_nothing():
    dead = network("plain", 1, [sized("l2", BASE)], accuracy=Share(510, 1000))  # half of the labels are of one class
    of = report(dead, network("harder", 20, [sized("l2", BASE + 1)]), paper=None)
    assert plain(of) is None
    first, *others = verdict_sentences(of)
    assert first == (
        "Plain T=1 has not learned: its test accuracy is 51.0 % (47.9 % to 54.1 %), and the commonest class makes up "
        "50.0 % of the test images. Nothing is concluded from it."
    )
    assert not any("plain" in sentence for sentence in others)


def test_no_defence_is_compared_with_a_dead_reference():
    fooled = {1: (range(10), range(990))}
    models = [model("standard", attacks=fooled, right=520), model("tempered", attacks=fooled)]
    assert not any("harder to fool" in sentence for sentence in verdict_sentences(report(*models, paper=None)))
    models[0] = model("standard", attacks=fooled)
    assert any("harder to fool" in sentence for sentence in verdict_sentences(report(*models, paper=None)))
