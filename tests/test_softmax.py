"""The exact arithmetic against mpmath, at margins where float32 and float64 hold only zeros."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp
from problems import Constant, IdentityLogits, condition, convnet, linear, pictures
from torch import Tensor

from brittle.errors import InputError
from brittle.models import softmax as sm
from brittle.models.softmax import SignedLog

DIGITS = 60
MARGINS = (0.0, 0.3, 15.0, 29.9, 30.1, 90.0, 800.0, 5_000.0)
TEMPERATURES = (0.5, 1.0, 20.0)

Number = Any  # mpmath has no types


def enough(logits: Tensor, temperature: float = 1.0) -> int:
    """Digits that the plain formulas need to tell F from 1: at a margin of 5,000 and T = 0.5 it lacks e^-10,000."""
    margin = (logits.max() - logits.min()).item()
    return DIGITS + math.ceil(margin / temperature / math.log(10))


def exact_softmax(logits: Tensor, temperature: float) -> list[Number]:
    """F of one row, by its definition; call inside mp.workdps."""
    powers = [mp.exp(mp.mpf(z.item()) / mp.mpf(temperature)) for z in logits]
    return [power / mp.fsum(powers) for power in powers]


def assert_is(found: SignedLog, expected: list[Number], relative: float = 1e-5) -> None:
    """Every sign, and every magnitude up to `relative`."""
    signs, logs = found.sign.flatten().tolist(), found.log10.flatten().tolist()
    assert len(signs) == len(expected)
    with mp.workdps(DIGITS):
        for sign, log, number in zip(signs, logs, expected, strict=True):
            assert sign == mp.sign(number)
            if number:
                assert abs(10 ** (log - float(mp.log10(abs(number)))) - 1) < relative
            else:
                assert log == -math.inf


def rows_with_margin(margin: float) -> tuple[Tensor, Tensor]:
    """Logits whose label leads by `margin`, and some whose label trails by as much."""
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, 4, 1])
    lead = torch.tensor([margin, margin, -margin, -margin])
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return logits.scatter(1, labels[:, None], (others + lead)[:, None]), labels


# From logits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("margin", MARGINS)
def test_log_odds_are_those_of_the_definition(margin: float, temperature: float):
    logits, labels = rows_with_margin(margin)
    found = sm.log_odds(logits, labels, temperature)
    with mp.workdps(enough(logits, temperature)):
        for m, row, label in zip(found.tolist(), logits, labels.tolist(), strict=True):
            own = exact_softmax(row, temperature)[label]
            assert m == pytest.approx(float(mp.log((1 - own) / own)), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("margin", MARGINS)
def test_cross_entropy_is_that_of_the_definition(margin: float, temperature: float):
    logits, labels = rows_with_margin(margin)
    found = sm.cross_entropy(logits, labels, temperature)
    with mp.workdps(enough(logits, temperature)):
        rows = zip(logits, labels.tolist(), strict=True)
        assert_is(found, [-mp.log(exact_softmax(row, temperature)[label]) for row, label in rows])


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("margin", MARGINS)
def test_loss_gradient_by_logits_is_that_of_the_definition(margin: float, temperature: float):
    logits, labels = rows_with_margin(margin)
    found = sm.loss_gradient_logits(logits, labels, temperature)
    with mp.workdps(enough(logits, temperature)):
        expected = [
            (share - (index == label)) / mp.mpf(temperature)
            for row, label in zip(logits, labels.tolist(), strict=True)
            for index, share in enumerate(exact_softmax(row, temperature))
        ]
        assert_is(found, expected)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("margin", MARGINS)
def test_jacobian_by_logits_is_that_of_the_definition(margin: float, temperature: float):
    logits, _ = rows_with_margin(margin)
    found = sm.jacobian_logits(logits, temperature)
    with mp.workdps(enough(logits, temperature)):
        expected = []
        for row in logits:
            shares = exact_softmax(row, temperature)
            expected += [
                share * ((i == j) - other) / mp.mpf(temperature)
                for i, share in enumerate(shares)
                for j, other in enumerate(shares)
            ]
        assert_is(found, expected)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(-2_500, 2_500, width=32), min_size=2, max_size=5),
    st.sampled_from([0.5, 1.0, 3.7, 20.0, 100.0]),
    st.data(),
)
def test_any_logits_give_what_the_definitions_give(values: list[float], temperature: float, data: st.DataObject):
    logits, label = torch.tensor([values]), data.draw(st.integers(0, len(values) - 1))
    labels = torch.tensor([label])
    with mp.workdps(enough(logits, temperature)):
        shares, t = exact_softmax(logits[0], temperature), mp.mpf(temperature)
        gradient = [(share - (i == label)) / t for i, share in enumerate(shares)]
        jacobian = [share * ((i == j) - other) / t for i, share in enumerate(shares) for j, other in enumerate(shares)]
        assert_is(sm.cross_entropy(logits, labels, temperature), [-mp.log(shares[label])])
        assert_is(sm.loss_gradient_logits(logits, labels, temperature), gradient)
        assert_is(sm.jacobian_logits(logits, temperature), jacobian)


def test_a_known_softmax_has_a_known_jacobian():
    shares, temperature = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64), 20.0
    found = sm.jacobian_logits(temperature * shares.log()[None], temperature).float()[0]
    torch.testing.assert_close(found, (shares.diag() - shares.outer(shares)) / temperature)


def test_a_label_is_read_off_the_last_axis_whatever_stands_before_it():
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(5, (2, 3, 4), generator=torch.Generator().manual_seed(1))
    flat = sm.log_odds(logits.view(-1, 5), labels.view(-1))
    assert torch.equal(sm.log_odds(logits, labels), flat.view(2, 3, 4))


def test_log_odds_rise_where_the_float32_loss_stands_still_at_zero():
    margins = torch.arange(200.0, 5_000, 100)
    logits, labels = torch.stack([margins, torch.zeros_like(margins)], 1), torch.zeros(len(margins), dtype=torch.int64)
    assert (sm.cross_entropy_float32(logits, labels) == 0).all()
    assert (sm.log_odds(logits, labels).diff() < 0).all()


def test_the_published_loss_is_infinite_once_the_label_has_no_float32_share():
    assert sm.cross_entropy_float32(torch.tensor([[0.0, 200.0]]), torch.tensor([0])).item() == math.inf


def test_softmax_divides_by_the_temperature_and_keeps_the_dtype():
    found = sm.softmax(torch.tensor([[0.0, 20 * math.log(3)]], dtype=torch.float64), 20)
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.75]], dtype=torch.float64))
    assert sm.softmax(torch.zeros(1, 2)).dtype == torch.float32


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, "20"])
def test_a_temperature_that_is_none_is_refused(temperature: Any):
    with pytest.raises(InputError, match=f"temperature must be a positive finite number, got {temperature}"):
        sm.softmax(torch.zeros(1, 2), temperature)


@pytest.mark.parametrize("temperature", [1e-300, 1e300])
def test_a_temperature_whose_inverse_leaves_float32_is_refused(temperature: float):
    with pytest.raises(InputError, match="temperature must lie between 1e-30 and 1e30, got 1e"):
        sm.log_odds(torch.zeros(1, 2), torch.tensor([0]), temperature)


@pytest.mark.parametrize("gap", [19.9, 20 - 1e-10, 20.0, 20 + 1e-10, 20.1, 30.0, 700.0])
def test_cross_entropy_is_right_to_the_last_bits_around_20(gap: float):
    """torch's softplus is linear above 20: there it is wrong by 2e-9, and falls where it must rise."""
    found = 10 ** sm.cross_entropy(torch.tensor([[0.0, gap]], dtype=torch.float64), torch.tensor([0])).log10.item()
    with mp.workdps(40):
        expected = float(mp.log(1 + mp.exp(mpmath.mpf(gap))))
    assert found == pytest.approx(expected, rel=2e-14)


def test_cross_entropy_rises_across_20():
    gaps = 20 + torch.linspace(-1e-9, 1e-9, 201, dtype=torch.float64)
    logits = torch.stack([torch.zeros_like(gaps), gaps], 1)
    found = sm.cross_entropy(logits, torch.zeros(201, dtype=torch.int64)).log10
    assert (found.diff() >= 0).all()
    assert found[-1] > found[0]


@pytest.mark.parametrize("temperature", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("size", [1e-300, 1.0, 1e38, 1.7e308])
def test_no_logits_and_no_temperature_give_nan(size: float, temperature: float):
    logits, labels = torch.tensor([[-size, size, 0.0]] * 3, dtype=torch.float64), torch.tensor([0, 1, 2])
    odds = sm.log_odds(logits, labels, temperature)
    assert odds.isfinite().all()
    assert odds[0] >= odds[2] >= odds[1]
    found = sm.softmax(logits, temperature)
    torch.testing.assert_close(found.sum(1), torch.ones(3, dtype=torch.float64))
    for exact in (sm.loss_gradient_logits(logits, labels, temperature), sm.jacobian_logits(logits, temperature)):
        assert not exact.log10.isnan().any()
    if size <= 1e38:
        assert not sm.cross_entropy_float32(logits, labels, temperature).isnan().any()


def test_an_unknown_arithmetic_is_refused_with_the_nearest_known():
    with pytest.raises(InputError, match="unknown arithmetic 'float23': did you mean 'float32'"):
        sm.check_arithmetic("float23")


# Through a model ----------------------------------------------------------------------------------------------------


def linear_expectations(scale: float, dtype: torch.dtype, temperature: float):
    """A linear model with its images and labels, and for each (dCE/dx, dF/dx) by mpmath from its own logits."""
    model = linear(classes=4, shape=(1, 2, 3), scale=scale).to(dtype)
    images, labels = pictures(3, (1, 2, 3), dtype=dtype), torch.tensor([0, 1, 2])
    weights = [[mp.mpf(w.item()) for w in row] for row in model[1].weight.detach()]  # type: ignore[union-attr]
    loss, jacobian, logits = [], [], model(images).detach()
    with mp.workdps(enough(logits, temperature)):
        for row, label in zip(logits, labels.tolist(), strict=True):
            shares, t = exact_softmax(row, temperature), mp.mpf(temperature)
            pairs = list(zip(shares, weights, strict=True))
            means = [mp.fsum(share * w[x] for share, w in pairs) for x in range(6)]
            loss += [(means[x] - weights[label][x]) / t for x in range(6)]
            jacobian += [share * (w[x] - means[x]) / t for share, w in pairs for x in range(6)]
    return model, images, labels, loss, jacobian


@pytest.mark.parametrize("temperature", [1.0, 20.0])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1_000.0])
def test_loss_gradient_through_a_model_is_that_of_the_definition(scale: float, temperature: float):
    model, images, labels, expected, _ = linear_expectations(scale, torch.float64, temperature)
    assert_is(sm.loss_gradient(model, images, labels, temperature), expected, 1e-9)


@pytest.mark.parametrize("scale", [1.0, 1_000.0])
def test_loss_gradient_through_a_float32_model_errs_by_float32_rounding_of_its_largest_pixel(scale: float):
    model, images, labels, expected, _ = linear_expectations(scale, torch.float32, 1.0)
    found = sm.loss_gradient(model, images, labels)
    for row in range(3):
        own = expected[6 * row : 6 * row + 6]
        largest = max(own, key=abs)
        signs, logs = found.sign[row].flatten().tolist(), found.log10[row].flatten().tolist()
        for sign, log, number in zip(signs, logs, own, strict=True):
            assert abs(sign * mp.mpf(10) ** log - number) < 1e-5 * abs(largest)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("scale", [1.0, 100.0, 1_000.0])
def test_jacobian_through_a_float32_model_is_that_of_the_definition(scale: float, temperature: float):
    model, images, _, _, expected = linear_expectations(scale, torch.float32, temperature)
    assert_is(sm.jacobian(model, images, temperature), expected)


HOPELESS = torch.tensor([[[[1.0, 0.98, 0.04, 0.02, 0.0]]]])  # times 2,500: three classes below 1e-1000


def test_jacobian_tells_sign_and_size_of_probabilities_below_1e_1000():
    found = sm.jacobian(IdentityLogits(2_500), HOPELESS)
    with mp.workdps(enough(2_500 * HOPELESS)):
        shares = exact_softmax(2_500 * HOPELESS.flatten(), 1.0)
        expected = [2_500 * f * ((i == j) - g) for i, f in enumerate(shares) for j, g in enumerate(shares)]
        assert_is(found, expected)
    assert (found.log10[0, 2:] < -1_000).all()
    assert torch.isfinite(found.log10).all()


def test_float32_shows_zeros_for_probabilities_below_1e_1000():
    model, label = IdentityLogits(2_500), torch.tensor([0])
    assert (sm.jacobian_float32(model, HOPELESS)[0, 2:] == 0).all()
    sure = torch.tensor([[[[1.0, 0.0]]]])
    assert (sm.jacobian_float32(model, sure) == 0).all()
    assert (sm.loss_gradient_float32(model, sure, label) == 0).all()
    assert (sm.jacobian_float32(IdentityLogits(150), sure) == 0).all()
    assert sm.jacobian_float32(IdentityLogits(20), sure)[0, 0, 0, 0, 0] == 0  # F (1 - F), and F rounds to 1
    assert (sm.loss_gradient_float32(IdentityLogits(150), sure, label) == 0).all()
    assert sm.cross_entropy_float32(torch.tensor([[20.0, 0.0]]), label) == 0  # 1 - e^-20 rounds to 1
    assert sm.loss_gradient(model, sure, label).log10.min() == pytest.approx((-2_500 + math.log(2_500)) / math.log(10))


def test_both_arithmetics_agree_while_nothing_underflows():
    model, images, labels = convnet(gain=3), pictures(5), torch.tensor([0, 1, 2, 3, 0])
    for temperature in (1.0, 20.0):
        loss = sm.loss_gradient(model, images, labels, temperature).float()
        jacobian = sm.jacobian(model, images, temperature).float()
        close = {"rtol": 1e-4, "check_dtype": False}
        published = sm.loss_gradient_float32(model, images, labels, temperature)
        torch.testing.assert_close(published, loss, atol=1e-4 * loss.abs().max().item(), **close)
        published = sm.jacobian_float32(model, images, temperature)
        torch.testing.assert_close(published, jacobian, atol=1e-4 * jacobian.abs().max().item(), **close)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_log_odds_gradient_of_two_linear_classes_is_the_difference_of_their_weights(scale: float):
    model = linear(shape=(1, 2, 3), scale=scale)
    images, labels = pictures(2, (1, 2, 3)), torch.tensor([0, 1])
    rows = model[1].weight.detach().view(2, 1, 2, 3)  # type: ignore[union-attr]
    expected = torch.stack([rows[1] - rows[0], rows[0] - rows[1]]) / 20
    torch.testing.assert_close(sm.log_odds_gradient(model, images, labels, 20), expected)


def test_an_image_without_influence_has_zero_gradients():
    images, labels = pictures(2), torch.tensor([0, 1])
    for found in (sm.jacobian(Constant(), images), sm.loss_gradient(Constant(), images, labels)):
        assert (found.sign == 0).all()
        assert (found.log10 == -torch.inf).all()


def test_gradients_leave_the_model_and_the_images_as_they_were():
    model, images, labels = convnet(dropout=0.5), pictures(2), torch.tensor([0, 1])
    model[0].requires_grad_(False)
    model[2].eval()
    before, pixels = condition(model), images.clone()
    for gradient in (sm.loss_gradient, sm.loss_gradient_float32, sm.log_odds_gradient):
        gradient(model, images, labels)
    sm.jacobian(model, images)
    sm.jacobian_float32(model, images)
    assert condition(model) == before
    assert torch.equal(images, pixels)
    assert not images.requires_grad


def test_gradients_are_taken_without_dropout():
    noisy, still = convnet(dropout=0.5).train(), convnet(dropout=0.5).eval()
    images, labels = pictures(2), torch.tensor([0, 1])
    for gradient in (sm.loss_gradient_float32, sm.log_odds_gradient):
        assert torch.equal(gradient(noisy, images, labels), gradient(still, images, labels))
    assert torch.equal(sm.jacobian_float32(noisy, images), sm.jacobian_float32(still, images))
    assert torch.equal(sm.jacobian(noisy, images).log10, sm.jacobian(still, images).log10)


def test_gradients_are_found_where_the_caller_has_switched_them_off():
    model, images, labels = convnet(), pictures(2), torch.tensor([0, 1])
    expected = sm.loss_gradient(model, images, labels).log10
    with torch.no_grad():
        assert torch.equal(sm.loss_gradient(model, images, labels).log10, expected)


# SignedLog ----------------------------------------------------------------------------------------------------------

numbers = st.lists(
    st.tuples(st.floats(-1e6, 1e6, allow_subnormal=False), st.floats(-3_000, 3_000)), min_size=1, max_size=6
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(numbers)
def test_a_sum_of_signed_logs_is_the_sum_of_the_numbers(terms: list[tuple[float, float]]):
    values, logs = (torch.tensor(column, dtype=torch.float64) for column in zip(*terms, strict=True))
    found = SignedLog.of(values, logs).sum(0)
    with mp.workdps(DIGITS):
        exact = [mp.mpf(value) * mp.exp(mp.mpf(log)) for value, log in terms]
        total = found.sign.item() * mp.mpf(10) ** found.log10.item() if found.sign.item() else mp.mpf(0)
        assert abs(total - mp.fsum(exact)) <= 1e-11 * max(abs(number) for number in exact)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(numbers)
def test_mean_magnitude_is_the_mean_of_the_magnitudes(terms: list[tuple[float, float]]):
    values, logs = (torch.tensor(column, dtype=torch.float64) for column in zip(*terms, strict=True))
    found = SignedLog.of(values, logs).mean_magnitude(0).item()
    with mp.workdps(DIGITS):
        mean = mp.fsum(abs(mp.mpf(value)) * mp.exp(mp.mpf(log)) for value, log in terms) / len(terms)
        assert found == (pytest.approx(float(mp.log10(mean)), rel=1e-11, abs=1e-11) if mean else -math.inf)


def test_mean_magnitude_over_several_axes_counts_all_of_them():
    values = torch.arange(24.0, dtype=torch.float64).view(2, 3, 4) - 12
    found = SignedLog.of(values).mean_magnitude((1, 2))
    torch.testing.assert_close(10**found, values.abs().mean((1, 2)))


def test_zeros_sum_to_zero():
    for zeros in (SignedLog.of(torch.zeros(3)), SignedLog.of(torch.zeros(3), -5_000.0)):
        assert zeros.sum(0) == SignedLog(torch.tensor(0, dtype=torch.int8), torch.tensor(-torch.inf).double())
        assert zeros.mean_magnitude(0).item() == -math.inf


def test_opposites_cancel_whatever_their_size():
    total = SignedLog.of(torch.tensor([3.0, -3.0]), -9_000.0).sum(0)
    assert (total.sign.item(), total.log10.item()) == (0, -math.inf)


def test_what_is_left_of_a_cancellation_has_its_sign_and_size():
    total = SignedLog.of(torch.tensor([1.0, -1.0 - 2**-20], dtype=torch.float64), -2_000.0).sum(0)
    with mp.workdps(DIGITS):
        assert_is(SignedLog(total.sign[None], total.log10[None]), [-(mp.mpf(2) ** -20) * mp.exp(-2_000)])


def test_each_row_is_summed_at_its_own_scale():
    rows = SignedLog.of(torch.ones(2, 2), torch.tensor([[-4_000.0, -4_000.0], [0.0, 0.0]]))
    expected = [(math.log(2) - 4_000) / math.log(10), math.log10(2)]
    assert rows.sum(1).log10.tolist() == pytest.approx(expected, rel=1e-14)


def test_times_multiplies_by_a_power_of_e():
    product = SignedLog.of(torch.tensor([-2.0, 0.0])).times(-3_000.0)
    with mp.workdps(DIGITS):
        assert_is(product, [-2 * mp.exp(-3_000), mpmath.mpf(0)], 1e-11)


def test_a_float_comes_back_as_itself_unless_no_float_can_hold_it():
    values = torch.tensor([-2.5, 0.0, 1e-300, 7.0], dtype=torch.float64)
    torch.testing.assert_close(SignedLog.of(values).float(), values, rtol=1e-12, atol=0)
    assert SignedLog.of(values, -1_000.0).float().tolist() == [0, 0, 0, 0]


# Song 2017, section 4: what a temperature does to the Jacobian while the logits stay --------------------------------


@pytest.mark.parametrize("margin", [0.0, 1.0, 15.0, 300.0])
@pytest.mark.parametrize("temperature", [2.0, 20.0, 100.0])
def test_a_jacobian_at_t_is_the_plain_one_of_logits_divided_by_t_over_t(margin: float, temperature: float):
    logits, _ = rows_with_margin(margin)
    found, plain = sm.jacobian_logits(logits.double(), temperature), sm.jacobian_logits(logits.double() / temperature)
    assert torch.equal(found.sign, plain.sign)
    assert torch.allclose(found.log10, plain.log10 - math.log10(temperature), atol=1e-12)


def test_small_logits_lose_the_factor_1_over_t_as_equation_4_says():
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0)).double() * 1e-3
    plain, hot = (sm.jacobian_logits(logits, t).mean_magnitude((1, 2)) for t in (1.0, 20.0))
    assert torch.allclose(plain - hot, torch.full((50,), math.log10(20)).double(), atol=1e-3)


@pytest.mark.parametrize("temperature", [5.0, 20.0, 100.0])
def test_any_logits_have_the_limit_of_equal_shares_over_t(temperature: float):
    """T dF_i/dz_j -> ([i = j] - 1/K) / K, in first order of logits over T."""
    logits = torch.linspace(-1, 1, 10).double()[None]
    limit = (torch.eye(10).double() - 0.1) / 10
    found = temperature * sm.jacobian_logits(logits, temperature).float()[0]
    assert (found - limit).abs().max() < 0.2 / temperature


@pytest.mark.parametrize("margin", [20.0, 60.0, 400.0])
def test_a_trained_network_s_logits_gain_gradient_with_t_where_section_4_has_it_fall(margin: float):
    """Section 4's bound, 100 L / T, takes the logits to be close to 0. Of two classes at a margin m the gradient is
    sigmoid'(m / T) / T: e^-m at 1, and rising up to T = m / 1.54, where u sigmoid'(u) has its maximum."""
    logits = torch.tensor([[margin, 0.0]]).double()
    temperatures = [t for t in (1.0, 2.0, 5.0, 10.0, 20.0) if t <= margin / 1.55]
    own = [sm.jacobian_logits(logits, t).log10[0, 0, 0].item() for t in temperatures]
    assert own == sorted(own)
    assert own[0] == pytest.approx(-margin / math.log(10), abs=1e-7)
    assert own[-1] - own[0] > 0.3 * margin
