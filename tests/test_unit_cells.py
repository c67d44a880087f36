"""Units and masks of networks whose gradients are known: one unit for each class, one pixel for each class."""

import torch
from problems import Constant, IdentityLogits
from torch import nn

from brittle.data import Data, Split
from brittle.progress import silent
from brittle.study.kinds.masks.cell import WAYS, masks
from brittle.study.kinds.units.cell import units

CPU = torch.device("cpu")


def one_hot(rows=2):
    """Three classes, each a pixel of 0.5; the same in every split."""
    labels = torch.arange(3).repeat(rows)
    images = 0.5 * torch.nn.functional.one_hot(labels, 3).float().view(-1, 1, 1, 3)
    split = Split(images, labels)
    return Data("one-hot", split, split, split, ("a", "b", "c"), "0" * 64, "by hand")


def one_unit_a_class():
    """Each unit feeds the logit of its class, ten times; class 2 has a start."""
    enter, leave = nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
    with torch.no_grad():
        enter.weight.copy_(torch.eye(3))
        leave.weight.copy_(10 * torch.eye(3))
        leave.bias.copy_(torch.tensor([0.0, 0.0, 0.1]))
    return nn.Sequential(nn.Flatten(), enter, leave)


def looked_at(**changed):
    params = {
        "layers": ["1"],
        "of": "logits",
        "classes": [0, 1],
        "random": 2,
        "seed": 0,
        "images": 100,
        "points": None,
    } | changed
    return units(one_unit_a_class(), one_hot(), params, CPU, silent)


def test_a_unit_has_the_gradient_of_the_only_logit_that_it_feeds():
    scalars, tensors = looked_at()
    stored = tensors["units"]
    assert scalars == {"layers": {"1": 3}, "images": 18, "gone": [0, 1, 2, 3]}
    torch.testing.assert_close(stored["profile"], torch.where(torch.eye(3) > 0, 1.0, -torch.inf).double())
    torch.testing.assert_close(stored["each"], stored["profile"][stored["labels"]])
    torch.testing.assert_close(stored["activity"], torch.full((3,), 0.5 / 3, dtype=torch.float64))


def test_rankings_of_one_class_agree_and_those_of_two_have_their_strongest_swapped():
    agreement = looked_at()[1]["units"]["agreement"]
    torch.testing.assert_close(agreement, torch.eye(3).double() * 1.5 - 0.5)  # tau-b of (1, 0, 0) and (0, 1, 0): -1/2


def test_the_strongest_maps_of_a_class_are_kept_as_its_held_out_images_show_them():
    split_off = nn.Conv2d(1, 3, (1, 3), bias=False)  # three maps of a single place, a pixel each
    pixel = nn.Conv2d(1, 1, 1, bias=False)  # a map of three places
    with torch.no_grad():
        split_off.weight.copy_(torch.eye(3).view(3, 1, 1, 3))
        pixel.weight.fill_(2)
    model = nn.Sequential(pixel, split_off, nn.Flatten())
    params = {"layers": ["0", "1"], "of": "logits", "classes": [2, 0], "random": 0, "seed": 0, "images": 5, "points": 2}
    scalars, tensors = units(model, one_hot(), params, CPU, silent)
    assert scalars["gone"] == [0, 4]
    assert tensors["knockout"]["wrong"].shape == (2, 3, 4, 2)
    maps = tensors["maps"]
    # Of 5 test images class 2 has one, the third, and class 0 two. The first layer's map feeds both classes like the
    # second's own; the others have no gradient at all and keep their order.
    assert maps["rows"].tolist() == [[2, -1, -1], [0, 3, -1]]
    assert maps["places"].tolist() == [[0, 3, 1, 2, -1, -1], [0, 1, 2, 3, -1, -1]]
    seen = maps["outputs"]
    assert seen.shape == (2, 3, 6, 1, 3)
    assert seen[0, 0, 0, 0].tolist() == [0, 0, 1]
    assert seen[0, 0, 1, 0, 0] == 1
    assert seen[0, 0, 1, 0, 1:].isnan().all()
    assert seen[1, 1, 0, 0].tolist() == [1, 0, 0]
    assert seen[0, 1].isnan().all()
    assert seen[0, 0, 4].isnan().all()


def test_dense_layers_have_no_maps():
    assert (looked_at()[1]["maps"]["places"] == -1).all()


def test_errors_are_counted_by_order_and_by_images():
    knockout = looked_at()[1]["knockout"]
    assert knockout["total"].tolist() == [[6, 18, 2, 6]] * 2  # class, all; of each those of the test split
    strongest, weakest = knockout["wrong"][0, 0], knockout["wrong"][0, 1]  # of class 0: units 0, 1, 2, and 2, 1, 0
    assert strongest.tolist() == [[0, 6, 6, 6], [0, 6, 12, 12], [0, 2, 2, 2], [0, 2, 4, 4]]
    assert weakest.tolist() == [[0, 0, 0, 6], [0, 0, 6, 12], [0, 0, 0, 2], [0, 0, 2, 4]]
    assert torch.equal(knockout["wrong"][0, 3:, 1], knockout["wrong"][1, 3:, 1])  # the same draws for every class
    assert knockout["wrong"].shape == (2, 3 + 2, 4, 4)


def test_without_its_unit_a_class_is_taken_for_that_with_a_start():
    moves = looked_at()[1]["knockout"]["moves"]
    assert torch.equal(moves[1, 0], 6 * torch.eye(3).int())
    assert moves[1, 1].tolist() == [[6, 0, 0], [0, 0, 6], [0, 0, 6]]  # class 1's unit gone


def test_no_more_images_of_a_split_are_looked_at_than_asked_for():
    stored = looked_at(images=3)[1]["units"]
    assert stored["held_out"].tolist() == [False] * 6 + [True] * 3


def masked(other=None, **changed):
    params = {"images": 100, "etas": [0, 3000, 4000], "of": "logits", "epochs": 60, "seed": 0} | changed
    return masks(IdentityLogits(10.0), other, one_hot(), params, CPU, silent)[1]


def test_a_linear_mask_reaches_where_arithmetic_says():
    curves = masked()["curves"]  # the target's pixel rises by 10 eta / 65,025: 0.46 at 3000, 0.62 at 4000
    for way in WAYS[:3]:
        assert curves["reached"][WAYS.index(way)].tolist() == [[[0, 0, 4]] * 3] * 2
    assert curves["total"].tolist() == [[4, 4, 4]] * 3 + [[0, 0, 0]]
    torch.testing.assert_close(curves["sizes"], torch.full((2, 3), 10 * 4000 / 255**2).double())


def test_masks_are_tried_on_the_other_model():
    reached = masked(Constant((3.0, 1.0, 0.0)))["curves"]["reached"][WAYS.index("transferred"), 0]
    assert reached.tolist() == [[4, 4, 4], [0, 0, 0], [0, 0, 0]]  # it takes everything for class 0


def test_one_mask_is_learned_for_all_images():
    learned = masked()["learned"]
    assert learned["masks"].shape == (3, 1, 1, 3)
    assert learned["reached"].tolist() == learned["total"].tolist() == [[4, 4, 4]] * 2
    assert torch.equal(learned["masks"].flatten(1).argmax(1), torch.arange(3))


def test_a_mask_that_was_hardly_learned_reaches_nothing():
    assert not masked(epochs=1)["learned"]["reached"].any()
