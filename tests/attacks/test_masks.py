"""Additive masks against linear models, where the gradient is the weights, and against the paper's words as a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from problems import Constant, Counting, convnet, linear, pictures, predicted
from torch import Tensor, nn

from brittle.attacks.masks import (
    ETA_SCALE,
    ETAS,
    borrowed_mask,
    class_mask,
    learned_mask,
    linear_mask,
    mask_curve,
    nearest,
    optimal_eta,
    target_gradient,
    transferred,
)
from brittle.attacks.result import AttackResult
from brittle.errors import InputError

EXAMPLES = pictures(20, seed=9)
ATTACKS: dict[str, Callable[..., AttackResult]] = {
    "linear": linear_mask,
    "borrowed": partial(borrowed_mask, examples=EXAMPLES),
    "transferred": partial(transferred, source=convnet(seed=5, gain=40)),
    "class": partial(class_mask, learning_rate=0.1),
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
linear_ones = pytest.mark.parametrize("attack", list(ATTACKS.values())[:3], ids=list(ATTACKS)[:3])
both_outputs = pytest.mark.parametrize("of", ["logits", "softmax"])
both_clips = pytest.mark.parametrize("clip", [True, False])


def problem(rows: int = 12, gain: float = 40) -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """A model, images, what it says of them, and targets."""
    model, images = convnet(gain=gain), pictures(rows)
    labels = predicted(model, images)
    return model, images, labels, (labels + 1 + torch.arange(rows) % 3) % 4


def output_gradient(model: nn.Module, image: Tensor, target: int, of: str) -> Tensor:
    """One image, by autograd alone."""
    image = image.clone().requires_grad_(True)
    logits = model(image[None])[0]
    outputs = torch.softmax(logits.double(), 0) if of == "softmax" else logits
    return torch.autograd.grad(outputs[target], image)[0]


# The gradient ---------------------------------------------------------------------------------------------------------


@both_outputs
def test_a_mask_is_the_gradient_of_the_targets_output(of: Any):
    model, images, _, targets = problem(gain=3)
    found = target_gradient(model.double(), images.double(), targets, of=of)
    for row in range(len(images)):
        expected = output_gradient(model, images[row].double(), int(targets[row]), of)
        torch.testing.assert_close(found[row], expected, atol=1e-14, rtol=1e-9)


def test_a_linear_models_mask_is_its_weights():
    model, images = linear(classes=3), pictures(4, (1, 5, 5))
    targets = torch.tensor([0, 1, 2, 2])
    head = model[1]
    assert isinstance(head, nn.Linear)
    assert torch.equal(target_gradient(model, images, targets).flatten(1), head.weight.detach()[targets])


def test_a_saturated_softmax_still_gives_a_mask_as_long_as_a_float_can_hold_it():
    """F_t of about 1e-30: a float32 softmax' gradient keeps it, but one of 1e-60 is 0, and an eta of 12,750 no help."""
    model = linear(classes=2, shape=(1, 5, 5), bias=True)
    images = pictures(1, (1, 5, 5))
    lead = (model(images)[0, 0] - model(images)[0, 1]).item()
    for margin, vanishes in ((60.0, False), (200.0, True)):
        with torch.no_grad():
            model[1].bias[0] += margin - lead  # type: ignore[union-attr,operator,index]
        lead = margin
        mask = target_gradient(model, images, torch.tensor([1]), of="softmax")
        assert (mask == 0).all().item() == vanishes
    assert (target_gradient(model, images, torch.tensor([1])) != 0).all()


# The line search ------------------------------------------------------------------------------------------------------


def by_the_book(
    model: nn.Module, mask: Tensor, image: Tensor, label: int, target: int | None, clip: bool, etas: Any
) -> tuple[bool, Tensor]:
    """In bytes, as the paper has its pixels: the gradient is of inputs in 0..255 too."""
    pixels, slopes = image * 255, mask / 255
    for eta in (0.0, *etas):
        changed = pixels + eta * slopes
        if clip:
            changed = changed.clamp(0, 255)
        prediction = int(model(changed[None] / 255)[0].argmax())
        if prediction != label if target is None else prediction == target:
            return True, changed / 255
    return False, image


@both_clips
@both_outputs
@pytest.mark.parametrize("etas", [ETAS, (4321.0,)])
@pytest.mark.parametrize("targeted", [True, False])
def test_the_least_eta_that_does_is_taken_on_pixels_from_0_to_255(
    targeted: bool, etas: Sequence[float], of: Any, clip: bool
):
    model, images, labels, targets = problem(rows=24)
    model, images = model.double(), images.double()
    labels[0] = (labels[0] + 1) % 4  # wrong from the start
    targets[0] = (labels[0] + 1) % 4
    found = linear_mask(model, images, labels, targets=targets if targeted else None, etas=etas, of=of, clip=clip)
    for row in range(len(images)):
        label, target = int(labels[row]), int(targets[row]) if targeted else None
        mask = output_gradient(model, images[row], label if target is None else target, of)
        sign = -1 if target is None else 1
        success, last = by_the_book(model, sign * mask, images[row], label, target, clip, etas)
        assert found.success[row] == success
        torch.testing.assert_close(found.adversarial[row], last)
    assert found.success.any()
    if not clip and of == "logits":
        assert found.adversarial.min() < 0 or found.adversarial.max() > 1


def test_a_linear_model_gives_way_at_the_eta_of_the_closed_form():
    """Towards t from y the lead falls by eta |w_t|^2 - eta w_t . w_y; unclipped, so nothing stands in the way."""
    model, images = linear(classes=2, scale=8), pictures(40, (1, 5, 5))
    labels = predicted(model, images)
    head = model[1]
    assert isinstance(head, nn.Linear)
    weights, logits = head.weight.detach().double(), model(images).detach().double()
    own, other = weights[labels], weights[1 - labels]
    lead = logits.gather(1, labels[:, None])[:, 0] - logits.gather(1, 1 - labels[:, None])[:, 0]
    needed = lead / ((other - own) * other).sum(1) * ETA_SCALE
    found = linear_mask(model, images, labels, targets=1 - labels, clip=False)
    possible = (needed > 0) & (needed < ETAS[-1])
    assert torch.equal(found.success, possible)
    assert possible.sum() > 10
    taken = found.norm(2).double() / other.norm(dim=1) * ETA_SCALE
    steps = torch.ceil(needed[possible] / 250) * 250
    torch.testing.assert_close(taken[possible], steps, rtol=1e-4, atol=0.5)


def test_the_range_of_etas_is_the_papers():
    assert (ETAS[0], ETAS[-1], len(ETAS)) == (0, 12_750, 52)
    assert ETAS[-1] / ETA_SCALE == pytest.approx(50 / 255)


def test_only_clipped_images_keep_to_the_range():
    model, images, labels, targets = problem()
    clipped = linear_mask(model, images, labels, targets=targets)
    free = linear_mask(model, images, labels, targets=targets, clip=False)
    assert clipped.adversarial.min() >= 0
    assert clipped.adversarial.max() <= 1
    assert free.adversarial.min() < 0
    assert free.adversarial.max() > 1
    assert torch.equal(predicted(model, free.adversarial) == targets, free.success)
    assert free.success.sum() >= 1


@both_clips
def test_a_curve_is_the_paper_at_every_eta(clip: bool):
    model, images, _, targets = problem(rows=9)
    masks, etas = target_gradient(model, images, targets), (0.0, 100.0, 3000.0, 12_750.0)
    found = mask_curve(model, images, masks, targets, etas=etas, clip=clip)
    for place, eta in enumerate(etas):
        changed = images + eta / 255**2 * masks
        assert torch.equal(found[place], predicted(model, changed.clamp(0, 1) if clip else changed) == targets)
    assert not found[0].any()
    assert found.any()


def test_the_optimal_eta_takes_most_images_to_the_target_and_is_the_least_of_equals():
    reached = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]]).bool()
    assert optimal_eta(reached, (0.0, 10.0, 20.0)) == 10.0
    assert optimal_eta(torch.ones(52, 3).bool()) == 0.0


# Masks of other images, and of other models ---------------------------------------------------------------------------


def test_the_nearest_example_is_the_nearest_even_by_little():
    images, examples = pictures(300), pictures(40, seed=1)
    near = examples[7] + torch.full_like(examples[7], 1e-3)
    examples = torch.cat([examples, near[None], images[5:6], images[5:6]])
    images[0] = examples[7] + 0.4e-3
    images[1] = examples[7] + 0.6e-3
    found = nearest(images, examples)
    distances = (images.double()[:, None] - examples.double()[None]).flatten(2).norm(dim=2)
    assert torch.equal(found, distances.argmin(1))
    assert found[:2].tolist() == [7, 40]
    assert found[5] == 41  # the first of two that are the same
    assert torch.equal(nearest(images[:3], examples[:1]), torch.zeros(3, dtype=torch.int64))


@both_outputs
@pytest.mark.parametrize("etas", [ETAS, (5000.0,)])
def test_a_borrowed_mask_is_that_of_the_nearest_example(etas: Sequence[float], of: Any):
    model, images, labels, targets = problem(rows=20)
    found = borrowed_mask(model, images, labels, examples=EXAMPLES, targets=targets, etas=etas, of=of)
    lenders = EXAMPLES[nearest(images, EXAMPLES)]
    masks = target_gradient(model, lenders, targets, of=of)
    for row in range(20):
        expected = by_the_book(model, masks[row], images[row], int(labels[row]), int(targets[row]), True, etas)
        assert found.success[row] == expected[0]
        torch.testing.assert_close(found.adversarial[row], expected[1])
    assert found.success.any()


def test_an_image_among_the_examples_borrows_its_own_mask():
    model, images, labels, targets = problem()
    own = linear_mask(model, images, labels, targets=targets)
    borrowed = borrowed_mask(model, images, labels, examples=torch.cat([EXAMPLES, images]), targets=targets)
    assert torch.equal(own.adversarial, borrowed.adversarial)


def test_a_mask_that_is_transferred_is_the_sources():
    model, images, labels, targets = problem(rows=20)
    source = convnet(seed=5, gain=40)
    found = transferred(model, images, labels, source=source, targets=targets)
    masks = target_gradient(source, images, targets)
    for row in range(20):
        expected = by_the_book(model, masks[row], images[row], int(labels[row]), int(targets[row]), True, ETAS[1:])
        assert found.success[row] == expected[0]
        torch.testing.assert_close(found.adversarial[row], expected[1])
    same = transferred(model, images, labels, source=model, targets=targets)
    assert torch.equal(same.adversarial, linear_mask(model, images, labels, targets=targets).adversarial)
    assert same.success.sum() > found.success.sum()


# One mask for all -----------------------------------------------------------------------------------------------------


def test_a_linear_model_learns_the_mask_that_takes_every_image_to_the_target():
    """Nothing is clipped, and the mask follows the target's weights less the other's."""
    model, images = linear(classes=2, scale=1), pictures(64, (1, 5, 5))
    mask = learned_mask(model, images, 1, epochs=40, learning_rate=0.05, clip=False)
    assert (predicted(model, images + mask) == 1).all()
    head = model[1]
    assert isinstance(head, nn.Linear)
    slopes = (head.weight[1] - head.weight[0]).detach()
    assert torch.equal(mask.flatten().sign(), slopes.sign())


def test_a_learned_mask_lowers_the_cross_entropy_towards_its_target():
    model, images = convnet(gain=10), pictures(50)
    mask = learned_mask(model, images, 2, learning_rate=0.05)
    wanted = torch.full((50,), 2)
    before, after = (
        nn.functional.cross_entropy(model(shown), wanted).item() for shown in (images, (images + mask).clamp(0, 1))
    )
    assert after < before / 2


def test_a_learned_mask_keeps_to_its_size_and_to_its_seed():
    model, images = convnet(gain=10), pictures(50)
    learn = partial(learned_mask, model, images, 2, batch_size=16)
    assert learn(epsilon=0.03).abs().max().item() == pytest.approx(0.03)
    assert learn().abs().max() > 0.03
    assert torch.equal(learn(seed=1), learn(seed=1))
    assert not torch.equal(learn(seed=1), learn(seed=2))
    assert not torch.equal(learn(clip=True), learn(clip=False))


def test_the_scale_of_the_logits_does_not_change_the_pace():
    images = pictures(30)
    steep, flat = (learned_mask(convnet(gain=gain), images, 2, epochs=3) for gain in (1000, 20))
    assert steep.abs().max().item() == pytest.approx(flat.abs().max().item(), rel=0.3)


def test_rows_with_the_same_target_share_a_mask():
    model, images, labels, targets = problem(rows=30)
    found = class_mask(model, images, labels, targets=targets, learning_rate=0.05, clip=False)
    assert 0 < found.success.sum() < 30
    for target in range(4):
        rows = targets == target
        mask = learned_mask(model, images[rows], target, learning_rate=0.05, clip=False)
        expected = predicted(model, images[rows] + mask) == target
        assert torch.equal(found.success[rows], expected)
        changes = (found.adversarial - images)[rows & found.success]
        torch.testing.assert_close(changes, mask.expand_as(changes), atol=1e-6, rtol=0)


def test_a_class_mask_may_be_learned_on_other_images():
    model, images, labels, targets = problem(rows=10)
    found = class_mask(model, images, labels, targets=targets, examples=EXAMPLES, learning_rate=0.1)
    for row in range(10):
        mask = learned_mask(model, EXAMPLES, int(targets[row]), learning_rate=0.1)
        changed = (images[row] + mask).clamp(0, 1)
        assert found.success[row] == (predicted(model, changed[None])[0] == targets[row])
        if found.success[row]:
            torch.testing.assert_close(found.adversarial[row], changed)


# The manners of every attack ------------------------------------------------------------------------------------------


@every_attack
def test_success_is_what_the_model_says_and_failures_hold_their_image(attack: Callable[..., AttackResult]):
    model, images, labels, targets = problem(rows=30)
    found = attack(model, images, labels, targets=targets)
    assert 0 < found.success.sum() < 30
    assert torch.equal(predicted(model, found.adversarial) == targets, found.success)
    assert torch.equal(found.adversarial[~found.success], images[~found.success])
    assert found.targets is not None
    assert torch.equal(found.targets, targets)
    assert found.adversarial.min() >= 0
    assert found.adversarial.max() <= 1


@every_attack
def test_rows_on_target_already_stay_as_they_are(attack: Callable[..., AttackResult]):
    model, images, labels, _ = problem()
    found = attack(model, images, (labels + 1) % 4, targets=labels)
    assert found.trivial.all()
    assert torch.equal(found.adversarial, images)


@linear_ones
@pytest.mark.parametrize("etas", [ETAS, (9000.0,)])
def test_rows_wrong_already_stay_as_they_are(attack: Callable[..., AttackResult], etas: Sequence[float]):
    model, images, labels, _ = problem()
    found = attack(model, images, (labels + 1) % 4, etas=etas)
    assert found.trivial.all()
    assert found.forwards.tolist() == [2] * 12


@every_attack
def test_what_cannot_be_fooled_fails(attack: Callable[..., AttackResult]):
    if isinstance(attack, partial) and "source" in attack.keywords:
        attack = partial(transferred, source=Constant())
    images, labels = pictures(3), torch.zeros(3, dtype=torch.int64)
    found = attack(Constant(), images, labels, targets=labels + 1)
    assert not found.success.any()
    assert torch.equal(found.adversarial, images)


@every_attack
def test_a_batch_is_its_rows(attack: Callable[..., AttackResult]):
    if attack is ATTACKS["class"]:
        attack = partial(attack, examples=EXAMPLES)
    model, images, labels, targets = problem(rows=5)
    model, images = model.double(), images.double()
    whole = attack(model, images, labels, targets=targets)
    for row in range(5):
        alone = attack(model, images[row : row + 1], labels[row : row + 1], targets=targets[row : row + 1])
        assert alone.success[0] == whole.success[row]
        torch.testing.assert_close(alone.adversarial[0], whole.adversarial[row], atol=1e-6, rtol=0)


@pytest.mark.usefixtures("unprobed")
def test_evaluations_are_counted():
    model, images, labels, targets = problem()
    counting = Counting(model)
    found = linear_mask(counting, images, labels, targets=targets)
    checks = 12 + (12 if not found.success.all() else 0)  # of `measured`, which are not counted
    assert found.forwards.sum().item() == sum(counting.sizes) - checks
    assert found.backwards.tolist() == [1] * 12
    counting.sizes.clear()
    found = class_mask(counting, images, labels, targets=(labels + 1) % 4, epochs=3)
    checks = 12 + (12 if not found.success.all() else 0)
    assert found.forwards.sum().item() == sum(counting.sizes) - checks


@linear_ones
def test_progress_ends_when_all_is_done(attack: Callable[..., AttackResult]):
    model, images, labels, targets = problem()
    seen: list[tuple[int, int]] = []
    attack(model, images, labels, targets=targets, progress=lambda done, total, note="": seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[0][1] == 12 * 51


def test_a_class_masks_progress_goes_on_over_targets():
    model, images, labels, targets = problem()
    seen: list[tuple[int, int]] = []
    class_mask(model, images, labels, targets=targets, progress=lambda done, total, note="": seen.append((done, total)))
    assert seen[-1] == (len(targets.unique()), len(targets.unique()))


# Bad input ------------------------------------------------------------------------------------------------------------


def test_wrong_requests_are_told_what_was_expected():
    model, images, labels, _ = problem()
    cases: list[tuple[str, Callable[[], object]]] = [
        (
            r"^examples must be \(N, 1, 6, 6\), as the images are, got \(2, 1, 5, 5\)$",
            lambda: borrowed_mask(model, images, labels, examples=pictures(2, (1, 5, 5))),
        ),
        (
            r"^examples must hold at least one .*, got \(0, 1, 6, 6\)$",
            lambda: borrowed_mask(model, images, labels, examples=EXAMPLES[:0]),
        ),
        (
            "^source must have the model's 4 classes, got 5$",
            lambda: transferred(model, images, labels, source=convnet(classes=5)),
        ),
        (r"^target must lie in 0\.\.3, got 4$", lambda: learned_mask(model, images, 4)),
    ]
    for match, attempt in cases:
        with pytest.raises(InputError, match=match):
            attempt()
