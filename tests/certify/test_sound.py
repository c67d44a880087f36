"""What is proved is so: against exact distances, sampled and attacked balls, and networks with every known layer."""

from __future__ import annotations

import copy

import problems
import pytest
import torch
from certify import nets
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from brittle import attacks, certify
from brittle.certify.balls import Norm, least, nearest

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_a_linear_model_both_ends_meet_wherever_the_image_lies_in_the_box(norm, dtype):
    model = problems.linear(classes=4, shape=(1, 6, 6), seed=1).to(dtype)
    images = torch.cat([problems.pictures(8, dtype=dtype), torch.full((1, 1, 6, 6), 0.5, dtype=dtype)])
    found = certify.bracket(model, images, problems.predicted(model, images), norm=norm, evaluations=20)
    assert (found.proved <= found.found).all()
    assert (found.found - found.proved).max() <= (1e-6 if dtype == torch.float64 else 3e-6)
    assert found.meets.double().mean() > 0.5


def test_in_random_networks_no_radius_of_500_is_above_the_exact_distance():
    above, shares = [], []
    for seed in range(84):
        network, images, labels = nets.tiny(seed)
        norm = NORMS[seed % 3]
        proved = certify.radius(network, images, labels, norm=norm).radius
        known = torch.tensor(
            [nets.nearest(network, image, int(label))[norm] for image, label in zip(images, labels, strict=True)]
        )
        above += [seed] if (proved > known + 1e-12).any() else []
        shares += (proved / known)[known.isfinite()].tolist()
    assert not above
    assert torch.tensor(shares).median() > 0.8  # and they are near


def test_the_exact_method_gives_the_exact_distance():
    for seed in range(6):
        network, images, labels = nets.tiny(seed)
        found = certify.exact(network, images, labels)
        for place, (image, label) in enumerate(zip(images, labels, strict=True)):
            known = nets.nearest(network, image, int(label))["linf"]
            assert found.lower[place] <= known + 1e-9
            if known < torch.inf:
                assert found.lower[place] == pytest.approx(known, abs=3e-6)
                assert found.upper[place] == pytest.approx(known, abs=3e-6)
        fooled = found.upper.isfinite()
        assert (problems.predicted(network, found.adversarial[fooled]) != labels[fooled]).all()
        assert found.solved.all()


def sampled(model: nn.Module, image: torch.Tensor, radius: float, norm: str, seed: int) -> torch.Tensor:
    """Points of a ball: its corners and what is within, cut to the box."""
    generator = torch.Generator().manual_seed(seed)
    change = torch.randn(200, *image.shape[1:], generator=generator, dtype=torch.float64)
    if norm == "linf":
        change = change.sign()
    if norm == "l1":
        change = change * (torch.rand(change.shape, generator=generator, dtype=torch.float64) < 0.1)
    size = torch.linalg.vector_norm(change.flatten(1), ord=nets.ORDERS[norm], dim=1).clamp(min=1e-9)
    return (image.double() + change / size.view(-1, 1, 1, 1) * radius).clamp(0, 1)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.sampled_from(NORMS))
def test_no_point_of_a_proved_ball_fools_a_network_with_every_layer(seed, norm):
    torch.manual_seed(seed)
    model = nets.Everything().eval()
    image = problems.pictures(1, (1, 8, 8), seed=seed)
    label = problems.predicted(model, image)
    eps = {"linf": 0.05, "l2": 0.3, "l1": 1.5}[norm]
    proved = certify.bounds(model, image, label, eps=eps, norm=norm)
    wide = copy.deepcopy(model).double()
    with torch.no_grad():
        logits = wide(sampled(model, image, eps, norm, seed))
    leads = logits[:, label] - logits
    leads[:, label] = torch.inf
    assert (proved <= leads).all()
    assert proved[0].isinf().nonzero().flatten().tolist() == label.tolist()


def test_no_attack_leaves_a_proved_ball():
    model, images = problems.convnet(gain=3.0), problems.pictures(12)
    labels = problems.predicted(model, images)
    for norm in ("linf", "l2"):
        radii = certify.radius(model, images, labels, norm=norm).radius
        for loss in ("margin", "exact", "cross_entropy"):
            for image, label, radius in zip(images[:4], labels, radii, strict=False):
                eps = float(radius)
                found = attacks.pgd(
                    model, image[None], label[None], norm=norm, eps=eps, loss=loss, steps=20, restarts=2
                )
                assert not found.success.any()
    minimal = attacks.carlini_linf(model, images, labels)
    assert (minimal.norm(torch.inf).double() >= certify.radius(model, images, labels).radius)[minimal.success].all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_least_value_of_a_linear_function_is_below_every_point_and_reached(norm):
    generator = torch.Generator().manual_seed(3)
    slopes = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    room = torch.rand(20, 6, generator=generator, dtype=torch.float64)
    room[:5, :3] = 0  # pixels at the edge of the box
    eps = torch.rand(20, generator=generator, dtype=torch.float64) * 1.5 + 0.01
    found = least(slopes, room, eps, norm)
    steps = torch.rand(20, 4000, 6, generator=generator, dtype=torch.float64) ** 2 * room[:, None]
    size = torch.linalg.vector_norm(steps, ord=nets.ORDERS[norm], dim=2)
    steps = steps * (eps[:, None] / size.clamp(min=1e-12)).clamp(max=1)[..., None]
    assert (found <= -(slopes.abs()[:, None] * steps).sum(2).amax(1) + 1e-12).all()
    # the least is -lead exactly where the nearest point with that lead is eps away
    step, far = nearest(slopes, room, -found * (1 - 1e-9), norm)
    assert torch.allclose((slopes * step).sum(1), found, rtol=1e-6)
    within = -found < (slopes.abs() * room).sum(1) * (1 - 1e-6)
    assert torch.allclose(far[within], eps[within], rtol=1e-5)


def test_optimised_slopes_are_sound_and_no_worse():
    model, images = problems.convnet(gain=3.0), problems.pictures(6)
    labels = problems.predicted(model, images)
    plain = certify.bounds(model, images, labels, eps=0.1)
    better = certify.bounds(model, images, labels, eps=0.1, slopes="optimised", steps=10)
    assert (better >= plain - 1e-12).all()
    assert (better > plain + 1e-6).any()
    with torch.no_grad():
        logits = torch.stack(
            [copy.deepcopy(model).double()(sampled(model, one[None], 0.1, "linf", 0)) for one in images]
        )
    leads = (logits.gather(2, labels.view(-1, 1, 1).expand(-1, 200, 1)) - logits).amin(1)
    assert (better.masked_fill(better.isinf(), -1) <= leads).all()
