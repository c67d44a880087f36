"""What a network expects of images, and layers that bring images in [0, 1] to it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brittle.errors import InputError
from brittle.models.networks import parameter_dtype
from brittle.models.outputs import tensor_of


@dataclass(frozen=True)
class Expected:
    """What a model's own configuration says of its images; None where it says nothing. See `data.load`.

    Attributes:
        size: height and width, in pixels, to which a photo is resized.
        resize: or the shorter side.
        crop: of the square that is then cut from its centre.
        interpolation: of resizing.
        mean: of each channel, of images in [0, 1].
        std: what they are then divided by.
        source: where this is written, in words.
    """

    size: tuple[int, int] | None = None
    resize: int | None = None
    crop: int | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    source: str = ""

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width that the model is given."""
        return (self.crop, self.crop) if self.crop else self.size

    @property
    def geometry(self) -> dict[str, Any]:
        """What is said of the size, as arguments of `data.load`."""
        told = {name: getattr(self, name) for name in ("size", "resize", "crop", "interpolation")}
        return {name: value for name, value in told.items() if value is not None} if self.shape or self.resize else {}


class Normalised(nn.Module):
    """A network that is given (images - mean) / std, channel by channel, at the precision of its weights.

    Args:
        model: the network.
        mean: (C,), of images in [0, 1].
        std: (C,), of images in [0, 1]; none is 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.model, self.training = model, getattr(model, "training", False)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return self.model(((images - self.mean) / self.std).to(parameter_dtype(self.model)))


class FixedBatch(nn.Module):
    """A network that takes batches of one size alone, given any number of images.

    Args:
        model: the network.
        size: B, of its batches. The last one is filled up with its first image.
        channels_last: whether the network takes (B, H, W, C).
    """

    def __init__(self, model: nn.Module, size: int | None, channels_last: bool = False):
        super().__init__()
        self.model, self.size, self.channels_last = model, size, channels_last
        self.training = getattr(model, "training", False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, K)."""
        images = images.permute(0, 2, 3, 1) if self.channels_last else images
        if self.size is None:
            return tensor_of(self.model(images))
        found = []
        for part in images.split(self.size):
            filled = torch.cat([part, part[:1].expand(self.size - len(part), *part.shape[1:])])
            found.append(tensor_of(self.model(filled))[: len(part)])
        return torch.cat(found)


def normalised(
    model: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None, channels: int | None
) -> nn.Module:
    """The model behind the normalising layer that is asked for, if one is. `channels`: of its images, where known.

    Raises:
        InputError: if `mean` and `std` are not one number or one a channel, finite, std positive, both as images in
            [0, 1] have them.
    """
    if mean is None and std is None:
        return model
    values = {"mean": tuple(mean or (0.0,)), "std": tuple(std or (1.0,))}
    for name, given in values.items():
        if channels is not None and len(given) not in (1, channels):
            raise InputError(f"--{name} needs one number or one for each of {channels} channels, got {len(given)}")
        if not all(math.isfinite(value) for value in given):
            raise InputError(f"--{name} must be finite, got {_listed(given)}")
        if max(given) > 1:
            in_range = f": divided by 255 they are {_listed(v / 255 for v in given)}" if max(given) <= 255 else ""
            raise InputError(f"--{name} is of images in [0, 1], so at most 1, got {_listed(given)}{in_range}")
    if min(values["mean"]) < 0:
        raise InputError(f"--mean is of images in [0, 1], so at least 0, got {_listed(values['mean'])}")
    if not all(value > 0 for value in values["std"]):
        raise InputError(f"--std must be positive, got {_listed(values['std'])}")
    return Normalised(model, values["mean"], values["std"])


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
