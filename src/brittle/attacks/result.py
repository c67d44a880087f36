"""What every attack gives back, and the check that every attack makes of what it is asked for."""

from __future__ import annotations

import html
import json
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brittle.attacks.goal import Goal, checked_where
from brittle.attacks.judging import Votes, for_good, led, mean_logits, nature
from brittle.errors import InputError, first_line
from brittle.models.inference import BATCH, answers, asked_how, logits_in_batches
from brittle.models.networks import frozen, logits_of

__all__ = [
    "BATCH",
    "AttackResult",
    "Bound",
    "Request",
    "answers",
    "check_request",
    "frozen",
    "logits_in_batches",
    "logits_of",
    "measured",
    "predictions",
]


@dataclass(frozen=True)
class Bound:
    """The ball around each image in which an attack looked."""

    norm: float  # 0, 1, 2 or inf
    eps: float  # its radius, in pixel units; in norm 0 pixels


@dataclass(frozen=True, repr=False)
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
    minimises: float | None = None  # 0, 1, 2 or inf: the norm whose size the attack makes small; None if it does not
    bound: Bound | None = None  # the ball that the attack kept to; None if it kept to none

    def norm(self, p: float) -> Tensor:
        """(B,) size of each perturbation, p in 0, 1, 2, inf: L0 counts pixels, not channel values; 0 where the row
        failed."""
        if p == 0:
            return (self.adversarial != self.images).flatten(2).any(1).sum(1)
        if p not in (1, 2, torch.inf):
            raise InputError(f"norm must be 0, 1, 2 or inf, got {p}")
        change = (self.adversarial - self.images).flatten(1)
        largest = change.abs().amax(1, keepdim=True)
        share = change / torch.where(largest > 0, largest, 1)  # squares of small numbers would underflow
        return largest.squeeze(1) * torch.linalg.vector_norm(share, ord=p, dim=1)

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

    @property
    def success_rate(self) -> float:
        """The share of fooled images among those that were right (or off target) before, as `measures.success_rate`
        has it with its interval; NaN if there are none. `success` counts the others too."""
        counted = ~self.trivial
        return int((self.success & counted).sum()) / count if (count := int(counted.sum())) else math.nan

    @property
    def robust_accuracy(self) -> float:
        """The share of all images that the model still takes for their label after the attack."""
        return int((self.prediction == self.labels).sum()) / len(self.labels) if len(self.labels) else math.nan

    def save(self, path: Path | str) -> None:
        """Writes all of it into one .safetensors file, which `load` reads to the bit; a file that is there is replaced.

        Raises:
            InputError: if the file cannot be written.
        """
        from safetensors.torch import save_file

        tensors = {name: value.contiguous() for name, value in vars(self).items() if isinstance(value, Tensor)}
        bound = None if self.bound is None else [str(self.bound.norm), self.bound.eps]  # JSON has no infinity
        told = {"minimises": None if self.minimises is None else str(self.minimises), "bound": bound}
        partial = Path(f"{path}.part")
        try:
            save_file(tensors, partial, {"brittle": json.dumps(told)})
            os.replace(partial, path)  # so that no half file has the name
        except Exception as error:  # of the system, or of safetensors, which wraps it
            raise InputError(f"{path}: cannot be written: {first_line(error)}") from error
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> AttackResult:
        """The result that `save` wrote, on a device. Nothing in the file is run.

        Raises:
            InputError: if it cannot be read, or is no such file.
        """
        from safetensors import safe_open

        try:
            with safe_open(path, "pt", str(device)) as file:
                told = json.loads((file.metadata() or {})["brittle"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            minimises, bound = told["minimises"], told["bound"]
            found = cls(
                **{"targets": None, **tensors},
                minimises=None if minimises is None else float(minimises),
                bound=None if bound is None else Bound(float(bound[0]), float(bound[1])),
            )
        except Exception as error:  # of the system, of safetensors, or for want of what `save` writes
            raise InputError(
                f"{path}: no attack's result as AttackResult.save writes it: {first_line(error)}"
            ) from error
        if len({len(tensor) for tensor in tensors.values()}) != 1 or found.adversarial.shape != found.images.shape:
            raise InputError(f"{path}: the tensors of the result differ in their number of images or in their shape")
        return found

    def __repr__(self) -> str:
        return f"<AttackResult: {'; '.join(f'{name} {value}' for name, value in self._facts())}>"

    def summary(self) -> str:
        """A few lines of text: what the attack was for, how many images it fooled, how far they are, what it cost."""
        facts = self._facts()
        width = max(len(name) for name, _ in facts)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in facts)

    def _repr_html_(self) -> str:
        rows = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in self._facts())
        return f"<table>{''.join(rows)}</table>"

    def _facts(self) -> list[tuple[str, str]]:
        counted = ~self.trivial
        fooled, right = int((self.success & counted).sum()), int(counted.sum())
        if self.minimises is not None:
            kind, p = f"smallest {_NORMS[self.minimises]}", self.minimises
        elif self.bound is not None:
            kind, p = f"{_NORMS[self.bound.norm]} <= {self.bound.eps:g}", self.bound.norm
        else:
            kind, p = "any perturbation", 2.0
        sizes = self.norm(p)[self.success & counted].double()
        size = f"{sizes.mean().item():.4g}" if fooled else "none"
        evaluations = (self.forwards + self.backwards).double().mean().item() if len(self.labels) else math.nan
        return [
            ("attack", f"{kind}, {'any class' if self.targets is None else 'targeted'}"),
            ("images", str(len(self.labels))),
            ("fooled", f"{fooled} of the {right} that were {'right' if self.targets is None else 'off target'} before"),
            ("robust accuracy", f"{self.robust_accuracy:.1%}"),
            (f"mean {_NORMS[p]}", size),
            ("evaluations per image", f"{evaluations:.4g}"),
        ]


VARIES = "the model answers differently each time"
BY_BATCH = "the model's answer to an image depends on the other images of its batch"
_NORMS = {0: "L0", 1: "L1", 2: "L2", math.inf: "L-infinity"}


@dataclass(frozen=True)
class Request:
    """What an attack was asked for, checked: tensors of its own, whose gradients are nobody's."""

    model: nn.Module
    images: Tensor  # (B, C, H, W), in [0, 1], float32 or float64
    goal: Goal  # on the images' device
    where: Tensor  # (B, 1, H, W), bool: the pixels that may change
    clean: Tensor  # (B, K), the model's logits of the images; of a model that varies the mean of many runs
    varies: bool  # whether the model answers differently each time

    @property
    def waiting(self) -> Tensor:
        """(n,) int64: the rows to search for, which are not as wanted from the start and have a pixel that may
        change."""
        return (~self.goal.reached(self.clean) & self.where.flatten(1).any(1)).nonzero().flatten()

    def ranked(self, rows: Tensor) -> Tensor:
        """(n, K - 1): of `rows` (n,) the classes but the label, the most likely of the clean image first."""
        others = self.clean[rows].scatter(1, self.goal.labels[rows, None], -torch.inf)
        return others.argsort(dim=1, descending=True, stable=True)[:, :-1]

    def measured(self, adversarial: Tensor, **said: Any) -> AttackResult:
        """The result, with all other pixels as they were; arguments as for `measured`."""
        adversarial, goal = torch.where(self.where, adversarial, self.images), self.goal
        more: dict[str, Any] = {"targets": goal.targets, "varies": self.varies}
        return measured(self.model, self.images, goal.labels, adversarial, **more, **said)


def check_request(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    targets: Tensor | None = None,
    where: Tensor | None = None,
    *,
    confidence: float = 0.0,
) -> Request:
    """Checks what an attack was asked for; costs one forward a row.

    Images in half precision are widened to float32, which holds them exactly, and rounding outside [0, 1] is cut off.

    Raises:
        InputError: if model, images, labels, targets or where are not as an attack's docstring says, or do not fit
            together.

    Warns:
        UserWarning: if the model returns probabilities where logits are expected, varies from run to run, or answers
            an image by the other images of its batch.
    """
    _check_model(model)
    images = checked_images("images", images)
    check_device(model, images)
    labels = _classes("labels", labels, images)
    targets = None if targets is None else _classes("targets", targets, images)
    where = checked_where(where, images)
    clean, varies = _clean_logits(model, images)
    for name, classes in (("labels", labels), ("targets", targets)):
        if classes is not None and not 0 <= classes.min() <= classes.max() < clean.shape[1]:
            raise InputError(
                f"{name} must lie in 0..{clean.shape[1] - 1}, as the model has {clean.shape[1]} outputs, "
                f"got {classes.min()}..{classes.max()}"
            )
    if targets is not None and (targets == labels).any():
        raise InputError(f"targets must differ from labels, row {int((targets == labels).nonzero()[0])} does not")
    if _are_probabilities(clean):
        warnings.warn(
            "the model's outputs look like probabilities (in [0, 1], summing to 1): brittle expects logits, and the "
            "gradients of a softmax of a softmax are too small",
            stacklevel=3,
        )
    return Request(model, images, Goal(labels, targets, confidence), where, clean, varies)


def checked_images(name: str, images: Tensor) -> Tensor:
    """(N, C, H, W) in [0, 1] and float32 or float64, without a graph; an InputError says what is not so of `name`."""
    if not isinstance(images, Tensor):
        raise InputError(f"{name} must be a tensor (B, C, H, W), got {_kind(images)}")
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(f"{name} must be (B, C, H, W) and floating, got {tuple(images.shape)} {images.dtype}")
    if images.numel() == 0:
        raise InputError(f"{name} must hold at least one image with pixels, got {tuple(images.shape)}")
    low, high = images.min().item(), images.max().item()
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # written so that NaN fails it
        raise InputError(f"{name} must lie in [0, 1], got [{low:.3g}, {high:.3g}]")
    return images.detach().to(torch.promote_types(images.dtype, torch.float32)).clamp(0, 1)


def _kind(value: object) -> str:
    module = type(value).__module__.partition(".")[0]
    return type(value).__name__ if module == "builtins" else f"{module}'s {type(value).__name__}"


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"the model must be a torch.nn.Module from images to logits, got {_kind(model)}")
    if any(one.is_inference() for one in (*model.parameters(), *model.buffers())):
        raise InputError(
            "the model was made under torch.inference_mode, where no gradient can be taken: make it outside"
        )


def check_device(model: nn.Module, images: Tensor) -> None:
    """Raises InputError unless the model's weights, if it has any, are where the images are."""
    device = next((one.device for one in (*model.parameters(), *model.buffers())), images.device)
    if device != images.device:
        raise InputError(f"the model is on {device} and the images are on {images.device}: move one to the other")


def _classes(name: str, classes: Tensor, images: Tensor) -> Tensor:
    if not isinstance(classes, Tensor):
        raise InputError(f"{name} must be a tensor of int64 with one entry an image, got {_kind(classes)}")
    if classes.dtype != torch.int64 or classes.shape != images.shape[:1]:
        raise InputError(
            f"{name} must be int64 with one entry an image, ({len(images)},), "
            f"got {tuple(classes.shape)} {classes.dtype}"
        )
    return classes.clone().to(images.device)


def _clean_logits(model: nn.Module, images: Tensor) -> tuple[Tensor, bool]:
    """The logits of the clean images, and whether the model varies."""
    try:
        logits = logits_in_batches(model, images)
    except InputError:
        raise
    except Exception as error:  # a model's code may raise anything
        raise InputError(f"the model fails on images {tuple(images.shape)}: {first_line(error)}") from error
    if logits.ndim != 2 or len(logits) != len(images) or logits.shape[1] < 2:
        raise InputError(f"the model must return logits ({len(images)}, K) with K >= 2, got {tuple(logits.shape)}")
    if not torch.isfinite(logits).all():
        raise InputError("the model returns logits that are not finite on the clean images")
    how = asked_how()
    found = "plain" if how.known else nature(model, images, logits)
    if found == "varies":
        warnings.warn(f"{VARIES}: an image counts as fooled where more than half of many fresh runs are", stacklevel=4)
        return mean_logits(model, images), True
    if found == "by batch":
        warnings.warn(f"{BY_BATCH}: each image is shown to it alone", stacklevel=4)
        how.batch_size = 1
        return logits_in_batches(model, images), False
    return logits, False


def _are_probabilities(outputs: Tensor) -> bool:
    return bool((outputs >= 0).all() and (outputs <= 1).all() and ((outputs.sum(1) - 1).abs() < 1e-3).all())


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
    minimises: float | None = None,
    bound: Bound | None = None,
    varies: bool = False,
) -> AttackResult:
    """The result of an attack, with success measured anew on `adversarial` rather than taken from the attack's word.

    Rows that failed get their clean image back, and no pixels; NaN, in an image or in its logits, is a failure. The
    check itself is not counted in `forwards`. Of an attack that minimises a norm, the perturbations are made longer
    where the model errs by less than another machine's rounding; see `judging`, also for a model that `varies`.
    """
    images, adversarial = images.detach(), adversarial.detach()
    every, goal = torch.arange(len(images), device=images.device), Goal(labels, targets)
    if varies:
        before = Votes.of(model, images, every, goal.reached)
        trivial = before.share > 0.5
        adversarial = torch.where(trivial.view(-1, 1, 1, 1), images, adversarial)
        pixels = None if pixels is None else pixels.masked_fill(trivial[:, None], -1)
        success = trivial | for_good(model, adversarial, every, goal.reached, before.share)
        after = Votes.of(model, adversarial, every, goal.reached).classes
        reached = after.scatter(1, labels[:, None], -1).argmax(1) if targets is None else targets
        unchanged = labels if targets is None else before.classes.argmax(1)
    else:
        logits = logits_in_batches(model, adversarial)
        if minimises is not None and pixels is None:
            adversarial, logits = led(model, images, adversarial, logits, goal)
        success, reached = goal.reached(logits), logits.argmax(1)
        unchanged = predictions(model, images) if not success.all() else reached
    success = success & adversarial.isfinite().flatten(1).all(1)

    def each(count: Tensor | int) -> Tensor:
        return torch.as_tensor(count, device=images.device).expand(len(images)).clone()

    return AttackResult(
        images=images,
        labels=labels,
        targets=targets,
        adversarial=torch.where(success.view(-1, 1, 1, 1), adversarial, images),
        success=success,
        prediction=torch.where(success, reached, unchanged),
        forwards=each(forwards),
        backwards=each(backwards),
        pixels=None if pixels is None else torch.where(success[:, None], pixels, -1),
        minimises=minimises,
        bound=bound,
    )
