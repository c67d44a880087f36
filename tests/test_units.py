"""Gradients of units and their knockout, against finite differences, closed forms and autograd one unit at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from mpmath import mp
from problems import Attending, Constant, Counting, Residual, Reused, blobs, condition, convnet, pictures, predicted
from torch import Tensor, nn

from brittle import fit
from brittle.errors import InputError
from brittle.models.networks import build, frozen, lo_ding_faces, papernot_mnist
from brittle.models.softmax import SignedLog
from brittle.units import (
    KnockoutCurve,
    Ranked,
    Unit,
    activity,
    class_gradient,
    convolutional_gradient,
    knockout,
    knockout_curves,
    knockout_orders,
    outputs,
    prediction_gradient,
    predictions_without,
    rank_agreement,
    rank_units,
    telling_layers,
)


def inplace() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 2, 3),
        nn.ELU(inplace=True),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 4)
    )


def normalised() -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4)
    )
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean = torch.linspace(-0.2, 0.2, 4)
    norm.running_var = torch.linspace(0.5, 2.0, 4)
    return network.train()


def nested() -> nn.Module:
    features = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2))
    return nn.Sequential(features, nn.Flatten(), nn.Sequential(nn.Linear(12, 5), nn.Tanh()), nn.Linear(5, 4))


# Every kind of network, and the layers of it that are looked at.
KINDS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "plain": (convnet, ["0", "1", "4"]),
    "reused": (Reused, ["conv", "enter", "twice"]),
    "in place": (inplace, ["0", "1", "2", "3"]),
    "grouped": (grouped, ["0", "1", "2", "3"]),
    "batch normalisation": (normalised, ["0", "1", "2", "5"]),
    "residual": (Residual, ["stem", "conv", "norm", "relu", "head"]),
    "nested": (nested, ["0.0", "0.1", "0", "2.0", "2"]),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
both_outputs = pytest.mark.parametrize("of", ["softmax", "logits"])


def made(kind: str) -> tuple[nn.Module, list[str], Tensor]:
    """The network, with a last bias that lets it say more than one class; layers; and images."""
    make, layers = KINDS[kind]
    model, images = build(make, seed=3).double(), pictures(5, dtype=torch.float64)
    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.BatchNorm1d)][-1]
    with frozen(model), torch.no_grad():
        last.bias -= model(images).mean(0)
    return model, layers, images


# The slow way: a hook written for one layer at a time, one evaluation for each unit --------------------------------


def shapes_of(model: nn.Module, layers: Sequence[str], images: Tensor) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _m, _i, output, name=name: shapes.update({name: tuple(output.shape[1:])})  # type: ignore[misc]
        )
        for name in layers
    ]
    with frozen(model), torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return shapes


def shifted_logits(model: nn.Module, layer: str, change: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _i, output: change(output.clone()))
    try:
        with frozen(model), torch.no_grad():
            return model(images)
    finally:
        handle.remove()


def finite_difference(model: nn.Module, layer: str, index: tuple[int, ...], images: Tensor, of: str) -> Tensor:
    """(N, K): the central difference of y when the unit puts out a little more, and a little less."""
    step = 1e-5

    def moved(by: float) -> Tensor:
        def change(output: Tensor) -> Tensor:
            output[(slice(None), *index)] += by
            return output

        logits = shifted_logits(model, layer, change, images)
        return torch.softmax(logits, 1) if of == "softmax" else logits

    return (moved(step) - moved(-step)) / (2 * step)


def zeroed_logits(model: nn.Module, units: Sequence[Unit], images: Tensor) -> Tensor:
    """The model's logits without some units, each layer by a copy of its own hook."""
    model = copy.deepcopy(model)

    def zero(index: tuple[int, ...]) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def run(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            output = output.clone()
            output[(slice(None), *index)] = 0
            return output

        return run

    for unit in units:
        model.get_submodule(unit.layer).register_forward_hook(zero(unit.index))
    with frozen(model), torch.no_grad():
        return model(images)


# Gradients ------------------------------------------------------------------------------------------------------------


@both_outputs
@every_kind
def test_every_gradient_is_what_a_finite_difference_says(kind: str, of: Any):
    model, layers, images = made(kind)
    found = prediction_gradient(model, images, layers, of=of)
    for layer, shape in shapes_of(model, layers, images).items():
        gradient = found[layer].float()
        assert gradient.shape == (5, 4, *shape)
        for index in torch.ones(shape).nonzero()[:: max(1, math.prod(shape) // 12)].tolist():
            expected = finite_difference(model, layer, tuple(index), images, of)
            torch.testing.assert_close(gradient[(slice(None), slice(None), *index)], expected, atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 7.0])
@both_outputs
@every_kind
def test_one_class_is_that_row_of_every_class(kind: str, of: Any, temperature: float):
    model, layers, images = made(kind)
    classes = torch.tensor([0, 3, 1, 2, 3])
    every = prediction_gradient(model, images, layers, of=of, temperature=temperature)
    each = prediction_gradient(model, images, layers, classes=classes, of=of, temperature=temperature, batch_size=2)
    second = prediction_gradient(model, images, layers, classes=2, of=of, temperature=temperature)
    for layer in layers:
        wanted = every[layer].float()
        torch.testing.assert_close(each[layer].float(), wanted[torch.arange(5), classes], atol=1e-14, rtol=1e-9)
        torch.testing.assert_close(second[layer].float(), wanted[:, 2], atol=1e-14, rtol=1e-9)


def test_a_linear_head_has_the_gradient_of_the_closed_form():
    """y = softmax(W o / T): dF_i/do_j = F_i (W_ij - sum over l of F_l W_lj) / T; of the logits W_ij."""
    model, images = convnet().double(), pictures(3, dtype=torch.float64)
    head = model[4]
    assert isinstance(head, nn.Linear)
    weights = head.weight.detach()
    of_logits = prediction_gradient(model, images, ["2"], of="logits")["2"].float()
    torch.testing.assert_close(of_logits, weights.expand(3, -1, -1))
    shares = torch.softmax(model(images).detach() / 3, 1)
    expected = shares[:, :, None] * (weights - (shares @ weights)[:, None]) / 3
    torch.testing.assert_close(prediction_gradient(model, images, ["2"], temperature=3.0)["2"].float(), expected)


def test_a_saturated_softmax_has_the_gradient_that_mpmath_finds():
    """Logits some thousands apart: probabilities of 1e-1000, and gradients as small."""
    model, images = convnet(gain=3e4), pictures(4)
    labels = predicted(model, images)
    head = model[4]
    assert isinstance(head, nn.Linear)
    weights, logits = head.weight.detach().double(), model(images).detach().double()
    found = prediction_gradient(model, images, ["2"])["2"]
    one = prediction_gradient(model, images, ["2"], classes=labels)["2"]
    assert found.log10.min() < -400
    with mp.workdps(50):
        for row in range(4):
            powers = [mp.exp(z - logits[row].max().item()) for z in logits[row].tolist()]
            shares = [power / sum(powers) for power in powers]
            for unit in (0, 17, 95):
                column = weights[:, unit].tolist()
                for i in range(4):
                    terms = [shares[j] * (column[i] - column[j]) for j in range(4) if j != i]
                    expected = shares[i] * sum(terms)
                    assert found.sign[row, i, unit] == int(mp.sign(expected))
                    assert found.log10[row, i, unit].item() == pytest.approx(float(mp.log10(abs(expected))), abs=1e-3)
                    if i == labels[row]:
                        assert one.sign[row, unit] == int(mp.sign(expected))
                        assert one.log10[row, unit].item() == pytest.approx(found.log10[row, i, unit].item(), abs=1e-3)


def test_a_unit_that_leads_nowhere_has_no_gradient():
    model = convnet()
    with torch.no_grad():
        model[4].weight[:, :16] = 0  # type: ignore[index]  # the first map's 16 positions
    found = prediction_gradient(model, pictures(2), ["1"])["1"]
    assert (found.sign[:, :, 0] == 0).all()
    assert (found.log10[:, :, 0] == -torch.inf).all()
    assert (found.sign[:, :, 1] != 0).any()


def test_a_layer_whose_gradient_is_cut_off_is_zero_and_one_that_no_logit_depends_on_is_refused():
    class Cut(nn.Module):
        def __init__(self, cut: bool):
            super().__init__()
            self.cut, self.one, self.other = cut, nn.Linear(36, 4), nn.Linear(36, 4)

        def forward(self, images: Tensor) -> Tensor:
            other = self.other(images.flatten(1)).detach()
            one = self.one(images.flatten(1))
            return other + (one.detach() if self.cut else one)

    assert (prediction_gradient(Cut(False), pictures(2), ["one", "other"])["other"].sign == 0).all()
    with pytest.raises(InputError, match="the logits do not depend on one, other in a way that can be differentiated"):
        prediction_gradient(Cut(True), pictures(2), ["one", "other"])


class Around(nn.Module):
    """A way around what does nothing: the layer `same`, and the block's own output, are what goes in."""

    def __init__(self):
        super().__init__()
        self.conv, self.same, self.rest = nn.Conv2d(1, 3, 3), nn.Identity(), nn.Conv2d(3, 3, 3, padding=1)
        self.block = Aside()
        self.head = nn.Linear(48, 4)

    def forward(self, images: Tensor) -> Tensor:
        values = torch.tanh(self.conv(images))
        values = self.same(values) + self.rest(values)
        return self.head((self.block(values) + self.block.aside).flatten(1))


class Aside(nn.Module):
    """Its output is used inside, too."""

    def __init__(self):
        super().__init__()
        self.act = nn.Tanh()

    def forward(self, values: Tensor) -> Tensor:
        values = self.act(values)
        self.aside = values * values
        return values


class Rough(nn.Module):
    """What goes into the first layer has no gradient; a view is worked on in place."""

    def __init__(self):
        super().__init__()
        self.flat, self.dense, self.fold = nn.Flatten(), nn.Linear(36, 8), nn.Unflatten(1, (2, 2, 2))
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        values = self.fold(self.dense(self.flat((images > 0.5).to(images.dtype).detach())))
        return self.head(values.tanh_().flatten(1))


@pytest.mark.parametrize(
    ("make", "layers"), [(Around, ["same", "block", "block.act", "rest"]), (Rough, ["flat", "dense", "fold"])]
)
def test_an_output_that_is_used_elsewhere_or_changed_in_place_has_its_own_gradient(
    make: Callable[[], nn.Module], layers: list[str]
):
    model, images = build(make, seed=3).double(), pictures(2, dtype=torch.float64)
    for layer in layers:
        shape = shapes_of(model, [layer], images)[layer]
        found = prediction_gradient(model, images, [layer])[layer].float()
        together = prediction_gradient(model, images, layers)[layer].float()
        torch.testing.assert_close(found, together)
        index = tuple(n - 1 for n in shape)
        expected = finite_difference(model, layer, index, images, "softmax")
        torch.testing.assert_close(found[(slice(None), slice(None), *index)], expected, atol=1e-8, rtol=1e-5)


@pytest.mark.usefixtures("unprobed")
def test_one_backward_pass_gives_all_layers():
    """One forward pass a batch, and one image at the door."""
    model, images = Counting(convnet()), pictures(10)
    prediction_gradient(model, images, ["model.0", "model.1", "model.4"], classes=1, batch_size=4)
    assert model.sizes == [1, 4, 4, 2]


def test_captum_finds_the_same():
    attr = pytest.importorskip("captum.attr")
    model, images = convnet().double(), pictures(4, dtype=torch.float64)
    classes = torch.tensor([0, 1, 2, 3])
    found = prediction_gradient(model, images, ["0", "1"], classes=classes, of="logits")
    for layer in ("0", "1"):
        gradient = attr.LayerGradientXActivation(model, model.get_submodule(layer), multiply_by_inputs=False)
        torch.testing.assert_close(found[layer].float(), gradient.attribute(images, target=classes))


def test_captums_ablation_of_a_map_is_its_knockout():
    attr = pytest.importorskip("captum.attr")
    model, images = convnet().double(), pictures(4, dtype=torch.float64)
    classes = torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        clean = model(images)
        maps = torch.arange(6).view(1, 6, 1, 1).expand(1, 6, 4, 4)
        lost = attr.LayerFeatureAblation(model, model[1]).attribute(images, target=classes, layer_mask=maps)
        for number in range(6):
            with knockout(model, [Unit("1", (number,))]):
                change = (clean - model(images)).gather(1, classes[:, None])
            torch.testing.assert_close(lost[:, number, 0, 0], change.squeeze(1))


# Classes and maps -----------------------------------------------------------------------------------------------------


@both_outputs
@every_kind
def test_a_class_gradient_is_the_mean_of_its_images(kind: str, of: Any):
    model, layers, _ = made(kind)
    images, labels = pictures(23, dtype=torch.float64), torch.arange(23) % 4
    each = prediction_gradient(model, images, layers, classes=labels, of=of)
    found = class_gradient(model, images, labels, layers, of=of, batch_size=5)
    norms = class_gradient(model, images, labels, layers, of=of, batch_size=5, of_maps=True)
    for layer in layers:
        gradient = each[layer].float()
        expected = torch.stack([gradient[labels == c].mean(0) for c in range(4)])
        torch.testing.assert_close(found[layer].float(), expected, atol=1e-12, rtol=1e-9)
        sizes = gradient.flatten(2).norm(dim=2) if gradient.ndim > 2 else gradient.abs()
        expected = torch.stack([sizes[labels == c].mean(0) for c in range(4)])
        torch.testing.assert_close(norms[layer].float(), expected, atol=1e-12, rtol=1e-9)


def test_a_class_gradient_is_the_gradient_of_the_mean_prediction():
    """Equation (3): shift the unit by the same amount in all images of the class, and see the mean of F_t change."""
    model, images = convnet().double(), pictures(6, dtype=torch.float64)
    found = class_gradient(model, images, torch.full((6,), 2), ["1"], classes=[2])["1"].float()
    for index in ((0, 0, 0), (3, 1, 2), (5, 3, 3)):
        expected = finite_difference(model, "1", index, images, "softmax")[:, 2].mean()
        assert found[(0, *index)].item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-10)


@pytest.mark.usefixtures("unprobed")
def test_only_images_of_the_classes_that_are_wanted_are_looked_at_and_rows_come_in_their_order():
    model = Counting(convnet())
    images, labels = pictures(12), torch.tensor([0, 1, 2, 3] * 3)
    found = class_gradient(model, images, labels, ["model.1"], classes=[3, 1], batch_size=64)["model.1"]
    assert model.sizes == [1, 6]
    every = class_gradient(model, images, labels, ["model.1"])["model.1"]
    torch.testing.assert_close(found.log10, every.log10[[3, 1]])
    assert torch.equal(found.sign, every.sign[[3, 1]])


def test_a_mean_of_numbers_that_no_float_holds_is_right():
    """Gradients of 1e-310 and less, of very different sizes: the mean is a third of the largest, or of their sum."""
    model, images = convnet(gain=3e4), pictures(3)
    labels = predicted(model, images)
    rows = prediction_gradient(model, images, ["2"], classes=labels)["2"]
    assert rows.log10[:, 0].max() < -310
    found = class_gradient(
        model, images, torch.full((3,), int(labels[0])), ["2"], classes=[int(labels[0])], batch_size=1
    )
    whole = prediction_gradient(model, images, ["2"], classes=int(labels[0]))["2"]
    expected = whole.sum(0).log10 - math.log10(3)
    torch.testing.assert_close(found["2"].log10[0], expected, rtol=0, atol=1e-3)


def test_a_convolutional_gradient_is_a_maps_frobenius_norm():
    gradient = SignedLog.of(torch.tensor([[[[3.0, -4.0]], [[0.0, 0.0]]]]))
    found = convolutional_gradient({"a": gradient, "b": SignedLog.of(torch.tensor([[-2.0, 0.0]]))})
    torch.testing.assert_close(found["a"].float(), torch.tensor([[5.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(found["b"].float(), torch.tensor([[2.0, 0.0]], dtype=torch.float64))
    tiny = convolutional_gradient({"a": SignedLog(gradient.sign, gradient.log10 - 1000)})["a"]
    assert tiny.log10[0, 0].item() == pytest.approx(math.log10(5) - 1000)
    assert tiny.log10[0, 1] == -torch.inf


def test_pooling_a_tanh_changes_neither_a_maps_gradient_nor_its_knockout():
    model, images = build(lo_ding_faces, seed=0, classes=3, size=36), pictures(4, (1, 36, 36))
    found = convolutional_gradient(prediction_gradient(model, images, ["tanh2", "pool2"], classes=0))
    torch.testing.assert_close(found["tanh2"].log10, found["pool2"].log10, rtol=0, atol=1e-5)
    with torch.no_grad():
        with knockout(model, [Unit("tanh2", (3,))]):
            before = model(images)
        with knockout(model, [Unit("pool2", (3,))]):
            assert torch.equal(model(images), before)


@every_kind
def test_activity_is_the_mean_size_of_an_output(kind: str):
    model, layers, images = made(kind)
    found = activity(model, images, layers, batch_size=2)
    for layer in layers:
        outputs: list[Tensor] = []
        keep = model.get_submodule(layer).register_forward_hook(lambda _m, _i, o, into=outputs: into.append(o.clone()))  # type: ignore[misc]
        with frozen(model), torch.no_grad():
            model(images)
        keep.remove()
        sizes = torch.stack([o.abs().transpose(0, 1).flatten(1).mean(1) for o in outputs]).mean(0)
        torch.testing.assert_close(found[layer].float()[0], sizes)


def test_units_are_ranked_by_magnitude_and_equals_keep_their_order():
    gradients = {
        "a": SignedLog.of(torch.tensor([[0.0, 1.0], [-3.0, 2.0]])),
        "b": SignedLog.of(torch.tensor([[-1.0]] * 2)),
    }
    assert [str(each.unit) for each in rank_units(gradients)] == ["a[1]", "b[0]", "a[0]"]
    ranked = rank_units(gradients, 1)
    assert [each.unit for each in ranked] == [Unit("a", (0,)), Unit("a", (1,)), Unit("b", (0,))]
    assert [each.value for each in ranked] == pytest.approx([3, 2, 1])
    assert rank_units({}) == []
    for row in (2, -1):
        with pytest.raises(InputError, match=rf"^row must lie in 0\.\.1, got {row}$"):
            rank_units(gradients, row)


def test_single_positions_are_ranked_too():
    gradient = SignedLog.of(torch.tensor([[[[1.0, -5.0], [0.0, 2.0]]]]))
    assert [each.unit.index for each in rank_units({"a": gradient})] == [(0, 0, 1), (0, 1, 1), (0, 0, 0), (0, 1, 0)]


def test_rank_agreement_is_scipys_kendalls_tau():
    from scipy.stats import kendalltau

    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randint(0, 6, (4, n), generator=generator).double() for n in (7, 4))
    found = rank_agreement({"a": SignedLog.of(one), "b": SignedLog.of(other)})
    both = torch.cat([one, other], 1).numpy()
    for i in range(4):
        for j in range(4):
            assert found[i, j].item() == pytest.approx(kendalltau(both[i], both[j]).statistic)  # type: ignore[union-attr]
    assert rank_agreement({"a": SignedLog.of(torch.ones(2, 3))}).isnan().all()


# Knockout -------------------------------------------------------------------------------------------------------------


def some_units(model: nn.Module, layers: Sequence[str], images: Tensor) -> list[Unit]:
    """Of each layer its second unit, whole; and of those with positions a single one."""
    units = []
    for layer, shape in shapes_of(model, layers, images).items():
        units.append(Unit(layer, (1,)))
        if len(shape) > 1:
            units.append(Unit(layer, tuple(n - 1 for n in shape)))
    return units


@every_kind
def test_a_unit_that_is_knocked_out_puts_out_zero(kind: str):
    model, layers, images = made(kind)
    units = some_units(model, layers, images)
    for gone in ([units[0]], [units[-1]], units[:3], units):
        with knockout(model, gone) as same, frozen(model), torch.no_grad():
            assert same is model
            found = model(images)
        torch.testing.assert_close(found, zeroed_logits(model, gone, images))
        assert not torch.equal(found, zeroed_logits(model, [], images))


@every_kind
def test_knockout_leaves_no_trace(kind: str):
    model, layers, images = made(kind)
    units = some_units(model, layers, images)
    before = condition(model)
    with frozen(model), torch.no_grad():
        clean = model(images)
    with pytest.raises(ZeroDivisionError), knockout(model, units), frozen(model):
        _ = model(images), 1 / 0
    prediction_gradient(model, images, layers)
    class_gradient(model, images, torch.arange(5) % 4, layers)
    activity(model, images, layers)
    predictions_without(model, images, [units])
    with frozen(model), torch.no_grad():
        assert torch.equal(model(images), clean)
    assert condition(model) == before


@every_kind
def test_the_images_are_left_alone(kind: str):
    model, layers, images = made(kind)
    before = images.clone()
    predictions_without(model, images, [[], some_units(model, layers, images)])
    assert torch.equal(images, before)


def test_nothing_is_left_behind_when_a_gradient_fails_halfway():
    model = Attending()
    before = condition(model)
    with pytest.raises(InputError):
        prediction_gradient(model, pictures(2), ["enter", "attention.out_proj"])
    with pytest.raises(InputError), knockout(model, [Unit("enter", (0,)), Unit("nothing", (0,))]):
        pass
    assert condition(model) == before


def test_a_unit_without_an_outgoing_weight_can_go_unnoticed():
    model, images = convnet(), pictures(6)
    with torch.no_grad():
        model[4].weight.view(4, 6, 16)[:, 2] = 0  # type: ignore[union-attr]
        clean = model(images)
        with knockout(model, [Unit("1", (2,))]):
            assert torch.equal(model(images), clean)
        with knockout(model, [Unit("1", (i,)) for i in (0, 1, 3, 4, 5)]):
            assert not torch.equal(model(images), clean)


def test_a_knockout_inside_another_adds_to_it_and_a_gradient_through_it_misses_the_unit():
    model, images = convnet().double(), pictures(3, dtype=torch.float64)
    one, other = Unit("1", (0,)), Unit("1", (4, 1, 2))
    with torch.no_grad(), knockout(model, [one]), knockout(model, [other]):
        torch.testing.assert_close(model(images), zeroed_logits(model, [one, other], images))
    with knockout(model, [one]):
        found = prediction_gradient(model, images, ["0"], classes=1)["0"]
    assert (found.sign[:, 0] == 0).all()
    assert (found.sign[:, 1] != 0).any()


def test_what_is_not_finite_is_zero_too_once_knocked_out():
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :4] / 0

    model = nn.Sequential(Broken(), nn.Linear(4, 2))
    with knockout(model, [Unit("0", (i,)) for i in range(4)]):
        assert model(pictures(2)).isfinite().all()


@pytest.mark.parametrize("batch", [1, 4, 7, 256])
@every_kind
def test_many_knockouts_at_once_are_what_each_is_alone(kind: str, batch: int):
    model, layers, _ = made(kind)
    images = pictures(9, dtype=torch.float64)
    units = some_units(model, layers, images)
    sets = [units[:count] for count in range(len(units) + 1)] + [units[1::2], units[:2], units[::-1]]
    found = predictions_without(model, images, sets, batch_size=batch)
    expected = torch.stack([zeroed_logits(model, gone, images).argmax(1) for gone in sets])
    assert torch.equal(found, expected)
    assert len(found.unique(dim=0)) > 1


@pytest.mark.usefixtures("unprobed")
def test_what_lies_ahead_of_a_knockout_is_computed_once_and_equal_sets_are_tried_once():
    first, second = Counting(nn.Conv2d(1, 3, 3)), Counting(nn.Sequential(nn.Flatten(), nn.Linear(48, 4)))
    model = nn.Sequential(first, nn.Tanh(), second)
    sets = [[Unit("1", (0,))], [Unit("1", (1,))], [], [Unit("1", (1,)), Unit("1", (0,))], [Unit("1", (1,))]]
    predictions_without(model, pictures(10), sets, batch_size=20)
    assert first.sizes == [1, 10]  # the door's, and once for all
    assert second.sizes == [1, 20, 10, 10]  # two sets at once, the third, the whole model


def test_a_sequential_that_has_hooks_of_its_own_is_called_whole():
    model, images = nested(), pictures(6)
    units = [[Unit("2.0", (1,))]]
    plain = predictions_without(model, images, units)
    handle = model.register_forward_hook(lambda _m, _i, output: -output)
    turned = predictions_without(model, images, units)
    handle.remove()
    assert not torch.equal(plain, turned)


def test_a_sequential_that_uses_a_layer_twice_is_knocked_out_in_both_places():
    act = nn.Tanh()
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), act, nn.Linear(5, 5), act, nn.Linear(5, 4))
    images, units = pictures(8), [Unit("4", (1,)), Unit("2", (2,))]
    assert torch.equal(predictions_without(model, images, [units])[0], zeroed_logits(model, units, images).argmax(1))


def test_a_curve_tells_who_errs_and_where_predictions_go():
    curve = KnockoutCurve(
        units=(Unit("a", (0,)),),
        gone=(0, 1),
        labels=torch.tensor([0, 0, 1, 2]),
        predictions=torch.tensor([[0, 0, 1, 1], [0, 2, 2, 2]]),
        classes=3,
    )
    assert [(e.count, e.total) for e in curve.errors()] == [(1, 4), (2, 4)]
    assert [(e.count, e.total) for e in curve.errors(curve.labels == 0)] == [(0, 2), (1, 2)]
    assert curve.moves().tolist() == [[[2, 0, 0], [0, 1, 0], [0, 1, 0]], [[1, 0, 1], [0, 0, 1], [0, 0, 1]]]


@pytest.mark.parametrize(
    ("points", "gone"), [(2, (0, 9)), (4, (0, 1, 4, 9)), (10, tuple(range(10))), (99, tuple(range(10)))]
)
def test_a_curve_of_few_points_has_those_of_the_whole(points: int, gone: tuple[int, ...]):
    model, images = convnet(gain=3), pictures(12)
    labels = predicted(model, images)
    order = {"one": [Unit("1", (i,)) for i in range(6)] + [Unit("0", (i,)) for i in range(3)]}
    whole, some = (knockout_curves(model, images, labels, order, points=each) for each in (None, points))
    assert some["one"].gone == gone
    assert torch.equal(some["one"].predictions, whole["one"].predictions[list(gone)])


def test_what_units_put_out_is_what_the_layer_returns():
    model, images = convnet(), pictures(40)
    put_out = outputs(model, images, ["0", "1"], batch_size=16)
    assert torch.allclose(put_out["0"], model[0](images))
    assert torch.allclose(put_out["1"], model[1](put_out["0"]))


def test_layers_worth_asking_about():
    image = torch.rand(1, 1, 28, 28)
    whole = papernot_mnist()
    assert [type(whole.get_submodule(name)) for name in telling_layers(whole, image)] == [nn.ReLU] * 4
    faces = lo_ding_faces(size=36)
    assert telling_layers(faces, torch.rand(1, 1, 36, 36)) == ["tanh1", "tanh2", "tanh3"]
    dense = nn.Sequential(nn.Flatten(), nn.Linear(784, 5), nn.GELU(), nn.Linear(5, 3))
    assert telling_layers(dense, image) == ["2"]
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(1352, 5), nn.Linear(5, 3))
    assert telling_layers(plain, image) == ["0", "2"]
    with pytest.raises(InputError, match=r"^the model has no layer to ask about among 0, 1: name some"):
        telling_layers(nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), image)
    assert not any(layer._forward_hooks for layer in [*whole.modules(), *faces.modules()])


def test_curves_knock_out_one_unit_more_each_time():
    model, images = convnet(gain=3), pictures(12)
    labels = predicted(model, images)
    units = [Unit("1", (i,)) for i in range(6)]
    orders = {"up": units, "down": units[::-1][:4], "none": []}
    curves = knockout_curves(model, images, labels, orders)
    assert list(curves) == ["up", "down", "none"]
    for name, order in orders.items():
        assert curves[name].units == tuple(order)
        assert curves[name].classes == 4
        expected = [zeroed_logits(model, order[:count], images).argmax(1) for count in range(len(order) + 1)]
        assert torch.equal(curves[name].predictions, torch.stack(expected))
        assert curves[name].errors()[0].count == 0
    everything_gone = curves["up"].predictions[-1]
    assert (everything_gone == everything_gone[0]).all()


def test_orders_are_the_strongest_the_weakest_the_least_active_and_chance():
    units = [Unit("a", (i,)) for i in range(8)]
    ranked = [Ranked(unit, -i) for i, unit in enumerate(units)]
    active = [Ranked(units[i], 0.0) for i in (3, 1, 0, 2, 4, 5, 7, 6)]
    orders = knockout_orders(ranked, active, count=3, random=2, seed=5)
    assert orders["strongest"] == tuple(units[:3])
    assert orders["weakest"] == (units[7], units[6], units[5])
    assert orders["least active"] == (units[6], units[7], units[5])
    assert list(orders) == ["strongest", "weakest", "least active", "random 1", "random 2"]
    assert orders == knockout_orders(ranked, active, count=3, random=2, seed=5)
    whole = knockout_orders(ranked, active, random=2, seed=6)
    assert whole["random 1"] != whole["random 2"]
    assert sorted(whole["random 1"], key=str) == units
    assert len(knockout_orders(ranked, active, random=0)) == 3


def test_the_strongest_units_of_a_trained_network_are_missed_most():
    data = blobs()
    network = build(convnet, seed=0, classes=3)
    fitted = fit(
        network, data, epochs=20, learning_rate=0.1, momentum=0.9, batch_size=20, dtype="float32", device="cpu"
    )
    images, labels = data.test.images, data.test.labels
    gradients = class_gradient(fitted.model, data.train.images, data.train.labels, ["1"], classes=[1], of_maps=True)
    ranked = rank_units(gradients)
    active = rank_units(activity(fitted.model, data.train.images, ["1"]))
    curves = knockout_curves(fitted.model, images, labels, knockout_orders(ranked, active))
    within = {name: [e.value for e in curve.errors(labels == 1)] for name, curve in curves.items()}
    assert within["strongest"][0] == 0
    assert sum(within["strongest"]) >= sum(within["weakest"])


# Bad input ------------------------------------------------------------------------------------------------------------


def told(match: str) -> Any:
    return pytest.raises(InputError, match=match)


def test_an_unknown_layer_is_answered_with_the_nearest():
    model, images = build(lo_ding_faces, seed=0, size=36), pictures(2, (1, 36, 36))
    match = r"^unknown layer 'tahn2': did you mean 'tanh2' or 'tanh4'\? \(known: conv1, "
    with told(match):
        prediction_gradient(model, images, ["tahn2"])
    with told(match), knockout(model, [Unit("tahn2", (0,))]):
        pass
    with told(match):
        predictions_without(model, images, [[Unit("tahn2", (0,))]])


class Pair(nn.Module):
    """Returns a dict."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) -> itself, and its mean."""
        return {"images": images, "mean": images.mean()}


class Named(nn.Module):
    """A layer whose output is a dict, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.pair, self.network, self.idle = Pair(), convnet(gain=3), nn.Linear(1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return self.network(self.pair(images)["images"])


def test_a_layer_without_one_tensor_is_named():
    model, images = Named(), pictures(2)
    for attempt in (
        lambda: prediction_gradient(model, images, ["pair"]),
        lambda: activity(model, images, ["pair"]),
        lambda: predictions_without(model, images, [[Unit("pair", (0,))]]),
    ):
        with told("^layer 'pair' returns a dict, not a tensor"):
            attempt()
    with told("^layer 'idle' is not called by the model"):
        prediction_gradient(model, images, ["idle"])
    with told("^layer 'pair' returns a dict"), knockout(model, [Unit("pair", (0,))]):
        model(images)


def test_the_first_of_a_tuple_is_what_a_layer_puts_out():
    model, images = Attending().double(), pictures(3, dtype=torch.float64)
    inputs = model.enter(images[:, 0]).detach()
    mixed = model.attention(inputs, inputs, inputs)[0].detach().requires_grad_(True)
    (expected,) = torch.autograd.grad(model.leave(mixed.mean(1))[:, 2].sum(), mixed)
    found = prediction_gradient(model, images, ["attention"], classes=2, of="logits")["attention"].float()
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_a_layer_that_does_not_keep_the_batch_is_named():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.turn = nn.Flatten(0)
            self.head = nn.Linear(36, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.turn(images).view(-1, 36))

    with told(r"^layer 'turn' returns \(36,\) torch.float32, not a tensor \(B, units, ...\)"):
        prediction_gradient(Turned(), pictures(2), ["turn"])


def test_a_layer_used_with_several_shapes_is_named():
    model, images = Reused(), pictures(2)
    for attempt in (prediction_gradient, activity):
        with told("^layer 'act' is used several times, with outputs .* name the layers ahead of it$"):
            attempt(model, images, ["act"])


@pytest.mark.parametrize("index", [(6,), (-1,), (0, 4, 0), (0, 0, 0, 0), ()])
def test_a_unit_out_of_range_is_told_what_there_is(index: tuple[int, ...]):
    model, images = convnet(), pictures(2)
    match = r"^unit 1\[.*\] is not there: layer '1' has units \(6, 4, 4\)$"
    with told(match):
        predictions_without(model, images, [[Unit("1", index)]])
    before = condition(model)
    with told(match), knockout(model, [Unit("1", (0,)), Unit("1", index)]):
        model(images)
    assert condition(model) == before


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (torch.zeros(2, 6, 6), r"^images must be \(N, C, H, W\), floating and some, got \(2, 6, 6\)"),
        (torch.zeros(0, 1, 6, 6), r"^images must be .* got \(0, 1, 6, 6\)"),
        (torch.zeros(2, 1, 6, 6, dtype=torch.uint8), "torch.uint8$"),
        (torch.full((2, 1, 6, 6), 7.0), r"^images must lie in \[0, 1\], got \[7, 7\]$"),
        (torch.full((2, 1, 6, 6), torch.nan), r"^images must lie in \[0, 1\]"),
        (torch.zeros(2, 1, 8, 8), r"^the model fails on images \(1, 1, 8, 8\): RuntimeError: mat1 and mat2"),
        (torch.zeros(2, 3, 6, 6), r"^the model fails on images \(1, 3, 6, 6\): "),
    ],
)
def test_images_that_do_not_fit_are_refused(images: Tensor, match: str):
    for attempt in (
        lambda: prediction_gradient(convnet(), images, ["1"]),
        lambda: class_gradient(convnet(), images, torch.zeros(2, dtype=torch.int64), ["1"]),
        lambda: predictions_without(convnet(), images, [[]]),
    ):
        with told(match) as error:
            attempt()
        assert "\n" not in str(error.value)


LABELS = torch.tensor([0, 1, 3, 3])
RANKED = [Ranked(Unit("1", (i,)), 0.0) for i in range(3)]


def of_class(model: nn.Module, images: Tensor, **options: Any) -> object:
    return class_gradient(model, images, options.pop("labels", LABELS), ["1"], **options)


@pytest.mark.parametrize(
    ("match", "attempt"),
    [
        (r"^class 2 has none of the 4 images$", lambda m, x: of_class(m, x, classes=[1, 2])),
        (r"^classes must be different ones in 0..3, got \[4\]$", lambda m, x: of_class(m, x, classes=[4])),
        (r"^classes must be different ones in 0..3, got \[1, 1\]$", lambda m, x: of_class(m, x, classes=[1, 1])),
        (r"^classes must be different ones in 0..3, got \[\]$", lambda m, x: of_class(m, x, classes=[])),
        (r"^classes must be int64 .*, \(4,\), got \(3,\) torch.int64$", lambda m, x: of_class(m, x, labels=LABELS[:3])),
        (r"^temperature must be a positive finite number, got 0$", lambda m, x: of_class(m, x, temperature=0)),
        (r"^classes must lie in 0..3, .* got 7..7$", lambda m, x: prediction_gradient(m, x, ["1"], classes=7)),
        (r"^layers must be the names .* got \[\]$", lambda m, x: prediction_gradient(m, x, [])),
        (r"^layers must be the names .* got '1'$", lambda m, x: prediction_gradient(m, x, "1")),
        (r"^unknown output 'logit': did you mean", lambda m, x: prediction_gradient(m, x, ["1"], of="logit")),  # type: ignore[arg-type]
        (r"^classes must be int64", lambda m, x: knockout_curves(m, x, LABELS.float(), {})),
        (r"^points must be at least 2, .* got 1", lambda m, x: knockout_curves(m, x, LABELS, {}, points=1)),
        (r"^the model must return logits \(1, K\)", lambda _, x: predictions_without(nn.Flatten(0), x, [[]])),
        (r"^count must lie in 1..3, got 4$", lambda *_: knockout_orders(RANKED, RANKED, count=4)),
        (r"^random must be at least 0, got -1$", lambda *_: knockout_orders(RANKED, RANKED, random=-1)),
        (r"^expected the activity of the same 3 units", lambda *_: knockout_orders(RANKED, RANKED[:2])),
    ],
)
def test_wrong_requests_are_told_what_was_expected(match: str, attempt: Callable[[nn.Module, Tensor], object]):
    with told(match):
        attempt(convnet(), pictures(4))


def test_a_model_whose_gradients_are_zero_has_them_so():
    found = prediction_gradient(nn.Sequential(nn.Identity(), Constant()), pictures(2), ["0"], classes=0)["0"]
    assert (found.sign == 0).all()


def test_progress_is_told():
    model, images, labels = convnet(), pictures(10), torch.arange(10) % 4
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int, note: str = "") -> None:
        told.append((done, total))

    prediction_gradient(model, images, ["1"], classes=0, batch_size=4, progress=progress)
    assert told == [(4, 10), (8, 10), (10, 10)]
    told.clear()
    class_gradient(model, images, labels, ["1"], batch_size=5, progress=progress)
    activity(model, images, ["1"], batch_size=5, progress=progress)
    assert told == [(5, 10), (10, 10)] * 2
    told.clear()
    predictions_without(model, images, [[], [Unit("1", (0,))]], batch_size=5, progress=progress)
    assert told == [(10, 20), (20, 20)]


# Networks of all kinds ------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """A patch convolution, attention over its tokens, a normalisation, and an MLP."""

    def __init__(self, own: bool):
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 2, 2)
        self.mixed = (
            nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) if own else nn.MultiheadAttention(8, 2, batch_first=True)
        )
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        tokens = self.patch(images).flatten(2).transpose(1, 2)
        mixed = self.mixed(tokens) if isinstance(self.mixed, nn.Sequential) else self.mixed(tokens, tokens, tokens)[0]
        return self.head(self.mlp(self.norm(tokens + mixed)).mean(1))


@pytest.mark.parametrize("own", [True, False])
def test_channels_are_the_units_of_tokens_and_attention_has_default_layers(own: bool):
    torch.manual_seed(0)
    model, images = Attention(own).eval(), pictures(6)
    labels = torch.arange(6) % 4
    assert telling_layers(model, images[:1]) == ["mixed", "mlp.1"]
    layers = ["mixed", "norm", "mlp.1", "mlp.2"]
    found = class_gradient(model, images, labels, layers)
    shapes = {name: tuple(values.log10.shape) for name, values in found.items()}
    assert shapes == {"mixed": (4, 8, 9), "norm": (4, 8, 9), "mlp.1": (4, 12, 9), "mlp.2": (4, 8, 9)}
    assert outputs(model, images, ["norm"])["norm"].shape == (6, 8, 9)
    tokens = model.norm.register_forward_hook(lambda _module, _inputs, output: output.index_fill(2, torch.tensor(3), 0))
    expected = model(images).argmax(1)
    tokens.remove()
    assert torch.equal(predictions_without(model, images, [[Unit("norm", (3,))]])[0], expected)


def test_an_activation_that_goes_on_in_place_changes_nothing_that_was_kept():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    other = copy.deepcopy(plain)
    other[1] = nn.ReLU(inplace=True)
    kept = outputs(other, pictures(3), ["0"])["0"]
    assert torch.equal(kept, outputs(plain, pictures(3), ["0"])["0"])
    assert (kept < 0).any()


class Bottleneck(nn.Module):
    """One ReLU, used at two widths."""

    def __init__(self):
        super().__init__()
        self.narrow, self.wide, self.relu = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1), nn.ReLU(inplace=True)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.relu(self.wide(self.relu(self.narrow(maps))) + maps)


def test_a_layer_used_at_several_widths_is_no_default_layer():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), Bottleneck(), nn.Flatten(), nn.Linear(128, 4))
    images, labels = pictures(8), torch.arange(8) % 4
    assert telling_layers(model, images[:1]) == ["1"]
    class_gradient(model, images, labels, telling_layers(model, images[:1]))
    alone = nn.Sequential(nn.Conv2d(1, 8, 3), Bottleneck(), nn.Flatten(), nn.Linear(128, 4))
    assert telling_layers(alone, images[:1]) == ["0", "1.narrow", "1.wide"]


def test_classes_without_images_are_left_out_and_said():
    model, images = convnet(gain=3), pictures(4)
    labels = torch.tensor([3, 1, 1, 3])
    with pytest.warns(UserWarning, match=r"^2 of 4 classes have no images and are left out: 0, 2$"):
        found = class_gradient(model, images, labels, ["0"])["0"]
    asked = class_gradient(model, images, labels, ["0"], classes=[1, 3])["0"]
    assert torch.equal(found.log10, asked.log10)


def test_layers_of_a_compiled_model_are_found_by_the_names_they_had():
    plain, images, labels = convnet(gain=3).eval(), pictures(8), torch.arange(8) % 4
    expected = class_gradient(plain, images, labels, ["1"])["1"].log10
    whole: Any = torch.compile(copy.deepcopy(plain), backend="eager")
    part: Any = torch.compile(copy.deepcopy(plain), backend="eager")
    inside = nn.Sequential(part)
    own = copy.deepcopy(plain)
    own.compile(backend="eager")
    for model, names in ((whole, ("1", "_orig_mod.1")), (inside, ("0.1", "0._orig_mod.1")), (own, ("1",))):
        model(images[:2])  # compiled for this shape, it does not call hooks
        for name in names:
            assert torch.equal(class_gradient(model, images, labels, [name])[name].log10, expected)
        assert telling_layers(model, images[:1]) == [names[0]]
