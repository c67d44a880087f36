"""The saliency map attack against a search of all pairs, and where float32 sees nothing."""

from __future__ import annotations

import sys

import pytest
import torch
from problems import convnet, linear, pictures, predicted
from torch import nn

from brittle.attacks import jsma
from brittle.attacks.jsma import _pair


def test_the_pair_is_that_of_a_search_of_all_pairs_one_by_one(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    rise, others = torch.randn(2, 6, 9, generator=generator)
    free = torch.rand(6, 9, generator=generator) > 0.3
    others[4], rise[5] = others[4].abs(), 0  # no pair raises the one and lowers the other
    for room in (2**22, 60, 1):
        monkeypatch.setattr(sys.modules["brittle.attacks.jsma"], "ROOM", room)
        pairs, possible = _pair(rise, others, free)
        for row in range(6):
            scores = {
                (p, q): -(rise[row, p] + rise[row, q]) * (others[row, p] + others[row, q])
                for p in range(9)
                for q in range(p + 1, 9)
                if free[row, p] and free[row, q] and rise[row, p] + rise[row, q] > 0 > others[row, p] + others[row, q]
            }
            assert bool(possible[row]) == bool(scores)
            if scores:
                assert tuple(pairs[row].tolist()) == max(scores, key=lambda pair: scores[pair].item())


def test_a_linear_model_has_its_steepest_values_raised_or_lowered():
    """With two classes the target's slopes are those of its lead: the largest are taken, two by two."""
    model, images = linear(shape=(1, 5, 5)), pictures(20, (1, 5, 5)).clamp(0.1, 0.9)
    labels = predicted(model, images)
    head = model[1]
    assert isinstance(head, nn.Linear)
    weights = head.weight.detach()
    for theta in (1.0, -1.0):
        for output in ("softmax", "logits"):
            found = jsma(model, images, labels, targets=1 - labels, theta=theta, gamma=1.0, output=output)
            assert found.success.any()
            for row in found.success.nonzero().flatten().tolist():
                slopes = theta * (weights[1 - labels[row]] - weights[labels[row]])
                changed = (found.adversarial[row] != images[row]).flatten()
                assert (found.adversarial[row].flatten()[changed] == (theta > 0)).all()
                if output == "softmax":
                    assert set(changed.nonzero().flatten().tolist()) == set(
                        slopes.topk(int(changed.sum())).indices.tolist()
                    )


def test_no_more_values_change_than_gamma_allows():
    model, images = convnet(), pictures(20)
    labels = predicted(model, images)
    found = jsma(model, images, labels, targets=(labels + 1) % 4, gamma=0.25)
    assert found.success.any()
    assert (found.adversarial != images).flatten(1).sum(1).max() <= 0.25 * 36


def test_in_float32_a_saturated_softmax_hides_what_exact_arithmetic_sees():
    model, images = convnet(gain=1000), pictures(20)
    labels = predicted(model, images)
    exact, float32 = (
        jsma(model, images, labels, targets=(labels + 1) % 4, arithmetic=one, gamma=1.0) for one in ("exact", "float32")
    )
    assert exact.success.sum() > 2 * float32.success.sum()
