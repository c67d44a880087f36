"""What an attack is to reach: another class than the label or a target, by which lead, and in which pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from brittle.errors import InputError
from brittle.models.softmax import log_odds

Loss = Literal["cross_entropy", "margin", "exact"]


@dataclass(frozen=True)
class Goal:
    """The class that each row is to leave, or the one that it is to reach."""

    labels: Tensor  # (N,), int64
    targets: Tensor | None = None  # (N,), int64; without them any class but the label will do
    confidence: float = 0.0  # by how much the winning logit must lead, >= 0

    @property
    def classes(self) -> Tensor:
        """(N,): the class whose logit counts, the target or the label."""
        return self.labels if self.targets is None else self.targets

    @property
    def sign(self) -> int:
        """1 if that class is to lose, -1 if it is to win."""
        return 1 if self.targets is None else -1

    def of(self, rows: Tensor) -> Goal:
        """The goal of `rows` (n,)."""
        return Goal(self.labels[rows], None if self.targets is None else self.targets[rows], self.confidence)

    def reached(self, logits: Tensor, rows: Tensor | None = None) -> Tensor:
        """(n,) bool: whether `rows` (n,), all of them by default, with logits (n, K) are as wanted.

        Logits that are not all finite name no class: they are never as wanted.
        """
        goal = self if rows is None else self.of(rows)
        prediction = logits.argmax(1)
        there = prediction != goal.labels if goal.targets is None else prediction == goal.targets
        there = there & logits.isfinite().all(1)
        return there & (goal.lead(logits) <= -self.confidence) if self.confidence else there

    def lead(self, logits: Tensor, rows: Tensor | None = None) -> Tensor:
        """(n,): by how much the class that is to lose leads; below 0 once it has lost. C&W's f_6 before the hinge."""
        aim = (self.classes if rows is None else self.classes[rows])[:, None]
        own = logits.gather(1, aim).squeeze(1)
        others = logits.scatter(1, aim, -torch.inf).amax(1)
        return self.sign * (own - others)

    def lead_over(self, rivals: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        """(n,): by how much the labels of `rows` (n,) lead over classes `rivals` (n,)."""
        own, rival = logits.gather(1, torch.stack([self.labels[rows], rivals], 1)).unbind(1)
        return own - rival

    def loss(self, logits: Tensor, rows: Tensor, kind: Loss) -> Tensor:
        """(n,): what falls as `rows` (n,) with logits (n, K) come nearer.

        Args:
            logits: (n, K).
            rows: (n,).
            kind: 'cross_entropy', in the precision of the logits; 'exact', the log-odds, which have its direction and
                never underflow; or 'margin', the lead.
        """
        if kind == "margin":
            return self.lead(logits, rows)
        if kind == "exact":
            return -self.sign * log_odds(logits, self.classes[rows])
        return -self.sign * F.cross_entropy(logits, self.classes[rows], reduction="none")


def everywhere(images: Tensor) -> Tensor:
    """(N, 1, H, W) bool, true: all pixels of images (N, C, H, W) may change."""
    return torch.ones((), dtype=torch.bool, device=images.device).expand(len(images), 1, *images.shape[2:])


def checked_where(where: Tensor | None, images: Tensor) -> Tensor:
    """(N, 1, H, W) bool: which pixels of images (N, C, H, W) may change, from what an attack was given.

    Raises:
        InputError: if it is not bool, or neither (H, W) nor (N, 1, H, W).
    """
    if where is None:
        return everywhere(images)
    whole = everywhere(images).shape
    if where.dtype != torch.bool or where.shape not in (whole, whole[2:]):
        raise InputError(
            f"where must be bool and ({whole[2]}, {whole[3]}) or {tuple(whole)}, got {tuple(where.shape)} {where.dtype}"
        )
    return where.to(images.device).expand(whole)
