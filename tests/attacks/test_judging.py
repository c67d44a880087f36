"""Models that vary, that look at the whole batch, or that err by less than rounding."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from problems import Counting, convnet, pictures, predicted
from torch import Tensor, nn

from brittle import attacks
from brittle.attacks.judging import FRESH, for_good, nature
from brittle.attacks.result import predictions
from brittle.auditing.best_found import BestFound

IMAGES = pictures(40)
LABELS = predicted(convnet(gain=3), IMAGES)


class Noisy(nn.Module):
    """Two classes: the first leads by the mean of the image less a half, and noise of this deviation."""

    def __init__(self, deviation: float):
        super().__init__()
        self.deviation = deviation

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2)."""
        lead = images.flatten(1).mean(1) - 0.5
        lead = lead + self.deviation * torch.randn(len(lead), dtype=lead.dtype)
        return torch.stack([lead, -lead], 1)


def grey(*levels: float) -> Tensor:
    return torch.tensor(levels)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()


def test_luck_fools_nobody():
    """The share of wrong runs is known: P(noise < -lead). At eps 1e-6 it is that of the clean image."""
    images = grey(*torch.linspace(0.35, 0.9, 60).tolist())
    labels = torch.zeros(60, dtype=torch.int64)
    wrong = images[:, 0, 0, 0] < 0.5 - 0.1  # in far more than half of the runs; nearer nothing is claimed
    sure = wrong | (images[:, 0, 0, 0] > 0.5 + 0.1)
    for name, options in (("pgd", {"steps": 20}), ("noise", {"draws": 20}), ("square", {"queries": 20})):
        with pytest.warns(UserWarning, match="answers differently each time: .* more than half of many fresh runs"):
            found = getattr(attacks, name)(Noisy(0.2), images, labels, eps=1e-6, **options)
        assert torch.equal(found.success[sure], wrong[sure])
        assert torch.equal(found.adversarial[sure], images[sure])
        assert torch.equal(found.prediction[sure], wrong[sure].long())


def test_what_moves_an_image_over_the_border_fools_a_model_that_varies():
    images, labels = grey(0.6, 0.65, 0.7), torch.zeros(3, dtype=torch.int64)
    with pytest.warns(UserWarning, match="differently"):
        found = attacks.pgd(Noisy(0.1), images, labels, eps=0.3, steps=10, keep="last")
    assert found.success.all()
    assert (found.adversarial.flatten(1).mean(1) < 0.45).all()


def test_a_hit_takes_more_wrong_runs_than_the_clean_image_has():
    rows = torch.arange(200)
    images = grey(0.5).expand(200, -1, -1, -1)  # wrong in half of the runs, whatever is done

    def errs(logits: Tensor, _rows: Tensor) -> Tensor:
        return logits.argmax(1) != 0

    torch.manual_seed(0)
    assert for_good(Noisy(0.1), images, rows, errs, torch.full((200,), 0.5)).sum() <= 2  # by luck 3 in a thousand
    assert for_good(Noisy(0.1), images - 0.1, rows, errs, torch.full((200,), 0.5)).all()
    assert FRESH >= 100


def test_an_audit_counts_no_lucky_vote():
    torch.manual_seed(0)
    images, labels = grey(*[0.55] * 50), torch.zeros(50, dtype=torch.int64)  # wrong in 31 % of the runs
    best_found = BestFound(Noisy(0.1), images, labels, "linf", False)
    assert best_found.left(0.1) == 1
    for _ in range(10):
        best_found.record("nothing", images, torch.arange(50))
    assert best_found.left(0.1) == 1


class ByBatch(nn.Module):
    """Batch normalisation without running statistics."""

    def __init__(self):
        super().__init__()
        self.norm, self.network = nn.BatchNorm2d(1, track_running_stats=False), convnet(gain=3)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return self.network(self.norm(images))


@pytest.mark.parametrize("name", ["pgd", "square", "carlini_linf", "song_2"])
def test_a_model_that_looks_at_the_batch_is_judged_by_single_images(name: str):
    model = ByBatch().eval()
    alone = torch.cat([predictions(model, image[None]) for image in IMAGES])
    options = {"pgd": {"eps": 0.05}, "square": {"eps": 0.05, "queries": 20}, "carlini_linf": {"max_iterations": 10}}
    with pytest.warns(UserWarning, match="depends on the other images of its batch: each image is shown to it alone"):
        found = getattr(attacks, name)(model, IMAGES, alone, **options.get(name, {"max_pixels": 3}))
    assert not found.trivial.any()
    again = torch.cat([predictions(model, image[None]) for image in found.adversarial])
    assert torch.equal(again != alone, found.success)
    assert found.success.any()


def test_ordinary_models_are_plain_in_any_precision_and_batch():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = convnet(gain=3).to(dtype)
        for images in (IMAGES, IMAGES[:3], IMAGES[:1]):
            logits = model(images.to(dtype)).float()
            assert nature(model, images, logits) == "plain"
    assert nature(Noisy(0.1), grey(0.4, 0.6), Noisy(0.1)(grey(0.4, 0.6))) == "varies"
    assert nature(Noisy(0.1), grey(0.4), Noisy(0.1)(grey(0.4))) == "varies"


@pytest.mark.parametrize(("name", "p"), [("carlini_l2", 2), ("carlini_linf", math.inf), ("carlini_l0", 0)])
def test_the_lead_at_the_smallest_perturbation_is_larger_than_rounding(name: str, p: float):
    """Of a linear model the border is known: in L2 the lead over |dw|, in L-infinity over |dw|_1."""
    torch.manual_seed(0)
    last = nn.Linear(36, 4)
    model = nn.Sequential(nn.Flatten(), last)
    images = 0.4 + 0.2 * IMAGES
    labels = predicted(model, images)
    with warnings.catch_warnings(action="error"):
        found = getattr(attacks, name)(model, images, labels)
    logits = model(found.adversarial).detach()
    own = logits.gather(1, labels[:, None])
    lead = logits.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True) - own
    assert found.success.all()
    assert (lead > 0.9e-5 * logits.abs().amax(1, keepdim=True)).all()
    if p == 0:
        return
    weight = last.weight.detach()
    clean, way = model(images).detach(), weight[labels][:, None] - weight[None]
    ahead = clean.gather(1, labels[:, None]) - clean
    distance = ahead / torch.linalg.vector_norm(way, ord=1 if p == math.inf else 2, dim=2)
    least = distance.scatter(1, labels[:, None], torch.inf).amin(1)
    assert (found.norm(p) >= 0.9999 * least).all()
    assert (found.norm(p) / least).median() < 1.01


def test_what_every_model_is_asked_beside_an_attack_s_work():
    """Two images for what it returns, one for the memory that it takes, and 8, 8 and 1 for whether it varies."""
    model, images = Counting(convnet(gain=3)), pictures(40)
    labels = predicted(model.model, images)
    for beside in (2 + 1 + 8 + 8 + 1, 2 + 8 + 8 + 1):  # the memory is asked for once
        model.sizes.clear()
        found = attacks.pgd(model, images, labels, eps=1e-6, steps=1)
        assert sum(model.sizes) == beside + int(found.forwards.sum()) + 2 * len(images)
