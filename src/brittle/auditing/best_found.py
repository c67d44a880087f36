"""The smallest successful perturbation of each image, and the checkpoint from which an interrupted audit resumes."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from brittle.attacks.judging import Votes, for_good
from brittle.attacks.result import logits_in_batches
from brittle.models.checkpoint import save
from brittle.models.networks import seeded

T = TypeVar("T")
Norm = Literal["linf", "l2", "l0"]
KEPT = ("size", "adversarial", "unfit", "minimal")  # by a checkpoint
SIZES: dict[Norm, float] = {"linf": torch.inf, "l2": 2, "l0": 0}


def within(eps: float) -> float:
    """The largest size that counts as `eps`: sums of pixels near 1 and a small change are rounded to 1e-7."""
    return eps * (1 + 1e-5) + 1e-6


@dataclass
class BestFound:
    """Of every row the smallest change known to fool the model, in the audit's norm.

    Attributes:
        model, images, labels, norm: of the audit.
        deterministic: whether the model is.
        seed: of all that is done `once`.
        checkpoint: the file that keeps what is done; None keeps nothing.
        request: the options of the audit in words; a checkpoint of others, or of other images, is not used.
        done: by name, what was done, and what it gave.
        unfit: (N,) bool: rows on which the model has answered with NaN or infinity.
        minimal: (N,) bool: rows whose smallest perturbation was found by an attack that looks for the smallest.
    """

    model: nn.Module
    images: Tensor
    labels: Tensor
    norm: Norm
    deterministic: bool
    seed: int = 0
    checkpoint: Path | None = None
    request: str = ""
    done: dict[str, Any] = field(init=False, default_factory=dict)
    size: Tensor = field(init=False)  # (N,), 0 where the model is wrong anyway, inf where nothing is known
    adversarial: Tensor = field(init=False)  # (N, C, H, W)
    unfit: Tensor = field(init=False)
    minimal: Tensor = field(init=False)
    wrong: Tensor = field(init=False)  # (N,), the share of runs in which the model errs on the clean image
    by: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.unfit, self.minimal = torch.zeros((2, len(self.images)), dtype=torch.bool, device=self.images.device)
        every = torch.arange(len(self.images), device=self.images.device)
        self.wrong = Votes.of(self.model, self.images, every, self._errs, *([1] if self.deterministic else [])).share
        wrong = self.wrong > 0.5
        self.size = torch.full((len(self.images),), torch.inf, dtype=torch.float64, device=self.images.device)
        self.size[wrong] = 0
        self.adversarial = self.images.clone()
        self.by = ["no change" if row else "" for row in wrong.tolist()]
        if self.checkpoint is not None:
            self._restore(self.checkpoint)

    def cached_step(self, name: str, work: Callable[[], T]) -> T:
        """What `work` gives, as JSON takes it; where an audit that was killed has done it, what it gave then.

        Its random numbers come from its name and the audit's seed alone, so that they are the same after a kill.
        """
        if name not in self.done:
            with seeded(self.seed + zlib.crc32(name.encode())):
                self.done[name] = work()
            if self.checkpoint is not None:
                self._save(self.checkpoint)
        return self.done[name]

    def _save(self, path: Path) -> None:
        told = {"request": self._digest, "done": json.dumps(self.done), "by": json.dumps(self.by)}
        save(path, {name: getattr(self, name) for name in KEPT}, told)

    def _restore(self, path: Path) -> None:
        """Puts everything back as `_save` found it; what cannot be read, or is of another audit, is ignored."""
        try:
            with safe_open(path, "pt") as file:
                told = file.metadata()
                kept = {name: file.get_tensor(name) for name in KEPT}
            if told["request"] != self._digest:
                return
            done, by = json.loads(told["done"]), json.loads(told["by"])
        except Exception:  # safetensors raises its own kinds for what it cannot read
            return
        for name, values in kept.items():
            setattr(self, name, values.to(getattr(self, name)))
        self.done, self.by = done, by

    @cached_property
    def _digest(self) -> str:
        hashed = hashlib.sha256(f"{self.request} {self.norm} {self.seed} {tuple(self.images.shape)}".encode())
        for values in (self.images, self.labels):
            hashed.update(values.cpu().contiguous().numpy().tobytes())
        return hashed.hexdigest()

    def fooled(self, images: Tensor, rows: Tensor) -> Tensor:
        """(n,) bool: whether the model errs on images (n, C, H, W) of `rows`; for good if it varies, see `for_good`.

        An answer of NaN or infinity is no error: it names no class. It is noted in `unfit`.
        """
        if not len(rows):
            return torch.zeros(0, dtype=torch.bool, device=rows.device)
        if not self.deterministic:
            return for_good(self.model, images, rows, self._errs, self.wrong[rows])
        return self._errs(logits_in_batches(self.model, images), rows)

    def _errs(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(n,) bool: whether logits (n, K) of `rows` (n,) name another class than the label."""
        finite = logits.isfinite().all(1)
        self.unfit[rows] |= ~finite
        return finite & (logits.argmax(1) != self.labels[rows])

    def right(self, eps: float) -> Tensor:
        """(N,) bool: rows that no change up to `eps` is known to fool."""
        return self.size > within(eps)

    def left(self, eps: float) -> float:
        """The share of rows that are right."""
        return int(self.right(eps).sum()) / len(self.labels)

    def sizes_of(self, images: Tensor, rows: Tensor) -> Tensor:
        """(n,): how far images (n, C, H, W) are from the clean ones of `rows`."""
        change = (images - self.images[rows]).flatten(2)
        if self.norm == "l0":
            return (change != 0).any(1).sum(1).double()
        return torch.linalg.vector_norm(change.double(), ord=SIZES[self.norm], dim=(1, 2))

    def record(self, name: str, images: Tensor, rows: Tensor, *, minimal: bool = False) -> Tensor:
        """Takes the images (n, C, H, W) that fool the model with less than is known; (n,) bool: those that fool it.

        `minimal` says that they come from an attack that looks for the smallest perturbation.
        """
        images = images.to(self.images.dtype)
        size, fooled = self.sizes_of(images, rows), self.fooled(images, rows)
        better = fooled & (size < self.size[rows])
        self.minimal[rows[better]] = minimal
        self.size[rows[better]], self.adversarial[rows[better]] = size[better], images[better]
        for row in rows[better].tolist():
            self.by[row] = name
        return fooled
