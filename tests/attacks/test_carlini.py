"""Carlini and Wagner's attacks against linear models, whose closest image is known, and the manners of every attack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from problems import Brightness, Constant, Counting, convnet, linear, pictures, predicted
from torch import Tensor, nn

from brittle.attacks import AttackResult, carlini_l0, carlini_l2, carlini_linf
from brittle.errors import InputError

NORMS = {2.0: carlini_l2, torch.inf: carlini_linf}
both = pytest.mark.parametrize("attack", NORMS.values(), ids=["l2", "linf"])
every_attack = pytest.mark.parametrize("attack", [*NORMS.values(), carlini_l0], ids=["l2", "linf", "l0"])


# Linear models --------------------------------------------------------------------------------------------------------


def halved(reaches: Callable[[float], bool], high: float) -> float:
    """The least number at which `reaches` holds, which it does at `high` and above; inf if it does not."""
    if not reaches(high):
        return np.inf
    low = 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def nearest(slopes: np.ndarray, image: np.ndarray, lead: float, norm: float) -> float:
    """The distance of the closest image in the box at which a linear lead, `lead` here, is gone.

    In L2 it is clip(x - t slopes) for the least t that does (Karush, Kuhn and Tucker); in L-infinity each pixel goes
    against its slope by the same t, or as far as it can.
    """

    def moved(t: float) -> np.ndarray:
        return np.clip(image - t * (slopes if norm == 2 else np.sign(slopes)), 0, 1)

    t = halved(lambda t: bool(lead + slopes @ (moved(t) - image) <= 0), 1e6 if norm == 2 else 1.0)
    return np.inf if np.isinf(t) else float(np.linalg.norm(moved(t) - image, ord=norm))


def two_classes(rows: int, scale: float) -> tuple[nn.Sequential, Tensor, Tensor, dict[float, np.ndarray]]:
    """A linear model, images with many pixels at exactly 0 and 1, their labels, and the closest distances by norm."""
    model, images = linear(shape=(1, 5, 5), scale=scale), pictures(rows, (1, 5, 5))
    labels = predicted(model, images)
    head = model[1]
    assert isinstance(head, nn.Linear)
    weights, bias = head.weight.detach().double().numpy(), head.bias.detach().double().numpy()
    distances: dict[float, list[float]] = {norm: [] for norm in NORMS}
    for image, label in zip(images.flatten(1).double().numpy(), labels.tolist(), strict=True):
        slopes = weights[label] - weights[1 - label]
        lead = slopes @ image + bias[label] - bias[1 - label]
        for norm, found in distances.items():
            found.append(nearest(slopes, image, lead, norm))
    return model, images, labels, {norm: np.array(found) for norm, found in distances.items()}


@pytest.mark.parametrize("scale", [1.0, 20.0, 1e-3])
@pytest.mark.parametrize("norm", NORMS)
def test_the_closest_image_of_a_linear_model_is_found_within_half_a_percent(norm: float, scale: float):
    model, images, labels, distances = two_classes(500, scale)
    found = NORMS[norm](model, images, labels)
    possible = np.isfinite(distances[norm])
    assert np.array_equal(found.success.numpy(), possible)
    ratio = found.norm(norm).double().numpy()[possible] / distances[norm][possible]
    assert ratio.min() > 1 - 1e-4  # float32 images
    assert np.quantile(ratio, 0.99) < 1.005
    assert ratio.max() < 1.02


@every_attack
def test_rows_that_nothing_in_the_box_can_fool_fail_and_hold_their_clean_image(attack: Callable[..., AttackResult]):
    images = pictures(3)
    found = attack(Constant(), images, torch.zeros(3, dtype=torch.int64), max_iterations=20)
    assert not found.success.any()
    assert torch.equal(found.adversarial, images)
    dark = torch.full((2, 1, 3, 3), 0.5)
    assert not attack(Brightness(9.5), dark, torch.tensor([0, 0])).success.any()
    assert attack(Brightness(8.5), dark, torch.tensor([0, 0])).success.all()


@both
def test_pixels_at_exactly_0_and_1_move(attack: Callable[..., AttackResult]):
    for level, label, threshold in ((0.0, 0, 4.5), (1.0, 1, 4.5)):
        found = attack(Brightness(threshold), torch.full((1, 1, 3, 3), level), torch.tensor([label]))
        assert found.success.all()
        assert (found.adversarial - level).abs().min() > 0.45
        assert found.norm(torch.inf).item() == pytest.approx(0.5, rel=0.01)


# The fewest pixels ----------------------------------------------------------------------------------------------------


def test_the_fewest_pixels_of_a_linear_model_are_found_but_for_one_here_and_there():
    """The least number is that of the pixels with the most to give, slope times room, that make up for the lead."""
    model, images = linear(shape=(1, 5, 5)), pictures(500, (1, 5, 5))
    labels = predicted(model, images)
    head = model[1]
    assert isinstance(head, nn.Linear)
    slopes = head.weight.detach()[labels] - head.weight.detach()[1 - labels]
    lead = model(images).detach().gather(1, labels[:, None]) - model(images).detach().gather(1, 1 - labels[:, None])
    flat = images.flatten(1)
    gains = (slopes.abs() * torch.where(slopes > 0, flat, 1 - flat)).sort(1, descending=True).values
    fewest = (gains.cumsum(1) <= lead).sum(1) + 1
    found = carlini_l0(model, images, labels)
    assert torch.equal(found.success, fewest <= 25)
    counts, fewest = found.norm(0)[found.success].double(), fewest[found.success]
    assert (counts >= fewest).all()
    assert (counts / fewest).mean() < 1.05
    assert (counts == fewest).double().mean() > 0.9


def test_no_fewer_pixels_of_a_small_network_are_found_by_trying_all_sets_at_five_levels():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5)
    images = pictures(60, (1, 2, 3))
    labels = predicted(model, images)
    choices = torch.cartesian_prod(*[torch.arange(6)] * 6)  # of each pixel: its own value, or one of five levels
    counts = (choices > 0).sum(1)
    found = carlini_l0(model, images, labels, max_iterations=100)
    tried = []
    for image, label in zip(images.flatten(1), labels, strict=True):
        levels = torch.cat([image[None], torch.linspace(0, 1, 5)[:, None].expand(5, 6)])
        fooled = predicted(model, levels.gather(0, choices).view(-1, 1, 2, 3)) != label
        tried.append(int(counts[fooled].min()) if fooled.any() else 7)
    best = torch.tensor(tried)
    mine = torch.where(found.success, found.norm(0), 7)
    assert (best < 7).sum() > 40
    assert (mine > best).sum() <= 6  # of 60: a local search
    assert (mine - best).max() <= 1


def test_a_pixel_is_all_of_its_channels():
    model, images = convnet(channels=3, gain=3), pictures(6, (3, 6, 6))
    labels = predicted(model, images)
    found = carlini_l0(model, images, labels)
    assert found.success.any()
    changed = (found.adversarial != images).any(1).flatten(1).sum(1)
    assert torch.equal(found.norm(0), changed)
    closest = carlini_l2(model, images, labels)
    assert (found.norm(0) < closest.norm(0))[found.success].all()


# What may be asked ----------------------------------------------------------------------------------------------------


@both
def test_a_confident_image_leads_by_what_was_asked_and_lies_farther(attack: Callable[..., AttackResult]):
    model, images = convnet(gain=3), pictures(8)
    labels = predicted(model, images)
    plain, sure = attack(model, images, labels), attack(model, images, labels, confidence=0.5)
    logits = model(sure.adversarial)
    own = logits.gather(1, labels[:, None]).squeeze(1)
    assert (logits.scatter(1, labels[:, None], -torch.inf).amax(1) - own)[sure.success].min() >= 0.5 - 1e-5
    p = 2 if attack is carlini_l2 else torch.inf
    together = plain.success & sure.success
    assert together.any()
    assert (sure.norm(p) >= plain.norm(p))[together].all()


@both
def test_a_targeted_attack_ends_on_its_target_no_closer_than_any_class(attack: Callable[..., AttackResult]):
    model, images = convnet(gain=3), pictures(8)
    labels = predicted(model, images)
    targets = (labels + 1) % 4
    any_class, one = attack(model, images, labels), attack(model, images, labels, targets=targets)
    assert one.success.any()
    assert torch.equal(one.prediction[one.success], targets[one.success])
    p = 2 if attack is carlini_l2 else torch.inf
    assert (one.norm(p) >= 0.98 * any_class.norm(p))[one.success & any_class.success].all()


@every_attack
def test_a_quantised_image_is_one_that_8_bits_can_hold(attack: Callable[..., AttackResult]):
    model, images = convnet(gain=3), (pictures(8) * 255).round() / 255
    labels = predicted(model, images)
    found = attack(model, images, labels, quantize=True)
    assert found.success.any()
    stored = (found.adversarial * 255).round().to(torch.uint8).float() / 255
    assert torch.equal(stored, found.adversarial)
    assert (predicted(model, stored) != labels)[found.success].all()


@pytest.mark.usefixtures("unprobed")
@both
def test_restarts_find_nothing_farther_and_the_same_seed_finds_the_same(attack: Callable[..., AttackResult]):
    model, images = convnet(gain=3), pictures(8)
    labels = predicted(model, images)
    p = 2 if attack is carlini_l2 else torch.inf
    once = attack(model, images, labels)
    more, same = (attack(model, images, labels, restarts=2, seed=3) for _ in range(2))
    assert (more.norm(p) <= once.norm(p)).all()
    assert torch.equal(more.adversarial, same.adversarial)


def test_restarts_with_fewer_pixels_find_no_more_and_the_same_seed_finds_the_same():
    model, images = convnet(channels=3, size=8, gain=3), pictures(12, (3, 8, 8))
    labels = predicted(model, images)
    targets = (labels + 1) % 4
    once = carlini_l0(model, images, labels, targets=targets)
    more, same = (carlini_l0(model, images, labels, targets=targets, restarts=3, seed=3) for _ in range(2))
    assert once.success.any()
    assert torch.equal(more.success, once.success)
    assert (more.norm(0) <= once.norm(0)).all()
    assert more.norm(0).sum() < once.norm(0).sum()
    assert torch.equal(more.adversarial, same.adversarial)
    assert (more.forwards > once.forwards)[once.success].all()
    unmoved = torch.zeros(12, dtype=torch.int64)
    none, again = (carlini_l0(Constant(), images, unmoved, max_iterations=5, restarts=count) for count in (0, 3))
    assert torch.equal(again.forwards, none.forwards)  # no point is as far away as none


def test_a_restart_with_fewer_pixels_begins_with_large_steps_again_and_costs_no_more_than_a_search():
    model, images = convnet(size=10, gain=3), pictures(12, (1, 10, 10))
    labels = predicted(model, images)
    targets = (labels + 1) % 4
    once, more = (
        carlini_l0(model, images, labels, targets=targets, max_iterations=5, restarts=count) for count in (0, 2)
    )
    assert once.success.all()
    assert (more.forwards - once.forwards).sum() <= 2 * once.forwards.sum()


def test_an_early_end_costs_less():
    model, images = convnet(gain=3), pictures(8)
    labels = predicted(model, images)
    whole, early = (carlini_l2(model, images, labels, abort_early=early) for early in (False, True))
    assert early.forwards.sum() < whole.forwards.sum()
    assert torch.equal(early.success, whole.success)


# Manners --------------------------------------------------------------------------------------------------------------


@every_attack
def test_a_row_gets_the_same_alone_and_in_a_crowd_that_does_not_fit_one_batch(attack: Callable[..., AttackResult]):
    model, images = convnet(gain=3).double(), pictures(270, dtype=torch.float64)
    labels = predicted(model, images)
    together = attack(model, images, labels, max_iterations=15)
    for row in (0, 255, 256, 269):
        one = slice(row, row + 1)
        alone = attack(model, images[one], labels[one], max_iterations=15)
        assert torch.equal(alone.success, together.success[one])
        assert torch.allclose(alone.adversarial, together.adversarial[one], atol=1e-9)
        assert alone.forwards.tolist() == together.forwards[one].tolist()


@pytest.mark.usefixtures("unprobed")
@both
def test_evaluations_are_counted_as_the_model_saw_them(attack: Callable[..., AttackResult]):
    model, images = Counting(convnet(gain=3)), pictures(300)
    labels = predicted(model.model, images)
    labels[:3] = (labels[:3] + 1) % 4  # wrong from the start
    found = attack(model, images, labels, max_iterations=20, binary_search_steps=2, restarts=1)
    assert found.forwards[:3].tolist() == [1, 1, 1]
    assert (found.forwards[3:] == 1 + 1 + 3 * 20).all()  # the door, the start, three runs
    assert (found.backwards[3:] == 1 + 3 * 20).all()
    final = 300 * (1 if found.success.all() else 2)  # the check at the end is not told
    assert sum(model.sizes) == int(found.forwards.sum()) + final
    assert max(model.sizes) <= 256


@every_attack
def test_rows_misclassified_already_need_no_change(attack: Callable[..., AttackResult]):
    model, images = convnet(), pictures(4)
    found = attack(model, images, (predicted(model, images) + 1) % 4, max_iterations=5)
    assert found.trivial.all()
    assert torch.equal(found.adversarial, images)


@every_attack
def test_dropout_is_off_and_gradients_are_found_where_the_caller_has_switched_them_off(
    attack: Callable[..., AttackResult],
):
    images = pictures(4)
    noisy, still = convnet(dropout=0.5, gain=3).train(), convnet(dropout=0.5, gain=3).eval()
    labels = predicted(still, images)
    with torch.no_grad():
        found = attack(noisy, images, labels, max_iterations=30)
    assert torch.equal(found.adversarial, attack(still, images, labels, max_iterations=30).adversarial)


@every_attack
def test_images_in_any_layout_and_one_iteration_are_taken(attack: Callable[..., AttackResult]):
    model, images = convnet(channels=3, gain=3), pictures(3, (3, 6, 6))
    labels = predicted(model, images)
    plain = attack(model, images, labels, max_iterations=20)
    other = attack(model, images.to(memory_format=torch.channels_last), labels, max_iterations=20)
    assert torch.allclose(plain.adversarial, other.adversarial, atol=1e-5)
    assert attack(model, images, labels, max_iterations=1).adversarial.shape == images.shape


@every_attack
def test_the_precision_of_the_model_is_kept(attack: Callable[..., AttackResult]):
    images = pictures(4)
    for dtype in (torch.float64, torch.bfloat16):
        model = convnet(gain=3).to(dtype)
        found = attack(model, images, predicted(model, images), max_iterations=50)
        assert found.success.any()
        assert (predicted(model, found.adversarial) != found.labels)[found.success].all()


@every_attack
def test_progress_only_rises_and_ends_with_every_row(attack: Callable[..., AttackResult]):
    told: list[tuple[int, int]] = []
    model, images = convnet(), pictures(3)
    request: dict[str, Any] = {"max_iterations": 5}
    request["progress"] = lambda done, total, note="": told.append((done, total))
    attack(model, images, predicted(model, images), **request)
    assert told[-1] == (3, 3)
    assert told == sorted(told)


@every_attack
def test_images_that_are_not_8_bit_are_refused_where_8_bits_are_asked_for(attack: Callable[..., AttackResult]):
    images = torch.full((1, 1, 6, 6), 0.123)  # between 31 and 32 of 255
    with pytest.raises(InputError, match="quantize needs images of whole 255ths"):
        attack(convnet(), images, torch.tensor([0]), quantize=True)


@pytest.mark.timeout(60)
def test_images_that_rounding_has_put_outside_the_box_are_cut_to_it():
    """Frozen pixels that the projection moves would count as changed, and no round would end with fewer."""
    model, images = convnet(gain=3), pictures(4)
    images = torch.where(images == 1, 1 + 1e-7, images)
    found = carlini_l0(model, images, predicted(model, images))
    assert found.images.max() == 1
    assert (found.norm(0)[found.success] < 36).all()


def test_a_first_solution_for_all_pixels_may_take_more_than_a_round():
    model, images = convnet(gain=3), pictures(20)
    labels = predicted(model, images)
    targets = (labels + 2) % 4
    reached = carlini_l2(model, images, labels, targets=targets).success
    assert reached.sum() > 15
    found = carlini_l0(model, images, labels, targets=targets, max_iterations=5)
    assert torch.equal(found.success, reached)
    assert (found.forwards[~reached] == 1 + 1 + 10 * 5).all()


class Plateau(nn.Module):
    """The lead of 1 is lost along the sum of the pixels: half of it within 0.01, the rest only at a change of 2."""

    def forward(self, images: Tensor) -> Tensor:
        gone = images.flatten(1).sum(1) / 8
        lead = 1 - (50 * gone).clamp(max=0.5) - 0.25 * gone
        return torch.stack([lead + 2, torch.full_like(lead, 2)], dim=1)


def test_runs_in_vain_are_made_again_with_longer_steps():
    model, images, labels = Plateau(), torch.zeros(3, 1, 8, 8), torch.zeros(3, dtype=torch.long)
    found = carlini_l2(model, images, labels, max_iterations=100)
    assert found.norm(2).numpy() == pytest.approx([2.0] * 3, rel=0.01)
    runs = (found.forwards - 2) / 100
    assert ((runs > 2) & (runs <= 4)).all()
    told = carlini_l2(model, images, labels, max_iterations=100, learning_rate=0.0025)  # where the search begins itself
    assert not told.success.any()
    assert (told.forwards == 2 + 2 * 100).all()
