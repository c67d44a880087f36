"""Models and data whose exact answer is known, for tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from brittle.data import Data, Split
from brittle.models.networks import build


def linear(
    *, classes: int = 2, shape: tuple[int, int, int] = (1, 5, 5), scale: float = 1.0, bias: bool = True, seed: int = 0
) -> nn.Sequential:
    """Logits W x + b: dz/dx is W, and with two classes the log-odds are linear in every pixel."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(int(np.prod(shape)), classes, bias=bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return nn.Sequential(nn.Flatten(), layer)


class IdentityLogits(nn.Module):
    """Images (B, 1, 1, K) times `scale` are the logits: dz/dx is `scale` times the identity."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) * self.scale


class Constant(nn.Module):
    """The same logits for every image: nothing fools it, and its gradients are zero."""

    def __init__(self, logits: tuple[float, ...] = (3.0, 1.0, 0.0)):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits + 0 * images.flatten(1).sum(1, keepdim=True)


class Brightness(nn.Module):
    """Two classes: class 1 once the pixels sum to more than `threshold`, all equally important."""

    def __init__(self, threshold: float):
        super().__init__()
        self.threshold = threshold

    def forward(self, images: Tensor) -> Tensor:
        excess = images.flatten(1).sum(1) - self.threshold
        return torch.stack([-excess, excess], 1)


class Counting(nn.Module):
    """`model`, with the number of images in each of its calls."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        return self.model(images)


def convnet(
    *, channels: int = 1, size: int = 6, classes: int = 4, dropout: float = 0.0, gain: float = 1.0, seed: int = 0
) -> nn.Sequential:
    """A small network with random weights; `gain` multiplies its logits."""

    def make() -> nn.Sequential:
        network = nn.Sequential(
            nn.Conv2d(channels, 6, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(6 * (size - 2) ** 2, classes),
        )
        head = network[-1]
        assert isinstance(head, nn.Linear)
        with torch.no_grad():
            head.weight *= gain
        return network

    network = build(make, seed=seed)
    assert isinstance(network, nn.Sequential)
    return network


def pictures(rows: int, shape: tuple[int, int, int] = (1, 6, 6), *, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Random images; about a quarter of the pixels are exactly 0 and a quarter exactly 1 in all channels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(rows, *shape, generator=generator)
    level = torch.rand(rows, 1, *shape[1:], generator=generator).expand_as(images)
    return images.masked_fill(level < 0.25, 0).masked_fill(level > 0.75, 1).to(dtype)


def predicted(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images.to(next((p.dtype for p in model.parameters()), images.dtype))).argmax(1)


def blobs(classes: int = 3, rows: int = 20, size: int = 6) -> Data:
    """Faint noise with a bright square, whose place is the class: learned to 100 % within a second."""
    random = np.random.default_rng(0)

    def split(each: int) -> Split:
        labels = random.permutation(np.repeat(np.arange(classes), each))
        images = random.uniform(0, 0.3, (len(labels), 1, size, size))
        for image, label in zip(images, labels, strict=True):
            image[0, label : label + 3, label : label + 3] += 0.6
        return Split(torch.from_numpy(images).float(), torch.from_numpy(labels))

    names = tuple(f"square at {place}" for place in range(classes))
    return Data("blobs", split(rows), split(rows // 2), split(rows // 2), names, "0" * 64, "numpy noise")


def bits(model: nn.Module) -> dict[str, bytes]:
    """Every weight and buffer, to compare two models bit for bit."""
    return {name: value.detach().cpu().numpy().tobytes() for name, value in model.state_dict().items()}


def condition(model: nn.Module) -> list[object]:
    """What an attack must leave as it was: modes, gradient flags, gradients, hooks and weights."""
    hooks: Callable[[nn.Module], tuple[int, ...]] = lambda m: (  # noqa: E731
        len(m._forward_hooks),
        len(m._forward_pre_hooks),
        len(m._backward_hooks),
    )
    return [
        [(m.training, hooks(m)) for m in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        bits(model),
    ]


TABLES = {  # of a small study, as a file would have them
    "name": "tiny",
    "title": "A tiny study",
    "data": "blobs",
    "rows": 5,
    "training": {"epochs": 2},
    "models": {"plain": {}, "tempered": {"temperature": 20.0}, "student": {"teacher": "tempered", "temperature": 20.0}},
    "attacks": {"song_1": {"function": "brittle.attacks.song_1", "arithmetic": ["float32", "exact"]}},
}


class Reused(nn.Module):
    """One dense layer, `twice`, used twice; and one activation, `act`, on outputs of different shapes."""

    def __init__(self, size: int = 6, classes: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.act = nn.Tanh()
        self.enter = nn.Linear(3 * (size - 2) ** 2, 5)
        self.twice = nn.Linear(5, 5)
        self.leave = nn.Linear(5, classes)

    def forward(self, images: Tensor) -> Tensor:
        values = self.act(self.enter(self.act(self.conv(images)).flatten(1)))
        return self.leave(torch.tanh(self.twice(torch.tanh(self.twice(values)))))


class Residual(nn.Module):
    """A residual block with batch normalisation and one ReLU, in place, that is used three times."""

    def __init__(self, maps: int = 4, classes: int = 4):
        super().__init__()
        self.stem = nn.Conv2d(1, maps, 3, padding=1)
        self.conv = nn.Conv2d(maps, maps, 3, padding=1)
        self.norm = nn.BatchNorm2d(maps)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(maps, classes)

    def forward(self, images: Tensor) -> Tensor:
        values = self.relu(self.stem(images))
        values = self.relu(values + self.norm(self.conv(values)))
        return self.head(self.relu(values - 0.1).mean((2, 3)))


class Attending(nn.Module):
    """Rows of the image attend to one another: `attention` returns a pair, and its `out_proj` is never called."""

    def __init__(self, size: int = 6, classes: int = 4):
        super().__init__()
        self.enter = nn.Linear(size, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.leave = nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        values = self.enter(images[:, 0])
        return self.leave((values + self.attention(values, values, values)[0]).mean(1))
