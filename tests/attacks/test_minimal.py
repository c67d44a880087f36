"""The smallest perturbations against closed forms, exhaustive search and their own promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from problems import Counting, convnet, linear, pictures, predicted
from torch import Tensor, nn

from brittle.attacks import minimal

NORMS = (0, 1, 2, math.inf)
every_norm = pytest.mark.parametrize("norm", NORMS)


def smallest(slopes: np.ndarray, image: np.ndarray, lead: float, norm: float) -> float:
    """The size of the smallest change in the box by which a linear lead, `lead` here, is gone; inf if there is none.

    Values go against their slopes: in L0 and L1 those that give most first, in L2 in proportion to their slopes, in
    L-infinity all by the same amount, each no farther than the box lets it (Karush, Kuhn and Tucker).
    """
    room = np.where(slopes > 0, image, 1 - image)
    gains = np.abs(slopes) * room
    if gains.sum() <= lead:
        return math.inf
    if norm in (0, 1):
        order = np.argsort(-(gains if norm == 0 else np.abs(slopes)))
        before = np.concatenate([[0], gains[order].cumsum()])
        last = int((before[1:] <= lead).sum())  # the first that need not go all the way
        if norm == 0:
            return last + 1
        return room[order][:last].sum() + (lead - before[last]) / np.abs(slopes[order][last])
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        moved = np.minimum(middle * (np.abs(slopes) if norm == 2 else 1), room)
        low, high = (middle, high) if np.abs(slopes) @ moved < lead else (low, middle)
    return float(np.linalg.norm(np.minimum(high * (np.abs(slopes) if norm == 2 else 1), room), norm))


def problem(
    scale: float, *, box: bool, half: bool
) -> tuple[nn.Module, Tensor, Tensor, Tensor, dict[float, np.ndarray]]:
    """A linear model, images with many pixels at exactly 0 and 1 or with none near them, what may change, distances."""
    model, images = linear(shape=(1, 5, 5), scale=scale, bias=box), pictures(20, (1, 5, 5))
    if not box:
        images = 0.5 + 0.01 * (images - 0.5)  # the border is near, 0 and 1 are not
    where = torch.arange(25).view(5, 5) % 2 == 0 if half else torch.ones(5, 5).bool()
    labels = predicted(model, images)
    head = model[1]
    assert isinstance(head, nn.Linear)
    weights = head.weight.detach().double().numpy()
    with torch.no_grad():
        logits = model.double()(images.double()).numpy()
    model.float()
    found: dict[float, list[float]] = {norm: [] for norm in NORMS}
    for image, label, logit in zip(images.flatten(1).double().numpy(), labels.tolist(), logits, strict=True):
        slopes = (weights[label] - weights[1 - label]) * where.flatten().numpy()
        for norm, sizes in found.items():
            sizes.append(smallest(slopes, image, logit[label] - logit[1 - label], norm))
    return model, images, labels, where, {norm: np.array(sizes) for norm, sizes in found.items()}


@every_norm
@pytest.mark.parametrize(("scale", "box", "half"), [(20.0, True, True), (1e-3, True, False), (1.0, False, False)])
def test_the_smallest_change_of_a_linear_model_is_found(norm: float, scale: float, box: bool, half: bool):
    model, images, labels, where, distances = problem(scale, box=box, half=half)
    found = minimal(model, images, labels, norm=norm, where=where if half else None, evaluations=300)
    possible = np.isfinite(distances[norm])
    assert np.array_equal(found.success.numpy(), possible)
    ratio = found.norm(norm).double().numpy()[possible] / distances[norm][possible]
    assert ratio.min() > 1 - 1e-4  # float32 images
    mean, largest = {0.0: (1.01, 1.34), 1.0: (1.007, 1.02), 2.0: (1.0005, 1.002), math.inf: (1.0005, 1.002)}[norm]
    assert ratio.mean() < mean
    assert ratio.max() < largest


@every_norm
def test_no_smaller_change_of_a_tiny_network_is_found_by_trying_a_grid_of_images(norm: float):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5)
    images = pictures(10, (1, 1, 3))
    labels = predicted(model, images)
    found = minimal(model, images, labels, norm=norm, evaluations=150)
    levels = torch.linspace(0, 1, 31)
    grid = torch.cartesian_prod(levels, levels, levels)
    for row, image in enumerate(images.flatten(1)):
        tried = torch.cat([grid, *(torch.where(torch.arange(3) == keep, image, grid) for keep in range(3))])
        pairs = [torch.where(torch.arange(3) == free, levels[:, None], image) for free in range(3)]
        tried = torch.cat([tried, *pairs])
        change = tried - image
        size = (change != 0).sum(1) if norm == 0 else torch.linalg.vector_norm(change, ord=norm, dim=1)
        fooled = predicted(model, tried.view(-1, 1, 1, 3)) != labels[row]
        assert bool(found.success[row]) == bool(fooled.any())
        if fooled.any():
            assert found.norm(norm)[row] <= size[fooled].min() * 1.002


@every_norm
def test_another_machine_would_see_the_images_fooled(norm: float):
    model = convnet(gain=3)
    images = pictures(12)
    found = minimal(model, images, labels := predicted(model, images), norm=norm, evaluations=60)
    assert found.success.any()
    with torch.no_grad():
        logits = model(found.adversarial)
    others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    lead = others - logits.gather(1, labels[:, None]).squeeze(1)
    assert (lead >= 0.9e-5 * logits.abs().amax(1))[found.success].all()


@every_norm
@pytest.mark.parametrize("evaluations", [1, 7, 65, 110])
def test_the_budget_is_kept(norm: float, evaluations: int):
    model = Counting(convnet(gain=3))
    images = pictures(5)
    labels = predicted(model, images)
    model.sizes.clear()
    found = minimal(model, images, labels, norm=norm, evaluations=evaluations)
    passes = found.forwards + found.backwards - 1  # but for the clean image
    assert passes.max() <= 2 * evaluations
    assert found.forwards.sum() <= sum(model.sizes) <= found.forwards.sum() + 25  # success is measured on top


def test_the_fewest_values_are_fewer_than_the_values_of_the_fewest_pixels():
    model = convnet(channels=3, gain=3)
    images = pictures(5, (3, 6, 6))
    labels = predicted(model, images)
    pixels, values = (minimal(model, images, labels, norm=0, values=one, evaluations=100) for one in (False, True))
    assert pixels.success.all()
    assert values.success.all()
    changed = [(one.adversarial != images).flatten(1).sum(1) for one in (pixels, values)]
    assert (changed[1] <= changed[0]).all()
    assert (changed[1] < changed[0]).any()
    assert (pixels.norm(0) <= values.norm(0)).double().mean() > 0.7
