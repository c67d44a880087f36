"""Class gradients of a whole data set against one epoch of training on it, and knockouts together against one by one.

    python benchmarks/units.py [--root DATA_ROOT]

Lo and Ding, section III-B: the gradients of a data set are "no slower than one epoch of training", a ratio of 1.0 at
most. Times are float32, one thread, in turn, medians of the repetitions, and the processor's: they depend less on what
else runs than the clock's. Gradients are those of every layer that has weights or an activation. Faces are measured
where they are, and MNIST's first 6,000 training images.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from brittle import data, fit
from brittle.data import Data, Split
from brittle.errors import InputError
from brittle.models.networks import build, channels_last, lo_ding_faces, papernot_mnist
from brittle.units import (
    activity,
    class_gradient,
    convolutional_gradient,
    knockout_curves,
    knockout_orders,
    predictions_without,
    rank_units,
)

REPEATS = 3


def seconds(*works: Callable[[], object]) -> list[float]:
    """The median processor time of each, measured in turn."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(REPEATS + 1):  # the first warms
        for work, measured in zip(works, times, strict=True):
            started = time.process_time()
            work()
            measured.append(time.process_time() - started)
    return [statistics.median(measured[1:]) for measured in times]


def looked_at(model: nn.Module) -> list[str]:
    kinds = nn.Conv2d | nn.Linear | nn.ReLU | nn.Tanh
    return [name for name, layer in model.named_modules() if isinstance(layer, kinds)]


def gradients(name: str, found: Data, make: Callable[[], nn.Module], batch_size: int) -> None:
    train = found.train
    trained, model = build(make, seed=0), channels_last(build(make, seed=0).eval())
    none = Split(train.images[:0], train.labels[:0])  # no validation, whose cost is not training's
    only = Data(found.name, train, none, none, found.classes, found.digest, found.source)

    def epoch() -> None:
        fit(trained, only, epochs=1, batch_size=batch_size, learning_rate=1e-4, dtype="float32", device="cpu")

    layers = looked_at(model)
    maps = [layer for layer in layers if isinstance(model.get_submodule(layer), nn.ReLU | nn.Tanh)]
    once, every, activations = seconds(
        epoch,
        lambda: class_gradient(model, train.images, train.labels, layers),
        lambda: class_gradient(model, train.images, train.labels, maps),
    )
    print(f"{name}: {len(train)} images, an epoch of batches of {batch_size} takes {once:.2f} s")
    print(f"  class gradients of {len(layers)} layers {every:.2f} s, ratio {every / once:.2f}")
    print(f"  of the {len(maps)} activations alone {activations:.2f} s, ratio {activations / once:.2f}")


def knockouts(name: str, images: torch.Tensor, labels: torch.Tensor, model: nn.Module, layers: list[str]) -> None:
    channels_last(model.eval())
    ranked = rank_units(convolutional_gradient(class_gradient(model, images, labels, layers, classes=[0])))
    orders = knockout_orders(ranked, rank_units(activity(model, images, layers)), count=20)
    sets = [order[:count] for order in orders.values() for count in range(len(order) + 1)]

    def one_by_one() -> None:
        for units in sets:
            predictions_without(model, images, [units])

    whole = Whole(model)
    renamed = {key: [type(u)(f"model.{u.layer}", u.index) for u in order] for key, order in orders.items()}
    shared, separate, unshared = seconds(
        lambda: knockout_curves(model, images, labels, orders),
        one_by_one,
        lambda: knockout_curves(whole, images, labels, renamed),
    )
    print(f"{name}: {len(sets)} knockouts of {len(images)} images together {shared:.2f} s")
    print(f"  one by one {separate:.2f} s, {separate / shared:.1f} times; copies, but no prefix {unshared:.2f} s")


class Whole(nn.Module):
    """A model that cannot be taken apart."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)


def main() -> None:
    options = argparse.ArgumentParser(description="Class gradients against an epoch of training.")
    options.add_argument("--root", type=Path)
    root = options.parse_args().root
    torch.set_num_threads(1)
    try:
        faces = data.load("yale-faces", root)
    except InputError as error:
        print(f"no faces: {error}")
    else:
        gradients("Yale faces, lo_ding_faces", faces, lo_ding_faces, 16)
        face = build(lo_ding_faces, seed=0)
        layers = ["tanh1", "tanh2", "tanh3"]
        knockouts("Yale faces, training", faces.train.images, faces.train.labels, face, layers)
        knockouts("Yale faces, of one person", faces.train.images[:11], faces.train.labels[:11], face, layers)
    mnist = data.load("mnist", root)
    few = Split(mnist.train.images[:6000], mnist.train.labels[:6000])
    some = Data(mnist.name, few, mnist.validation, mnist.test, mnist.classes, mnist.digest, mnist.source)
    gradients("MNIST, papernot_mnist", some, papernot_mnist, 128)


if __name__ == "__main__":
    main()
