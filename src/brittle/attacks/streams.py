"""Random numbers that belong to an image: the same in any batch, at any place in it, and on any device.

A generator that draws for a whole batch gives a row other numbers once the batch is cut or ordered differently. Here
the numbers of a row are a function of the seed, of its image, of which draw it is and of the place in that draw:
SplitMix64 (Steele, Lea and Flood 2014), which can be computed at any place without those before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15  # SplitMix64's
FACTORS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


@dataclass(frozen=True)
class Streams:
    """One stream of random numbers for each row."""

    keys: Tensor  # (N,) int64

    @classmethod
    def of(cls, images: Tensor, seed: int) -> Streams:
        """A stream for each of images (N, C, H, W), by what it shows: equal images have equal streams."""
        bits = (images.double() + 0.0).flatten(1).contiguous().view(torch.int64)  # + 0.0: -0 is 0
        place = torch.arange(bits.shape[1], device=images.device)
        return cls(_mixed(_mixed(bits + _mixed(place)).sum(1) + _signed(seed * GAMMA)))

    @classmethod
    def numbered(cls, count: int, seed: int, device: torch.device | None = None) -> Streams:
        """As many streams, by their number."""
        return cls(_mixed(_mixed(torch.arange(count, device=device)) + _signed(seed * GAMMA)))

    def of_rows(self, rows: Tensor) -> Streams:
        """Those of `rows` (n,)."""
        return Streams(self.keys[rows])

    def uniform(self, shape: tuple[int, ...], draw: Tensor | int, dtype: torch.dtype = torch.float64) -> Tensor:
        """(N, *shape): numbers above 0 and below 1.

        Args:
            shape: of each row's numbers.
            draw: which draw it is, for all rows or for each (N,); the same draw gives the same numbers again.
            dtype: what they are rounded to in the end; in float32 they may be 1.
        """
        start = _mixed(self.keys + _mixed(torch.as_tensor(draw, device=self.keys.device)))
        bits = splitmix64(start[:, None], torch.arange(math.prod(shape), device=self.keys.device))
        return _shifted(bits, 11).double().add_(0.5).mul_(2.0**-53).to(dtype).view(-1, *shape)

    def normal(self, shape: tuple[int, ...], draw: Tensor | int, dtype: torch.dtype = torch.float64) -> Tensor:
        """(N, *shape) of the standard normal distribution; arguments as for `uniform`."""
        return (math.sqrt(2) * torch.erfinv(2 * self.uniform(shape, draw) - 1)).to(dtype)

    def below(self, high: int, shape: tuple[int, ...], draw: Tensor | int) -> Tensor:
        """(N, *shape) int64, each of 0..high-1 as likely; arguments as for `uniform`."""
        return (self.uniform(shape, draw) * high).long().clamp(max=high - 1)

    def signs(self, shape: tuple[int, ...], draw: Tensor | int, dtype: torch.dtype) -> Tensor:
        """(N, *shape): 1 or -1, each as likely; arguments as for `uniform`."""
        return (2 * self.below(2, shape, draw) - 1).to(dtype)


def splitmix64(seed: Tensor, place: Tensor) -> Tensor:
    """SplitMix64's outputs at `place`, from 0, of the streams that begin at `seed`: int64 in place of unsigned."""
    return _mixed(seed + place * _signed(GAMMA))


def _mixed(values: Tensor) -> Tensor:
    """One step of SplitMix64 from each of the values, int64: unlike values give unlike, unrelated ones."""
    values = values + _signed(GAMMA)
    for shift, factor in FACTORS:
        values = _shifted(values, shift).bitwise_xor_(values).mul_(_signed(factor))
    return _shifted(values, 31).bitwise_xor_(values)


def _shifted(values: Tensor, by: int) -> Tensor:
    """A shift to the right that fills with zeros: torch's keeps the sign."""
    return (values >> by).bitwise_and_((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    """The int64 with the last 64 bits of `value`."""
    return (value + 2**63) % 2**64 - 2**63
