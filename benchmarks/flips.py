"""Song's difference maps: flips followed as windows, against whole images in batches and against one flip a call.

    python benchmarks/flips.py [--root DATA_ROOT]

Same network (papernot_mnist, random weights), same images, one run; medians of the repetitions. Peers: `batched` puts
every changed image through the whole network, 256 at a time, and also skips flips that change nothing; `all flips` does
not skip them; `one a call` is one image and one flip a call, as the author's code does, timed on a sample of the flips.
The floor is the multiply-adds that the windows need, counted exactly, against those of the whole image.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from brittle import data
from brittle.attacks import pixel_flips
from brittle.attacks.result import frozen, logits_in_batches
from brittle.models.networks import build, channels_last, papernot_mnist

IMAGES, REPEATS, SAMPLE = 32, 3, 300


def seconds(work: Callable[[], object]) -> float:
    work()  # warm
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def whole(model: nn.Module, images: Tensor, changes: Tensor) -> None:
    with frozen(model), torch.no_grad():
        for _ in pixel_flips._whole(model, images)(changes):
            pass


def one_a_call(model: nn.Module, images: Tensor, count: int) -> None:
    with frozen(model), torch.no_grad():
        for pixel in range(count):
            changed = images[:1].clone()
            changed.view(-1)[pixel % changed.numel()] = 1
            model(changed)


def multiply_adds() -> tuple[float, int]:
    """A flip's mean and a whole image's, for papernot_mnist on 28 x 28: (kernel, stride, size, of an output)."""
    layers = [(3, 1, 26, 9 * 32), (3, 1, 24, 288 * 32), (2, 2, 12, 0), (3, 1, 10, 288 * 64), (3, 1, 8, 576 * 64)]
    dense = 1024 * 200 + 200 * 200 + 200 * 10
    lengths = []
    for pixel in range(28):
        low, high, path = pixel, pixel, []
        for kernel, stride, size, _ in layers:
            low, high = max(0, -((kernel - 1 - low) // stride)), min(size - 1, high // stride)
            path.append(high - low + 1)
        lengths.append(path)
    flip = sum(layer[3] * (sum(path[i] for path in lengths) / 28) ** 2 for i, layer in enumerate(layers))
    return flip + dense, sum(each * size * size for _, _, size, each in layers) + dense


def main() -> None:
    options = argparse.ArgumentParser(description="Song's difference maps, against slower ways.")
    options.add_argument("--root", type=Path)
    images = data.load("mnist", options.parse_args().root).test.images[:IMAGES]
    model = channels_last(build(papernot_mnist, seed=0).eval())
    clean = logits_in_batches(model, images)
    every = torch.ones(len(images), len(pixel_flips.LEVELS), images[0, 0].numel(), dtype=torch.bool)
    changes = torch.stack([(images.flatten(2) != level).any(1) for level in pixel_flips.LEVELS], 1)

    windowed = seconds(lambda: pixel_flips.flip_logits(model, images, clean)) / len(images)
    peers = {
        "batched, no-ops skipped": seconds(lambda: whole(model, images, changes)) / len(images),
        "batched, all flips": seconds(lambda: whole(model, images, every)) / len(images),
        "one a call, all flips": seconds(lambda: one_a_call(model, images, SAMPLE)) / SAMPLE * every[0].numel(),
    }
    least, most = multiply_adds()
    rate = changes.sum().item() / len(images) / windowed
    print(f"{IMAGES} MNIST images, {changes.sum().item() / IMAGES:.0f} flips each, {torch.get_num_threads()} threads")
    print(f"windowed: {1 / windowed:.1f} maps/s, {rate:,.0f} flips/s, {2 * least * rate / 1e9:.0f} GFLOP/s")
    for name, each in peers.items():
        print(f"{name}: {1 / each:.2f} maps/s, {each / windowed:.1f} times slower")
    print(
        f"floor: {least / 1e6:.2f} M multiply-adds a flip, {most / 1e6:.2f} M a whole image, {most / least:.1f} times"
    )


if __name__ == "__main__":
    main()
