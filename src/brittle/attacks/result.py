"""What every attack gives back, and the checks that every attack makes at its door."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brittle.errors import InputError
from brittle.networks import frozen, logits_of

__all__ = ["BATCH", "AttackResult", "door", "frozen", "logits_of", "measured", "predictions"]

BATCH = 256  # images a forward pass: 128 and 256 measure alike on a CPU, 512 falls out of its cache


@dataclass(frozen=True)
class AttackResult:
    """One row an image: what it was, what it became, and what that cost."""

    images: Tensor  # (B, C, H, W), clean, in [0, 1]
    labels: Tensor  # (B,), int64
    targets: Tensor | None  # (B,), int64, when the attack aimed at a class
    adversarial: Tensor  # (B, C, H, W), in [0, 1] unless it was told not to clip; rows that failed hold the clean image
    success: Tensor  # (B,), bool, measured on the final images
    prediction: Tensor  # (B,), int64: the model's class for `adversarial`
    forwards: Tensor  # (B,), int64: images of this row put through the model
    backwards: Tensor  # (B,), int64: gradients taken for this row
    pixels: Tensor | None = None  # (B, P), int64: flipped pixels in order, h * W + w, then -1; pixel attacks only

    def norm(self, p: float) -> Tensor:
        """(B,) size of each change, p in 0, 1, 2, inf: L0 counts pixels, not channel values; 0 where the row failed."""
        change = (self.adversarial - self.images).flatten(2)
        if p == 0:
            return (change != 0).any(1).sum(1)
        if p not in (1, 2, torch.inf):
            raise InputError(f"norm must be 0, 1, 2 or inf, got {p}")
        return torch.linalg.vector_norm(change, ord=p, dim=(1, 2))

    @property
    def trivial(self) -> Tensor:
        """(B,) bool: rows that needed no change, since the model was wrong (or on target) from the start."""
        return self.success & (self.norm(0) == 0)

    @property
    def flips(self) -> Tensor:
        """(B,) int64: pixels set until the prediction changed, as pixel attacks count; 0 where they failed."""
        if self.pixels is None:
            raise InputError("only pixel attacks count flips; use norm(0)")
        return (self.pixels >= 0).sum(1)


def door(model: nn.Module, images: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Checks a request and gives the clean logits, (B, K); costs one forward a row.

    Raises:
        InputError: if images, labels or targets are not as an attack's docstring says, or do not fit the model.

    Warns:
        UserWarning: if the model returns probabilities where logits are expected.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(f"images must be (B, C, H, W) and floating, got {tuple(images.shape)} {images.dtype}")
    if len(images) == 0:
        raise InputError("images must hold at least one row, got none")
    low, high = images.min().item(), images.max().item()
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # written so that NaN fails it
        raise InputError(f"images must lie in [0, 1], got [{low:.3g}, {high:.3g}]")
    _check_classes("labels", labels, images)
    if targets is not None:
        _check_classes("targets", targets, images)
    logits = logits_in_batches(model, images)
    if logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] < 2:
        raise InputError(f"the model must return logits ({len(images)}, K) with K >= 2, got {tuple(logits.shape)}")
    if not torch.isfinite(logits).all():
        raise InputError("the model returns logits that are not finite on the clean images")
    for name, classes in (("labels", labels), ("targets", targets)):
        if classes is not None and not 0 <= classes.min() <= classes.max() < logits.shape[1]:
            raise InputError(
                f"{name} must lie in 0..{logits.shape[1] - 1}, as the model has {logits.shape[1]} outputs, "
                f"got {classes.min()}..{classes.max()}"
            )
    if targets is not None and (targets == labels).any():
        raise InputError(f"targets must differ from labels, row {int((targets == labels).nonzero()[0])} does not")
    if _are_probabilities(logits):
        warnings.warn(
            "the model's outputs look like probabilities (in [0, 1], summing to 1): brittle expects logits, and the "
            "gradients of a softmax of a softmax are too small",
            stacklevel=3,
        )
    return logits


def _check_classes(name: str, classes: Tensor, images: Tensor) -> None:
    if classes.dtype != torch.int64 or classes.shape != images.shape[:1]:
        raise InputError(
            f"{name} must be int64 with one entry an image, ({len(images)},), "
            f"got {tuple(classes.shape)} {classes.dtype}"
        )


def _are_probabilities(outputs: Tensor) -> bool:
    return bool((outputs >= 0).all() and (outputs <= 1).all() and ((outputs.sum(1) - 1).abs() < 1e-3).all())


def logits_in_batches(model: nn.Module, images: Tensor) -> Tensor:
    """(N, K) logits without gradients, BATCH images at a time."""
    with frozen(model), torch.no_grad():
        return torch.cat([logits_of(model, batch) for batch in images.split(BATCH)])


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    """(N,) int64: the class of the largest logit, the first of equals."""
    return logits_in_batches(model, images).argmax(1)


def measured(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    adversarial: Tensor,
    *,
    forwards: Tensor | int,
    backwards: Tensor | int,
    targets: Tensor | None = None,
    pixels: Tensor | None = None,
) -> AttackResult:
    """The result of an attack, with success measured anew on `adversarial` rather than taken from the attack's word.

    Rows that failed get their clean image back, and no pixels. The check itself is not counted in `forwards`.
    """
    reached = predictions(model, adversarial)
    success = reached != labels if targets is None else reached == targets
    unchanged = predictions(model, images) if not success.all() else reached
    kept = torch.where(success.view(-1, 1, 1, 1), adversarial, images)

    def each(count: Tensor | int) -> Tensor:
        return torch.as_tensor(count, device=images.device).expand(len(images)).clone()

    return AttackResult(
        images=images,
        labels=labels,
        targets=targets,
        adversarial=kept,
        success=success,
        prediction=torch.where(success, reached, unchanged),
        forwards=each(forwards),
        backwards=each(backwards),
        pixels=None if pixels is None else torch.where(success[:, None], pixels, -1),
    )
