"""Many small trainings: one after another, in two one-thread processes, or together by vmap over stacked weights.

    python benchmarks/together.py [--networks 4] [--steps 20]

Training images a second of all networks together, on images of MNIST's shape; run it on an idle machine. On a GPU it
also tries vmap there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from brittle.models.networks import build, channels_last, papernot_mnist

BATCH, TURNS = 128, 3


def batch(device: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(BATCH, 1, 28, 28, device=device), torch.randint(0, 10, (BATCH,), device=device)


def stepper(seed: int, device: str, dtype: str) -> Callable[[], None]:
    """A step of one network's training, as `brittle.fit` makes it."""
    network = channels_last(build(papernot_mnist, seed=seed).train().to(device))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.5)
    images, labels = batch(device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = network(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def stacked(count: int, device: str) -> Callable[[], None]:
    """The same step of `count` networks at once."""
    networks = [build(papernot_mnist, seed=seed).train().to(device) for seed in range(count)]
    weights, buffers = stack_module_state(networks)  # type: ignore[arg-type]
    momentum = {name: torch.zeros_like(value) for name, value in weights.items()}
    images, labels = batch(device)

    def loss(one: dict[str, Tensor], kept: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(networks[0], (one, kept), (images,)), labels)

    gradients = vmap(grad(loss), randomness="different")

    def step() -> None:
        found = gradients(weights, buffers)
        with torch.no_grad():
            for name, value in weights.items():
                momentum[name].mul_(0.5).add_(found[name])
                value.sub_(momentum[name], alpha=0.1)

    return step


def rate(step: Callable[[], None], steps: int, networks: int, device: str) -> float:
    """Images a second, all networks together; the median of TURNS."""
    found = []
    for _ in range(2):
        step()
    for _ in range(TURNS):
        started = time.monotonic()
        for _ in range(steps):
            step()
        if device != "cpu":
            torch.cuda.synchronize()
        found.append(steps * networks * BATCH / (time.monotonic() - started))
    return statistics.median(found)


def alone(job: tuple[int, int, str, str, Any]) -> tuple[float, float]:
    """In a process of its own: when it began and ended so many steps, once all are ready."""
    seed, steps, device, dtype, ready = job
    torch.set_num_threads(1)
    step = stepper(seed, device, dtype)
    step()
    ready.wait()
    started = time.monotonic()
    for _ in range(steps):
        step()
    return started, time.monotonic()


def processes(count: int, steps: int, device: str, dtype: str) -> float:
    """Images a second of `count` processes at once."""
    context = multiprocessing.get_context("spawn")
    found = []
    with context.Manager() as manager, context.Pool(count) as pool:
        for _ in range(TURNS):
            ready = manager.Barrier(count)
            spans = pool.map(alone, [(seed, steps, device, dtype, ready) for seed in range(count)], chunksize=1)
            found.append(count * steps * BATCH / (max(end for _, end in spans) - min(begin for begin, _ in spans)))
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    asked = parser.parse_args()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        for dtype in ("float32", "bfloat16"):
            for threads in (1, 2) if device == "cpu" else (1,):
                torch.set_num_threads(threads)
                one = rate(stepper(0, device, dtype), asked.steps, 1, device)
                print(f"{device} {dtype:9} one after another, {threads} thread(s): {one:8.0f} images/s")
            two = processes(2, asked.steps, device, dtype)
            print(f"{device} {dtype:9} two processes at once:          {two:8.0f} images/s")
        torch.set_num_threads(2)
        many = rate(stacked(asked.networks, device), asked.steps, asked.networks, device)
        print(f"{device} float32   {asked.networks} networks by vmap, 2 threads: {many:8.0f} images/s")


if __name__ == "__main__":
    main()
