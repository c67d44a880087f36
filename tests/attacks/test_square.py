"""Square and noise against models whose answer is known; their manners are tested with those of gradient descent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from problems import Brightness, convnet, linear, pictures, predicted
from torch import Tensor, nn

from brittle.attacks.pgd import pgd
from brittle.attacks.square import noise, square

both = pytest.mark.parametrize(("norm", "p", "eps"), [("linf", torch.inf, 0.3), ("l2", 2, 1.0)])


@both
def test_squares_stay_in_the_ball_and_find_most_of_what_gradients_find(norm: Any, p: float, eps: float):
    model, images = convnet(gain=3), pictures(100)
    labels = predicted(model, images)
    found = square(model, images, labels, norm=norm, eps=eps, queries=300)
    best = pgd(model, images, labels, norm=norm, eps=eps, loss="margin").success
    assert found.norm(p).max() <= eps * (1 + 1e-5)
    assert not (found.success & ~best).any()
    assert found.success.sum() > 0.7 * best.sum() > 10
    assert (found.backwards == 0).all()
    more = square(model, images, labels, norm=norm, eps=eps, queries=30)
    assert more.success.sum() < found.success.sum()


def test_a_linear_model_falls_within_a_tenth_of_the_closed_form():
    """Squares of one pixel end at the corner of the ball, where the lead is down by eps |w|_1."""
    model = linear(shape=(1, 5, 5))
    images = 0.3 + 0.4 * pictures(100, (1, 5, 5))
    labels = predicted(model, images)
    head = model[1]
    assert isinstance(head, nn.Linear)
    slopes = head.weight.detach()[labels] - head.weight.detach()[1 - labels]
    logits = model(images).detach()
    lead = (logits.gather(1, labels[:, None]) - logits.gather(1, 1 - labels[:, None])).squeeze(1)
    needed = lead / slopes.abs().sum(1)
    found = square(model, images, labels, eps=0.05, queries=1000).success
    assert not found[needed > 0.05 * 1.0001].any()
    assert found[needed < 0.045].all()


def test_no_gradient_is_asked_for():
    class Wall(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            return Brightness(4.6)(images).detach()

    images, labels = torch.full((2, 1, 3, 3), 0.5), torch.tensor([0, 0])
    assert square(Wall(), images, labels, eps=0.2).success.all()
    assert noise(Wall(), images, labels, eps=0.2).success.all()


def test_on_a_plateau_the_search_wanders():
    """Labels alone say nothing of the way; what falls to seven pixels of nine is found by trying."""

    class Labels(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.one_hot(Brightness(5.0)(images).argmax(1), 2).float() * 2

    images, labels = torch.full((20, 1, 3, 3), 0.5), torch.zeros(20, dtype=torch.int64)
    found = square(Labels(), images, labels, eps=0.12, queries=400)  # 4.5 + 0.12 (up - down) > 5 from 7 up on
    assert found.success.all()


@both
def test_noise_lies_in_the_ball_and_on_its_border_by_turns(norm: Any, p: float, eps: float):
    model, images = convnet(gain=3), pictures(200)
    labels = predicted(model, images)
    found = noise(model, images, labels, norm=norm, eps=eps, draws=50)
    assert found.success.any()
    assert found.norm(p).max() <= eps * (1 + 1e-5)
    assert found.forwards.max() == 51
    assert torch.equal(found.adversarial, noise(model, images, labels, norm=norm, eps=eps, draws=50).adversarial)
