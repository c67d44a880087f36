"""What a study stores of additive masks: how many images they take to each class, by their strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from brittle.attacks.masks import ETA_SCALE, learned_mask, mask_curve, nearest, optimal_eta, target_gradient
from brittle.attacks.result import predictions
from brittle.data import Data
from brittle.progress import Progress, part
from brittle.study.kinds.network.cell import loaded
from brittle.study.kinds.table import ModelTable
from brittle.study.kinds.work import Counts, Function, Needs, Work
from brittle.study.store.cell import Cell, Context, Outcome, Parents
from brittle.study.store.store import Store, Stored

NAME = "masks"  # of its tables in a study, of its part of a study's record and of results.json
WAYS = ("trained", "held out", "borrowed", "transferred")  # of getting an image's mask, in the order stored:
# its own, of training images; its own, of test images; that of the nearest training image, for test images; its own of
# one model, tried on another, for training images as in the paper
CLIPPED = (False, True)  # whether images with masks are kept in [0, 1], in the order stored
_EXAMPLES = 3  # images kept with their masks


class Table(ModelTable):
    """Additive masks towards every class, by their strength; see `masks`."""

    BESIDE: ClassVar[Mapping[str, str]] = {"other": "are tried on"}

    models: list[str] = Field(min_length=1)  # type: ignore[reportIncompatibleVariableOverride]  # not all: name them
    other: str | None = None  # the model, by name, on which they are tried too, of the same seed
    of: Literal["logits", "softmax"] = "logits"  # what is differentiated
    images: int = Field(default=500, ge=1)  # of the training and of the test split, at most
    etas: list[Annotated[int, Field(ge=0)]] = Field(default=[*range(0, 12_751, 750)], min_length=1)  # 0..255 pixels
    epochs: int = Field(default=10, ge=1)  # over the training images, for the mask that they share


@dataclass(frozen=True)
class Masks:
    """What a model's additive masks do to images; see `masks`. E strengths, K targets."""

    name: str
    etas: tuple[float, ...]
    reached: Tensor  # (len(WAYS), 2, K, E) images taken for the target; by CLIPPED
    total: Tensor  # (len(WAYS), K), of so many; 0 where nothing was transferred
    sizes: Tensor  # (2, K) mean L2 and L-infinity of the change at the best strength, training images, unclipped
    learned: Tensor  # (K, C, H, W) one mask for all images, towards each target
    fooled: Tensor  # (2, K) training and test images that it takes there
    counted: Tensor  # (2, K), of so many
    images: Tensor  # (n, C, H, W), examples
    masks: Tensor  # (n, C, H, W), theirs
    labels: Tensor  # (n,)
    targets: Tensor  # (n,)

    @classmethod
    def of(cls, name: str, stored: Stored, store: Store) -> Self:
        """As a finished cell has it, of a table of this name."""
        curves, learned, examples = (stored.tensors(each) for each in ("curves", "learned", "examples"))
        shared = {"learned": learned["masks"], "fooled": learned["reached"], "counted": learned["total"]}
        return cls(name=name, etas=tuple(stored.record["params"]["etas"]), **curves, **shared, **examples)

    def as_json(self) -> dict[str, Any]:
        """The share of images taken for the target by the masks' strength, the mean over the targets."""
        clipped = {"unclipped": False, "clipped": True}
        return {
            "masks": self.name,
            "etas": self.etas,
            "reached": {
                way: {name: self.success(way, clipped=each).nanmean(0) for name, each in clipped.items()}
                for way, total in zip(WAYS, self.total, strict=True)
                if total.any()
            },
        }

    def success(self, way: str, *, clipped: bool = False) -> Tensor:
        """(K, E) share of images that are taken for each target; NaN where there are none."""
        place = WAYS.index(way)
        return self.reached[place, CLIPPED.index(clipped)].double() / self.total[place, :, None]

    def best(self, *, clipped: bool = False) -> Tensor:
        """(K,) place of the least of the strengths that take most training images to each target."""
        return self.reached[WAYS.index("trained"), CLIPPED.index(clipped)].argmax(1)


Result = Masks


def masks(
    model: nn.Module,
    other: nn.Module | None,
    data: Data,
    params: Mapping[str, Any],
    device: torch.device,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Linear masks, learned masks and borrowed ones against every class: Lo and Ding, sections VIII to X.

    Args:
        model: (B, C, H, W) in [0, 1] -> (B, K); its gradients are the masks.
        other: a model to which they are transferred; None leaves that out.
        data: the first `params["images"]` training and test images are masked; the nearest are sought in all of train.
        params: 'images', 'etas' (E of them, in 0..255 pixels), 'of', 'epochs' of the learned masks, 'seed'.
        device: to compute on.
        progress: told targets.

    Returns:
        No scalars; of the tensors that `Masks` has, 'reached', 'total' and 'sizes' as 'curves', 'learned', 'fooled' and
        'counted' as the 'masks', 'reached' and 'total' of 'learned', and the others as 'examples'.
    """
    train, test = data.train[: params["images"]].images.to(device), data.test[: params["images"]].images.to(device)
    labels, tests = data.train.labels[: params["images"]].to(device), data.test.labels[: params["images"]].to(device)
    lenders = data.train.images[nearest(test, data.train.images.to(device)).cpu()].to(device)
    etas, classes, of = params["etas"], len(data.classes), params["of"]
    reached = torch.zeros(len(WAYS), 2, classes, len(etas), dtype=torch.int64)
    total, sizes = torch.zeros(len(WAYS), classes, dtype=torch.int64), torch.zeros(2, classes, dtype=torch.float64)
    learned, fooled, counted = [], [], []
    for target in range(classes):
        told = part(progress, target, target + 1, classes)
        rows, held_out = train[labels != target], test[tests != target]
        own = _gradients(model, rows, target, of)
        ways = [
            (model, rows, own),
            (model, held_out, _gradients(model, held_out, target, of)),
            (model, held_out, _gradients(model, lenders[tests != target], target, of)),
            *([(other, rows, own)] if other else []),
        ]
        for place, (tried, images, added) in enumerate(ways):
            reached[place, :, target] = _curves(tried, images, added, target, etas)
            total[place, target] = len(images)
        best = _best(reached[0, 0, target], etas)
        change = (own * (best / ETA_SCALE)).flatten(1).double()
        sizes[:, target] = torch.stack([change.norm(dim=1).mean(), change.abs().amax(1).mean()]).cpu()
        options = {"epochs": params["epochs"], "seed": params["seed"], "progress": told}
        learned.append(learned_mask(model, train, target, **options))
        each = [(predictions(model, (images + learned[-1]).clamp(0, 1)) == target) for images in (rows, held_out)]
        fooled.append([int(one.sum()) for one in each])
        counted.append([len(one) for one in each])
    tensors = {
        "curves": {"reached": reached, "total": total, "sizes": sizes},
        "learned": {
            "masks": torch.stack(learned),
            "reached": torch.tensor(fooled).T.contiguous(),
            "total": torch.tensor(counted).T.contiguous(),
        },
        "examples": _examples(model, train, labels, of, classes),
    }
    return {}, tensors


def _gradients(model: nn.Module, images: Tensor, target: int, of: Any) -> Tensor:
    return target_gradient(model, images, torch.full((len(images),), target, device=images.device), of=of)


def _curves(model: nn.Module, images: Tensor, added: Tensor, target: int, etas: Sequence[float]) -> Tensor:
    """(2, E) images taken for the target, by CLIPPED."""
    targets = torch.full((len(images),), target, device=images.device)
    found = [mask_curve(model, images, added, targets, etas=etas, clip=clip).sum(1).cpu() for clip in CLIPPED]
    return torch.stack(found)


def _best(reached: Tensor, etas: Sequence[float]) -> float:
    """The least eta that takes most images, from counts (E,)."""
    return optimal_eta(reached[:, None], etas)


def _examples(model: nn.Module, images: Tensor, labels: Tensor, of: Any, classes: int) -> dict[str, Tensor]:
    """The first images, each with its mask towards the class after its own."""
    some, own = images[:_EXAMPLES], labels[:_EXAMPLES]
    targets = (own + 1) % classes
    found = target_gradient(model, some, targets, of=of)
    return {"images": some, "masks": found, "labels": own, "targets": targets}


def run(cell: Cell, parents: Parents, context: Context) -> Outcome:
    """What additive masks do; see `masks`."""
    data = context.data(cell.place, cell.digest)
    model = loaded("model", cell, parents, context)
    other = loaded("other", cell, parents, context) if "other" in parents else None
    return Outcome(*masks(model, other, data, cell.params, context.device, context.progress))


def cost(cell: Cell, counts: Counts) -> Needs:
    """For each class gradients of three kinds of images, their curves, and a mask that is learned."""
    params, data, classes = cell.params, counts.data, counts.classes
    train, test = (min(params["images"], len(split)) for split in (data.train, data.test))
    tried = len(CLIPPED) * len(params["etas"])  # of each image that is not of the class
    linear, learned = (classes - 1) * (train + 2 * test), classes * train * params["epochs"]
    needs = [(cell.parents["model"], Work(forwards=linear * tried + 2 * classes * train, gradients=linear + learned))]
    if "other" in cell.parents:
        needs.append((cell.parents["other"], Work(forwards=(classes - 1) * train * tried)))
    return needs


FUNCTIONS = {"masks": Function(1, run, cost)}
