"""The papers' networks by arithmetic, and networks that are built, read and held still."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import bits, condition, convnet, pictures
from torch import Tensor, nn

from brittle.errors import InputError
from brittle.models.networks import (
    Scaled,
    build,
    frozen,
    input_gradient,
    lo_ding_faces,
    logits_of,
    mlp,
    papernot_cifar,
    papernot_mnist,
    parameter_dtype,
    pseudo_alexnet,
)


def conv(inputs: int, outputs: int) -> int:
    return inputs * outputs * 3 * 3 + outputs


def dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


# (28 - 4) / 2 = 12, (12 - 4) / 2 = 4; (60 - 4) / 2 = 28, (28 - 4) / 2 = 12; (32 - 4) / 2 = 14, (14 - 4) / 2 = 5
SIZES = [
    (papernot_mnist, {}, (1, 28, 28), 10, conv(1, 32) + conv(32, 32) + conv(32, 64) + conv(64, 64), 64 * 4**2, 200),
    (
        papernot_mnist,
        {"size": 60, "classes": 15},
        (1, 60, 60),
        15,
        conv(1, 32) + conv(32, 32) + conv(32, 64) + conv(64, 64),
        64 * 12**2,
        200,
    ),
    (papernot_cifar, {}, (3, 32, 32), 10, conv(3, 64) + conv(64, 64) + conv(64, 128) + conv(128, 128), 128 * 5**2, 256),
]


@pytest.mark.parametrize(("make", "options", "shape", "classes", "convolutions", "flat", "width"), SIZES)
def test_the_papers_networks_have_the_papers_size(
    make: Callable[..., nn.Sequential],
    options: dict[str, int],
    shape: tuple[int, int, int],
    classes: int,
    convolutions: int,
    flat: int,
    width: int,
):
    network = make(**options)
    expected = convolutions + dense(flat, width) + dense(width, width) + dense(width, classes)
    assert sum(p.numel() for p in network.parameters()) == expected
    assert network(torch.zeros(2, *shape)).shape == (2, classes)


def test_the_mnist_network_has_312202_parameters():
    assert sum(p.numel() for p in papernot_mnist().parameters()) == 312_202


def test_sixteen_pixels_are_enough_and_fifteen_are_refused():
    assert papernot_mnist(size=16)(torch.zeros(1, 1, 16, 16)).shape == (1, 10)
    with pytest.raises(InputError, match="at least 16 x 16 pixels, got size=15"):
        papernot_mnist(size=15)


def test_dropout_has_the_rate_asked_for_before_each_dense_layer():
    for network, rate in ((papernot_mnist(), 0.5), (papernot_cifar(dropout=0.2), 0.2)):
        before = [network[i - 1] for i, layer in enumerate(network) if isinstance(layer, nn.Linear)]
        assert [layer.p for layer in before if isinstance(layer, nn.Dropout)] == [rate] * 3


@pytest.mark.parametrize("make", [papernot_mnist, papernot_cifar])
def test_weights_fill_glorots_interval_and_biases_are_zero(make: Callable[[], nn.Sequential]):
    for layer in build(make, seed=0).modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        outputs, inputs, *window = layer.weight.shape
        bound = math.sqrt(6 / ((inputs + outputs) * math.prod(window)))
        largest = layer.weight.abs().max().item()
        assert 0.95 * bound < largest <= bound * (1 + 1e-6)
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert layer.bias is not None
        assert (layer.bias == 0).all()


@pytest.mark.parametrize(("make", "shape"), [(papernot_mnist, (1, 16, 16)), (papernot_cifar, (3, 16, 16))])
def test_a_scaled_network_is_the_plain_one_on_scaled_images(
    make: Callable[..., nn.Sequential], shape: tuple[int, int, int]
):
    plain, scaled = (build(make, seed=0, size=16, pixel_scale=scale).eval() for scale in (1.0, 255 / 256))
    images = pictures(3, shape)
    assert torch.equal(scaled(images), plain(images * 255 / 256))
    assert not torch.equal(scaled(images), plain(images))


def test_only_a_scaled_network_has_a_layer_more_and_its_weights_do_not_load_into_a_plain_one():
    plain, scaled = (build(papernot_mnist, seed=0, size=16, pixel_scale=scale) for scale in (1.0, 255 / 256))
    assert bits(plain) == bits(build(papernot_mnist, seed=0, size=16))
    assert [isinstance(layer, Scaled) for layer in plain.children()] == [False] * 19
    assert [isinstance(layer, Scaled) for layer in scaled.children()] == [True] + [False] * 19
    assert list(bits(scaled).values()) == list(bits(plain).values())
    build(papernot_mnist, seed=1, size=16, pixel_scale=255 / 256).load_state_dict(scaled.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        plain.load_state_dict(scaled.state_dict())


@pytest.mark.parametrize("make", [papernot_mnist, papernot_cifar])
@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_scale_that_is_not_positive_and_finite_is_refused(make: Callable[..., nn.Sequential], scale: float):
    with pytest.raises(InputError, match=f"^pixel_scale must be positive and finite, got {scale}$"):
        make(pixel_scale=scale)


def test_a_seed_gives_the_same_bits_and_another_seed_others():
    one, same, other = (build(papernot_mnist, seed=seed, size=16) for seed in (7, 7, 8))
    assert bits(one) == bits(same)
    assert bits(one) != bits(other)


def test_building_leaves_the_callers_random_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    build(papernot_mnist, seed=7, size=16)
    assert torch.equal(torch.get_rng_state(), before)


def half_frozen() -> nn.Sequential:
    """Some modules training, some not; some parameters wanted, some not."""
    network = nn.Sequential(convnet(dropout=0.5), nn.BatchNorm1d(4), nn.Linear(4, 3))
    network[0][3].train()  # type: ignore[index]
    network[1].eval()
    network[2].requires_grad_(False)
    return network


def test_a_frozen_model_evaluates_and_takes_no_gradients():
    model = half_frozen()
    with frozen(model) as same:
        assert same is model
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())


def test_frozen_gives_every_mode_and_flag_back():
    model = half_frozen()
    before = condition(model)
    with frozen(model):
        model(pictures(2))
    assert condition(model) == before


class Counter(nn.Module):
    """Counts its calls in a buffer, and normalises by batches in any mode; `spare` is no tensor."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("spare", None)

    def forward(self, images: Tensor) -> Tensor:
        self.norm.train()
        self.calls = self.calls + 1
        return self.norm(images).flatten(1)


def test_frozen_gives_buffers_back_that_a_model_changes_all_the_same():
    model = Counter().eval()
    calls, before = model.calls, bits(model)
    with frozen(model):
        model(torch.rand(3, 1, 2, 2))
        assert bits(model) != before
    assert bits(model) == before
    assert model.calls is calls


def test_a_model_that_writes_into_its_input_changes_nobodys_images():
    class InPlace(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.sub_(0.5).div_(0.25).flatten(1)

    images = torch.rand(2, 1, 2, 2, requires_grad=True)
    before = images.detach().clone()
    found = logits_of(InPlace(), images)
    assert torch.equal(images.detach(), before)
    torch.testing.assert_close(found, ((before - 0.5) / 0.25).flatten(1))
    assert torch.equal(input_gradient(found.sum(), images), torch.full_like(before, 4.0))


def test_what_is_no_tensor_or_has_no_gradient_is_refused():
    class Answers(nn.Module):
        def __init__(self, answer: Callable[[Tensor], Any]):
            super().__init__()
            self.answer = answer

        def forward(self, images: Tensor) -> Any:
            return self.answer(images.flatten(1))

    images = torch.rand(2, 1, 2, 2, requires_grad=True)
    with pytest.raises(InputError, match=r"must return one tensor of logits, .*, got a list without a tensor"):
        logits_of(Answers(lambda z: z.tolist()), images)
    weight = torch.ones(4, requires_grad=True)
    for answer in (lambda z: z.detach(), lambda z: z.long(), lambda z: weight.expand(2, 4)):
        with pytest.raises(InputError, match="no gradient with respect to the images"):
            input_gradient(logits_of(Answers(answer), images).sum(), images)


def test_frozen_gives_every_mode_and_flag_back_after_an_error():
    model = half_frozen()
    before = condition(model)
    with pytest.raises(KeyError), frozen(model):
        raise KeyError
    assert condition(model) == before


@pytest.mark.parametrize(
    ("weights", "expected"),
    [(torch.float32, torch.float32), (torch.float64, torch.float64), (torch.bfloat16, torch.float32)],
)
def test_logits_come_from_the_models_own_precision_in_float32_or_better(weights: torch.dtype, expected: torch.dtype):
    model, images = convnet().to(weights), pictures(3, dtype=torch.float32)
    found = logits_of(model, images)
    assert found.dtype == expected
    assert torch.equal(found, model(images.to(weights)).to(expected))


def test_logits_pass_gradients_to_images_of_another_precision():
    images = pictures(2, dtype=torch.float64).requires_grad_(True)
    logits_of(convnet(), images).sum().backward()
    assert images.grad is not None
    assert images.grad.dtype == torch.float64
    assert (images.grad != 0).any()


def test_a_model_without_weights_counts_as_float32():
    assert parameter_dtype(nn.Flatten()) == torch.float32
    assert parameter_dtype(nn.Linear(2, 2).double()) == torch.float64


# Lo and Ding's ------------------------------------------------------------------------------------------------------


def conv5(inputs: int, outputs: int) -> int:
    return inputs * outputs * 25 + outputs


LO_DING = [
    # 60 - 4 = 56, 28; 24, 12; 8, 4
    (lo_ding_faces, {}, (1, 60, 60), 15, conv5(1, 5) + conv5(5, 8) + conv5(8, 10) + dense(160, 20) + dense(20, 15)),
    # 36 - 4 = 32, 16; 12, 6; 2, 1
    (
        lo_ding_faces,
        {"size": 36, "channels": 3, "classes": 4},
        (3, 36, 36),
        4,
        conv5(3, 5) + conv5(5, 8) + conv5(8, 10) + dense(10, 20) + dense(20, 4),
    ),
    # 32, 16, 8, 4
    (pseudo_alexnet, {}, (3, 32, 32), 10, conv5(3, 32) + conv5(32, 32) + conv5(32, 64) + dense(64 * 16, 10)),
    # 28, 14, 7, 3
    (
        pseudo_alexnet,
        {"size": 28, "channels": 1},
        (1, 28, 28),
        10,
        conv5(1, 32) + conv5(32, 32) + conv5(32, 64) + dense(64 * 9, 10),
    ),
    (mlp, {}, (3, 32, 32), 10, dense(3072, 500) + dense(500, 10)),
    (mlp, {"size": 28, "channels": 1, "classes": 7, "hidden": 9}, (1, 28, 28), 7, dense(784, 9) + dense(9, 7)),
]


@pytest.mark.parametrize(("make", "options", "shape", "classes", "expected"), LO_DING)
def test_lo_and_dings_networks_have_their_size(
    make: Callable[..., nn.Sequential],
    options: dict[str, int],
    shape: tuple[int, int, int],
    classes: int,
    expected: int,
):
    network = make(**options)
    assert sum(p.numel() for p in network.parameters()) == expected
    assert network(torch.zeros(2, *shape)).shape == (2, classes)


def test_lo_and_dings_networks_are_made_of_what_they_say():
    def parts(network: nn.Sequential) -> list[str]:
        return [type(layer).__name__ for layer in network]

    assert parts(lo_ding_faces()) == [*["Conv2d", "Tanh", "MaxPool2d"] * 3, "Flatten", "Linear", "Tanh", "Linear"]
    assert parts(pseudo_alexnet()) == [*["Conv2d", "ReLU", "MaxPool2d"] * 3, "Flatten", "Linear"]
    assert parts(mlp()) == ["Flatten", "Linear", "Tanh", "Linear"]
    assert [name for name, _ in lo_ding_faces().named_children()][:4] == ["conv1", "tanh1", "pool1", "conv2"]


@pytest.mark.parametrize("size", range(8, 40))
def test_pseudo_alexnet_takes_every_size_from_eight_on(size: int):
    assert pseudo_alexnet(size=size, channels=1)(torch.zeros(1, 1, size, size)).shape == (1, 10)


@pytest.mark.parametrize("make", [lo_ding_faces, pseudo_alexnet, mlp])
def test_lo_and_dings_weights_fill_glorots_interval_and_biases_are_zero(make: Callable[[], nn.Sequential]):
    for layer in build(make, seed=0).modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            outputs, inputs, *window = layer.weight.shape
            bound = math.sqrt(6 / ((inputs + outputs) * math.prod(window)))
            assert 0.9 * bound < layer.weight.abs().max().item() <= bound * (1 + 1e-6)
            assert layer.bias is not None
            assert (layer.bias == 0).all()


@pytest.mark.parametrize(
    ("attempt", "match"),
    [
        (lambda: lo_ding_faces(size=35), "^this network needs images of at least 36 x 36 pixels, got size=35$"),
        (lambda: pseudo_alexnet(size=7), "^this network needs images of at least 8 x 8 pixels, got size=7$"),
        (lambda: mlp(size=0), "^size must be at least 1, got 0$"),
        (lambda: mlp(hidden=0), "^hidden must be at least 1, got 0$"),
    ],
)
def test_lo_and_dings_networks_refuse_what_is_too_small(attempt: Callable[[], nn.Sequential], match: str):
    with pytest.raises(InputError, match=match):
        attempt()
