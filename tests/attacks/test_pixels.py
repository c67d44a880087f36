"""Song's algorithms against the paper's own words written as loops, and against models whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mpmath import mp
from problems import Brightness, Constant, Counting, convnet, linear, pictures, predicted
from torch import Tensor, nn
from torch.nn import functional as F

from brittle.attacks import AttackResult, song_1, song_2, song_3, song_4
from brittle.attacks.pixel_flips import flip_logits
from brittle.attacks.result import check_request

ATTACKS = {1: song_1, 2: song_2, 3: song_3, 4: song_4}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=[f"song_{n}" for n in ATTACKS])
both_arithmetics = pytest.mark.parametrize("arithmetic", ["exact", "float32"])


# The paper's text, one image and one flip a call ----------------------------------------------------------------------


def published_loss(logits: Tensor, label: int, temperature: float) -> Tensor:
    """Float32 probabilities, then the logarithm."""
    return -torch.softmax(logits.float() / temperature, 0)[label].log()


def double_loss(logits: Tensor, label: int, temperature: float) -> float:
    """-log F_y in float64, without a softmax that could round."""
    values = logits.tolist()
    others = [(z - values[label]) / temperature for index, z in enumerate(values) if index != label]
    return math.log1p(sum(math.exp(z) for z in others))


def gradient(model: nn.Module, image: Tensor, label: int, temperature: float, arithmetic: str) -> Tensor:
    """(H, W), the pixel's channels moved together."""
    image = image.clone().requires_grad_(True)
    logits = model(image[None])[0]
    if arithmetic == "float32":
        loss = published_loss(logits, label, temperature)
    else:
        loss = F.cross_entropy(logits[None] / temperature, torch.tensor([label]))
    return torch.autograd.grad(loss, image)[0].sum(0)


def largest(saliency: dict[tuple[int, int], float]) -> tuple[int, int]:
    """The pixel of the largest number, the first of equals."""
    best = max(saliency.values())
    return next(pixel for pixel, value in saliency.items() if value == best)


def by_the_book(
    algorithm: int,
    model: nn.Module,
    image: Tensor,
    label: int,
    target: int | None,
    max_pixels: int,
    temperature: float,
    arithmetic: str,
    signed: bool = False,
    darken: bool = True,
    refresh_every: int = 1,
) -> tuple[bool, list[int], Tensor]:
    """Success, the pixels set in order, and the last image. A target's loss is lowered where the label's is raised."""
    c = image.clone()
    width = image.shape[2]
    pixels = [(m, n) for m in range(image.shape[1]) for n in range(width)]
    aim, direction = (label, 1) if target is None else (target, -1)
    size = (lambda change: direction * change) if signed else abs

    def fooled() -> bool:
        prediction = int(model(c[None])[0].argmax())
        return prediction != label if target is None else prediction == target

    def loss(image: Tensor) -> float:
        logits = model(image[None])[0].detach()
        if arithmetic == "float32":
            return published_loss(logits, aim, temperature).item()
        return double_loss(logits, aim, temperature)

    level: dict[tuple[int, int], float] = {}
    saliency: dict[tuple[int, int], float] = {}

    def draw_map() -> None:
        if algorithm in (2, 4):
            loss_0 = loss(c)
            for m, n in pixels:
                temp = c[:, m, n].clone()
                c[:, m, n] = 1
                to_one = size(loss(c) - loss_0)
                c[:, m, n] = 0
                to_zero = size(loss(c) - loss_0) if darken else -math.inf
                c[:, m, n] = temp
                saliency[m, n] = max(to_one, to_zero)
                level[m, n] = 1 if saliency[m, n] == to_one else 0
        else:
            slopes = direction * gradient(model, c, aim, temperature, arithmetic)
            for m, n in pixels:
                slope = slopes[m, n].item()
                saliency[m, n] = slope if algorithm == 1 else abs(slope)
                level[m, n] = 1 if algorithm == 1 or slope > 0 else 0

    if fooled():
        return True, [], c
    draw_map()
    order = []
    for trial in range(min(max_pixels, len(pixels))):
        if algorithm == 4 and trial % refresh_every == 0:
            draw_map()
        for used in order:
            saliency[divmod(used, width)] = -math.inf
        m, n = largest({pixel: value for pixel, value in saliency.items() if pixel[0] * width + pixel[1] not in order})
        c[:, m, n] = level[m, n]
        order.append(m * width + n)
        if fooled():
            return True, order, c
    return False, [], image


@both_arithmetics
@pytest.mark.parametrize(("channels", "seed"), [(1, 0), (1, 1), (3, 2), (3, 3)])
@pytest.mark.parametrize("algorithm", ATTACKS)
@pytest.mark.parametrize("targeted", [False, True])
def test_batches_do_what_the_paper_does_to_one_image(
    targeted: bool, algorithm: int, channels: int, seed: int, arithmetic: str
):
    model = convnet(channels=channels, seed=seed, gain=2).double()  # so that no rounding depends on the batch
    images = pictures(6, (channels, 6, 6), seed=seed, dtype=torch.float64)
    labels = predicted(model, images)
    labels[0] = (labels[0] + 1) % 4  # wrong from the start
    targets = (labels + 1 + seed % 2) % 4 if targeted else None
    temperature, max_pixels = (1.0, 20) if seed % 2 else (7.0, 12)
    request: dict[str, Any] = {"max_pixels": max_pixels, "temperature": temperature, "arithmetic": arithmetic}
    found = ATTACKS[algorithm](model, images, labels, targets=targets, **request)
    assert_by_the_book(found, algorithm, model, **request)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("darken", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("refresh_every", [None, 1, 3, 5])
@both_arithmetics
def test_the_options_do_what_they_say(
    arithmetic: str, refresh_every: int | None, signed: bool, darken: bool, targeted: bool
):
    model = convnet(seed=4, gain=2).double()
    images = pictures(4, seed=4, dtype=torch.float64)
    labels = predicted(model, images)
    targets = (labels + 1) % 4 if targeted else None
    algorithm, request = 2, {"max_pixels": 14, "temperature": 2.0, "arithmetic": arithmetic}
    request |= {"signed": signed, "darken": darken}
    if refresh_every:
        algorithm, request = 4, request | {"refresh_every": refresh_every}
    found = ATTACKS[algorithm](model, images, labels, targets=targets, **request)
    assert_by_the_book(found, algorithm, model, **request)


def assert_by_the_book(found: AttackResult, algorithm: int, model: nn.Module, **request: Any) -> None:
    """Every row alone, by the paper's loops: same success, same pixels in the same order, same image."""
    for row, (image, label) in enumerate(zip(found.images, found.labels.tolist(), strict=True)):
        target = None if found.targets is None else int(found.targets[row])
        success, order, last = by_the_book(algorithm, model, image, label, target, **request)
        assert found.success[row] == success
        assert in_order(found, row) == order
        assert torch.equal(found.adversarial[row], last)


def test_algorithm_4_with_one_map_is_algorithm_2():
    model, images = convnet(gain=2), pictures(6)
    labels = predicted(model, images)
    once, anew = (
        song_2(model, images, labels, max_pixels=9),
        song_4(model, images, labels, max_pixels=9, refresh_every=9),
    )
    assert torch.equal(once.adversarial, anew.adversarial)
    assert torch.equal(once.forwards, anew.forwards)


def test_algorithm_4_may_give_up_at_a_map_of_zeros():
    """Two classes far apart: float32's softmax stays one-hot whatever pixel is set; the exact map is never 0."""
    model, images, labels, _ = two_classes(scale=1e4)
    by_index = song_4(model, images, labels, max_pixels=25, arithmetic="float32")
    stopped = song_4(model, images, labels, max_pixels=25, arithmetic="float32", stop_at_zeros=True)
    zeros = ~stopped.success & (stopped.forwards <= 1 + 2 * 25)  # no more than one map
    assert zeros.any()
    assert (by_index.forwards[zeros] > 1 + 2 * 25).all()
    assert torch.equal(stopped.adversarial[~zeros], by_index.adversarial[~zeros])
    exact, same = (song_4(model, images, labels, max_pixels=25, stop_at_zeros=stop) for stop in (True, False))
    assert torch.equal(exact.adversarial, same.adversarial)
    assert torch.equal(exact.forwards, same.forwards)


def test_a_map_of_equals_is_no_map_of_zeros():
    found = song_4(Brightness(2.5), torch.zeros(1, 1, 3, 3), torch.tensor([0]), stop_at_zeros=True)
    assert in_order(found, 0) == [0, 1, 2]


def test_algorithm_4_leaves_a_pixel_that_the_last_flip_has_made_useless():
    """Either of the first two pixels passes the first gate, and only then does the third matter: 2 maps, 2 flips."""
    model = Gates()
    images = torch.zeros(1, 1, 1, 4)
    assert in_order(song_4(model, images, torch.tensor([0])), 0) == [0, 2]
    assert in_order(song_2(model, images, torch.tensor([0])), 0) == [0, 1, 2]


class Gates(nn.Module):
    """Class 1 wins when pixel 0 or 1 is set, and pixel 2 too; 0 counts a little more than 1, and 2 not yet at all."""

    def forward(self, images: Tensor) -> Tensor:
        a, b, c, _ = images.flatten(1).unbind(1)
        gate = torch.maximum(a, 0.9 * b)
        return torch.stack([torch.full_like(a, 1.5), gate + gate * c], 1)


def in_order(found: AttackResult, row: int) -> list[int]:
    """The pixels that were set, and nothing after them."""
    assert found.pixels is not None
    pixels = found.pixels[row].tolist()
    count = int(found.flips[row])
    assert pixels[count:] == [-1] * (len(pixels) - count)
    return pixels[:count]


def test_the_cases_above_hold_successes_after_one_and_several_flips_and_failures():
    model = convnet(seed=1, gain=2).double()
    images = pictures(6, seed=1, dtype=torch.float64)
    found = song_3(model, images, predicted(model, images), max_pixels=20)
    assert set(found.success.tolist()) == {True, False} or found.flips.max() > 1


# Models whose answer is known ---------------------------------------------------------------------------------------


def two_classes(scale: float = 1.0, seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """A linear model of two classes, images, the predicted labels, and (B, H * W) the slope of the log-odds."""
    model, images = linear(shape=(1, 5, 5), scale=scale, bias=False, seed=seed), pictures(8, (1, 5, 5), seed=seed)
    weights = model[1].weight.detach()  # type: ignore[union-attr]
    labels = predicted(model, images)
    return model, images, labels, weights[1 - labels] - weights[labels]


def closed_form(slopes: Tensor, images: Tensor, algorithm: int) -> tuple[Tensor, Tensor]:
    """Each row's pixels in order, and the level of each."""
    flat = images.flatten(1).double()
    start = (slopes * flat).sum(1, keepdim=True)
    to_zero, to_one = ((F.softplus(start + slopes * (level - flat)) - F.softplus(start)).abs() for level in (0, 1))
    saliency = {1: slopes, 2: torch.maximum(to_zero, to_one), 3: slopes.abs()}[algorithm]
    level = {1: torch.ones_like(flat), 2: (to_one >= to_zero).float(), 3: (slopes > 0).float()}[algorithm]
    return saliency.argsort(1, descending=True), level


@pytest.mark.parametrize("algorithm", [1, 2, 3])
def test_a_linear_model_is_flipped_in_the_order_of_the_closed_form(algorithm: int):
    model, images, labels, slopes = two_classes()
    order, level = closed_form(slopes, images, algorithm)
    found = ATTACKS[algorithm](model, images, labels, max_pixels=25)
    for row in range(8):
        flipped = images[row].flatten().clone()
        margin = -(slopes[row] @ flipped)
        expected: list[int] = []
        while margin > 0 and len(expected) < 25:
            pixel = int(order[row, len(expected)])
            expected.append(pixel)
            flipped[pixel] = level[row, pixel]
            margin = -(slopes[row] @ flipped)
        assert found.success[row] == (margin < 0)
        assert in_order(found, row) == (expected if margin < 0 else [])
    assert found.success.sum() > 0 or algorithm == 2


def test_a_rise_of_the_loss_counts_for_more_than_a_longer_fall_of_its_log_odds():
    """From log-odds of -5, pixel 0 can only lead down to -85, a change of the loss by 0.007; pixel 1 up to 5, by 5."""
    model = linear(shape=(1, 1, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0, 0.0], [80.0, 10.0]]))  # type: ignore[union-attr]
        model[1].bias.copy_(torch.tensor([0.0, -85.0]))  # type: ignore[union-attr]
    found = song_2(model, torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([0]))
    assert in_order(found, 0) == [1]


@pytest.mark.parametrize(("rise", "expected"), [(1.8, [0, 1]), (2.2, [1, 0])])
def test_a_fall_of_the_loss_by_95_percent_stands_between_rises_by_80_and_120(rise: float, expected: list[int]):
    """From log-odds of -5, pixel 0 leads down to -8 and pixel 1 up; thirty others, each up by 65 %, end it."""
    model = linear(shape=(1, 1, 32))
    with torch.no_grad():
        model[1].weight.zero_()[1] = torch.tensor([3.0, math.log(rise)] + [0.5] * 30)  # type: ignore[union-attr]
        model[1].bias.copy_(torch.tensor([0.0, -8.0]))  # type: ignore[union-attr]
    image = torch.zeros(1, 1, 1, 32)
    image[..., 0] = 1
    assert in_order(song_2(model, image, torch.tensor([0])), 0)[:2] == expected


def test_algorithm_3_breaks_a_linear_model_with_the_fewest_pixels_of_all():
    """From an image without greys every useful flip has full room, so the largest slopes first is the best there is."""
    model, _, _, _ = two_classes()
    images = pictures(8, (1, 5, 5)).round()
    labels = predicted(model, images)
    weights = model[1].weight.detach()  # type: ignore[union-attr]
    slopes = weights[1 - labels] - weights[labels]
    gains = (slopes * ((slopes > 0).float() - images.flatten(1))).sort(1, descending=True).values
    margin = -(slopes * images.flatten(1)).sum(1)
    fewest = (gains.cumsum(1) <= margin[:, None]).sum(1) + 1
    found = song_3(model, images, labels, max_pixels=25)
    assert found.success.all()
    assert torch.equal(found.norm(0), fewest)


@pytest.mark.parametrize("attack", [song_2, song_4])
def test_signed_differences_break_a_linear_model_with_the_fewest_pixels_of_all(attack: Callable[..., AttackResult]):
    """A flip's gain in log-odds does not depend on the others, so the largest gains first is the best there is."""
    model, images, labels, slopes = two_classes()
    flat = images.flatten(1)
    gains = torch.maximum(slopes * (1 - flat), -slopes * flat).sort(1, descending=True).values
    margin = -(slopes * flat).sum(1)
    fewest = (gains.cumsum(1) <= margin[:, None]).sum(1) + 1
    found = attack(model, images, labels, max_pixels=25, signed=True)
    assert found.success.all()
    assert torch.equal(found.flips, fewest)


@pytest.mark.parametrize("threshold", [0.5, 1.5, 8.5])
def test_equally_important_pixels_are_set_in_the_order_of_their_index(threshold: float):
    images, labels = torch.zeros(1, 1, 3, 3), torch.tensor([0])
    for attack in ATTACKS.values():
        found = attack(Brightness(threshold), images, labels)
        assert in_order(found, 0) == list(range(math.ceil(threshold)))
        assert found.adversarial.sum() == math.ceil(threshold)


def test_algorithm_1_spends_a_trial_on_a_pixel_that_is_1_already_and_norm_0_does_not_count_it():
    images = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, 1, 2, 2)
    found = song_1(Brightness(2.5), images, torch.tensor([0]))
    assert in_order(found, 0) == [0, 1]
    assert found.norm(0).tolist() == [1]


def test_algorithm_1_cannot_darken_where_algorithm_3_does():
    images, labels = torch.ones(1, 1, 3, 3), torch.tensor([1])
    assert not song_1(Brightness(7.5), images, labels).success
    darkened = song_3(Brightness(7.5), images, labels)
    assert in_order(darkened, 0) == [0, 1]
    assert darkened.adversarial.sum() == 7


@both_arithmetics
@every_attack
def test_what_cannot_be_fooled_fails_and_holds_its_clean_image(attack: Callable[..., AttackResult], arithmetic: str):
    images = pictures(3)
    found = attack(Constant(), images, torch.zeros(3, dtype=torch.int64), arithmetic=arithmetic)
    assert not found.success.any()
    assert torch.equal(found.adversarial, images)
    assert found.flips.tolist() == [0] * 3
    assert not found.trivial.any()


@every_attack
def test_rows_misclassified_already_succeed_without_a_flip(attack: Callable[..., AttackResult]):
    model, images = convnet(gain=2), pictures(4)
    labels = (predicted(model, images) + 1) % 4
    found = attack(model, images, labels)
    assert found.success.all()
    assert found.trivial.all()
    assert found.flips.tolist() == [0] * 4
    assert torch.equal(found.adversarial, images)


@every_attack
def test_rows_on_target_already_succeed_without_a_flip(attack: Callable[..., AttackResult]):
    model, images = convnet(gain=2), pictures(4)
    targets = predicted(model, images)
    found = attack(model, images, (targets + 1) % 4, targets=targets)
    assert found.trivial.all()


@every_attack
def test_a_targeted_attack_ends_on_its_target_or_fails(attack: Callable[..., AttackResult]):
    model, images = convnet(gain=2), pictures(12)
    labels = predicted(model, images)
    targets = (labels + 1) % 4
    found = attack(model, images, labels, targets=targets, max_pixels=36)
    assert found.success.any()
    assert torch.equal(predicted(model, found.adversarial) == targets, found.success)
    assert found.targets is not None
    assert torch.equal(found.targets, targets)


# Saturation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [1, 3])
def test_exact_finds_in_a_saturated_model_what_it_finds_in_the_same_model_unsaturated(algorithm: int):
    plain, images, labels, _ = two_classes()
    saturated, *_ = two_classes(scale=1e4)
    expected, found = (ATTACKS[algorithm](model, images, labels, max_pixels=25) for model in (plain, saturated))
    assert expected.success.any()
    assert torch.equal(found.success, expected.success)
    assert found.pixels is not None
    assert expected.pixels is not None
    assert torch.equal(found.pixels, expected.pixels)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_exact_differences_order_the_pixels_of_a_saturated_model_as_mpmath_does(scale: float):
    model, images, labels, slopes = two_classes(scale)
    found = song_2(model.double(), images.double(), labels, max_pixels=25)
    rows = found.success.nonzero().flatten().tolist()
    assert rows
    for row in rows:
        flat = images[row].flatten().double()
        odds = slopes[row].double() @ flat
        changes = []
        with mp.workdps(60):
            loss_0 = mp.log1p(mp.exp(odds.item()))
            for slope, value in zip(slopes[row].double(), flat, strict=True):
                losses = [mp.log1p(mp.exp((odds + slope * (level - value)).item())) for level in (0, 1)]
                changes.append(float(mp.log10(max(abs(loss - loss_0) for loss in losses))))
        order = sorted(range(25), key=lambda pixel: (-changes[pixel], pixel))
        assert in_order(found, row) == order[: int(found.flips[row])]


@pytest.mark.parametrize("algorithm", [1, 3])
def test_float32_sees_only_zeros_in_a_saturated_model_and_takes_pixels_by_index(algorithm: int):
    saturated, images, labels, _ = two_classes(scale=1e4, seed=4)
    found = ATTACKS[algorithm](saturated, images, labels, max_pixels=25, arithmetic="float32")
    assert found.success.any()
    level = 1.0 if algorithm == 1 else 0.0  # no slope is positive
    for row in found.success.nonzero().flatten().tolist():
        count = int(found.flips[row])
        assert in_order(found, row) == list(range(count))
        assert (found.adversarial[row].flatten()[:count] == level).all()


def test_float32_differences_are_zero_for_flips_that_do_not_change_a_saturated_prediction():
    images, labels = torch.zeros(1, 1, 3, 3), torch.tensor([0])
    found = song_2(Amplified(Brightness(2.5), 1e4), images, labels, arithmetic="float32")
    assert in_order(found, 0) == [0, 1, 2]
    patchy = torch.tensor([0.1, 0.9, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).view(1, 1, 3, 3)
    assert in_order(song_2(Amplified(Brightness(3.5), 1e4), patchy, labels, arithmetic="float32"), 0)[:3] == [0, 1, 2]
    assert in_order(song_2(Amplified(Brightness(3.5), 1e4), patchy, labels), 0)[:3] == [3, 4, 5]


class Amplified(nn.Module):
    """`model`, its logits times `gain`."""

    def __init__(self, model: nn.Module, gain: float):
        super().__init__()
        self.model, self.gain = model, gain

    def forward(self, images: Tensor) -> Tensor:
        return self.gain * self.model(images)


# Limits and counts ----------------------------------------------------------------------------------------------------


@every_attack
def test_one_pixel_is_one_trial(attack: Callable[..., AttackResult]):
    dark = torch.zeros(2, 1, 3, 3)
    dark[1, 0, 2, 2] = 0.9
    found = attack(Brightness(1.5), dark, torch.tensor([0, 0]), max_pixels=1)
    assert found.success.tolist() == [False, True]
    assert found.pixels is not None
    assert found.pixels.shape == (2, 1)


@every_attack
def test_no_more_pixels_are_tried_than_there_are(attack: Callable[..., AttackResult]):
    found = attack(Brightness(9.5), torch.zeros(1, 1, 3, 3), torch.tensor([0]), max_pixels=1_000)
    assert not found.success
    assert found.pixels is not None
    assert found.pixels.shape == (1, 9)
    assert attack(Brightness(8.5), torch.zeros(1, 1, 3, 3), torch.tensor([0]), max_pixels=1_000).flips.tolist() == [9]


@pytest.mark.usefixtures("unprobed")
@every_attack
def test_evaluations_are_counted_as_the_model_saw_them(attack: Callable[..., AttackResult]):
    """A lone row looks at all its 9 trials in one pass."""
    model = Counting(Brightness(2.5))
    found = attack(model, torch.zeros(1, 1, 3, 3), torch.tensor([0]))
    maps = {song_2: 9, song_4: 9 + (1 + 8) + (1 + 7)}.get(attack, 0)  # 9 flips to 1; to 0 nothing changes
    trials = 3 if attack is song_4 else 9
    gradients = 1 if attack in (song_1, song_3) else 0
    assert found.forwards.tolist() == [1 + maps + trials]
    assert found.backwards.tolist() == [gradients]
    assert sum(model.sizes) == 1 + maps + trials + gradients + 1  # the last: the check of the final image, not told


@every_attack
def test_rows_finished_at_the_door_cost_no_trials(attack: Callable[..., AttackResult]):
    found = attack(Brightness(2.5), torch.zeros(2, 1, 3, 3), torch.tensor([1, 0]))
    cost = {song_2: 1 + 9 + 9, song_4: 1 + 9 + (1 + 8) + (1 + 7) + 3}.get(attack, 1 + 9)
    assert found.forwards.tolist() == [1, cost]


@every_attack
def test_a_crowd_of_rows_is_looked_at_one_trial_at_a_time(attack: Callable[..., AttackResult]):
    rows = 200
    model = Counting(Brightness(2.5))
    found = attack(model, torch.zeros(rows, 1, 3, 3), torch.zeros(rows, dtype=torch.int64))
    maps = {song_2: 9, song_4: 9 + (1 + 8) + (1 + 7)}.get(attack, 0)
    assert (found.forwards == 1 + maps + 3).all()
    assert max(model.sizes) <= 256


# Manners --------------------------------------------------------------------------------------------------------------


@both_arithmetics
@every_attack
def test_a_row_gets_the_same_alone_and_among_others(attack: Callable[..., AttackResult], arithmetic: str):
    model, images = convnet(gain=2).double(), pictures(7, dtype=torch.float64)
    labels = predicted(model, images)
    together = attack(model, images, labels, max_pixels=30, arithmetic=arithmetic)
    for row in range(7):
        one = slice(row, row + 1)
        alone = attack(model, images[one], labels[one], max_pixels=30, arithmetic=arithmetic)
        assert torch.equal(alone.success, together.success[one])
        assert torch.equal(alone.adversarial, together.adversarial[one])
        assert in_order(alone, 0) == in_order(together, row)


@every_attack
def test_dropout_is_off_during_an_attack(attack: Callable[..., AttackResult]):
    images = pictures(4)
    noisy, still = convnet(dropout=0.5, gain=2).train(), convnet(dropout=0.5, gain=2).eval()
    labels = predicted(still, images)
    assert torch.equal(attack(noisy, images, labels).adversarial, attack(still, images, labels).adversarial)


@every_attack
def test_success_is_what_the_model_says_of_the_final_images(attack: Callable[..., AttackResult]):
    model, images = convnet(gain=2), pictures(20)
    labels = predicted(model, images)
    found = attack(model, images, labels, max_pixels=15)
    assert found.success.sum() > 0
    assert torch.equal(predicted(model, found.adversarial) != labels, found.success)
    assert (found.norm(0) <= found.flips).all()
    assert found.flips.max() <= 15


def test_all_channels_of_a_pixel_are_set():
    model, images = convnet(channels=3, gain=2), pictures(6, (3, 6, 6))
    found = song_3(model, images, predicted(model, images), max_pixels=36)
    assert found.success.any()
    for row in found.success.nonzero().flatten().tolist():
        values = found.adversarial[row].flatten(1)[:, in_order(found, row)]
        assert ((values == 0).all(0) | (values == 1).all(0)).all()


def test_shared_flips_give_what_song_2_computes_itself_at_no_cost():
    model, images = convnet(gain=2), pictures(4)
    labels = predicted(model, images)
    shared, spent = flip_logits(model, images, check_request(model, images, labels).clean)
    own = song_2(model, images, labels)
    given = song_2(model, images, labels, flips=(shared, torch.zeros_like(spent)))
    assert torch.equal(own.adversarial, given.adversarial)
    assert torch.equal(own.forwards - given.forwards, spent)


@every_attack
def test_progress_only_rises_and_ends_with_every_row(attack: Callable[..., AttackResult]):
    told: list[tuple[int, int]] = []
    model, images = convnet(), pictures(3)
    attack(model, images, predicted(model, images), progress=lambda done, total, note="": told.append((done, total)))
    total = 3 * images[0, 0].numel()  # a step is a pixel of a row
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
