"""What an attack is asked for, and what is measured of what it found."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from problems import Brightness, Constant, Counting, IdentityLogits, condition, convnet, linear, pictures
from torch import Tensor, nn

from brittle import measures
from brittle.attacks.result import BATCH, AttackResult, Bound, check_request, measured, predictions
from brittle.errors import InputError

IMAGES = pictures(2)
LABELS = torch.tensor([0, 1])


# The request ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": IMAGES[0]}, r"images must be \(B, C, H, W\) and floating, got \(1, 6, 6\) torch\.float32"),
        ({"images": (255 * IMAGES).to(torch.uint8)}, r"images must be .* floating, got \(2, 1, 6, 6\) torch\.uint8"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "images must hold at least one image with pixels, got"),
        ({"images": IMAGES.sub(0.5)}, r"images must lie in \[0, 1\], got \[-0\.5, 0\.5\]"),
        ({"images": IMAGES * 255}, r"images must lie in \[0, 1\], got \[0, 255\]"),
        ({"images": IMAGES * math.nan}, r"images must lie in \[0, 1\], got \[nan, nan\]"),
        ({"labels": LABELS[:1]}, r"labels must be int64 with one entry an image, \(2,\), got \(1,\) torch\.int64"),
        ({"labels": LABELS.int()}, r"labels must be int64 .*, got \(2,\) torch\.int32"),
        ({"labels": torch.tensor([0, 4])}, r"labels must lie in 0\.\.3, as the model has 4 outputs, got 0\.\.4"),
        ({"labels": torch.tensor([-1, 1])}, r"labels must lie in 0\.\.3, .*, got -1\.\.1"),
        ({"targets": torch.tensor([1, 7])}, r"targets must lie in 0\.\.3, .*, got 1\.\.7"),
        ({"targets": LABELS[:1]}, r"targets must be int64 with one entry an image, \(2,\), got \(1,\)"),
        ({"targets": LABELS[:0]}, r"targets must be int64 with one entry an image, \(2,\), got \(0,\)"),
        ({"targets": torch.tensor([1.0, 0.0])}, r"targets must be int64 .*, got \(2,\) torch\.float32"),
        ({"targets": torch.tensor([1, 1])}, "targets must differ from labels, row 1 does not"),
        ({"model": linear(classes=1, shape=(1, 6, 6))}, r"logits \(2, K\) with K >= 2, got \(2, 1\)"),
        ({"model": nn.Identity()}, r"logits \(2, K\) with K >= 2, got \(2, 1, 6, 6\)"),
        ({"model": nn.Flatten(0, 2)}, r"logits \(2, K\) with K >= 2, got \(12, 6\)"),
        ({"model": convnet(gain=math.inf)}, "logits that are not finite on the clean images"),
    ],
)
def test_a_request_that_cannot_be_met_says_what_came(wrong: dict[str, Any], message: str):
    request = {"model": convnet(), "images": IMAGES, "labels": LABELS, "targets": None, **wrong}
    with pytest.raises(InputError, match=message):
        check_request(**request)


def test_a_model_that_returns_probabilities_is_told_of():
    model = nn.Sequential(convnet(), nn.Softmax(1))
    with pytest.warns(UserWarning, match="outputs look like probabilities"):
        check_request(model, IMAGES, LABELS)


def test_logits_that_are_no_probabilities_pass_in_silence():
    hot = IMAGES.new_tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_request(convnet(), IMAGES, LABELS)
        check_request(Constant((0.0, 0.0)), IMAGES, LABELS)  # in [0, 1], but they sum to 0
        check_request(IdentityLogits(1.1), hot, LABELS)  # one-hot but for a rounding too large to be one
        check_request(Constant((1.5, -0.5)), IMAGES, LABELS)  # sum to 1, but not in [0, 1]


def test_rounding_just_outside_0_and_1_is_let_in():
    images = IMAGES.clone()
    images[0, 0, 0, :2] = torch.tensor([-1e-7, 1 + 1e-7])
    assert check_request(convnet(), images, LABELS).clean.shape == (2, 4)
    images[0, 0, 0, 0] = -1e-5
    with pytest.raises(InputError, match="must lie in"):
        check_request(convnet(), images, LABELS)


def test_the_check_gives_the_clean_logits_and_leaves_the_model_as_it_was():
    model = convnet(dropout=0.5)
    before = condition(model)
    found = check_request(model, IMAGES, LABELS, 1 - LABELS).clean
    assert condition(model) == before
    assert not found.requires_grad
    torch.testing.assert_close(found, model.eval()(IMAGES).detach())


@pytest.mark.usefixtures("unprobed")
def test_predictions_go_through_the_model_in_batches_and_ties_go_to_the_first_class():
    model = Counting(Constant((1.0, 2.0, 2.0)))
    assert predictions(model, torch.zeros(BATCH + 1, 1, 2, 2)).tolist() == [1] * (BATCH + 1)
    assert model.sizes == [BATCH, 1]


# The way out --------------------------------------------------------------------------------------------------------


def test_success_is_measured_on_the_final_images_and_rows_that_failed_hold_the_clean_one():
    clean = torch.zeros(3, 1, 2, 2)
    changed = torch.stack([torch.full((1, 2, 2), level) for level in (1.0, 0.5, 0.25)])  # sums 4, 2, 1
    pixels = torch.tensor([[3, 1], [0, 2], [1, -1]])
    found = measured(
        Brightness(1.5), clean, torch.zeros(3, dtype=torch.int64), changed, forwards=7, backwards=2, pixels=pixels
    )
    assert found.success.tolist() == [True, True, False]
    assert torch.equal(found.adversarial, torch.stack([changed[0], changed[1], clean[2]]))
    assert found.pixels is not None
    assert found.pixels.tolist() == [[3, 1], [0, 2], [-1, -1]]
    assert found.flips.tolist() == [2, 2, 0]
    assert found.prediction.tolist() == [1, 1, 0]
    assert (found.forwards.tolist(), found.backwards.tolist()) == ([7] * 3, [2] * 3)


def test_a_target_is_reached_only_by_being_predicted():
    model, images = IdentityLogits(1), torch.eye(3).view(3, 1, 1, 3)  # row i is class i
    labels, targets = torch.tensor([1, 1, 1]), torch.tensor([0, 0, 0])
    found = measured(model, images, labels, images, forwards=1, backwards=0, targets=targets)
    assert found.success.tolist() == [True, False, False]
    untargeted = measured(model, images, labels, images, forwards=1, backwards=0)
    assert untargeted.success.tolist() == [True, False, True]


def test_nan_is_never_a_success():
    """Neither an image of NaN, which a model may well answer, nor an answer of NaN, nor one beyond all floats."""
    images, labels = torch.zeros(4, 1, 1, 2), torch.zeros(4, dtype=torch.int64)
    changed = torch.tensor([[0.0, 1.0], [math.nan, 1.0], [math.inf, 1.0], [0.0, math.nan]]).view(4, 1, 1, 2)
    told = Steps(lambda x: torch.tensor([[0.0, 1.0]]).repeat(len(x), 1))
    found = measured(told, images, labels, changed, forwards=1, backwards=0)
    assert found.success.tolist() == [True, False, False, False]
    assert torch.equal(found.adversarial[1:], images[1:])
    for answer in (math.nan, math.inf):
        silent = Steps(lambda x, answer=answer: torch.tensor([[0.0, answer]]).repeat(len(x), 1))
        assert not measured(silent, images, labels, changed, forwards=1, backwards=0).success.any()


class Steps(nn.Module):
    """Answers what it is told to."""

    def __init__(self, answer: Any):
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Tensor:
        return self.answer(images)


def result(images: Tensor, adversarial: Tensor, success: Tensor, pixels: Tensor | None = None) -> AttackResult:
    none = torch.zeros(len(images), dtype=torch.int64)
    return AttackResult(images, none, None, adversarial, success, none, none, none, pixels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-25, 1e-37])
def test_the_norm_of_a_tiny_perturbation_is_not_zero(size: float, dtype: torch.dtype):
    images = torch.zeros(2, 1, 2, 2, dtype=dtype)
    adversarial = images.clone()
    adversarial[1] = size
    found = result(images, adversarial, torch.tensor([True, True]))
    for p, factor in ((1, 4), (2, 2), (math.inf, 1), (0, 4 / size)):
        assert found.norm(p).tolist() == pytest.approx([0.0, factor * size], rel=1e-6, abs=0)


def written(**more: Any) -> AttackResult:
    """Five images: wrong before, fooled by 0.25 and by 0.5, and two that were not fooled; by hand."""
    images = torch.zeros(5, 1, 2, 2)
    adversarial = images.clone()
    adversarial[1, 0, 0, 0], adversarial[2, 0, 0, 0] = 0.25, 0.5
    labels, count = torch.zeros(5, dtype=torch.int64), torch.full((5,), 3)
    success, prediction = torch.tensor([True, True, True, False, False]), torch.tensor([1, 1, 2, 0, 0])
    return AttackResult(images, labels, None, adversarial, success, prediction, count, count, **more)


def test_rates_are_those_of_the_measures():
    found = written()
    assert found.success_rate == measures.success_rate(found).value == 0.5  # of four that were right
    assert found.robust_accuracy == 0.4  # two of five
    nothing = replace(found, **{name: value[:0] for name, value in vars(found).items() if isinstance(value, Tensor)})
    assert math.isnan(nothing.success_rate)
    assert math.isnan(nothing.robust_accuracy)
    assert "images 0" in repr(nothing)


@pytest.mark.parametrize(
    ("more", "attack", "size"),
    [
        ({"minimises": 2}, "smallest L2, any class", "mean L2 0.375"),
        ({"minimises": 0}, "smallest L0, any class", "mean L0 1"),
        ({"bound": Bound(math.inf, 0.5)}, "L-infinity <= 0.5, any class", "mean L-infinity 0.375"),
        ({}, "any perturbation, any class", "mean L2 0.375"),
    ],
)
def test_a_result_is_shown_in_words_and_never_as_tensors(more: dict[str, Any], attack: str, size: str):
    found = written(**more)
    said = f"attack {attack}; images 5; fooled 2 of the 4 that were right before; robust accuracy 40.0%; {size}"
    assert repr(found) == f"<AttackResult: {said}; evaluations per image 6>"
    lines = found.summary().splitlines()
    assert [" ".join(line.split()) for line in lines] == [*said.split("; "), "evaluations per image 6"]
    page = found._repr_html_()
    assert page.startswith("<table><tr><th>attack</th>")
    assert page.count("<tr>") == len(lines)
    assert "<=" not in page


@pytest.mark.parametrize("channels", [1, 3])
def test_norms_are_numpys_and_l0_counts_pixels(channels: int):
    images = pictures(4, (channels, 5, 4), seed=1)
    adversarial = pictures(4, (channels, 5, 4), seed=2)
    adversarial[:, :, :3] = images[:, :, :3]
    adversarial[0] = images[0]
    found = result(images, adversarial, torch.tensor([False, True, True, True]))
    change = (adversarial - images).numpy().reshape(4, -1)
    for p in (1, 2, math.inf):
        np.testing.assert_allclose(found.norm(p), np.linalg.norm(change, p, axis=1), rtol=1e-6)
    pixelwise = (adversarial != images).numpy().any(axis=1).reshape(4, -1)
    np.testing.assert_array_equal(found.norm(0), pixelwise.sum(1))
    assert found.norm(0)[0] == 0


def test_a_pixel_that_changes_in_several_channels_counts_once():
    images, adversarial = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    adversarial[0, :, 0, 0] = 1
    adversarial[0, 1, 1, 1] = 1
    assert result(images, adversarial, torch.tensor([True])).norm(0).tolist() == [2]


def test_trivial_are_successes_without_a_change():
    images = torch.zeros(3, 1, 2, 2)
    adversarial = images.clone()
    adversarial[1, 0, 0, 0] = 1
    assert result(images, adversarial, torch.tensor([True, True, False])).trivial.tolist() == [True, False, False]


def test_other_norms_and_flips_of_other_attacks_are_refused():
    found = result(IMAGES, IMAGES, torch.tensor([False, False]))
    with pytest.raises(InputError, match="norm must be 0, 1, 2 or inf, got 3"):
        found.norm(3)
    with pytest.raises(InputError, match="only pixel attacks count flips"):
        _ = found.flips
