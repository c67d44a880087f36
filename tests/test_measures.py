import math

import numpy as np
import pytest
import torch
from problems import convnet, linear, pictures
from scipy.stats import binomtest

from brittle import measures
from brittle.attacks.result import AttackResult
from brittle.errors import InputError


def result(success, flips, *, trivial=()):
    """An AttackResult of 1 x 4 x 4 images with so many pixels set in each row; trivial rows were wrong at the start."""
    rows = len(success)
    images = torch.full((rows, 1, 4, 4), 0.5)
    pixels = torch.full((rows, 16), -1)
    adversarial = images.clone()
    for row, count in enumerate(flips):
        pixels[row, :count] = torch.arange(count)
        adversarial[row].view(-1)[:count] = 1
    done = torch.tensor(success)
    labels = torch.zeros(rows, dtype=torch.int64)
    return AttackResult(
        images, labels, None, adversarial, done, done.long(), forwards=labels, backwards=labels, pixels=pixels
    )


@pytest.mark.parametrize(("count", "total"), [(0, 10), (1, 41), (2, 41), (50, 100), (100, 100), (9957, 10000)])
def test_the_interval_is_wilsons(count, total):
    expected = binomtest(count, total).proportion_ci(method="wilson")
    share = measures.Share(count, total)
    assert share.interval == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert share.value == count / total


def test_a_share_of_no_rows_is_not_a_number():
    share = measures.Share(0, 0)
    assert math.isnan(share.value)
    assert all(math.isnan(end) for end in share.interval)
    assert math.isnan(measures.mean(torch.empty(0)).value)


def test_the_bootstrap_interval_is_that_of_the_normal_mean():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)) * 2 + 5
    found = measures.mean(values)
    half = 1.96 * float(values.std()) / 20
    centre = float(values.mean())
    assert found.interval == pytest.approx((centre - half, centre + half), abs=0.15 * half)
    assert found.value == pytest.approx(centre)


def test_success_leaves_out_rows_that_were_wrong_from_the_start():
    found = result([True, True, False, True], [0, 3, 0, 5])
    assert found.trivial.tolist() == [True, False, False, False]
    assert measures.success_rate(found) == measures.Share(2, 3)


def test_flips_are_counted_over_successes_with_the_failures_beside():
    flips = measures.flips_needed(result([True, True, False, True, True], [0, 2, 0, 4, 12]))
    assert (flips.mean, flips.median, flips.maximum) == (6, 4, 12)
    assert flips.quartiles == (3, 8)
    assert (flips.successes, flips.failures) == (3, 1)


def test_flips_of_no_success_are_not_a_number():
    flips = measures.flips_needed(result([False, False], [0, 0]))
    assert math.isnan(flips.mean)
    assert (flips.successes, flips.failures) == (0, 2)


def test_the_success_curve_counts_rows_fooled_so_far():
    curve = measures.success_curve(result([True, True, False, True, True], [0, 1, 0, 3, 3]), trials=4)
    assert curve.tolist() == [0, 0.25, 0.25, 0.75, 0.75]


def test_a_saturated_row_is_exactly_one_hot():
    # float32 e^-88 is a denormal number, not zero; e^-200 is zero. 1 - e^-20 rounds to 1, but e^-20 is not zero.
    logits = torch.tensor([[200.0, 0, 0], [88.0, 0, 0], [20.0, 0, 0], [0.0, 0, 0]])
    assert measures.saturated(logits) == measures.Share(1, 4)


def test_accuracy_and_confidence_by_hand():
    logits = torch.tensor([[math.log(3), 0.0], [0.0, math.log(9)], [math.log(4), 0.0]])
    labels = torch.tensor([0, 1, 1])
    assert measures.accuracy(logits, labels) == measures.Share(2, 3)
    assert measures.confidence(logits, labels).value == pytest.approx((0.75 + 0.9 + 0) / 3)


def test_amplitudes_of_a_linear_model_are_its_closed_form():
    model = linear(classes=3, shape=(1, 2, 2), scale=2.0)
    images = pictures(5, (1, 2, 2))
    logits = model(images).detach().double()
    F = torch.softmax(logits, 1)
    weight = next(model[1].parameters()).detach().double()
    jacobian = torch.einsum("bi,bil,ld->bid", F, torch.eye(3, dtype=torch.float64) - F[:, None], weight)
    expected = jacobian.abs().mean((1, 2)).log10()
    assert torch.allclose(measures.gradient_amplitudes(model, images), expected, atol=1e-5)
    assert torch.allclose(measures.gradient_amplitudes(model, images, arithmetic="float32"), expected, atol=1e-4)


def test_amplitudes_do_not_underflow_where_float32_does():
    images = pictures(6)
    exact = measures.gradient_amplitudes(convnet(gain=1e4), images)
    rounded = measures.gradient_amplitudes(convnet(gain=1e4), images, arithmetic="float32")
    assert torch.isfinite(exact).all()
    assert (exact < -45).any()
    assert torch.isneginf(rounded[exact < -46]).all()
    assert measures.sensitivity(exact).count == (exact < -10).sum()


def test_amplitudes_do_not_depend_on_the_batch():
    images = pictures(7)
    whole = measures.gradient_amplitudes(convnet(), images, batch_size=7)
    assert torch.allclose(whole, measures.gradient_amplitudes(convnet(), images, batch_size=2), atol=1e-6)


# Two models on the same rows ----------------------------------------------------------------------------------------


def outcomes(both: int, one: int, other: int, neither: int) -> tuple[torch.Tensor, torch.Tensor]:
    table = [(True, True)] * both + [(True, False)] * one + [(False, True)] * other + [(False, False)] * neither
    first, second = zip(*table, strict=True)
    return torch.tensor(first), torch.tensor(second)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [  # Newcombe 1998, table III, method 10
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.0562, 0.3290),
        ((0, 29, 1, 0), 0.6666, 0.9882),
        ((30, 0, 0, 0), -0.1135, 0.1135),
    ],
)
def test_a_paired_difference_has_newcombes_published_interval(table: tuple[int, ...], low: float, high: float):
    found = measures.paired(*outcomes(*table))
    assert (found.both, found.one, found.other, found.neither) == table
    assert found.difference.value == pytest.approx((table[1] - table[2]) / sum(table))
    assert found.difference.interval == pytest.approx((low, high), abs=6e-4)


def test_a_paired_difference_corrects_its_correlation_for_continuity():
    """By hand: both shares are 0.2 with Wilson's 0.0567 to 0.5098, and phi is (1 * 7 - 1 * 1 - 10 / 2) / 16."""
    below, above = 0.2 - 0.05668, 0.50984 - 0.2
    half = math.sqrt(below**2 - 2 / 16 * below * above + above**2)
    found = measures.paired(*outcomes(1, 1, 1, 7))
    assert found.difference.interval == pytest.approx((-half, half), abs=1e-4)


def test_mcnemars_test_is_the_binomial_test_of_the_rows_that_differ():
    found = measures.paired(*outcomes(50, 9, 1, 40))
    assert found.p == pytest.approx(2 * (1 + 10) / 2**10)
    assert measures.paired(*outcomes(50, 0, 0, 40)).p == 1


def test_a_ratio_of_shares_has_about_its_delta_methods_interval():
    """Of independent shares 0.4 and 0.02 of 10,000 rows: log ratio 2.996, its variance 0.6/4000 + 0.98/200."""
    found = measures.paired(*outcomes(80, 3920, 120, 5880))
    half = 1.96 * math.sqrt(0.6 / 4000 + 0.98 / 200)
    assert found.ratio.value == pytest.approx(20)
    assert found.ratio.interval == pytest.approx((20 * math.exp(-half), 20 * math.exp(half)), rel=0.03)


def test_no_rows_and_no_successes_are_not_an_error():
    nothing = torch.zeros(0, dtype=torch.bool)
    assert math.isnan(measures.paired(nothing, nothing).difference.value)
    never = torch.zeros(5, dtype=torch.bool)
    assert math.isnan(measures.paired(never, never).ratio.value)
    assert measures.paired(~never, never).ratio.value == math.inf


# Smallest changes ---------------------------------------------------------------------------------------------------


def changed(changes: list[list[float]], success: list[bool]) -> AttackResult:
    """Rows of 1 x 1 x 2 grey images whose two pixels are changed by so much."""
    images = torch.full((len(changes), 1, 1, 2), 0.5)
    adversarial = images + torch.tensor(changes).view(-1, 1, 1, 2)
    none = torch.zeros(len(changes), dtype=torch.int64)
    return AttackResult(images, none, None, adversarial, torch.tensor(success), none, forwards=none, backwards=none)


def test_distances_are_0_of_rows_wrong_before_and_infinite_of_those_that_withstood():
    found = changed([[0.0, 0.0], [0.3, -0.4], [0.25, 0.0], [0.0, 0.0]], [True, True, True, False])
    assert measures.distances(found, 0).tolist() == [0, 2, 1, math.inf]
    assert measures.distances(found, 2).tolist() == pytest.approx([0, 0.5, 0.25, math.inf])
    assert measures.distances(found, math.inf).tolist() == pytest.approx([0, 0.4, 0.25, math.inf])


def test_robustness_is_that_of_the_rows_that_were_right_and_were_fooled():
    found = measures.robustness(changed([[0, 0], [0.1, 0], [0.2, 0], [0.4, 0], [0, 0]], [True] * 4 + [False]))
    assert found.mean.value == pytest.approx(0.7 / 3)
    assert (found.median.value, found.maximum.value) == (pytest.approx(0.2), pytest.approx(0.4))
    assert found.over_all.value == pytest.approx(0.7 / 4)
    assert (found.mean.rows, found.over_all.rows, found.trivial, found.failures) == (3, 4, 1, 1)


def test_robustness_of_nothing_fooled_is_not_a_number():
    found = measures.robustness_of(torch.tensor([0.0, math.inf]))
    assert all(math.isnan(one.value) for one in (found.mean, found.median, found.maximum))
    assert (found.over_all.value, found.trivial, found.failures) == (0, 1, 1)


@pytest.mark.parametrize("rows", [1, 2, 30, 31])
def test_median_and_maximum_have_the_intervals_of_a_bootstrap_drawn_row_by_row(rows: int):
    values = torch.arange(1.0, rows + 1) ** 2
    found = measures.robustness_of(values, resamples=20_000)
    draws = values.numpy()[np.random.default_rng(7).integers(0, rows, (20_000, rows))]
    for mine, theirs in ((found.median, np.median(draws, 1)), (found.maximum, draws.max(1))):
        low, high = np.quantile(theirs, [0.025, 0.975])
        assert mine.interval == pytest.approx((low, high), rel=0.08)


def test_a_mean_s_draws_do_not_depend_on_how_many_are_made_at_once():
    values = torch.rand(700, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    random = np.random.default_rng(0)
    drawn = [values.numpy()[random.integers(0, 700, 700)].mean() for _ in range(2000)]
    assert measures.mean(values).interval == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), rel=1e-12)


def test_survival_is_the_share_that_needs_a_larger_change():
    sizes = torch.tensor([0.0, 1.0, 1.0, 3.0, math.inf])
    assert measures.survival(sizes, torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0])).tolist() == pytest.approx(
        [0.8, 0.8, 0.4, 0.4, 0.2]
    )


@pytest.mark.parametrize("other", [torch.ones(shape).bool() for shape in (4, 1, (5, 1), 0)] + [torch.ones(5)])
def test_outcomes_of_other_rows_are_not_paired(other: torch.Tensor):
    with pytest.raises(InputError, match=r"must be \(N,\) of bool each, got \(5,\) of torch.bool and \("):
        measures.paired(torch.ones(5).bool(), other)


def test_a_tiny_perturbation_is_no_row_that_was_wrong_before():
    images = torch.zeros(2, 1, 2, 2)
    count = torch.zeros(2, dtype=torch.int64)
    adversarial = images.clone()
    adversarial[0, 0, 0, 0] = 1e-25
    found = AttackResult(images, count, None, adversarial, torch.tensor([True, True]), count + 1, count, count)
    robust = measures.robustness(found, 2)
    assert (robust.trivial, robust.mean.rows) == (1, 1)
    assert robust.mean.value == pytest.approx(1e-25)


@pytest.mark.parametrize(
    ("right", "total", "learned"),
    [
        (10, 100, False),  # chance of ten classes
        (15, 100, False),  # 9 to 23 %
        (20, 100, True),  # 13 to 29 %: the commonest class is 11 %
        (98, 100, True),
        (2, 100, False),  # far below chance is not learning either
        (1000, 10_000, False),
        (1135, 10_000, False),  # MNIST's ones, if they are all that it answers
    ],
)
def test_a_network_has_learned_if_its_interval_lies_above_the_commonest_class(right: int, total: int, learned: bool):
    labels = torch.cat([torch.arange(10).repeat(100), torch.full((14,), 1)])  # 114 ones of 1,014: 11.2 %
    assert measures.learned(measures.Share(right, total), labels) is learned
    assert bool(measures.why_not_learned(measures.Share(right, total), labels)) is not learned


def test_why_a_network_has_not_learned_gives_both_numbers():
    said = measures.why_not_learned(measures.Share(10, 100), torch.tensor([0, 0, 1, 2]))
    assert (
        said
        == "its test accuracy is 10.0 % (5.5 % to 17.4 %), and the commonest class makes up 50.0 % of the test images"
    )
