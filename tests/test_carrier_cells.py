"""Units that carry an adversarial change, of networks in which it is known what carries what."""

import pytest
import torch
from torch import nn

from brittle.data import Data, Split
from brittle.progress import silent
from brittle.study.kinds.carriers.cell import carriers

CPU = torch.device("cpu")
PARAMS = {"layers": ["1"], "eps": 0.2, "images": 40, "random": 2, "seed": 0, "points": None}


def data(rows: int = 12) -> Data:
    """Two classes, told apart by the first pixel at 0.3 or 0.7; the second says nothing; labels 0, 1, 0, 1, ..."""
    labels = torch.arange(rows) % 2
    images = torch.stack([0.3 + 0.4 * labels, torch.full((rows,), 0.5)], 1).view(rows, 1, 1, 2)
    split = Split(images, labels)
    return Data("two", split, split, split, ("a", "b"), "0" * 64, "by hand")


def leak(through: float) -> nn.Module:
    """Three units: the first pixel, for which class 1 stands; the second, 30 times as strong where it is not 0.5, of
    which clean images know nothing; and one that no logit looks at."""
    enter, leave = nn.Linear(2, 3), nn.Linear(3, 2)
    with torch.no_grad():
        enter.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        enter.bias.copy_(torch.tensor([-0.5, -0.5, 0.0]))
        leave.weight.copy_(torch.tensor([[-1.0, -through, 0.0], [1.0, through, 0.0]]))
        leave.bias.zero_()
    return nn.Sequential(nn.Flatten(), enter, leave)


def test_a_unit_that_only_the_attack_uses_carries_its_change_and_knocking_it_out_defends():
    scalars, tensors = carriers(leak(30.0), data(), PARAMS, CPU, silent)
    assert {name: scalars[name] for name in ("images", "tried", "layers", "gone")} == {
        "images": 12,
        "tried": 12,
        "layers": {"1": 3},
        "gone": [0, 1, 2, 3],
    }
    stored = tensors["carriers"]
    # d(z_wrong - z_label)/do is twice what one logit has
    assert (10 ** stored["carriers"]).tolist() == pytest.approx([2, 60, 0])
    assert (10 ** stored["important"]).tolist() == pytest.approx([1, 30, 0])
    assert scalars["agreement"] == pytest.approx(1)
    right = stored["right"]
    assert right.shape == (2 + 2, 2, 4)
    assert (right[:, :, 0] == torch.tensor([12, 0])).all()  # by choice of the images
    assert right[0, 0].tolist() == [12, 12, 6, 6]  # without the second pixel all is well, without both all are class 0
    assert right[0, 1].tolist() == [0, 12, 6, 6]


def test_images_that_withstand_are_not_counted_and_none_at_all_is_said():
    scalars, tensors = carriers(leak(0.0), data(), PARAMS, CPU, silent)  # 0.2 leaves the first pixel on its side
    assert (scalars["images"], scalars["tried"], scalars["agreement"], scalars["gone"]) == (0, 12, None, [])
    assert tensors["carriers"]["right"].shape == (4, 2, 0)


def test_maps_count_over_their_positions():
    copies, leave = nn.Conv2d(1, 2, 1, bias=False), nn.Linear(4, 2, bias=False)
    model = nn.Sequential(copies, nn.Flatten(), leave)
    with torch.no_grad():
        copies.weight.fill_(1)
        leave.weight.copy_(torch.tensor([[0.0, 0.0, -3.0, 4.0], [1.0, -1.0, 0.0, 0.0]]))
    scalars, tensors = carriers(model, data(), PARAMS | {"layers": ["0"], "eps": 0.5}, CPU, silent)
    assert scalars["layers"] == {"0": 2}
    flipped = 10 ** tensors["carriers"]["carriers"]
    assert flipped.tolist() == pytest.approx([2**0.5, 5])
