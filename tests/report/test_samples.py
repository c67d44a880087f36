"""The sample images of the appendices, over a store and over reports whose numbers are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from made import model, report

from brittle.report import gather
from brittle.study.kinds.measure.samples import samples
from brittle.study.store.store import Store


def test_each_model_has_one_image_a_class_with_the_pixels_that_each_attack_took(build: Callable[..., Store]):
    found = samples(gather(build(), "tiny"))
    assert [(sample.row, sample.label, sample.model.name[:5]) for sample in found] == [
        (row, row, name) for row in range(3) for name in ("plain", "<scri")
    ]
    hostile = found[3]
    assert hostile.pixels == {
        ("first", "float32"): None,
        ("first", "exact"): 1,
        ("second", "float32"): 2,
        ("second", "exact"): None,
    }


def test_mean_and_largest_are_those_of_the_map_however_small():
    one = model("tempered", attacks={}, amplitude=-200)
    assert one.measured is not None
    assert one.measured.saliency is not None
    maps = one.measured.saliency
    sign = maps.sign.clone()
    sign[:, 0, 0, 0] = -1  # 1 of 4 pixels
    one = replace(one, measured=replace(one.measured, saliency=replace(maps, sign=sign)))
    sample = samples(report(one))[0]
    assert sample.mean["exact"] == (1, pytest.approx(-200 + torch.tensor(0.5).log10().item()))
    assert sample.largest["exact"] == (1, -200)
    assert sample.mean["float32"] == (0, -torch.inf)
    assert sample.pixels == {}


def test_a_report_without_images_has_no_samples():
    assert samples(replace(report(model("standard", attacks={})), labels=None)) == []
