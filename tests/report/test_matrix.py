"""Original class by target class, of three classes and four rows."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import torch
from made import network, report, sized

from brittle.study.kinds.attack import matrix, pictures
from brittle.study.kinds.attack.result import Attack
from brittle.study.store.results import Report

ROWS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])  # of classes 0, 0, 1 and 2
TARGETS = torch.tensor([1, 2, 1, 2, 0, 2, 0, 1])
SIZES = [0.0, 0.5, 1.0, math.inf, 2.0, 2.5, 3.0, 3.5]  # row 0 was taken for 1 before any attack


def aimed(norm: float = 2.0) -> Attack:
    images = torch.full((8, 1, 2, 2), 0.5)
    for place, size in enumerate(SIZES):
        if math.isfinite(size):
            images[place, 0, 0, 0] += size / 10
    return sized("aimed", SIZES, norm=norm, rows=ROWS, targets=TARGETS, adversarial=images)


def made(*attacks: Attack, name: str = "plain") -> Report:
    models = (network(name, 1, attacks), network(name, 1, attacks, seed=1))
    return replace(
        report(*models, paper=None),
        classes=("zero", "one", "<two>"),
        images=torch.full((4, 1, 2, 2), 0.5),
        labels=torch.tensor([0, 0, 1, 2]),
    )


def test_a_row_has_a_result_for_each_of_its_targets():
    one, of = aimed(), made(aimed())
    result = one.result("result", 1, of, target=1)
    assert result is not None
    assert float(result.norm(2)) - 0.1 < 1e-6
    assert result.targets is not None
    assert result.targets.tolist() == [1]
    failed = one.result("result", 1, of, target=2)
    assert failed is not None
    assert failed.success.tolist() == [False]
    assert one.result("result", 1, of, target=0) is None
    assert sized("l2", [1.0]).result("result", 0, of, target=1) is None  # it aimed at nothing
    first = one.result("result", 1, of)
    assert first is not None
    assert first.targets is not None
    assert first.targets.tolist() == [1]


def test_each_class_is_shown_by_its_first_image_that_the_model_had_right():
    (found,) = matrix.matrices(made(aimed()))
    assert (found.model.seed, found.attack.label, found.classes) == (0, "aimed", (0, 1, 2))
    assert found.rows == {0: 1, 1: 2, 2: 3}


def test_tiles_say_the_size_and_failures_are_faded():
    of = made(aimed())
    svg = matrix.drawn(of, matrix.matrices(of)[0])
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert texts == [
        *("original", "made into", "zero", "one", "<two>"),
        *("zero", "0.100", "failed"),
        *("one", "0.200", "0.250"),
        *("<two>", "0.300", "0.350"),
    ]
    assert len([element for element in root.iter() if element.tag.endswith("image")]) == 9
    assert len(re.findall('opacity="0.3"', svg)) == 1
    assert len(re.findall('class="frame own"', svg)) == 3
    titles = [element.text for element in root.iter() if element.tag.endswith("title")]
    assert titles[:3] == ["original, zero", "zero made into one, L2 0.100", "zero could not be made into <two>"]
    assert float((root.get("viewBox") or "").split()[2]) <= 960


def test_ten_classes_fit_the_page():
    rows, targets = torch.arange(12).repeat_interleave(2), torch.tensor([1, 2] * 12)
    many = sized("aimed", [1.0] * 24, rows=rows, targets=targets, adversarial=torch.zeros(24, 1, 2, 2))
    of = replace(made(many), images=torch.zeros(12, 1, 2, 2), labels=torch.arange(12), classes=())
    svg = matrix.drawn(of, matrix.matrices(of)[0])
    assert 900 < float(re.findall(r'viewBox="0 0 (\d+)', svg)[0]) <= 960
    assert svg.count("not done") == 72  # ten classes, all pairs but the diagonal and the 18 that were attacked


def test_pixels_are_whole():
    of = made(aimed(0.0))
    assert ">1</text>" in matrix.drawn(of, matrix.matrices(of)[0])


def test_only_targeted_attacks_have_a_matrix_and_others_are_pictured():
    of = made(sized("l2", [1.0] * 4), aimed(), sized("l2 / T", [1.0] * 4, over_temperature=True))
    assert [one.attack.label for one in matrix.matrices(of)] == ["aimed"]
    assert pictures.shown_attack(of) == "l2"
    assert pictures.shown_attack(made(aimed())) == "aimed"
    assert matrix.matrices(replace(of, images=None)) == []
