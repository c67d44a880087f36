"""One epoch of papernot_mnist in bfloat16 autocast against float32, in turn, on 12,800 random images.

    python benchmarks/training.py

Floor: 3 x 9.95 million multiply-adds an image (forward, and backward through weights and inputs).
"""

from __future__ import annotations

import statistics
import time

import torch

from brittle import fit
from brittle.data import Data, Split
from brittle.models.networks import build, papernot_mnist

IMAGES, REPEATS = 12_800, 3


def epoch(data: Data, dtype: str) -> float:
    network = build(papernot_mnist, seed=0)
    started = time.perf_counter()
    fit(network, data, epochs=1, dtype=dtype, device="cpu")
    return time.perf_counter() - started


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(IMAGES, 1, 28, 28, generator=generator)
    labels = torch.randint(0, 10, (IMAGES,), generator=generator)
    few = Split(images[:128], labels[:128])
    data = Data("random", Split(images, labels), few, few, tuple("0123456789"), "", "random")
    times: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for _ in range(REPEATS):
        for dtype, measured in times.items():
            measured.append(epoch(data, dtype))
    for dtype, measured in times.items():
        rate = IMAGES / statistics.median(measured)
        print(f"{dtype}: {rate:,.0f} images/s, {rate * 3 * 2 * 9.95e6 / 1e9:.0f} GFLOP/s")
    ratio = statistics.median(times["float32"]) / statistics.median(times["bfloat16"])
    print(f"bfloat16 is {ratio:.2f} times as fast; {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
