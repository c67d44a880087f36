"""FGSM and projected gradient descent against linear models, whose lead at eps is known, and their manners."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from problems import Brightness, Constant, Counting, convnet, linear, pictures, predicted
from torch import Tensor, nn

from brittle.attacks.pgd import Ball, fgsm, pgd
from brittle.attacks.result import AttackResult
from brittle.attacks.square import noise, square
from brittle.attacks.streams import Streams
from brittle.errors import InputError

NORMS = ("linf", "l2")
LOSSES = ("cross_entropy", "margin", "exact")
both = pytest.mark.parametrize("norm", NORMS)
EVERY = {"fgsm": fgsm, "pgd": pgd, "square": partial(square, queries=50), "noise": partial(noise, draws=20)}
every_attack = pytest.mark.parametrize("attack", EVERY.values(), ids=EVERY)


# Linear models --------------------------------------------------------------------------------------------------------


def leads(eps: float, norm: str, scale: float = 1.0) -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """A linear model of two classes, images far from 0 and 1, labels, and the least lead (B,) within eps: lead - eps
    times the dual norm of the slopes."""
    model = linear(shape=(1, 5, 5), scale=scale)
    images = 0.3 + 0.4 * pictures(300, (1, 5, 5))  # in [0.3, 0.7]: up to eps 0.3 the box is not met
    labels = predicted(model, images)
    head = model[1]
    assert isinstance(head, nn.Linear)
    slopes = head.weight.detach()[labels] - head.weight.detach()[1 - labels]
    logits = model(images).detach()
    lead = logits.gather(1, labels[:, None]) - logits.gather(1, 1 - labels[:, None])
    return (
        model,
        images,
        labels,
        lead.squeeze(1) - eps * torch.linalg.vector_norm(slopes, 1 if norm == "linf" else 2, 1),
    )


@pytest.mark.parametrize("loss", LOSSES)
@both
def test_rows_fall_exactly_where_the_lead_is_gone_within_eps(norm: Any, loss: Any):
    eps = 0.1 if norm == "linf" else 0.4
    model, images, labels, least = leads(eps, norm)
    clear = least.abs() > 0.02
    for attack in (
        fgsm,
        partial(pgd, steps=60, step_size=eps / 4, decay=True),
        partial(pgd, steps=10, random_start=False),
    ):
        found = attack(model, images, labels, norm=norm, eps=eps, loss=loss)
        assert torch.equal(found.success[clear], (least < 0)[clear])
        assert 20 < found.success.sum() < 280
        assert found.norm(torch.inf if norm == "linf" else 2).max() <= eps * (1 + 1e-5)


@both
def test_cross_entropy_loses_its_gradient_where_the_log_odds_and_the_margin_keep_theirs(norm: Any):
    eps = 0.1 if norm == "linf" else 0.4
    model, images, labels, least = leads(eps, norm, scale=1e4)
    found = {loss: fgsm(model, images, labels, norm=norm, eps=eps, loss=loss).success for loss in LOSSES}
    assert torch.equal(found["exact"], least < 0)
    assert torch.equal(found["margin"], least < 0)
    assert found["cross_entropy"].sum() < 0.5 * (least < 0).sum()


def test_gradients_that_float64_alone_can_hold_are_followed_there():
    model, images, labels, least = leads(0.4, "l2", scale=10.0)
    narrow = fgsm(model, images, labels, norm="l2", eps=0.4)
    wide = fgsm(model.double(), images.double(), labels, norm="l2", eps=0.4)
    assert torch.equal(wide.success, least < 0)
    assert narrow.success.sum() < wide.success.sum()


@both
def test_targets_are_reached(norm: Any):
    model, images = linear(classes=4), pictures(50, (1, 5, 5))
    labels = predicted(model, images)
    targets = (labels + 1) % 4
    for loss in LOSSES:
        found = pgd(model, images, labels, targets=targets, norm=norm, eps=1.0 if norm == "linf" else 5.0, loss=loss)
        assert found.success.all()
        assert torch.equal(found.prediction, targets)


def test_rivals_find_the_class_that_is_not_the_runner_up():
    """The second class is nearest in logits and cannot win; the third is far behind, and can."""

    class Trap(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            x = images.flatten(1).mean(1)
            return torch.stack([torch.ones_like(x), 0.9 + 0.01 * x, 4 * (0.6 - x)], 1)

    images, labels = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0])
    plain = partial(pgd, loss="margin", eps=0.2, random_start=False)
    assert not plain(Trap(), images, labels, restarts=2).success.any()
    assert not plain(Trap(), images, labels, rivals=True).success.any()
    assert plain(Trap(), images, labels, rivals=True, restarts=2).success.all()


# The walk -------------------------------------------------------------------------------------------------------------


class Band(nn.Module):
    """Class 1 where the mean of the image is within 0.02 of 0.6, so that long steps pass over it."""

    def forward(self, images: Tensor) -> Tensor:
        off = (images.flatten(1).mean(1) - 0.6).abs() - 0.02
        return torch.stack([off, torch.zeros_like(off)], 1)


def test_a_point_on_the_way_counts_unless_the_last_alone_is_asked_for():
    images, labels = torch.full((4, 1, 3, 3), 0.5), torch.zeros(4, dtype=torch.int64)
    walk = partial(pgd, Band(), images, labels, loss="margin", eps=0.3, step_size=0.11, steps=2, random_start=False)
    assert walk().success.all()  # 0.5, 0.61, 0.5
    assert not walk(keep="last").success.any()
    assert (walk().forwards == 3).all()
    assert (walk(keep="last").forwards == 4).all()


def test_points_stay_in_the_ball_and_in_the_box():
    images = pictures(200)
    random, streams = torch.Generator().manual_seed(0), Streams.of(images, 0)
    for norm, p in (("linf", torch.inf), ("l2", 2)):
        ball = Ball(images, norm, 0.4)  # type: ignore[arg-type]
        everywhere = torch.arange(200)
        for points in (
            ball.draw(streams, 0),
            ball.into(images + 3 * torch.randn(images.shape, generator=random), everywhere),
        ):
            assert 0 <= points.min() <= points.max() <= 1
            assert torch.linalg.vector_norm((points - images).flatten(1), p, 1).max() <= 0.4 * (1 + 1e-5)
        near = images + 0.001 * torch.randn(images.shape, generator=random)
        assert torch.allclose(ball.into(near, everywhere), near.clamp(0, 1), atol=1e-7)  # what is inside stays


def test_a_step_has_its_length_whatever_the_gradient_scale():
    images = torch.full((3, 1, 2, 2), 0.5)
    gradient = torch.ones_like(images) * torch.tensor([1e-38, 1.0, 1e30]).view(3, 1, 1, 1)
    assert torch.allclose(Ball(images, "l2", 1.0).step(gradient, 0.1), torch.full_like(images, 0.05))
    assert torch.equal(Ball(images, "linf", 1.0).step(gradient, 0.1), torch.full_like(images, 0.1))
    lost = torch.tensor([0.0, torch.nan, torch.inf]).view(3, 1, 1, 1).expand_as(images)
    assert (Ball(images, "l2", 1.0).step(lost, 0.1) == 0).all()


def test_seeds_are_kept_and_restarts_add_rows():
    model, images = convnet(gain=3), pictures(100)
    labels = predicted(model, images)
    walk = partial(pgd, model, images, labels, eps=0.2, steps=1, step_size=0.05)
    assert torch.equal(walk(seed=1).adversarial, walk(seed=1).adversarial)
    assert not torch.equal(walk(seed=1).adversarial, walk(seed=2).adversarial)
    once, often = walk().success, walk(restarts=10).success
    assert (often | ~once).all()
    assert often.sum() > once.sum()


# Manners --------------------------------------------------------------------------------------------------------------


@every_attack
def test_rows_that_nothing_in_the_ball_can_fool_fail_and_hold_their_clean_image(attack: Callable[..., AttackResult]):
    images = pictures(3)
    found = attack(Constant(), images, torch.zeros(3, dtype=torch.int64))
    assert not found.success.any()
    assert torch.equal(found.adversarial, images)
    dark = torch.full((2, 1, 3, 3), 0.5)
    assert not attack(Brightness(8.5), dark, torch.tensor([0, 0]), eps=0.4).success.any()  # 4.5 + 9 x 0.4 < 8.5


@every_attack
def test_pixels_at_exactly_0_and_1_move(attack: Callable[..., AttackResult]):
    for level, label in ((0.0, 0), (1.0, 1)):
        threshold = 2.0 if level == 0 else 7.0
        found = attack(Brightness(threshold), torch.full((1, 1, 3, 3), level), torch.tensor([label]), eps=0.9)
        assert found.success.all()


def test_a_row_gets_the_same_alone_and_in_a_crowd_that_does_not_fit_one_batch():
    model, images = convnet(gain=3).double(), pictures(270, dtype=torch.float64)
    labels = predicted(model, images)
    walk = partial(pgd, eps=0.1, steps=5, random_start=False)
    together = walk(model, images, labels)
    for row in (0, 255, 256, 269):
        one = slice(row, row + 1)
        alone = walk(model, images[one], labels[one])
        assert torch.equal(alone.success, together.success[one])
        assert torch.allclose(alone.adversarial, together.adversarial[one], atol=1e-9)
        assert alone.forwards.tolist() == together.forwards[one].tolist()


@pytest.mark.usefixtures("unprobed")
@every_attack
def test_evaluations_are_counted_as_the_model_saw_them(attack: Callable[..., AttackResult]):
    model, images = Counting(convnet(gain=3)), pictures(300)
    labels = predicted(model.model, images)
    labels[:3] = (labels[:3] + 1) % 4  # wrong from the start
    found = attack(model, images, labels, eps=0.1)
    assert found.forwards[:3].tolist() == [1, 1, 1]
    assert found.backwards[:3].tolist() == [0, 0, 0]
    final = 300 * (1 if found.success.all() else 2)  # the check at the end is not told
    assert sum(model.sizes) == int(found.forwards.sum()) + final
    assert max(model.sizes) <= 256
    if attack is EVERY["pgd"]:
        assert (found.forwards[~found.success] == 1 + 41).all()  # the door, 40 steps, the look at the last
        assert (found.backwards[~found.success] == 40).all()
        assert (found.forwards[found.success] < 42).any()  # rows that are fooled leave


@every_attack
def test_rows_misclassified_already_need_no_change(attack: Callable[..., AttackResult]):
    model, images = convnet(), pictures(4)
    found = attack(model, images, (predicted(model, images) + 1) % 4)
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
        found = attack(noisy, images, labels)
    assert torch.equal(found.adversarial, attack(still, images, labels).adversarial)


@every_attack
def test_the_precision_of_the_model_is_kept_and_any_layout_taken(attack: Callable[..., AttackResult]):
    images = pictures(4, (3, 6, 6))
    for dtype in (torch.float64, torch.bfloat16):
        model = convnet(channels=3, gain=3).to(dtype)
        labels = predicted(model, images)
        found = attack(model, images.to(memory_format=torch.channels_last), labels, eps=0.9)
        assert (predicted(model, found.adversarial) != labels)[found.success].all()
        assert found.success.any()


@every_attack
def test_progress_only_rises_and_ends_with_every_row(attack: Callable[..., AttackResult]):
    told: list[tuple[int, int]] = []
    model, images = convnet(), pictures(300)
    request: dict[str, Any] = {"progress": lambda done, total, note="": told.append((done, total))}
    attack(model, images, predicted(model, images), eps=0.01, **request)
    assert told[-1] == (300, 300)
    assert told == sorted(told)


def test_rivals_without_the_margin_are_refused():
    with pytest.raises(InputError, match="rivals goes with loss='margin' and without targets"):
        pgd(convnet(), pictures(1), torch.tensor([0]), rivals=True)
