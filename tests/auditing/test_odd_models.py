"""The audit of models that are not as most are: never right, compiled, looking at the batch, failing on the way."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from problems import convnet, pictures, predicted
from torch import Tensor, nn

from brittle import attacks
from brittle.auditing import Audit, audit
from brittle.auditing.sanity import sanity_check
from brittle.data import Split
from brittle.errors import InputError

IMAGES = pictures(20)
NET = convnet(gain=3).eval()
LABELS = predicted(NET, IMAGES)


def audited(model: Any, labels: Tensor = LABELS, images: Tensor = IMAGES, **options: Any) -> Audit:
    with warnings.catch_warnings(action="error"):
        return audit(model, Split(images, labels), **{"eps": 0.1, "budget": "quick", **options})


class Viewing(nn.Module):
    """Flattens by `view(len, -1)`, which an empty batch does not take, and counts the images it is shown."""

    def __init__(self):
        super().__init__()
        self.network, self.shown = nn.Linear(36, 4), 0

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        self.shown += len(images)
        return self.network(images.view(images.size(0), -1))


@pytest.mark.parametrize("norm", ["linf", "l2", "l0"])
def test_a_model_that_is_never_right_is_not_attacked(norm: str, tmp_path: Any):
    model = Viewing()
    wrong = (predicted(model, IMAGES) + 1) % 4
    model.shown = 0
    found = audited(model, wrong, norm=norm, eps=1)
    assert model.shown < 20 * len(IMAGES)  # five runs at the door, single images, the votes; no attack of 40 steps
    assert found.verdict.kind == "inconclusive"
    assert found.verdict.sentences == ("The model classifies none of the 20 images correctly: nothing was attacked.",)
    assert found.steps == found.curves == ()
    assert (found.left.count, found.common.count) == (0, 0)
    assert "none of the 20 images" in found.summary()
    assert found.write(tmp_path).exists()


@pytest.mark.parametrize("name", ["pgd", "carlini_l2", "carlini_linf", "carlini_l0", "linear_mask", "song_2", "song_4"])
def test_where_every_image_is_wrong_already_no_attack_has_anything_to_do(name: str):
    model = Viewing()
    found = getattr(attacks, name)(model, IMAGES, (predicted(model, IMAGES) + 1) % 4)
    assert found.trivial.all()


def test_images_of_one_class_say_nothing_of_what_was_learned():
    rows = (LABELS[0] == LABELS).nonzero().flatten()
    found = audited(NET, LABELS[rows], IMAGES[rows])
    assert found.verdict.kind == "inconclusive"
    assert "too few, or of too few classes" in found.verdict.sentences[0]
    assert "All images are of one class: draw them at random from all classes." in found.verdict.next
    assert not any("preprocessing" in one for one in (*found.door.remedies, *found.verdict.next))


def test_a_model_far_better_than_a_constant_answer_is_not_told_to_check_its_labels():
    """Of two classes, the larger has 14 of 20 images."""
    labels = (torch.arange(20) >= 14).long()

    class Right(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            """(B, C, H, W) -> (B, 2)."""
            near = torch.stack([(IMAGES - image).flatten(1).abs().sum(1).argmin() for image in images])
            return nn.functional.one_hot(labels[near], 2).float()

    door = sanity_check(Right(), Split(IMAGES, labels))
    assert (door.accuracy.value, door.chance) == (1, 0.7)
    assert not any("constant answer" in one for one in door.remedies)


def test_once_no_image_is_left_nothing_more_is_attacked():
    found = audited(NET, eps=0.4)
    assert found.left.count == 0
    assert found.verdict.kind == "broken"
    names = [one.name for one in found.checks]
    assert "binarization" not in names
    assert "twice the steps" not in [step.name for step in found.steps]
    for curve in found.curves:
        assert all(left == 0 for eps, left in zip(curve.eps, curve.left, strict=True) if eps >= 0.4)


@pytest.mark.parametrize("form", ["whole", "inside", "own"])
def test_a_compiled_model_is_audited_as_the_one_inside(form: str):
    plain = audited(NET, LABELS[:8], IMAGES[:8])
    model: Any = copy.deepcopy(NET)
    if form == "own":
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
        model = nn.Sequential(model) if form == "inside" else model
    model(IMAGES[:2])  # compiled for this shape, it does not call hooks
    found = audited(model, LABELS[:8], IMAGES[:8])
    assert [(one.name, one.quantity) for one in found.checks] == [(one.name, one.quantity) for one in plain.checks]
    assert (found.left, found.common) == (plain.left, plain.common)


class Halves(nn.Module):
    """Answers an image by the brightness of its whole batch, too."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return NET(images) + 20 * (images.mean() - 0.5) * torch.arange(4)


def test_a_model_that_looks_at_the_batch_is_shown_single_images():
    model = Halves()
    alone = torch.cat([model(image[None]).argmax(1) for image in IMAGES])
    found = audited(model, alone)
    assert found.verdict.kind == "inconclusive"
    assert found.door.accuracy.count == len(IMAGES)  # together some would be wrong
    assert not torch.equal(model(IMAGES).argmax(1), alone)
    assert any("each image was shown to it alone" in one for one in found.door.remedies)


def test_what_a_model_raises_on_the_way_is_one_line():
    class Fails(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            """(B, C, H, W) -> (B, K)."""
            assert (images.detach() - IMAGES[0]).abs().amax() < 0.99 or len(images) < 20, "Input too bright"
            if images.requires_grad:
                raise KeyError("head")
            return NET(images)

    for attempt in (lambda: audited(Fails()), lambda: attacks.pgd(Fails(), IMAGES[:3], LABELS[:3])):
        with pytest.raises(InputError, match=r"^the model fails on images \(\d+, 1, 6, 6\): \w+Error: ") as said:
            attempt()
        assert "\n" not in str(said.value)
