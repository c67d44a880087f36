"""Carlini and Wagner's attacks side by side with foolbox, ART, torchattacks and adversarial-library.

    python benchmarks/carlini.py [--weights weights.safetensors ...] [--data mnist|cifar10] [--rows 100] [--groups ...]

One thread, the same rows for all: the first of the test split that the network gets right. Without weights a network is
trained first, for `--epochs`. Peers are optional; those that are not installed are named. A peer that imports
torchvision or visdom is given an empty module of that name where they are missing: these attacks use neither.

`time` is the processor's, not the clock's: on one thread it depends less on what else runs, and on a quiet machine both
are the same. `forwards` and `backwards` are images of a row put through the network, counted by the network itself, and
gradients taken. `floor` is what these evaluations cost at least: forwards times the time of one forward, and backwards
times that of one backward, in batches of 128. `ratio` is against brittle's first line of the group.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from brittle import data
from brittle.attacks import carlini_l0, carlini_l2, carlini_linf
from brittle.models.networks import build, channels_last, frozen, papernot_cifar, papernot_mnist

NETWORKS = {"mnist": papernot_mnist, "cifar10": papernot_cifar}
PEERS = {
    "foolbox": "foolbox",
    "art": "art.attacks.evasion",
    "torchattacks": "torchattacks",
    "adv_lib": "adv_lib.attacks",
}
NAMES = {"art": "adversarial-robustness-toolbox", "adv_lib": "adversarial-library (adv-lib)"}
INF = float("inf")

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Line:
    """One attack of one library at one setting."""

    name: str
    library: str  # of PEERS, or brittle
    attack: Attack


class Counting(nn.Module):
    """Counts the images that go through forwards and that a gradient comes back to."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.forwards = self.backwards = 0

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += len(images)
        logits = self.model(images)
        if logits.requires_grad:
            logits.register_hook(self._came_back)
        return logits

    def _came_back(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


# The attacks ----------------------------------------------------------------------------------------------------------


def brittle(attack: Callable[..., Any], name: str, **options: Any) -> Line:
    return Line(name, "brittle", lambda model, x, y: attack(model, x, y, **options).adversarial)


def adv_lib(attack: str, name: str, **options: Any) -> Line:
    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return getattr(importlib.import_module("adv_lib.attacks"), attack)(model, x, y, **options)

    return Line(name, "adv_lib", run)


def foolbox(attack: str, name: str, **options: Any) -> Line:
    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        peer = importlib.import_module("foolbox")
        wrapped = peer.PyTorchModel(model, bounds=(0, 1), device="cpu")
        return getattr(peer.attacks, attack)(**options)(wrapped, x, y, epsilons=None)[1]

    return Line(name, "foolbox", run)


def torchattacks(name: str, **options: Any) -> Line:
    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return importlib.import_module("torchattacks").CW(model, **options)(x, y)

    return Line(name, "torchattacks", run)


def art(attack: str, name: str, **options: Any) -> Line:
    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        estimators = importlib.import_module("art.estimators.classification")
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        wrapped = estimators.PyTorchClassifier(
            model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), classes, clip_values=(0, 1), device_type="cpu"
        )
        peer = getattr(importlib.import_module("art.attacks.evasion"), attack)
        with torch.enable_grad():
            made = peer(wrapped, batch_size=len(x), verbose=False, **options).generate(x.numpy(), y.numpy())
        return torch.from_numpy(made)

    return Line(name, "art", run)


def lines(long: bool) -> dict[str, tuple[float, list[Line]]]:
    """By group, the norm and the attacks; brittle's first. `long` adds what takes thousands of evaluations a row."""
    at = {"binary_search_steps": 9, "max_iterations": 100}
    two = [
        brittle(carlini_l2, "1 x 50", binary_search_steps=1, max_iterations=50),
        brittle(carlini_l2, "1 x 100", binary_search_steps=1, max_iterations=100),
        brittle(carlini_l2, "2 x 200, as it comes"),
        brittle(carlini_l2, "9 x 100", **at),
        adv_lib("carlini_wagner_l2", "C&W 9 x 100, step 0.1", learning_rate=0.1, **at),
        adv_lib("carlini_wagner_l2", "C&W 9 x 100, step 0.01", **at),
        foolbox("L2CarliniWagnerAttack", "C&W 9 x 100, step 0.1", binary_search_steps=9, steps=100, stepsize=0.1),
        foolbox("L2CarliniWagnerAttack", "C&W 9 x 100, step 0.01", binary_search_steps=9, steps=100, stepsize=0.01),
        torchattacks("C&W c = 1, 100 steps of 0.1", c=1, steps=100, lr=0.1),
        art("CarliniL2Method", "C&W 10 x 10, as it comes"),
        adv_lib("ddn", "DDN 100", steps=100, levels=None),
        adv_lib("fmn", "FMN 100", steps=100, norm=2),
        adv_lib("alma", "ALMA 100", num_steps=100),
    ]
    if long:
        two += [
            brittle(carlini_l2, "2 x 100", binary_search_steps=2, max_iterations=100),
            adv_lib("carlini_wagner_l2", "C&W 9 x 1000, step 0.01", binary_search_steps=9, max_iterations=1000),
            adv_lib("fmn", "FMN 1000", steps=1000, norm=2),
            adv_lib("alma", "ALMA 1000", num_steps=1000),
        ]
    most = [
        brittle(carlini_linf, "1 x 25", binary_search_steps=1, max_iterations=25),
        brittle(carlini_linf, "1 x 100", binary_search_steps=1, max_iterations=100),
        brittle(carlini_linf, "2 x 200, as it comes"),
        adv_lib("carlini_wagner_linf", "C&W rounds of 100", max_iterations=100),
        art("CarliniLInfMethod", "C&W rounds of 10, as it comes"),
        adv_lib("fmn", "FMN 100", steps=100, norm=INF),
    ]
    if long:
        most += [
            brittle(carlini_linf, "1 x 200", binary_search_steps=1),
            adv_lib("fmn", "FMN 1000", steps=1000, norm=INF),
            adv_lib("pdpgd", "PDPGD 1000", num_steps=1000, norm=INF),
        ]
    fewest = [
        brittle(carlini_l0, "as it comes"),
        adv_lib("fmn", "FMN 100", steps=100, norm=0),
        adv_lib("sigma_zero", "sigma-zero 100", num_steps=100),
    ]
    if long:
        fewest += [
            brittle(carlini_l0, "60 iterations a round", max_iterations=60),
            brittle(carlini_l0, "1 restart", restarts=1),
            art("CarliniL0Method", "C&W 10 x 10, as it comes"),
            adv_lib("fmn", "FMN 1000", steps=1000, norm=0),
            adv_lib("sigma_zero", "sigma-zero 1000", num_steps=1000),
        ]
    return {"l2": (2, two), "linf": (INF, most), "l0": (0, fewest)}


# Measuring ------------------------------------------------------------------------------------------------------------


def missing() -> dict[str, str]:
    """The peers that cannot be imported, and why."""
    for name in ("torchvision", "torchvision.models", "visdom"):
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = types.ModuleType(name)
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, sys.modules[name])
    why = {}
    for peer, module in PEERS.items():
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a peer's own imports raise
            why[peer] = str(error)
    return why


def evaluation(model: nn.Module, images: Tensor) -> tuple[float, float]:
    """Processor seconds of one image's forward and of one backward, medians of 5 batches of 128."""
    batch = images.repeat(-(-128 // len(images)), 1, 1, 1)[:128]
    forwards, backwards = [], []
    for _ in range(6):
        inputs = batch.clone().requires_grad_(True)
        started = time.process_time()
        logits = model(inputs)
        between = time.process_time()
        torch.autograd.grad(logits.sum(), inputs)
        forwards.append(between - started)
        backwards.append(time.process_time() - between)
    return statistics.median(forwards[1:]) / len(batch), statistics.median(backwards[1:]) / len(batch)


def sizes(change: Tensor, p: float) -> Tensor:
    """(N,): L0 counts pixels, not channel values; values that moved by less than 1e-5 have not, as tanh moves all."""
    if p == 0:
        return (change.abs() > 1e-5).any(1).flatten(1).sum(1).float()
    return torch.linalg.vector_norm(change.flatten(1), ord=p, dim=1)


def measure(line: Line, p: float, model: nn.Module, x: Tensor, y: Tensor, repeats: int) -> tuple[float, str]:
    """The processor seconds, and all else that is printed."""
    costs, times = [], []
    counting, found = Counting(model), x
    for _ in range(repeats):
        counting = Counting(model).eval()
        costs.append(evaluation(model, x))
        started = time.process_time()
        found = line.attack(counting, x.clone(), y.clone()).detach()
        times.append(time.process_time() - started)
    with torch.no_grad():
        reached = model(found).argmax(1) != y
    norm = sizes(found - x, p)[reached]
    forward, backward = (statistics.median(each) for each in zip(*costs, strict=True))
    spent, floor = statistics.median(times), counting.forwards * forward + counting.backwards * backward
    mean, middle = (norm.mean().item(), norm.median().item()) if len(norm) else (float("nan"), float("nan"))
    inside = "" if found.min() >= -1e-6 and found.max() <= 1 + 1e-6 else "  leaves [0, 1]"
    return spent, (
        f"{spent:8.1f} s {floor:8.1f} s {reached.double().mean():8.0%} {mean:9.4f} {middle:9.4f} "
        f"{counting.forwards / len(x):9.0f} {counting.backwards / len(x):9.0f}{inside}"
    )


def trained(name: str, root: Path | None, epochs: int) -> nn.Module:
    """A network fitted by Adam, 128 images a step."""
    split = data.load(name, root).train
    model = channels_last(build(functools.partial(NETWORKS[name], dropout=0.2), seed=0)).train()
    adam, order = torch.optim.Adam(model.parameters(), lr=1e-3), torch.Generator().manual_seed(0)
    torch.manual_seed(0)  # of dropout
    for _ in range(epochs):
        for rows in torch.randperm(len(split), generator=order).split(128):
            adam.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(split.images[rows].contiguous(memory_format=torch.channels_last))
            F.cross_entropy(logits.float(), split.labels[rows]).backward()
            adam.step()
    return model.eval()


def compare(title: str, model: nn.Module, why: dict[str, str], options: argparse.Namespace) -> None:
    test = data.load(options.data, options.root).test
    with torch.no_grad():
        right = torch.cat([model(batch).argmax(1) for batch in test.images[:1000].split(250)]) == test.labels[:1000]
    x, y = test.images[:1000][right][: options.rows], test.labels[:1000][right][: options.rows]
    print(f"\n{title}: {right.double().mean():.1%} of 1000 right, {len(x)} rows, {torch.get_num_threads()} thread")
    with frozen(model):
        for group, (p, all_lines) in lines(options.long).items():
            if group not in options.groups:
                continue
            heads = ("time", "floor", "success", "mean", "median", "forwards", "backwards", "ratio")
            print(
                f"{group:46}",
                *(f"{head:>{width}}" for head, width in zip(heads, (10, 10, 8, 9, 9, 9, 9, 7), strict=True)),
            )
            first = 0.0
            for line in all_lines:
                if line.library in why or line.library not in ("brittle", *options.peers):
                    continue
                spent, said = measure(line, p, model, x, y, options.repeats)
                first = first or spent
                print(f"{line.library:13} {line.name:32} {said} {spent / first:7.2f}", flush=True)


def main() -> None:
    options = asked()
    torch.set_num_threads(1)
    why = missing()
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}")
    for peer, reason in why.items():
        print(f"{NAMES.get(peer, peer)} is not installed: {reason}")
    if not options.weights:
        compare(
            f"trained for {options.epochs} epochs", trained(options.data, options.root, options.epochs), why, options
        )
    for path in options.weights:
        model = build(NETWORKS[options.data], seed=0)
        model.load_state_dict(load_file(path))
        compare(path.stem, channels_last(model.eval()), why, options)


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Carlini and Wagner's attacks, against those of other libraries.")
    parser.add_argument("--weights", type=Path, nargs="*", default=[], help="of papernot_mnist or papernot_cifar")
    parser.add_argument("--data", choices=NETWORKS, default="mnist")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2, help="of training, where no weights are given")
    parser.add_argument("--groups", nargs="*", choices=["l2", "linf", "l0"], default=["l2", "linf", "l0"])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--long", action="store_true", help="also settings of thousands of evaluations a row")
    return parser.parse_args()


if __name__ == "__main__":
    main()
