"""Where gradients went, over networks in which it is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from made import model, report
from problems import linear, pictures

from brittle import measures
from brittle.study.kinds.measure.gradients import splits


def test_causes_add_up_to_what_they_explain():
    found = splits(report(model("standard", attacks={}), model("tempered", attacks={}, amplitude=-60, trained=-3.5)))
    plain, tempered = found
    assert (plain.factor, plain.slopes.value, plain.saturation.value) == (0, 0, 0)
    assert tempered.factor == pytest.approx(-math.log10(20))
    assert tempered.slopes.value == pytest.approx(-0.5 + math.log10(20))
    assert tempered.saturation.value == pytest.approx(-56.5)
    assert tempered.plain.value + tempered.factor + tempered.slopes.value == pytest.approx(tempered.trained.value)
    assert tempered.trained.value + tempered.saturation.value == pytest.approx(tempered.used.value)
    assert tempered.margin == 1


def test_a_network_whose_logits_are_t_times_larger_is_that_network_at_t_and_saturated_at_1():
    """What training at T is said to do, done exactly, but for the float32 of the weights: slopes make up for 1/T."""
    small, images = linear(shape=(1, 5, 5), scale=2.0), pictures(50, (1, 5, 5))
    large = linear(shape=(1, 5, 5), scale=40.0)
    kinds = {"small": (small, 1.0), "trained": (large, 20.0), "used": (large, 1.0)}
    values = {
        name: measures.gradient_amplitudes(one.double(), images.double(), temperature=t)
        for name, (one, t) in kinds.items()
    }
    plain, tempered = model("standard", attacks={}), model("tempered", attacks={})
    assert plain.measured is not None
    assert tempered.measured is not None
    plain = replace(
        plain, measured=replace(plain.measured, amplitudes={"exact": values["small"], "trained": values["small"]})
    )
    grown = {"exact": values["used"], "trained": values["trained"]}
    tempered = replace(tempered, measured=replace(tempered.measured, amplitudes=grown))
    split = splits(report(plain, tempered))[1]
    assert split.slopes.value == pytest.approx(math.log10(20), abs=1e-6)
    assert split.trained.value == pytest.approx(split.plain.value, abs=1e-6)
    assert split.saturation.value < -1


def test_an_image_without_a_gradient_and_a_seed_without_a_plain_network_are_left_out():
    plain, tempered = model("standard", attacks={}), model("tempered", attacks={}, trained=-4)
    assert tempered.measured is not None
    amplitudes = {kind: values.clone() for kind, values in tempered.measured.amplitudes.items()}
    amplitudes["exact"][0] = -torch.inf
    tempered = replace(tempered, measured=replace(tempered.measured, amplitudes=amplitudes))
    assert [split.used.rows for split in splits(report(plain, tempered))] == [1000, 999]
    assert len(splits(report(plain, replace(tempered, seed=1)))) == 1
