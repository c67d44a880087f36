"""The logits after every single flip, against one image and one flip a call, over many kinds of networks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import pytest
import torch
from problems import Counting, condition, convnet, pictures
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from brittle.attacks.pixel_flips import flip_logits
from brittle.models.networks import Scaled, build, frozen, papernot_cifar, papernot_mnist


class Residual(nn.Module):
    """No Sequential: what it computes cannot be read off its layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.first(images).relu()
        return self.last((seen + self.second(seen).relu()).sum((2, 3)))


def normalised() -> nn.Module:
    layer = nn.BatchNorm2d(8)
    layer.running_mean, layer.running_var = torch.randn(8), torch.rand(8) + 0.5
    return nn.Sequential(nn.Conv2d(1, 8, 3), layer, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 4)).eval()


def hooked(layer: int) -> nn.Module:
    """A hook that moves outputs about, so that it must see whole maps."""
    network = convnet(size=10)
    network[layer].register_forward_hook(lambda module, inputs, output: output.flip(2))
    return network


def pre_hooked(layer: int) -> nn.Module:
    network = convnet(size=10)
    network[layer].register_forward_pre_hook(lambda module, inputs: (inputs[0].flip(3),))
    return network


def hooked_whole() -> nn.Module:
    network = convnet(size=10)
    network.register_forward_hook(lambda module, inputs, output: output.neg())
    return network


def pooled_below_zero() -> nn.Module:
    first = conv(1, 4, 3)
    assert first.bias is not None
    first.bias.data -= 3
    return layers(first, nn.MaxPool2d(3, 2, padding=1), nn.Tanh())


class Doubled(nn.Sequential):
    """Not the chain of its layers that a Sequential is."""

    def __init__(self):
        super().__init__(*convnet(size=10))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + super().forward(input / 2)


def training() -> nn.Module:
    """Evaluated without dropout, whatever its mode."""
    return convnet(size=10, dropout=0.5).train()


def nested() -> nn.Module:
    front = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 8, 3)), nn.ReLU())
    return nn.Sequential(front, nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), nn.Linear(8 * 9, 4))


def without_flatten() -> nn.Module:
    layers = {
        "seen": nn.Conv2d(1, 8, 3),
        "kept": nn.ReLU(),
        "mean": nn.AdaptiveAvgPool2d(1),
        "last": nn.Conv2d(8, 4, 1),
        "flat": nn.Unflatten(1, (4,)),
        "out": nn.Flatten(),
    }
    return nn.Sequential(OrderedDict(layers))


GREY, COLOUR, OBLONG, EVEN = (1, 10, 10), (3, 10, 10), (1, 8, 11), (1, 12, 12)
layers, conv = nn.Sequential, nn.Conv2d

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "dense": (lambda: layers(nn.Flatten(), nn.Linear(100, 16), nn.ReLU(), nn.Linear(16, 4)), GREY),
    "padded": (lambda: layers(conv(1, 4, 3, padding=1), nn.ReLU(), conv(4, 4, 3, padding=1), nn.ReLU()), GREY),
    "padded by reflection": (lambda: layers(conv(1, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()), GREY),
    "padded around": (lambda: layers(conv(1, 4, 5, padding=2, padding_mode="circular"), nn.ReLU()), GREY),
    "padded to the same size": (lambda: layers(conv(1, 4, 3, padding="same", dilation=2), nn.ReLU()), GREY),
    "stride 2": (lambda: layers(conv(3, 4, 3, stride=2), nn.ReLU(), conv(4, 4, 2, stride=2), nn.ReLU()), COLOUR),
    "stride 2, padded": (lambda: layers(conv(1, 4, 3, stride=2, padding=1), nn.ReLU()), GREY),
    "stride 3 over a window of 2": (lambda: layers(conv(1, 4, 2, stride=3), nn.ReLU()), GREY),
    "oblong windows": (lambda: layers(conv(1, 4, (1, 5), stride=(2, 1), padding=(0, 2)), nn.ReLU()), OBLONG),
    "average pooling": (lambda: layers(conv(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2)), GREY),
    "average pooling, padded": (lambda: layers(conv(1, 4, 3), nn.AvgPool2d(3, 2, padding=1), nn.Tanh()), GREY),
    "average of what is there": (lambda: layers(nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)), GREY),
    "average by another divisor": (lambda: layers(conv(1, 4, 3), nn.AvgPool2d(2, divisor_override=3)), GREY),
    "pooling 3 by 2": (lambda: layers(conv(1, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2)), GREY),
    "pooling with ceiling": (lambda: layers(conv(1, 4, 3), nn.MaxPool2d(3, 2, ceil_mode=True)), EVEN),
    "averages with ceiling": (lambda: layers(conv(1, 4, 3), nn.AvgPool2d(3, 2, ceil_mode=True)), EVEN),
    "pooling, padded": (lambda: layers(conv(3, 4, 3), nn.MaxPool2d(3, 2, padding=1), nn.ReLU()), COLOUR),
    "pooling, padded, below zero": (pooled_below_zero, GREY),
    "pooling, dilated": (lambda: layers(conv(1, 4, 3), nn.MaxPool2d(2, 1, dilation=2)), GREY),
    "pooling before all else": (lambda: layers(nn.MaxPool2d(2), conv(1, 4, 3), nn.ReLU()), GREY),
    "a function of each pixel before all else": (lambda: layers(nn.Tanh(), conv(1, 4, 3), nn.ReLU()), GREY),
    "scaled": (lambda: layers(Scaled(0.5), conv(3, 4, 3, padding=1), nn.ReLU(), Scaled(-2.0), conv(4, 4, 3)), COLOUR),
    "tanh": (lambda: layers(conv(1, 4, 3), nn.Tanh(), conv(4, 4, 3), nn.Sigmoid()), GREY),
    "written in place": (lambda: layers(conv(1, 4, 3), nn.ReLU(inplace=True), conv(4, 4, 3), nn.ReLU(True)), GREY),
    "softmax over channels": (lambda: layers(conv(1, 4, 3), nn.Softmax(1)), GREY),
    "a parameter a channel": (lambda: layers(conv(1, 4, 3), nn.PReLU(4, 0.7), conv(4, 4, 3)), GREY),
    "without biases": (lambda: layers(conv(1, 4, 3, bias=False), nn.ReLU(), conv(4, 4, 3, bias=False)), GREY),
    "dilated": (lambda: layers(conv(1, 4, 3, dilation=2), nn.ReLU()), GREY),
    "grouped": (lambda: layers(conv(3, 6, 3, groups=3), nn.ReLU(), conv(6, 6, 3, groups=2), nn.ReLU()), COLOUR),
    "as large as the image": (lambda: layers(conv(1, 8, 10), nn.ReLU(), conv(8, 4, 1)), GREY),
    "batch normalisation": (normalised, GREY),
    "layer normalisation": (lambda: layers(conv(1, 4, 3), nn.LayerNorm([4, 8, 8]), nn.ReLU()), GREY),
    "residual": (Residual, COLOUR),
    "residual among layers": (lambda: layers(conv(1, 3, 3), nn.ReLU(), Residual()), GREY),
    "flattened by a convolution": (without_flatten, GREY),
    "nested": (nested, GREY),
    "a hook on a convolution": (lambda: hooked(0), GREY),
    "a hook on a function of each pixel": (lambda: hooked(1), GREY),
    "a hook before a convolution": (lambda: pre_hooked(0), GREY),
    "a hook before a function of each pixel": (lambda: pre_hooked(1), GREY),
    "a hook on the whole": (hooked_whole, GREY),
    "a Sequential with a forward of its own": (Doubled, GREY),
    "in training mode": (training, GREY),
}


def made(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """The network of that name; one that ends in maps gets a dense layer of 4."""
    make, shape = NETWORKS[name]
    model = build(make, seed=5)
    with frozen(model):
        seen = model(torch.zeros(1, *shape))
    if isinstance(model, nn.Sequential) and seen.ndim > 2:
        model = nn.Sequential(*model, nn.Flatten(), build(partial(nn.Linear, seen.numel(), 4), seed=6))
    return model, shape


def one_by_one(model: nn.Module, images: Tensor) -> Tensor:
    """(B, 2, H * W, K), by one call for each image, level and pixel."""
    width = images.shape[3]
    rows = []
    for image in images:
        for level in (0.0, 1.0):
            for pixel in range(image[0].numel()):
                flipped = image.clone()
                flipped[:, pixel // width, pixel % width] = level
                rows.append(model(flipped[None])[0])
    return torch.stack(rows).detach().view(len(images), 2, -1, rows[0].numel())


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Up to a thousandth of what a flip changes, or of float32's rounding where flips change little."""
    change = (expected - expected.mean(-2, keepdim=True)).abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-3 * change)


def evaluated(model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor]:
    """The model in evaluation mode and its logits."""
    model.eval()
    return model, model(images).detach()


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_one_image_and_one_flip_a_call(name: str):
    model, shape = made(name)
    images = pictures(2, shape, seed=1)
    modes = [module.training for module in model.modules()]
    _, clean = evaluated(model, images)
    expected = one_by_one(model, images)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    found, _ = flip_logits(model, images, clean)
    assert expected.std(2).max() > 1e-3 * expected.abs().max()  # the flips matter, or there is nothing to compare
    assert_close(found, expected)


def test_logits_of_the_papers_mnist_network_are_those_of_one_flip_a_call():
    images = pictures(1, (1, 28, 28), seed=1)
    model, clean = evaluated(build(papernot_mnist, seed=0), images)
    found, forwards = flip_logits(model, images, clean)
    some = torch.arange(0, 784, 5)
    assert_close(found[:, :, some], flips_in_batches(model, images[0], some))
    assert forwards.tolist() == [changes(images)]


def test_a_scaled_network_is_followed_by_windows_as_the_plain_one_is():
    images = pictures(1, (1, 28, 28), seed=1)
    some = torch.arange(0, 784, 50)
    wanted = torch.zeros(1, 2, 784, dtype=torch.bool)
    wanted[:, :, some] = True
    work = []
    for scale in (1.0, 0.25):
        model, clean = evaluated(build(papernot_mnist, seed=0, pixel_scale=scale), images)
        with FlopCounterMode(display=False) as counter:
            found, _ = flip_logits(model, images, clean, wanted=wanted)
        work.append(counter.get_total_flops())
        assert_close(found[:, :, some], flips_in_batches(model, images[0], some))
    assert work[1] == work[0] > 0


def test_logits_of_the_papers_cifar_network_are_those_of_one_flip_a_call():
    images = pictures(1, (3, 16, 16), seed=1)
    model, clean = evaluated(build(papernot_cifar, seed=0, size=16), images)
    found, forwards = flip_logits(model, images, clean)
    assert_close(found, flips_in_batches(model, images[0], torch.arange(256)))
    assert forwards.tolist() == [changes(images)]


def flips_in_batches(model: nn.Module, image: Tensor, pixels: Tensor) -> Tensor:
    """(1, 2, P, K): as `one_by_one` for some pixels, an image a row."""
    both = []
    for level in (0.0, 1.0):
        batch = image.repeat(len(pixels), 1, 1, 1)
        for flipped, pixel in zip(batch, pixels.tolist(), strict=True):
            flipped[:, pixel // image.shape[2], pixel % image.shape[2]] = level
        with torch.no_grad():
            both.append(model(batch))
    return torch.stack(both)[None]


# What is not evaluated ----------------------------------------------------------------------------------------------


def changes(images: Tensor) -> int:
    """Pairs of pixel and level that change an image in at least one channel."""
    return sum(int((images != level).any(1).sum()) for level in (0, 1))


@pytest.mark.usefixtures("unprobed")
def test_a_flip_that_changes_nothing_is_not_evaluated_and_holds_the_clean_logits():
    model, images = Counting(convnet().eval()), pictures(3)
    clean = torch.full((3, 4), 7.0)  # not what the model says, so that it shows where it was copied
    found, forwards = flip_logits(model, images, clean)
    flat = images.flatten(1)
    same = torch.stack([flat == 0, flat == 1], 1)
    assert (found[same] == 7).all()
    assert (found[~same] != 7).all()
    assert forwards.tolist() == [changes(image[None]) for image in images]
    assert sum(model.sizes) == changes(images)


def test_a_pixel_that_has_the_level_in_some_channels_only_is_evaluated():
    images = torch.zeros(1, 3, 6, 6)
    images[0, 1, 2, 3] = 1
    model, clean = evaluated(convnet(channels=3), images)
    found, forwards = flip_logits(model, images, clean)
    assert forwards.tolist() == [36 + 1]
    assert_close(found, one_by_one(model, images))


def test_an_image_of_half_greys_is_evaluated_at_both_levels():
    images = torch.full((1, 1, 6, 6), 0.5)
    model, clean = evaluated(convnet(), images)
    assert flip_logits(model, images, clean)[1].tolist() == [72]


@pytest.mark.parametrize("make", [convnet, Residual], ids=["windowed", "whole"])
def test_only_wanted_flips_are_evaluated(make: Callable[..., nn.Module]):
    images = pictures(2, (3, 6, 6))
    images[1, :, 1, 1:3] = 0.5  # pixels 7 and 8
    model = make(channels=3) if make is convnet else make()
    model, clean = evaluated(model, images)
    everything, _ = flip_logits(model, images, clean)
    wanted = torch.zeros(2, 2, 36, dtype=torch.bool)
    wanted[1, 0, 7:9] = True
    found, forwards = flip_logits(model, images, clean, wanted=wanted)
    assert forwards.tolist() == [0, 2]
    assert torch.equal(found[~wanted], clean[:, None, None].expand_as(found)[~wanted])
    assert_close(found[wanted], everything[wanted])
    nothing, forwards = flip_logits(model, images, clean, wanted=torch.zeros_like(wanted))
    assert forwards.tolist() == [0, 0]
    assert torch.equal(nothing, clean[:, None, None].expand_as(nothing))


# Manners ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_come_in_the_models_precision(dtype: torch.dtype):
    images = pictures(2, dtype=torch.float32)
    model = convnet().to(dtype)
    _, clean = evaluated(model, images.to(dtype))
    found, _ = flip_logits(model, images, clean)
    assert found.dtype == dtype
    assert_close(found, one_by_one(model, images.to(dtype)))


def test_the_model_the_images_and_the_clean_logits_are_left_as_they_were():
    model, images = convnet(dropout=0.5), pictures(2)
    clean = torch.zeros(2, 4)
    before, pixels = condition(model), images.clone()
    flip_logits(model, images, clean)
    assert condition(model) == before
    assert torch.equal(images, pixels)
    assert (clean == 0).all()


def test_a_row_gets_the_same_alone_and_among_others():
    images = pictures(20)  # more than are followed together
    model, clean = evaluated(convnet(), images)
    together, forwards = flip_logits(model, images, clean)
    for row in (0, 7, 15, 16, 19):
        alone, own = flip_logits(model, images[row : row + 1], clean[row : row + 1])
        assert_close(alone[0], together[row])
        assert own.tolist() == [forwards[row]]


def test_images_may_lie_in_memory_in_any_order():
    images = pictures(2, (3, 6, 6))
    model, clean = evaluated(convnet(channels=3), images)
    plain, _ = flip_logits(model, images, clean)
    assert_close(flip_logits(model, images.to(memory_format=torch.channels_last), clean)[0], plain)


def test_progress_counts_the_images():
    told: list[tuple[int, int]] = []
    images = pictures(3)
    model, clean = evaluated(convnet(), images)
    flip_logits(model, images, clean, progress=lambda done, total, note="": told.append((done, total)))
    assert told[-1] == (3, 3)
