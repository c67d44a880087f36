"""Digit networks whose verdict is known: what was done to each, and what an audit has to say of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import brittle
from brittle.attacks.pgd import pgd
from brittle.data import Data
from brittle.models.networks import build, seeded

EPS = 0.3  # of digits as of MNIST; robust networks of this size hold 0.1
SMALL = 0.1


@dataclass(frozen=True)
class Case:
    """A network, and the verdicts and causes that are right for it."""

    name: str
    make: Callable[[], nn.Module]
    verdicts: tuple[str, ...]
    causes: tuple[str, ...] = ()  # of a masked one: the first cause named is one of these
    eps: float = EPS


class Over(nn.Module):
    """A network with something done to its images or to its logits."""

    def __init__(self, network: nn.Module, *, before=None, after=None):
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, images: Tensor) -> Tensor:
        images = images if self.before is None else self.before(images)
        logits = self.network(images)
        return logits if self.after is None else self.after(logits)


def small(channels: int = 1) -> nn.Sequential:
    """Two strided convolutions and two dense layers: 3 s to train."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 5, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@cache
def data() -> Data:
    return brittle.data.load("digits")


TRAINING = {"epochs": 12, "batch_size": 16, "device": "cpu", "dtype": "float32"}


def trained(make: Callable[[], nn.Module], *, seed: int = 0, temperature: float = 1.0, **options) -> nn.Module:
    network = build(make, seed=seed)
    return brittle.fit(network, data(), temperature=temperature, seed=seed, **{**TRAINING, **options}).model


@cache
def undefended() -> nn.Module:
    return trained(small)


@cache
def reference() -> nn.Module:
    return trained(small, seed=7)


@cache
def chain() -> tuple[nn.Module, ...]:
    made = brittle.distill(small, data(), temperature=20, generations=3, seed=1, learning_rate=0.5, **TRAINING)
    return tuple(one.model for one in made)


@cache
def hot() -> nn.Module:
    return trained(small, temperature=100, learning_rate=2.0, momentum=0.5, epochs=20)


def over(network: nn.Module, **how: Callable[[Tensor], Tensor]) -> nn.Module:
    return Over(network, **how).eval()


def quantised(images: Tensor) -> Tensor:
    return (images * 3).round() / 3


def thermometer(images: Tensor) -> Tensor:
    return torch.cat([(images > level).float() for level in (0.1, 0.3, 0.5, 0.7, 0.9)], 1)


def noisy(images: Tensor) -> Tensor:
    return images + 0.5 * torch.randn_like(images)


def resized(images: Tensor) -> Tensor:
    size = int(torch.randint(18, 29, ()))
    top, left = (int(torch.randint(0, 29 - size, ())) for _ in range(2))
    smaller = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return F.pad(smaller, (left, 28 - size - left, top, 28 - size - top))


def clipped(logits: Tensor) -> Tensor:
    """All that is 3 behind the first looks alike, and the first is 0: a detector that says 'sure' or how unsure."""
    return (logits - logits.amax(1, keepdim=True)).clamp(min=-3)


def labels_alone(logits: Tensor) -> Tensor:
    return F.one_hot(logits.argmax(1), logits.shape[1]).float() * 10


def dropping(rate: float = 0.5) -> nn.Module:
    class Dropping(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return F.dropout(values, rate, training=True)

    layers = list(small().children())
    return nn.Sequential(*layers[:5], Dropping(), *layers[5:7], Dropping(), layers[7])


@cache
def hardened(eps: float = SMALL) -> nn.Module:
    """Trained on adversarial images: Madry et al. 2018."""
    network = trained(small, epochs=4)
    images, labels = data().train.images, data().train.labels
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    with seeded(0):
        for epoch in range(14):
            for rows in torch.randperm(len(images)).split(64):
                found = pgd(network, images[rows], labels[rows], eps=eps, steps=5, keep="last", seed=epoch)
                network.train()
                loss = F.cross_entropy(network(found.adversarial), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return network.eval()


class Bounded(nn.Module):
    """A hidden layer with interval bounds: Gowal et al. 2018."""

    def __init__(self, hidden: int = 128):
        super().__init__()
        self.first, self.last = nn.Linear(784, hidden), nn.Linear(hidden, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(F.relu(self.first(images.flatten(1))))

    def least_leads(self, images: Tensor, labels: Tensor, eps: float) -> Tensor:
        """(B, 10): by no less does the label lead each class within eps in L-infinity; 0 at the label."""
        low, high = (images - eps).clamp(0, 1).flatten(1), (images + eps).clamp(0, 1).flatten(1)
        middle, half = self.first((low + high) / 2), (high - low) / 2 @ self.first.weight.abs().T
        low, high = F.relu(middle - half), F.relu(middle + half)
        slopes = self.last.weight[labels][:, None] - self.last.weight
        leads = slopes @ ((low + high) / 2)[:, :, None] - slopes.abs() @ ((high - low) / 2)[:, :, None]
        return leads.squeeze(2) + self.last.bias[labels][:, None] - self.last.bias


@cache
def certified(eps: float = SMALL) -> Bounded:
    network = build(Bounded, seed=0)
    assert isinstance(network, Bounded)
    images, labels = data().train.images, data().train.labels
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    with seeded(0):
        for epoch in range(80):
            for rows in torch.randperm(len(images)).split(64):
                leads = network.least_leads(images[rows], labels[rows], eps * min(1, epoch / 40))
                loss = F.cross_entropy(-leads, labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return network.eval()


MASKED, BROKEN = ("masked",), ("broken",)
CASES = [
    Case("undefended", undefended, BROKEN),
    Case("undefended at a third", undefended, BROKEN, eps=SMALL),
    Case("tempered, T = 20", lambda: chain()[0], MASKED, ("scale",)),
    Case("tempered, T = 100", hot, MASKED, ("scale",)),
    Case("distilled", lambda: chain()[1], MASKED, ("scale",)),
    Case("chain of three", lambda: chain()[2], MASKED, ("scale",)),
    Case("logits x 1e3", lambda: over(undefended(), after=lambda z: z * 1e3), MASKED, ("scale",)),
    Case("logits x 1e-4", lambda: over(undefended(), after=lambda z: z * 1e-4), BROKEN),
    Case("float16 logits", lambda: over(undefended(), after=lambda z: (2 * z).half().float()), MASKED, ("precision",)),
    Case("input quantisation", lambda: trained(lambda: Over(small(), before=quantised)), MASKED, ("shattered",)),
    Case("thermometer", lambda: trained(lambda: Over(small(5), before=thermometer)), MASKED, ("shattered",)),
    Case("random noise", lambda: trained(lambda: Over(small(), before=noisy)), ("broken", "masked"), ("stochastic",)),
    Case(
        "random resizing", lambda: trained(lambda: Over(small(), before=resized)), ("broken", "masked"), ("stochastic",)
    ),
    Case("dropout left on", lambda: trained(dropping), ("broken", "masked"), ("stochastic",)),
    Case(
        "softmax as logits",
        lambda: over(undefended(), after=lambda z: torch.softmax(4 * z, 1)),
        MASKED,
        ("loss",),
        SMALL,
    ),
    Case("clipped output", lambda: over(undefended(), after=clipped), MASKED, ("shattered",)),
    Case("argmax", lambda: over(undefended(), after=labels_alone), MASKED, ("shattered",)),
    Case("adversarially trained", hardened, ("robust",), eps=SMALL),
    Case("certified", certified, ("robust",), eps=SMALL),
]
