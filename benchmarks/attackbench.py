"""`attacks.minimal` and other libraries' attacks by the protocol of AttackBench (Cina et al., AAAI 2025).

    python benchmarks/attackbench.py --root DATA [--norms 0 1 2 inf] [--models NAME ...] [--images 64] [--passes 2000]

An attack may put each image forward and backward through the model `--passes` times, both counted. The model itself
keeps the closest adversarial image that it was shown, so that no attack is judged by what it chooses to return. An
attack's optimality is the area between its curve of robust accuracy over distance and the level at the start, as a
share of the area for the closest image that any attack here has found: 100 % if it was the best on every image.

The models are small and trained here once, into `--folder`. Peers are optional; those that are not installed are named.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from carlini import missing
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from brittle import data
from brittle.attacks import minimal, pgd
from brittle.models.networks import build, frozen

INF = math.inf
MARKS = (100, 200, 500, 1000, 2000)  # passes after which attacks are compared
Attack = Callable[[nn.Module, Tensor, Tensor, int], object]  # model, images, labels, steps: a forward and backward each


# The models -----------------------------------------------------------------------------------------------------------


class Winners(nn.Module):
    """Of each image, keeps the largest tenth of the values: k-winners-take-all (Xiao et al. 2020), discontinuous."""

    def forward(self, values: Tensor) -> Tensor:
        flat = values.flatten(1)
        least = flat.topk(max(1, flat.shape[1] // 10), dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(values)


def network(channels: int, size: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Two strided convolutions and two dense layers."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5, stride=2, padding=2),
        activation(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2),
        activation(),
        nn.Flatten(),
        nn.Linear(32 * (size // 4) ** 2, 100),
        activation(),
        nn.Linear(100, 10),
    )


MODELS: dict[str, tuple[str, Callable[[], nn.Module], dict[str, float]]] = {
    "MNIST, standard": ("mnist", functools.partial(network, 1, 28), {}),
    "MNIST, T = 20": ("mnist", functools.partial(network, 1, 28), {"temperature": 20.0}),
    "MNIST, adversarially trained": ("mnist", functools.partial(network, 1, 28), {"eps": 0.2}),
    "MNIST, k-WTA": ("mnist", functools.partial(network, 1, 28, Winners), {}),
    "CIFAR-10, standard": ("cifar10", functools.partial(network, 3, 32), {}),
    "CIFAR-10, adversarially trained": ("cifar10", functools.partial(network, 3, 32), {"eps": 4 / 255}),
}


def trained(name: str, folder: Path, root: Path | None, epochs: int = 4) -> nn.Module:
    """A model of MODELS, fitted by Adam to the first 20,000 images, or as it was stored by an earlier run."""
    source, make, how = MODELS[name]
    model, path = build(make, seed=0), folder / f"{name.replace(',', '').replace(' ', '-')}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    split = data.load(source, root).train
    adam, order = torch.optim.Adam(model.parameters(), lr=2e-3), torch.Generator().manual_seed(0)
    for epoch in range(epochs * (2 if "eps" in how else 1)):
        for rows in torch.randperm(20_000, generator=order).split(128):
            images, labels = split.images[rows], split.labels[rows]
            if "eps" in how:
                eps = how["eps"] * min(1, (epoch + 1) / epochs)
                images = pgd(model, images, labels, eps=eps, steps=5, keep="last").adversarial
            adam.zero_grad()
            F.cross_entropy(model.train()(images) / how.get("temperature", 1.0), labels).backward()
            adam.step()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)
    return model.eval()


# The attacks ----------------------------------------------------------------------------------------------------------


def adv_lib(attack: str, steps: str, **options: Any) -> Attack:
    """An attack of adversarial-library; `steps` is what it calls its steps."""

    def run(model: nn.Module, x: Tensor, y: Tensor, count: int) -> object:
        return getattr(importlib.import_module("adv_lib.attacks"), attack)(model, x, y, **{steps: count}, **options)

    return run


def apgd(norm: float, eps: float, **options: Any) -> Attack:
    """adversarial-library's search over APGD's radius: the steps are shared by five runs, or five for each target."""

    def run(model: nn.Module, x: Tensor, y: Tensor, count: int) -> object:
        attack = importlib.import_module("adv_lib.attacks.auto_pgd").minimal_apgd
        runs = 20 if options.get("targeted_version") else 5
        more = {"num_targets": 4} if runs == 20 else {}
        return attack(model, x, y, norm, eps, n_iter=max(5, count // runs), binary_search_steps=5, **options, **more)

    return run


def foolbox(attack: str, **options: Any) -> Attack:
    """An attack of foolbox."""

    def run(model: nn.Module, x: Tensor, y: Tensor, count: int) -> object:
        peer = importlib.import_module("foolbox")
        wrapped = peer.PyTorchModel(model, bounds=(0, 1), device="cpu")
        return getattr(peer.attacks, attack)(steps=count, **options)(wrapped, x, y, epsilons=None)

    return run


def ours(norm: float) -> Attack:
    """brittle's."""
    return lambda model, x, y, count: minimal(model, x, y, norm=norm, evaluations=count)


ATTACKS: dict[float, dict[str, Attack]] = {
    0: {
        "brittle": ours(0),
        "sigma-zero (adv-lib)": adv_lib("sigma_zero", "num_steps"),
        "FMN (adv-lib)": adv_lib("fmn", "steps", norm=0),
        "PDPGD (adv-lib)": adv_lib("pdpgd", "num_steps", norm=0, proximal_operator=23),
    },
    1: {
        "brittle": ours(1),
        "PDPGD (adv-lib)": adv_lib("pdpgd", "num_steps", norm=1),
        "FMN (adv-lib)": adv_lib("fmn", "steps", norm=1),
        "APGD (adv-lib)": apgd(1, 50.0, use_large_reps=True),
        "EAD (foolbox)": foolbox("EADAttack", binary_search_steps=1),
    },
    2: {
        "brittle": ours(2),
        "DDN (adv-lib)": adv_lib("ddn", "steps", levels=None),
        "FMN (adv-lib)": adv_lib("fmn", "steps", norm=2),
        "ALMA (adv-lib)": adv_lib("alma", "num_steps", distance="l2"),
        "PDGD (adv-lib)": adv_lib("pdgd", "num_steps"),
        "APGD (adv-lib)": apgd(2, 5.0),
        "APGD-T (adv-lib)": apgd(2, 5.0, targeted_version=True),
        "SuperDeepFool (adv-lib)": adv_lib("sdf", "steps"),
    },
    INF: {
        "brittle": ours(INF),
        "FMN (adv-lib)": adv_lib("fmn", "steps", norm=INF),
        "PDPGD (adv-lib)": adv_lib("pdpgd", "num_steps", norm=INF),
        "APGD (adv-lib)": apgd(INF, 0.5),
        "APGD-T (adv-lib)": apgd(INF, 0.5, targeted_version=True),
    },
}


# Measuring ------------------------------------------------------------------------------------------------------------


class Watched(nn.Module):
    """A model that counts what each image is put through it, and keeps the distance of its closest adversarial image.

    An image is known by the clean one that lies nearest, so that rows which an attack leaves out confuse nothing.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, norm: float, passes: int):
        super().__init__()
        self.model, self.norm, self.passes = model, norm, passes
        self.images, self.labels = images.clone(), labels.clone()
        self.spent = torch.zeros_like(labels)
        self.curve = torch.full((len(labels), passes + 1), INF)  # the closest after so many passes

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        seen = images.detach()
        if self.norm == 0:
            rows = torch.stack([(one == self.images).flatten(1).sum(1).argmax() for one in seen])
        else:
            rows = torch.cdist(seen.flatten(1), self.images.flatten(1)).argmin(1)
        self._count(rows)
        size = self._size(seen - self.images[rows])
        fooled = (
            (logits.detach().argmax(1) != self.labels[rows]) & (seen.amin((1, 2, 3)) >= 0) & (seen.amax((1, 2, 3)) <= 1)
        )
        for row, at, distance in zip(
            rows[fooled].tolist(), self.spent[rows][fooled].tolist(), size[fooled], strict=True
        ):
            if at <= self.passes:
                self.curve[row, at] = torch.minimum(self.curve[row, at], distance)
        if logits.requires_grad:
            logits.register_hook(lambda _: self._count(rows))
        return logits

    def _count(self, rows: Tensor) -> None:
        self.spent.index_add_(0, rows, torch.ones_like(rows))

    def _size(self, change: Tensor) -> Tensor:
        if self.norm == 0:
            return (change != 0).any(1).flatten(1).sum(1).float()
        return torch.linalg.vector_norm(change.flatten(1), ord=self.norm, dim=1)


def optimality(distance: Tensor, best: Tensor) -> float:
    """AttackBench's, of distances (N,) against the closest by any attack (N,), inf where none was found."""
    limit = best[best.isfinite()].max()
    return ((limit - distance).clamp(min=0).sum() / (limit - best).clamp(min=0).sum()).item()


def compare(
    name: str, norm: float, model: nn.Module, images: Tensor, labels: Tensor, options: argparse.Namespace
) -> None:
    curves, seconds, spent = {}, {}, {}
    for attack, run in ATTACKS[norm].items():
        if options.only and not any(one in attack for one in options.only):
            continue
        watched = Watched(model, images, labels, norm, options.passes).eval()
        torch.manual_seed(0)
        started = time.process_time()
        run(watched, images.clone(), labels.clone(), options.passes // 2)
        seconds[attack] = time.process_time() - started
        curves[attack], spent[attack] = watched.curve.cummin(1).values, watched.spent.double().mean().item()
    best = torch.stack([curve[:, -1] for curve in curves.values()]).amin(0)
    marks = [mark for mark in MARKS if mark <= options.passes]
    print(f"\n{name}, L{norm:g}, {len(images)} images: optimality after so many passes; mean of the closest at the end")
    print(f"{'':26}", *(f"{mark:>7}" for mark in marks), f"{'mean':>9} {'found':>6} {'passes':>7} {'s':>6}")
    for attack, curve in curves.items():
        shares = [f"{optimality(curve[:, mark], best):7.1%}" for mark in marks]
        end = curve[:, -1]
        found = end.isfinite()
        mean = end[found].mean().item() if found.any() else math.nan
        print(
            f"{attack:26}",
            *shares,
            f"{mean:9.4f} {found.double().mean():6.0%} {spent[attack]:7.0f} {seconds[attack]:6.1f}",
            flush=True,
        )


def main() -> None:
    options = asked()
    torch.set_num_threads(1)
    for peer, reason in missing().items():
        print(f"{peer} is not installed: {reason}")
    for name in options.models:
        model = trained(name, options.folder, options.root)
        test = data.load(MODELS[name][0], options.root).test
        with torch.no_grad():
            right = model(test.images[:1000]).argmax(1) == test.labels[:1000]
        print(f"\n{name}: {right.double().mean():.1%} of 1,000 test images right")
        images, labels = test.images[:1000][right][: options.images], test.labels[:1000][right][: options.images]
        with frozen(model):
            for norm in options.norms:
                compare(name, norm, model, images, labels, options)


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Minimal-norm attacks by AttackBench's protocol.")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--norms", nargs="*", type=float, choices=list(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--only", nargs="*", help="parts of the names of attacks, to run these alone")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--passes", type=int, default=2000, help="forward and backward passes of each image")
    parser.add_argument("--folder", type=Path, default=Path("attackbench"), help="where trained models are kept")
    parser.add_argument("--root", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
