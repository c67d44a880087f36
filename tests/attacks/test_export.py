"""Adversarial images that are kept: files give back what was found, and say what 8 bits left of it."""

from __future__ import annotations

import csv
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from brittle.attacks import AttackResult, Bound, carlini_l2, fgsm, song_3, write_images
from brittle.attacks.export import in_8_bits
from brittle.errors import InputError


class Above(nn.Module):
    """Says 1 where the mean of an image is above a threshold: what fools it is known to the level."""

    def __init__(self, threshold: float):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        lead = (images.double().flatten(1).mean(1) - self.threshold) * 1000
        return torch.stack([torch.zeros_like(lead), lead], 1)


def found_of(clean: list[float], adversarial: list[float], labels: list[int], bound: Bound | None) -> AttackResult:
    """Images of 2 x 2 pixels and 3 channels, each of one value; success as `Above(0.5)` has it."""
    was, became = (torch.tensor(one).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).clone() for one in (clean, adversarial))
    says = (became.double().flatten(1).mean(1) > 0.5).long()
    count, classes = torch.ones(len(clean), dtype=torch.int64), torch.tensor(labels)
    return AttackResult(was, classes, None, became, says != classes, says, count, count * 2, bound=bound)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_rows_and_files_say_what_8_bits_leave(tmp_path: Path):
    """127/255 is below the threshold and 128/255 above: 0.5001 rounds to 128, and 0.5001 - 1/510 rounds to 127."""
    clean = [100 / 255, 100 / 255, 100 / 255, 200 / 255]
    found = found_of(clean, [0.5001, 0.5001, 100 / 255, 200 / 255], [0, 0, 0, 0], None)
    rows = table(write_images(found, Above(0.5), tmp_path, classes=["=low", "high"], names=list("abcd")))
    assert [row["fooled"] for row in rows] == ["True", "True", "False", "True"]
    assert [row["wrong_before"] for row in rows] == ["False", "False", "False", "True"]
    assert [row["survives"] for row in rows] == ["True", "True", "", ""]
    assert [row["name"] for row in rows] == list("abcd")
    assert (rows[0]["label_class"], rows[0]["prediction_class"]) == ("'=low", "high")
    assert (rows[0]["png_prediction"], rows[0]["target"]) == ("1", "")
    assert float(rows[0]["png_linf"]) == pytest.approx(28 / 255, abs=1e-6)
    assert float(rows[0]["linf"]) == pytest.approx(0.5001 - 100 / 255, abs=1e-6)
    assert [row["adversarial_file"] for row in rows] == ["adversarial/000000.png", "adversarial/000001.png", "", ""]
    assert sorted(file.name for file in (tmp_path / "adversarial").iterdir()) == ["000000.png", "000001.png"]
    assert np.asarray(Image.open(tmp_path / "adversarial" / "000000.png")).tolist() == [[[128] * 3] * 2] * 2
    assert np.asarray(Image.open(tmp_path / "clean" / "000000.png")).tolist() == [[[100] * 3] * 2] * 2


def test_what_rounding_undoes_is_marked(tmp_path: Path):
    """With the threshold at 127.2/255, an image at 127.4/255 is fooled and its file, at 127/255, is not."""
    found = found_of([100 / 255], [127.4 / 255], [0], None)
    found = replace(found, success=torch.tensor([True]), prediction=torch.tensor([1]))
    [row] = table(write_images(found, Above(127.2 / 255), tmp_path))
    assert (row["fooled"], row["png_fooled"], row["survives"], row["png_prediction"]) == ("True", "False", "False", "0")


@pytest.mark.parametrize(
    ("norm", "eps", "level"),
    [
        (math.inf, 28 / 255, 128),  # as the attack left it
        (math.inf, 27.9 / 255, 127),  # 128 is outside
        (math.inf, 0.4 / 255, 100),  # no other level is inside
        (2.0, 28 / 255 * math.sqrt(12), 127),  # towards the clean image: 27.9 becomes 27
        (0.0, 4, 128),
    ],
)
def test_rounding_stays_within_the_bound(norm: float, eps: float, level: int):
    found = found_of([100 / 255], [127.9 / 255], [0], Bound(norm, eps))
    clean, adversarial = in_8_bits(found)
    assert (clean * 255).unique().tolist() == pytest.approx([100])
    assert (adversarial * 255).unique().tolist() == pytest.approx([level])


def test_an_image_outside_its_bound_does_not_survive(tmp_path: Path):
    found = found_of([100 / 255, 100 / 255], [128 / 255, 129 / 255], [0, 0], Bound(2.0, 28.5 / 255 * math.sqrt(12)))
    assert [row["survives"] for row in table(write_images(found, Above(0.5), tmp_path))] == ["True", "False"]


def test_wrong_requests_are_one_line(tmp_path: Path):
    found = found_of([0.1], [0.9], [0], None)
    with pytest.raises(InputError, match="names must be one for each of 1 images, got 2"):
        write_images(found, Above(0.5), tmp_path, names=["a", "b"])
    two = replace(found, images=found.images[:, :2], adversarial=found.adversarial[:, :2])
    with pytest.raises(InputError, match="images of 1 or 3 channels can be written as PNG files, got 2"):
        write_images(two, Above(0.5), tmp_path)
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=f"^{tmp_path / 'taken'}: cannot be written: "):
        write_images(found, Above(0.5), tmp_path / "taken")


@pytest.mark.parametrize(
    "attack",
    [
        lambda *asked: fgsm(*asked, eps=0.3, targets=torch.tensor([1, 0, 1])),
        lambda *asked: carlini_l2(*asked, max_iterations=3),
        lambda *asked: song_3(*asked),
    ],
)
def test_a_result_comes_back_to_the_bit(tmp_path: Path, attack: Any):
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = attack(Above(0.5), images, torch.tensor([0, 1, 0]))
    found.save(tmp_path / "found.safetensors")
    again = AttackResult.load(tmp_path / "found.safetensors")
    for field in fields(AttackResult):
        one, other = getattr(found, field.name), getattr(again, field.name)
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other, field.name
    assert [file.name for file in tmp_path.iterdir()] == ["found.safetensors"]


def test_files_that_are_no_results(tmp_path: Path):
    file = tmp_path / "x.safetensors"
    for content in (b"", b"text", b"\x02\0\0\0\0\0\0\0{}"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=f"^{file}: no attack's result as AttackResult.save writes it: ") as caught:
            AttackResult.load(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no attack's result"):
        AttackResult.load(tmp_path / "nothing")
    found = found_of([0.1, 0.2], [0.9, 0.9], [0, 0], None)
    replace(found, labels=found.labels[:1]).save(file)
    with pytest.raises(InputError, match="differ in their number of images"):
        AttackResult.load(file)
    with pytest.raises(InputError, match="cannot be written"):
        found.save(tmp_path / "no" / "folder.safetensors")
