"""Every class as a target: which rows there are, what each is worth, and the three cases in numbers known by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from problems import Counting, convnet, linear, pictures, predicted
from torch import Tensor, nn

from brittle.attacks import AttackResult, carlini_l0, carlini_l2, carlini_linf
from brittle.attacks.all_targets import cases, every_target
from brittle.attacks.result import measured
from brittle.errors import InputError


def idle(model: nn.Module, images: Tensor, labels: Tensor, *, targets: Tensor, **options: Any) -> AttackResult:
    """An attack that changes nothing."""
    return measured(model, images, labels, images, forwards=0, backwards=0, targets=targets, **options)


def by_hand(labels: list[int], targets: list[int], sizes: list[float], success: list[bool]) -> AttackResult:
    """A result whose row i changes the first of four pixels by sizes[i], or failed."""
    reached, images = torch.tensor(success), torch.zeros(len(labels), 1, 2, 2)
    adversarial = images.clone()
    adversarial[:, 0, 0, 0] = torch.where(reached, torch.tensor(sizes), 0.0)
    aims, nothing = torch.tensor(targets), torch.zeros(len(labels), dtype=torch.int64)
    classes = torch.where(reached, aims, torch.tensor(labels))
    return AttackResult(images, torch.tensor(labels), aims, adversarial, reached, classes, nothing, nothing)


def test_the_rows_are_each_image_with_all_classes_but_its_label_in_ascending_order():
    images, labels = pictures(3), torch.tensor([0, 3, 2])
    found = every_target(idle, convnet(), images, labels)
    assert found.targets is not None
    assert found.targets.tolist() == [1, 2, 3, 0, 1, 2, 0, 1, 3]
    assert found.labels.tolist() == [0, 0, 0, 3, 3, 3, 2, 2, 2]
    assert torch.equal(found.images, images[[0, 0, 0, 1, 1, 1, 2, 2, 2]])


@pytest.mark.parametrize("attack", [carlini_l2, carlini_linf, carlini_l0], ids=["l2", "linf", "l0"])
def test_each_row_is_what_the_targeted_attack_alone_finds(attack: Any):
    model, images = convnet(gain=3).double(), pictures(5, dtype=torch.float64)
    labels = predicted(model, images)
    found = every_target(attack, model, images, labels, max_iterations=15)
    assert found.targets is not None
    assert found.success.any()
    for turn in range(3):
        rows = slice(turn, None, 3)
        alone = attack(model, images, labels, targets=found.targets[rows], max_iterations=15)
        assert torch.equal(alone.success, found.success[rows])
        assert torch.allclose(alone.adversarial, found.adversarial[rows], atol=1e-9)
        assert torch.equal(alone.forwards, found.forwards[rows])


def test_the_best_case_is_no_farther_than_what_the_attack_finds_without_a_target():
    """It may be closer: without a target the class that leads at first can turn out to be farther than another."""
    model, images = convnet(gain=3), pictures(8)
    labels = predicted(model, images)
    best = cases(every_target(carlini_l2, model, images, labels), 2).best
    any_class = carlini_l2(model, images, labels)
    assert any_class.success.any()
    assert torch.equal(any_class.success, best.isfinite())
    assert (best <= 1.02 * any_class.norm(2))[any_class.success].all()


def test_an_image_that_is_misclassified_already_needs_no_change_to_stay_where_it_is():
    model, images = convnet(gain=3), pictures(4)
    classes = predicted(model, images)
    found = every_target(carlini_l2, model, images, (classes + 1) % 4, max_iterations=5)
    assert torch.equal(found.trivial, found.targets == classes.repeat_interleave(3))
    assert (cases(found, 2).best == 0).all()


def test_the_three_cases_of_rows_written_by_hand():
    """All targets reached, one not, none; and the highest class among the labels."""
    found = by_hand(
        labels=[0, 0, 2, 2, 1, 1],
        targets=[1, 2, 0, 1, 0, 2],
        sizes=[0.25, 0.75, 0.5, 0.9, 0.9, 0.9],
        success=[True, True, True, False, False, False],
    )
    for p in (1, 2, torch.inf):
        seen = cases(found, p)
        assert seen.best.tolist() == [0.25, 0.5, np.inf]
        assert seen.average[:2].tolist() == [0.5, 0.5]
        assert seen.average[2].isnan()
        assert seen.worst.tolist() == [0.75, np.inf, np.inf]
        assert seen.failures.tolist() == [0, 1, 2]
    assert cases(found, 0).worst.tolist() == [1, np.inf, np.inf]


def test_how_many_classes_there_are_is_seen_where_all_labels_are_the_highest_and_where_there_are_two():
    highest = by_hand([2, 2, 2, 2], [0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], [True] * 4)
    assert len(cases(highest, 2).best) == 2
    two = by_hand([1, 0, 0], [0, 1, 1], [0.5, 0.25, 0.75], [True] * 3)
    assert cases(two, 2).worst.tolist() == [0.5, 0.25, 0.75]
    found = every_target(idle, linear(shape=(1, 5, 5)), pictures(3, (1, 5, 5)), torch.tensor([0, 1, 0]))
    assert found.targets is not None
    assert found.targets.tolist() == [1, 0, 1]


@pytest.mark.usefixtures("unprobed")
def test_the_model_is_asked_for_its_classes_with_one_image_or_not_at_all():
    images, labels = pictures(3), torch.tensor([0, 1, 2])

    def nothing(model: nn.Module, images: Tensor, labels: Tensor, *, targets: Tensor) -> Any:
        return targets

    model = Counting(convnet())
    every_target(nothing, model, images, labels)
    assert model.sizes == [1]
    every_target(nothing, model, images, labels, classes=4)
    assert model.sizes == [1]


def test_labels_and_results_that_do_not_fit_are_refused():
    images = pictures(2)
    with pytest.raises(InputError, match=r"labels must lie in 0\.\.3, got 0\.\.4"):
        every_target(idle, convnet(), images, torch.tensor([0, 4]))
    with pytest.raises(InputError, match=r"one entry an image, \(2,\), got \(1,\)"):
        every_target(idle, convnet(), images, torch.tensor([0]))
    with pytest.raises(InputError, match="classes must be at least 2, got 1"):
        every_target(idle, convnet(), images, torch.tensor([0, 0]), classes=1)
    with pytest.raises(InputError, match="got one without targets"):
        cases(carlini_l2(convnet(), images, torch.tensor([0, 0]), max_iterations=1), 2)
    with pytest.raises(InputError, match="all classes but its label, ascending"):
        cases(by_hand([0, 0], [2, 1], [0.5, 0.5], [True, True]), 2)
    with pytest.raises(InputError, match="all classes but its label, ascending"):
        cases(by_hand([0, 0, 0], [1, 2, 1], [0.5, 0.5, 0.5], [True] * 3), 2)
