"""Networks of two pixels whose exact distances are known, and networks with every layer that can be bounded."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

PIXELS = 2
ORDERS = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}


def tiny(seed: int, hidden: int = 3) -> tuple[Any, Tensor, Tensor]:
    """A ReLU network of two pixels, two classes and three units, float64; images, some with pixels at 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    network: Any = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, hidden), nn.ReLU(), nn.Linear(hidden, 2)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        network[1].bias -= network[1].weight.sum(1) / 2  # borders cross the middle of the box
        network[3].bias -= network(torch.full((1, 1, 1, PIXELS), 0.5).double())[0] * 0.8
    images = torch.rand(6, 1, 1, PIXELS, generator=generator, dtype=torch.float64)
    images[2:4, ..., 0] = (images[2:4, ..., 0] > 0.5).double()
    images[4:] = (images[4:] > 0.5).double()
    return network, images, network(images).argmax(1)


def nearest(network: Any, image: Tensor, label: int) -> dict[str, float]:
    """The exact distance of a `tiny` network's nearest image of the other class, in each norm; inf if there is none.

    In each pattern of the units the border is a line. In two dimensions the nearest point of a region is where two
    lines cross: borders of units and of the box, the class's border in each pattern, lines through the image along the
    axes and the diagonals; in L2 also the foot of a perpendicular. All such points are tried.
    """
    first, last = network[1], network[3]
    weight, bias = first.weight.detach(), first.bias.detach()
    out = last.weight[1 - label].detach() - last.weight[label].detach()
    shift = float((last.bias[1 - label] - last.bias[label]).detach())
    x = image.flatten()
    lines = [(weight[i], -bias[i]) for i in range(len(bias))]
    for pattern in itertools.product((0.0, 1.0), repeat=len(bias)):
        active = out * torch.tensor(pattern).double()
        lines.append((active @ weight, -(active @ bias) - shift))
    for normal in ((1.0, 0.0), (0.0, 1.0)):
        lines += [(torch.tensor(normal).double(), torch.tensor(level).double()) for level in (0.0, 1.0)]
    for normal in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, -1.0)):
        direction = torch.tensor(normal).double()
        lines.append((direction, direction @ x))
    normals = torch.stack([normal for normal, _ in lines])
    levels = torch.stack([torch.as_tensor(level, dtype=torch.float64) for _, level in lines])
    one, other = torch.combinations(torch.arange(len(lines))).T
    pairs = torch.stack([normals[one], normals[other]], 1)
    regular = torch.linalg.det(pairs).abs() > 1e-9
    points = torch.linalg.solve(pairs[regular], torch.stack([levels[one], levels[other]], 1)[regular])
    feet = x + ((levels - normals @ x) / (normals**2).sum(1).clamp(min=1e-12))[:, None] * normals
    points = torch.cat([points, feet, x[None]])
    points = points[((points >= -1e-9) & (points <= 1 + 1e-9)).all(1)].clamp(0, 1)
    logits = network(points.view(-1, 1, 1, PIXELS)).detach()
    there = points[logits[:, 1 - label] >= logits[:, label] - 1e-9] - x
    if not len(there):
        return dict.fromkeys(ORDERS, torch.inf)
    return {norm: float(torch.linalg.vector_norm(there, ord=p, dim=1).min()) for norm, p in ORDERS.items()}


class Everything(nn.Module):
    """Every layer that can be bounded, with strides, paddings, dilations, groups, sums and concatenations."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding="same")
        self.norm: Any = nn.BatchNorm2d(4)
        self.pool = nn.AvgPool2d(2)
        self.grouped = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2)
        self.far = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.largest = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.drop = nn.Dropout(0.5)
        self.mean = nn.AdaptiveAvgPool2d(2)
        self.leave = nn.Linear(16, 3)
        self.register_buffer("scale", torch.tensor(2.0))
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, images: Tensor) -> Tensor:
        values = nn.functional.leaky_relu(self.norm(self.conv((images - 0.1) / 0.3)), 0.1)
        values = torch.clamp(self.pool(values), -0.5, 6) * self.scale
        values.mul_(0.5)
        side = torch.tanh(self.grouped(values))
        values = self.largest(torch.cat([self.far(values), values], 1)[:, 2:6])
        values = torch.sigmoid(self.far(values)) + side[:, :, :1, :1]
        return self.leave(self.drop(self.mean(nn.functional.relu(values - 0.5))).flatten(1)).log_softmax(1)
