"""Random numbers that belong to an image: as published, and the same wherever the image stands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from problems import pictures
from scipy import stats

from brittle.attacks.streams import Streams, splitmix64

# What Java's SplittableRandom and its ports give from the seed 1234567
PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_the_numbers_are_those_of_the_published_generator():
    found = splitmix64(torch.tensor([1234567]), torch.arange(5))
    assert [int(value) % 2**64 for value in found] == PUBLISHED


def test_a_stream_is_its_images_and_its_seeds():
    images = pictures(6, (3, 4, 4))
    whole = Streams.of(images, 5)
    order = torch.tensor([4, 0, 2])
    assert torch.equal(Streams.of(images[order], 5).keys, whole.keys[order])
    assert torch.equal(whole.of_rows(order).keys, whole.keys[order])
    assert torch.equal(Streams.of(images.double(), 5).keys, whole.keys)
    assert torch.equal(Streams.of(-0.0 * images, 5).keys, Streams.of(0.0 * images, 5).keys)
    assert len(torch.cat([Streams.of(images, seed).keys for seed in (0, 1, 2**62)]).unique()) == 18
    assert len(Streams.of(images.flip(3), 5).keys.unique()) == 6
    assert not torch.equal(Streams.of(images.flip(3), 5).keys, whole.keys)  # the same values at other places
    assert len(torch.cat([Streams.numbered(9, seed).keys for seed in (0, 1)]).unique()) == 18


def test_each_draw_has_its_own_numbers_and_gives_them_again():
    streams = Streams.numbered(4, 0)
    first, again = streams.uniform((2, 3), 7), streams.uniform((2, 3), 7)
    assert torch.equal(first, again)
    mixed = streams.uniform((2, 3), torch.tensor([7, 7, 8, 7]))
    assert torch.equal(mixed[[0, 1, 3]], first[[0, 1, 3]])
    assert not torch.isin(mixed[2], first).any()
    assert first.unique().numel() == 24


@pytest.mark.parametrize("across", ["places", "draws", "rows"])
def test_numbers_are_spread_as_they_should_be(across: str):
    """Kolmogorov and Smirnov's test of 20,000 numbers, and the correlation of neighbours."""
    if across == "places":
        take = lambda kind: getattr(Streams.numbered(1, 3), kind)((20_000,), 0)[0]  # noqa: E731
    elif across == "draws":
        take = lambda kind: getattr(Streams(torch.full((20_000,), 3)), kind)((1,), torch.arange(20_000))[:, 0]  # noqa: E731
    else:
        take = lambda kind: getattr(Streams.numbered(20_000, 3), kind)((1,), 0)[:, 0]  # noqa: E731
    for kind, distribution in (("uniform", "uniform"), ("normal", "norm")):
        drawn = take(kind).numpy()
        assert stats.kstest(drawn, distribution).pvalue > 0.001
        assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.03


def test_whole_numbers_and_signs_fall_evenly():
    streams = Streams.numbered(1, 1)
    counts = streams.below(7, (70_000,), 0).flatten().bincount(minlength=7)
    assert stats.chisquare(counts.numpy()).pvalue > 0.001
    signs = streams.signs((10_000,), 1, torch.float32)
    assert signs.unique().tolist() == [-1, 1]
    assert abs(signs.mean().item()) < 0.04
