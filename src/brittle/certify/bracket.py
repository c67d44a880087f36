"""For each image a bracket: nothing nearer fools the model, which is proved, and this image does."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brittle.attacks import minimal
from brittle.attacks.goal import Goal
from brittle.attacks.options import Count, Portion, checked
from brittle.attacks.result import answers, check_request, logits_in_batches
from brittle.certify.balls import ORDER, Norm, nearest
from brittle.certify.bounds import Slopes
from brittle.certify.radius import Certificate, radius
from brittle.models.inference import differentiated
from brittle.models.networks import frozen
from brittle.progress import Progress, barred, part, silent

MEET = 1e-6  # pixel units, or of the distance, within which the ends of a bracket are one
_RIVALS = 9  # classes towards which the image itself is moved
_ROUNDS = 4
_NUDGES = 7  # leads by which the rival is to win: from twice the rounding of the largest logit to a thousandth of it


def meets(proved: Tensor, found: Tensor) -> Tensor:
    """(B,) bool: whether both ends (B,) of a bracket are the same but for a millionth."""
    return found.isfinite() & (found - proved <= MEET * found.clamp(min=1))


@dataclass(frozen=True, repr=False)
class Bracket:
    """Of each image two ends of its distance from the nearest adversarial image."""

    proved: Tensor  # (B,), float64: nothing nearer fools the model; 0 where it is wrong already
    found: Tensor  # (B,), float64: the distance of `adversarial`; 0 where it is wrong already, inf where none was found
    adversarial: Tensor  # (B, C, H, W), in [0, 1]; the image itself where none was found
    correct: Tensor  # (B,) bool: whether the model is right on the image itself
    norm: Norm
    certificate: Certificate

    @property
    def meets(self) -> Tensor:
        """(B,) bool: whether the ends are the same but for a millionth: the distance is known."""
        return meets(self.proved, self.found)

    def shares(self, eps: float) -> tuple[float, float]:
        """The shares of all images that nothing within eps fools, as is proved, and that nothing found does."""
        return (
            float((self.proved >= eps)[self.correct].sum() / len(self.proved)),
            float((self.found > eps)[self.correct].sum() / len(self.proved)),
        )

    def __repr__(self) -> str:
        return f"<Bracket: {'; '.join(f'{name} {value}' for name, value in self._facts())}>"

    def summary(self) -> str:
        """A few lines of text: how far apart the ends are, and of how many images they meet."""
        return "\n".join(f"{name:<20}  {value}" for name, value in self._facts())

    def _facts(self) -> list[tuple[str, str]]:
        right = self.correct
        facts = [("norm", self.norm), ("images", f"{len(right)}, of which {int((~right).sum())} are wrong already")]
        if right.any():
            facts += [
                ("proved, median", f"{self.proved[right].median():.4g}"),
                ("found, median", f"{self.found[right].median():.4g}"),
                ("ends meet", f"{int(self.meets[right].sum())} of {int(right.sum())}"),
            ]
        return facts


@barred("brackets")
@checked
def bracket(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm = "linf",
    slopes: Slopes = "adaptive",
    precision: Portion = 1e-3,
    evaluations: Count = 1000,
    progress: Progress | None = None,
) -> Bracket:
    """The proved radius of each image, and the nearest adversarial image that was found.

    Args:
        model: as for `radius`, and so are images, labels, norm, slopes and precision.
        evaluations: of the model by the attack, for each image; see `attacks.minimal`.
        progress: told images, in two halves; by default a bar is shown on a terminal and in a notebook.

    Returns:
        A lower end that is proved and an upper end that is seen, for each image.

    Raises:
        InputError: as for `radius`: a model that cannot be bounded is refused before it is attacked.
    """
    told = progress or silent
    asked = check_request(model, images, labels)
    radius(model, images[:1], labels[:1], norm=norm, within=torch.full((1,), 1e-6))  # a refusal comes at once
    adversarial = closest(
        model, asked.images, asked.goal.labels, norm=norm, evaluations=evaluations, progress=part(told, 0, 1, 2)
    )
    correct = ~Goal(asked.goal.labels).reached(asked.clean)
    fooled = Goal(asked.goal.labels).reached(logits_in_batches(model, adversarial))
    found = torch.where(fooled, _sizes(adversarial, asked.images, norm), torch.inf)
    proof = radius(
        model, images, labels, norm=norm, slopes=slopes, precision=precision, within=found, progress=part(told, 1, 2, 2)
    )
    return Bracket(proof.radius, found, adversarial, correct, norm, proof)


def _sizes(points: Tensor, images: Tensor, norm: Norm) -> Tensor:
    """(B,), float64: how far points are from their images."""
    return torch.linalg.vector_norm((points.double() - images.double()).flatten(1), ord=ORDER[norm], dim=1)


def closest(
    model: nn.Module, images: Tensor, labels: Tensor, *, norm: Norm, evaluations: int, progress: Progress = silent
) -> Tensor:
    """(B, C, H, W): the nearest adversarial images that an attack and `polished` find; the images where they fail."""
    found = minimal(model, images, labels, norm=ORDER[norm], evaluations=evaluations, progress=progress)
    return polished(model, images, labels, found.adversarial, norm)


def polished(model: nn.Module, images: Tensor, labels: Tensor, adversarial: Tensor, norm: Norm) -> Tensor:
    """(B, C, H, W): nearer adversarial images, or those given.

    A network of ReLUs is linear around a point, and the nearest point of a half space within the box is known: each
    image is moved there, from its adversarial image towards the class that this has, and from itself towards the
    others, and the result is taken up again. For a linear model what is found is the nearest of all.
    """
    best, size = adversarial.clone(), _sizes(adversarial, images, norm)
    with frozen(model):
        logits = logits_in_batches(model, adversarial)
        size = torch.where(Goal(labels).reached(logits), size, torch.inf)
        clean = logits_in_batches(model, images).scatter(1, labels[:, None], -torch.inf)
        order = clean.argsort(dim=1, descending=True)[:, : min(_RIVALS, clean.shape[1] - 1)]
        own = size.isfinite() & (size > 0)
        starts = [(own.nonzero().flatten(), best, logits.argmax(1))]
        starts += [((size > 0).nonzero().flatten(), images, rival) for rival in order.T]
        for rows, points, rivals in starts:
            at = points.clone()
            for _ in range(_ROUNDS):
                if not len(rows):
                    break
                moved, found = stepped(model, images[rows], labels[rows], rivals[rows], at[rows], norm)
                nearer = found < size[rows]
                best[rows[nearer]], size[rows[nearer]] = moved[nearer], found[nearer]
                at[rows] = moved
                rows = rows[nearer]
        sure = Goal(labels).reached(logits_in_batches(model, best))
    return torch.where(sure.view(-1, 1, 1, 1), best, adversarial)


def stepped(
    model: nn.Module, images: Tensor, labels: Tensor, rivals: Tensor, points: Tensor, norm: Norm
) -> tuple[Tensor, Tensor]:
    """The nearest points (n, C, H, W) where the rival wins, as the model is around `points`, and how far they are (n,).

    Of several, by which the rival leads more and more, the first that the model takes for another class; inf if none.
    """

    def lead(logits: Tensor, rows: slice) -> Tensor:
        return (logits.gather(1, labels[rows, None]) - logits.gather(1, rivals[rows, None])).squeeze(1)

    logits, gradient = differentiated(model, points, lead)
    if gradient is None:
        return images, torch.full_like(labels, torch.inf, dtype=torch.float64)
    slopes, clean = gradient.double().flatten(1), images.double()
    there = lead(logits, slice(None)).double() + (slopes * (clean - points.double()).flatten(1)).sum(1)
    room = torch.where(slopes > 0, clean.flatten(1), 1 - clean.flatten(1))
    largest, unit = logits.abs().amax(1).double().clamp(min=1e-30), torch.finfo(logits.dtype).eps
    best, far = images.clone(), torch.full_like(there, torch.inf)
    for nudge in torch.logspace(math.log10(2 * unit), -3, _NUDGES).tolist():
        change, _ = nearest(slopes, room, (there + nudge * largest).clamp(min=0), norm)
        moved = (clean + change.view_as(clean)).clamp(0, 1).to(images.dtype)
        outputs = answers(model, moved)
        surely = -Goal(labels).lead(outputs).double() > unit * largest  # other batches round otherwise
        first = Goal(labels).reached(outputs) & surely & far.isinf()
        for row in first.nonzero().flatten().tolist():  # alone, which rounds otherwise than a batch
            first[row] = bool(Goal(labels[row : row + 1]).reached(answers(model, moved[row : row + 1])))
        best[first], far[first] = moved[first], _sizes(moved, images, norm)[first]
    return best, far
