"""Sanity checks of a model before it is attacked: what it answers, how accurately, and whether twice the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from brittle.attacks.judging import APART, SPREAD, apart
from brittle.attacks.result import BATCH, answers, logits_in_batches
from brittle.data import Split
from brittle.errors import InputError, first_line
from brittle.measures import Share, accuracy
from brittle.models.inference import asked_how
from brittle.models.networks import frozen, logits_of

RUNS = 5  # of which all must agree
ONE_CLASS = "All images are of one class: draw them at random from all classes."
ALONE = 16  # images that are compared alone and in a batch


@dataclass(frozen=True)
class ModelFacts:
    """What was found.

    Attributes:
        classes: K, the model's outputs.
        accuracy: on the clean images; of a model that is not deterministic, of its mean logits.
        chance: share of the most frequent label, which a constant answer reaches.
        probabilities: whether outputs lie in [0, 1] and sum to 1.
        deterministic: whether five runs gave the same logits, but for rounding.
        disagreement: share of rows whose prediction was not the same in all five runs.
        half: whether all logits are float16 or bfloat16 numbers, though their type could hold more.
        training: whether the model came in training mode; the audit looks at it in evaluation mode.
        margin: the median lead of the largest logit over the next.
        neighbours: by how much an image's logits differ alone and in a batch, relative to the largest logit of the
            image; 0 of a model that is not deterministic, where this cannot be told.
        updates: whether the model changes its own buffers while it answers in evaluation mode.
        remedies: one sentence for each thing that the user should see to.
    """

    classes: int
    accuracy: Share
    chance: float
    probabilities: bool
    deterministic: bool
    disagreement: float
    half: bool
    training: bool
    margin: float
    neighbours: float
    updates: bool
    remedies: tuple[str, ...]

    @property
    def learned(self) -> bool:
        """Whether the model is right significantly more often than a constant answer."""
        return self.accuracy.interval[0] > self.chance

    @property
    def independent(self) -> bool:
        """Whether an image's answer is its own."""
        return self.neighbours <= APART


def sanity_check(model: nn.Module, split: Split) -> ModelFacts:
    """Runs the model on the clean images, five times on some of them.

    A model whose answer to an image depends on the other images of the batch is shown each image alone from here on,
    inside the caller's `inference.asking`.

    Raises:
        InputError: if the images are not as `data.Split` says, or the model does not give finite logits (N, K) for
            them, K >= 2 and more than the largest label.
    """
    images, labels = split.images, split.labels
    _check_images(images, labels)
    check_outputs("the model", model, images, labels)
    few = images[:BATCH]
    with frozen(model), torch.no_grad():
        before = [buffer.clone() for buffer in model.buffers()]
        runs = torch.stack([answers(model, few).double() for _ in range(RUNS)])
        updates = any(not torch.equal(*pair) for pair in zip(before, model.buffers(), strict=True))
        alone = torch.cat([logits_of(model, few[row : row + 1]).double() for row in range(min(ALONE, len(few)))])
    spread = (runs - runs[0]).abs().amax() / runs.abs().amax().clamp(min=1e-30)
    deterministic = bool(spread < SPREAD)
    neighbours = apart(alone, runs[0, : len(alone)]) if deterministic else 0.0
    if neighbours > APART:
        asked_how().batch_size = 1
    logits = logits_in_batches(model, images)
    if not deterministic:
        logits = torch.stack([logits, *(logits_in_batches(model, images) for _ in range(RUNS - 1))]).mean(0)
    if not torch.isfinite(logits).all():
        row = int((~torch.isfinite(logits).all(1)).nonzero()[0])
        raise InputError(f"the model must return finite logits, got {logits[row].tolist()[:5]} for image {row}")
    disagreement = (runs.argmax(2) != runs.argmax(2)[0]).any(0).double().mean().item()
    probabilities = bool((logits >= 0).all() and (logits <= 1).all() and ((logits.sum(1) - 1).abs() < 1e-3).all())
    top = logits.topk(2, 1).values
    chance = torch.bincount(labels).max().item() / len(labels)
    half = any(torch.equal(logits, logits.to(kind).to(logits.dtype)) for kind in (torch.float16, torch.bfloat16))
    door = ModelFacts(
        classes=logits.shape[1],
        accuracy=accuracy(logits, labels),
        chance=chance,
        probabilities=probabilities,
        deterministic=deterministic,
        disagreement=disagreement,
        half=half and not probabilities and logits.unique().numel() > 64,
        training=any(module.training for module in model.modules()),
        margin=(top[:, 0] - top[:, 1]).median().item(),
        neighbours=neighbours,
        updates=updates,
        remedies=(),
    )
    return ModelFacts(**{**vars(door), "remedies": tuple(_remedies(door, labels))})


def _check_images(images: Tensor, labels: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise InputError(f"images must be (N, C, H, W), floating, N >= 1, got {tuple(images.shape)} {images.dtype}")
    low, high = images.min().item(), images.max().item()
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise InputError(f"images must lie in [0, 1], got [{low:.3g}, {high:.3g}]: put any scaling inside the model")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise InputError(f"labels must be int64, one an image ({len(images)},), got {tuple(labels.shape)}")


def check_outputs(name: str, model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """The first image alone, then as a batch of two: what comes must be logits.

    Raises:
        InputError: that calls the model `name` and says what came, if it is something else.
    """
    for batch in (images[:1], images[:2]):
        try:
            with frozen(model), torch.no_grad():
                outputs = logits_of(model, batch)
        except InputError as error:
            raise InputError(str(error).replace("the model", name, 1)) from error
        except Exception as error:  # a model's code may raise anything
            raise InputError(f"{name} fails on images {tuple(batch.shape)}: {first_line(error)}") from error
        if outputs.ndim != 2 or len(outputs) != len(batch) or outputs.shape[1] < 2:
            expected = f"({len(batch)}, K) with K >= 2"
            raise InputError(f"{name} must return logits {expected}, got shape {tuple(outputs.shape)}")
        if not 0 <= labels.min() <= labels.max() < outputs.shape[1]:
            raise InputError(
                f"labels must lie in 0..{outputs.shape[1] - 1}, as {name} has {outputs.shape[1]} outputs, "
                f"got {labels.min()}..{labels.max()}"
            )


def _remedies(door: ModelFacts, labels: Tensor) -> list[str]:
    said = []
    if door.probabilities:
        said.append("The model returns probabilities: return the logits, and leave the softmax to the loss.")
    if not door.deterministic:
        said.append(
            f"Five runs on the same images differ ({door.disagreement:.0%} of the predictions do): switch dropout and "
            "noise off in evaluation mode, or report the mean of many runs."
        )
    if door.half:
        said.append("All logits are 16-bit numbers: compute the last layers in float32.")
    if not door.independent:
        said.append(
            "The model's answer to an image depends on the other images of the batch, so each image was shown to it "
            "alone: switch batch normalisation (or whatever looks at the whole batch) to fixed statistics."
        )
    if door.updates:
        said.append(
            "The model changes its own buffers while it answers in evaluation mode, as batch normalisation does that "
            "stays in training mode. After the audit the buffers are as they were."
        )
    if door.training:
        said.append("The model came in training mode: call model.eval() before use.")
    if door.chance == 1 and len(labels) > 1:
        said.append(ONE_CLASS)
    elif door.accuracy.interval[1] < min(1.5 * door.chance, (1 + door.chance) / 2):
        said.append(
            f"Accuracy on clean images is {door.accuracy.value:.1%}, little more than a constant answer reaches "
            f"({door.chance:.1%}): check the labels' order and the preprocessing."
        )
    used = int(labels.max()) + 1
    if door.classes > 2 * used:
        said.append(f"The model has {door.classes} outputs, but the labels use {used} classes: check that they match.")
    return said
