"""How long brackets take, and how their gap grows with depth: digits, the papers' network, and deeper and deeper ones.

    python benchmarks/certify.py [--root DATA_ROOT] [--images 4] [--only digits papernot depth]

Times are the processor's, of one thread: with two cores and `--workers 2` a study takes half. Beside each stands the
floor, a backward pass for each value of each layer: what the bounds of all values would cost if nothing were saved.
Networks are trained here, on few images and epochs: how wide the bounds are depends on the weights.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from brittle import certify, data, fit
from brittle.certify.balls import Norm
from brittle.data import Data, Split
from brittle.models.networks import build, mlp, papernot_mnist

FEW = 5000  # training images


def some(found: Data) -> Data:
    """The data with few training images."""
    train = Split(found.train.images[:FEW], found.train.labels[:FEW])
    return Data(found.name, train, found.validation, found.test, found.classes, found.digest, found.source)


def deep(depth: int) -> nn.Sequential:
    """`depth` hidden layers of 50 ReLUs."""
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(784, 50), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(50, 50), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(50, 10))


def values(model: nn.Module, images: torch.Tensor) -> int:
    """Outputs of all layers for an image."""
    counted: list[int] = []
    handles = [
        layer.register_forward_hook(lambda _m, _i, out: counted.append(out[0].numel()))
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model(images[:1])
    for handle in handles:
        handle.remove()
    return sum(counted)


def floor(model: nn.Module, images: torch.Tensor) -> float:
    """Seconds of a backward pass in float64 for each value of each layer, for one image."""
    wide = build(lambda: model, seed=0).double()
    inputs = images[:1].double().repeat(64, 1, 1, 1).requires_grad_(True)
    started = time.process_time()
    wide(inputs).sum().backward()
    each = (time.process_time() - started) / 64
    model.float()
    return each * values(model, images)


def line(name: str, make: Callable[[], nn.Module], found: Data, images: int, norm: Norm, epochs: int) -> None:
    """Trains, brackets, and prints a line of the table."""
    model = fit(build(make, seed=0), found, epochs=epochs, batch_size=32, seed=0, dtype="float32").model
    x, y = found.test.images[:images], found.test.labels[:images]
    started = time.process_time()
    done = certify.bracket(model, x, y, norm=norm, precision=0.01)
    taken = (time.process_time() - started) / images
    right = done.correct
    gap = float((done.found / done.proved)[right].median())
    evaluations = float(done.certificate.evaluations[right].double().mean())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"| {name} | {norm} | {taken:.2f} | {evaluations:.1f} | {floor(model, x):.2f} | {gap:.2f} | {peak:.1f} |",
        flush=True,
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="data root with MNIST, for the papers' network")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--only", nargs="+", default=["digits", "depth", "papernot"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    digits = data.load("digits")
    print("| network | norm | s an image | balls | floor, s a ball | found / proved, median | peak GB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    if "digits" in asked.only:
        for norm in ("linf", "l2", "l1"):
            line("mlp, digits", lambda: mlp(channels=1, size=28, hidden=100), digits, asked.images, norm, 5)
    if "depth" in asked.only:
        for depth in (1, 2, 3, 4, 6):
            line(f"{depth} x 50 ReLUs, digits", lambda depth=depth: deep(depth), digits, asked.images, "linf", 10)
    if "papernot" in asked.only and asked.root:
        line("papernot_mnist", papernot_mnist, some(data.load("mnist", asked.root)), asked.images, "linf", 3)


if __name__ == "__main__":
    main()
