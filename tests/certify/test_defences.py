"""Training on attacked images and on interval bounds: what it does is seen by the proofs."""

from __future__ import annotations

import problems
import pytest
import torch
from torch import nn

from brittle import InputError, attacks, certify, fit
from brittle.models.intervals import worst_logits
from brittle.models.networks import Scaled, build

EPS = 0.12


def network() -> nn.Sequential:
    """A convolution and a dense layer."""
    return nn.Sequential(Scaled(2.0), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 3))


def trained(**options) -> nn.Module:
    return fit(
        build(network, seed=0), problems.blobs(), epochs=25, batch_size=10, seed=0, dtype="float32", **options
    ).model


def test_worst_logits_are_no_better_than_those_of_any_image_of_the_ball():
    model, images = build(network, seed=0).eval(), problems.pictures(5)
    labels = problems.predicted(model, images)
    worst = worst_logits(model, images, labels, EPS)
    assert (worst.gather(1, labels[:, None]) == 0).all()
    corners = (images + EPS * torch.randn(300, *images.shape, generator=torch.Generator().manual_seed(0)).sign()).clamp(
        0, 1
    )
    logits = model(corners.flatten(0, 1)).unflatten(0, (300, 5))
    leads = logits - logits.gather(2, labels.view(1, -1, 1).expand(300, -1, 1))
    assert (leads.amax(0) <= worst + 1e-5).all()
    assert torch.allclose(
        worst_logits(model, images, labels, 1e-7), leads.new_tensor(0) + _leads(model, images, labels), atol=1e-4
    )


def _leads(model, images, labels):
    logits = model(images)
    return logits - logits.gather(1, labels[:, None])


def test_of_a_network_trained_on_bounds_the_crown_share_lies_between_intervals_and_attacks():
    test = problems.blobs().test
    shares = {}
    for name, options in (("plain", {}), ("certified", {"certified": EPS}), ("adversarial", {"adversarial": EPS})):
        model = trained(**options)
        worst = worst_logits(model, test.images, test.labels, EPS).scatter(1, test.labels[:, None], -torch.inf).amax(1)
        proved = certify.bounds(model, test.images, test.labels, eps=EPS).amin(1) > 0
        left = attacks.pgd(model, test.images, test.labels, eps=EPS, loss="margin", steps=20).robust_accuracy
        shares[name] = float((worst < 0).double().mean()), float(proved.double().mean()), left
        assert shares[name][0] <= shares[name][1] <= shares[name][2]
    assert shares["certified"][0] > 0.8 > shares["plain"][0]
    assert shares["adversarial"][2] >= shares["plain"][2]


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.GELU(), nn.Linear(3, 3)), {}, r"layer 2 \(GELU\)"),
        (problems.Residual(classes=3), {}, "nn.Sequential of known layers, got a Residual"),
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.ReLU()), {}, "a dense last layer, got ReLU"),
        (network(), {"certified": 1.5}, r"certified must lie in \[0, 1\], got 1.5"),
        (network(), {"labels": torch.full((60, 3), 1 / 3)}, "the data's own labels"),
    ],
)
def test_what_cannot_be_trained_on_bounds_is_one_line(model, options, said):
    with pytest.raises(InputError, match=said):
        fit(model, problems.blobs(), epochs=1, **{"certified": 0.1, **options})
