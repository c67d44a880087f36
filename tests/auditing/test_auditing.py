"""The parts of the audit: the door, the views, the rules of the verdict, and the manners of the whole."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from problems import Counting, blobs, condition, convnet, pictures, predicted
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from brittle.auditing import Audit, audit, usual_eps
from brittle.auditing.best_found import Norm
from brittle.auditing.checks import check, monotone, worth_of
from brittle.auditing.gradients import Gradients, look_at
from brittle.auditing.sanity import sanity_check
from brittle.auditing.suite import BestFound, Step
from brittle.auditing.verdict import compared, decide, named
from brittle.auditing.wrappers import BPDA, EOT, LogProbabilities, Scaled, works
from brittle.data import Split
from brittle.errors import InputError
from brittle.measures import Share, paired


class Made(nn.Module):
    """A network from a function of images."""

    def __init__(self, function: Callable[[Tensor], Any]):
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(images)


def undefended() -> nn.Module:
    """Another network, which agrees with `convnet` on most images."""
    one, other = convnet(gain=3).eval(), convnet(seed=5, gain=3).eval()
    return Made(lambda images: one(images) + 0.1 * other(images)).eval()


def split_of(model: nn.Module, rows: int = 40) -> Split:
    images = pictures(rows)
    return Split(images, predicted(model, images))


# The door -------------------------------------------------------------------------------------------------------------


def test_the_door_sees_probabilities_randomness_16_bits_and_training_mode():
    plain = convnet(gain=3)
    split = split_of(plain)
    door = sanity_check(plain.eval(), split)
    assert (door.classes, door.deterministic, door.probabilities, door.half, door.training) == (
        4,
        True,
        False,
        False,
        False,
    )
    assert door.accuracy == Share(40, 40)
    assert sanity_check(Made(lambda x: torch.softmax(plain(x), 1)), split).probabilities
    assert sanity_check(Made(lambda x: plain(x).half().float()), split).half
    assert sanity_check(convnet(dropout=0.5, gain=3).train(), split).training
    random = sanity_check(Made(lambda x: plain(x + torch.randn_like(x))).eval(), split)
    assert not random.deterministic
    assert 0 < random.disagreement <= 1
    for one in (sanity_check(Made(lambda x: torch.softmax(plain(x), 1)), split), random):
        assert len(one.remedies) >= 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (None, 3), "the model must return one tensor of logits, .*, got a tuple without a tensor"),
        (lambda x: {"a": x, "b": x}, "the model must return one tensor of logits, .*, got a dict with 'a', 'b'"),
        (lambda x: x.flatten(1)[:, :0], r"must return logits \(1, K\) with K >= 2, got shape \(1, 0\)"),
        (lambda x: x.flatten(1)[:, :2] * torch.nan, "must return finite logits"),
        (lambda x: x @ torch.zeros(7, 7), r"the model fails on images \(1, 1, 6, 6\)"),
        (lambda x: x.flatten(1)[:, :3], r"labels must lie in 0\.\.2, as the model has 3 outputs"),
    ],
)
def test_what_is_no_classifier_is_refused_in_one_line(function: Callable[[Tensor], Any], message: str):
    labels = torch.arange(8) % (4 if "labels" in message else 2)
    with pytest.raises(InputError, match=message) as caught:
        audit(Made(function), Split(pictures(8), labels))
    assert "\n" not in str(caught.value)


# Views ----------------------------------------------------------------------------------------------------------------


def test_views_keep_what_the_model_says():
    model, images = convnet(gain=3).eval(), pictures(20)
    logits = model(images)
    assert torch.allclose(Scaled(model, 10.0)(images), logits / 10)
    assert torch.allclose(EOT(model, 3)(images), logits, atol=1e-6)
    undone = LogProbabilities(Made(lambda x: torch.softmax(model(x), 1)))(images)
    assert torch.allclose(undone - undone[:, :1], logits - logits[:, :1], atol=1e-4)


@pytest.mark.parametrize(
    "wall",
    [
        lambda x: (x * 4).round() / 4,
        lambda x: torch.floor(x * 8) / 8,
        lambda x: (x > 0.5).float(),
        lambda x: (x >= 0.3).to(torch.float32) + (x < 0.7) * 0.5,
        lambda x: x.detach(),
        lambda x: (x * 3 - 1).clamp(0, 1),
    ],
    ids=["round", "floor", "thermometer", "sums of comparisons", "detach", "clamp"],
)
def test_walls_are_passed_with_the_same_outputs_and_a_gradient_everywhere(wall: Callable[[Tensor], Tensor]):
    model, images = convnet(gain=3).eval(), pictures(10).requires_grad_(True)
    view = BPDA(Made(lambda x: model(wall(x))))
    logits = view(images)
    assert torch.equal(logits, model(wall(images.detach())))
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), images)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    assert works(view, Made(lambda x: model(wall(x))), images.detach(), deterministic=True)


def test_an_argmax_made_one_hot_is_passed():
    model, images = convnet(gain=3).eval(), pictures(10).requires_grad_(True)
    view = BPDA(Made(lambda x: F.one_hot(model(x).argmax(1), 4).float() * 10))
    logits = view(images)
    assert set(logits.unique().tolist()) == {0.0, 10.0}
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), images)
    (plain,) = torch.autograd.grad(model(images)[:, 0].sum(), images)
    assert torch.allclose(gradient, 10 * plain, rtol=1e-4)


# Gradients ------------------------------------------------------------------------------------------------------------


def looked(function: Callable[[Tensor], Tensor]) -> Gradients:
    images = pictures(40)
    model = Made(function).eval()
    return look_at(model, model, 1.0, images, predicted(model, images), reach=0.003, seed=0)


def test_gradients_that_are_sound_vanish_are_lost_inside_are_blocked_or_lie():
    plain = convnet(gain=3).eval()
    sound = looked(plain)
    assert (sound.zero, sound.blocked, sound.bad) == (0, 0, False)
    assert sound.agreement > 0.9
    assert sound.cosine == pytest.approx(1)
    large = looked(lambda x: plain(x) * 1e4)
    assert large.zero > 0.5
    assert large.lost_inside < 0.5
    assert not large.bad
    assert large.log10 is not None
    assert large.log10 < -45
    rounded = looked(lambda x: plain((x * 3).round() / 3))
    assert rounded.zero == rounded.blocked == 1
    assert rounded.bad
    bent = looked(lambda x: plain(x) + 0.01 * torch.sin(1e4 * x.flatten(1)[:, :4]))
    assert bent.bad


# The rules ------------------------------------------------------------------------------------------------------------


def steps(*parts: tuple[str | None, float]) -> list[Step]:
    return [Step("attack", mends, 10, 1, left, 0.0) for mends, left in parts]


SOUND = Gradients(zero=0, negligible=0, log10=-2, lost_inside=0, blocked=0, agreement=1, cosine=1)
PASSED = check("anything", 0, "at most", 1, source="", sentence="")
FAILED = check("scale", 1, "at most", 0, source="", sentence="Something.", remedy="run more")


def ruled(
    common: int,
    left: int,
    *checks: Any,
    reference: int | None = None,
    total: int = 200,
    eps: float = 0.3,
    clean: int = 190,
    gradients: Gradients | None = SOUND,
    **door: Any,
) -> Any:
    """The verdict of counts; the images that the reference has right are the last, those of the model the first."""
    plain = convnet(gain=3)
    seen = {"accuracy": Share(clean, total), "chance": 0.1, **door}
    rows = torch.arange(total)
    return decide(
        door=dataclasses.replace(sanity_check(plain, split_of(plain)), **seen),
        steps=steps((None, common / total), ("budget", left / total)),
        common=Share(common, total),
        left=Share(left, total),
        beside=None if reference is None else paired(rows < left, rows >= total - reference),
        gradients=gradients,
        checks=checks or (PASSED,),
        bound="L-infinity 0.3",
        eps=eps,
        usual=0.3,
    )


def test_the_rules_in_their_order():
    assert ruled(160, 155, reference=20).kind == "robust"
    assert ruled(160, 155, reference=150).kind == "inconclusive"  # the undefended network has as much
    assert ruled(160, 155, FAILED).kind == "inconclusive"
    assert ruled(160, 155, FAILED).next == ("run more",)
    assert ruled(110, 105).kind == "inconclusive"  # the interval reaches below half of 95 %
    assert ruled(20, 15).kind == "broken"
    assert ruled(160, 0).kind == "masked"
    assert ruled(160, 135, FAILED).kind == "masked"
    assert ruled(160, 135).kind == "inconclusive"  # a gap without a cause is not robust either
    assert ruled(64, 42).kind == "broken"  # an undefended network, a little more searched


@pytest.mark.parametrize(
    ("verdict", "said", "after"),
    [
        (
            ruled(19, 19, total=20, clean=20),
            "The word robust takes 100 images; there are 20.",
            "audit at least 100 images",
        ),
        (
            ruled(160, 155, eps=8 / 255),
            "eps 0.0314 is a tenth of the usual 0.3: an undefended network may pass as well.",
            "give --reference MODEL: at this eps an undefended network may pass as well",
        ),
        (
            ruled(160, 155, reference=145, eps=8 / 255),
            "An undefended network has 72.5% on the same images: the difference is 5 points",
            "audit at a larger eps, or more images",
        ),
        (
            ruled(20, 20, clean=20),
            "This network has not learned: clean accuracy 10.0% (6.6% to 14.9%), a constant answer has 10%.",
            "train it, or check the weights, the order of the labels and the preprocessing",
        ),
        (
            ruled(160, 0, neighbours=0.5),
            "The model's answer to an image depends on the other images of the batch",
            "",
        ),
    ],
)
def test_what_would_flatter_is_inconclusive_with_its_reason_and_the_next_step(verdict: Any, said: str, after: str):
    assert verdict.kind == "inconclusive"
    assert any(one.startswith(said) for one in verdict.sentences)
    assert not after or after in verdict.next


def test_a_small_eps_is_robust_only_beside_a_reference_that_fails():
    assert ruled(160, 155, eps=0.03, reference=20).kind == "robust"
    assert ruled(160, 155, eps=0.28).kind == "robust"  # within a tenth of the usual one
    assert ruled(95, 92, total=100, clean=98, reference=10).kind == "robust"  # 100 images are enough


def test_a_gap_in_l0_is_no_cause():
    assert ruled(165, 59, gradients=None).kind == "broken"
    assert ruled(165, 120, FAILED, gradients=None).kind == "inconclusive"


@pytest.mark.parametrize(
    ("eps", "usual", "words"),
    [
        (0.3, 0.3, "the usual one"),
        (0.0314, 8 / 255, "the usual one"),
        (8 / 255, 0.3, "a tenth of the usual 0.3"),
        (0.1, 0.3, "a third of the usual 0.3"),
        (0.02, 0.3, "7% of the usual 0.3"),
        (0.6, 0.3, "2 times the usual 0.3"),
    ],
)
def test_an_eps_is_compared_with_the_usual_one(eps: float, usual: float, words: str):
    assert compared(eps, usual) == words


@pytest.mark.parametrize("left", range(0, 180, 5))
def test_what_failed_a_check_or_lost_a_tenth_is_never_robust(left: int):
    assert ruled(190, left, FAILED).kind != "robust"
    assert ruled(left + 21, left).kind != "robust"


def test_causes_are_named_by_what_their_mending_was_worth():
    def causes(*parts: tuple[str | None, float], gradients: Gradients = SOUND) -> tuple[str, ...]:
        made = steps((None, 0.9), *parts)
        return named(made, 0.9 - made[-1].left, gradients)

    assert worth_of(steps((None, 0.9), ("scale", 0.2), ("loss", 0.1), ("scale", 0.0))) == {
        "scale": pytest.approx(0.8),
        "loss": pytest.approx(0.1),
    }
    assert causes(("scale", 0.0)) == ("scale",)
    assert causes(("scale", 0.3), ("precision", 0.1)) == ("scale",)
    assert causes(("scale", 0.9), ("precision", 0.1)) == ("precision",)
    assert causes(("scale", 0.5), ("loss", 0.0)) == ("loss", "scale")
    lost = dataclasses.replace(SOUND, zero=1.0, lost_inside=1.0)
    assert causes(("scale", 0.0), gradients=lost) == ("precision",)
    bad = dataclasses.replace(SOUND, blocked=1.0)
    assert causes(("shattered", 0.5), ("budget", 0.0), gradients=bad) == ("shattered",)
    assert causes(("shattered", 0.5), ("budget", 0.0)) == ("budget",)
    assert causes(("stochastic", 0.1)) == ("stochastic",)
    assert causes((None, 0.0)) == ("budget",)


def test_checks_hold_a_quantity_against_a_threshold():
    assert PASSED.passed
    assert not FAILED.passed
    assert not check("nothing measured", float("nan"), "at most", 1, source="", sentence="").passed
    assert monotone([0.9, 0.5, 0.1]).passed
    assert not monotone([0.9, 0.1, 0.5]).passed


def test_the_ledger_keeps_the_smallest_change_that_fools_the_model_itself():
    model = convnet(gain=3).eval()
    split = split_of(model, 4)
    wrong = Split(split.images, torch.cat([(split.labels[:1] + 1) % 4, split.labels[1:]]))
    best_found = BestFound(model, wrong.images, wrong.labels, "linf", True)
    assert best_found.size[0] == 0
    assert best_found.left(0.5) == 0.75
    rows = torch.tensor([1, 2])
    assert not best_found.record("nothing", wrong.images[rows], rows).any()
    others = torch.stack(
        [next(x for x in pictures(50, seed=9) if model(x[None]).argmax() != split.labels[r]) for r in rows]
    )
    assert best_found.record("another image", others, rows).all()
    assert best_found.by == ["no change", "another image", "another image", ""]
    assert torch.allclose(best_found.size[rows], (others - wrong.images[rows]).abs().flatten(1).amax(1).double())


# The whole ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> Audit:
    return audit(convnet(gain=3), split_of(convnet(gain=3)), eps=0.1, budget="quick")


def without_times(one: Audit) -> dict[str, Any]:
    record = json.loads(json.dumps(one.record(), allow_nan=False))
    for step in record["steps"]:
        del step["seconds"]
    return record


def test_an_audit_is_json_and_the_same_each_time(small: Audit):
    record = without_times(small)
    again = audit(convnet(gain=3), split_of(convnet(gain=3)), eps=0.1, budget="quick")
    assert record == without_times(again)
    assert record["left"]["value"] == small.left.value
    assert "clean" not in record["pictures"][0]
    assert small.images()["adversarial"].shape == (len(record["pictures"]), 1, 6, 6)
    assert small.left.count <= small.common.count
    baseline, curve = small.curves
    assert curve.left == tuple(sorted(curve.left, reverse=True))
    assert curve.left[curve.eps.index(0.1)] == small.left.value
    assert baseline.left[baseline.eps.index(0.1)] == small.common.value
    assert small.steps[-1].left == small.left.value


def test_all_curves_are_over_all_images_and_all_attacks_are_nowhere_above_the_baseline():
    model, rows = convnet(gain=3).eval(), 80  # of fewer, the commonest class is too common for a reference
    found = audit(model, split_of(model, rows), eps=0.02, budget="quick", reference=undefended())
    baseline, everything, beside = found.curves
    assert {curve.rows for curve in found.curves} == {rows}
    least = dict(zip(everything.eps, everything.left, strict=True))
    assert all(least[eps] <= most for eps, most in zip(baseline.eps, baseline.left, strict=True))
    assert set(everything.eps) - set(baseline.eps) == {0.5}  # where every image can be grey
    assert beside.left == tuple(sorted(beside.left, reverse=True))
    assert found.reference is not None
    assert beside.left[beside.eps.index(0.02)] == found.reference.value
    assert found.beside is not None
    assert found.beside.both + found.beside.one == found.left.count
    assert found.beside.both + found.beside.other == found.reference.count


def test_only_an_attack_that_looks_for_the_smallest_perturbation_is_said_to(small: Audit):
    assert {one.attack.startswith("Carlini") for one in small.pictures if one.minimal} <= {True}
    assert any(one.minimal for one in small.pictures) or not any("Carlini" in one.attack for one in small.pictures)


# Models that cannot be audited as they are ----------------------------------------------------------------------------


def test_a_model_that_looks_at_the_whole_batch_is_told_of():
    plain = convnet(gain=3).eval()

    def batch(x: Tensor) -> Tensor:
        return plain(x) - plain(x).mean(0, keepdim=True)

    images = pictures(60)
    found = audit(Made(batch).eval(), Split(images, batch(images).argmax(1)), eps=0.1, budget="quick")
    assert found.verdict.kind == "inconclusive"
    said = [one for one in found.door.remedies if one.startswith("The model's answer to an image depends on the other")]
    assert len(said) == 1  # shown alone, each image is of class 0: the verdict is that the network has not learned
    assert [one.name for one in found.checks if not one.passed].count("one image alone") == 1


class Stays(nn.Module):
    """Batch normalisation that ignores evaluation mode."""

    def __init__(self):
        super().__init__()
        self.norm, self.network = nn.BatchNorm2d(1), convnet(gain=3)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.norm.train()(images))


def test_batch_normalisation_that_stays_in_training_mode_is_told_of():
    model = Stays().eval()
    images = pictures(40)
    door = sanity_check(model, Split(images, predicted(model, images)))
    assert door.updates
    assert not door.independent
    assert any("changes its own buffers" in one for one in door.remedies)
    assert not sanity_check(convnet(gain=3).eval(), split_of(convnet(gain=3))).updates


def test_an_answer_of_nan_is_no_error_and_is_told_of():
    plain = convnet(gain=3).eval()
    split = split_of(plain, 6)

    def fragile(x: Tensor) -> Tensor:  # off the clean images, whose pixels sum to known numbers, it answers NaN
        known = (x.flatten(1).sum(1)[:, None] - split.images.flatten(1).sum(1)).abs().amin(1) < 1e-4
        return plain(x) + torch.where(known, 0.0, torch.nan)[:, None]

    found = audit(Made(fragile).eval(), split, eps=0.1, budget="quick")
    assert found.left.value == 1
    assert found.verdict.kind == "inconclusive"
    (check,) = [one for one in found.checks if one.name == "finite outputs"]
    assert not check.passed
    assert "has answered NaN or infinity" in check.sentence
    assert "nan" not in found.summary().replace("NaN", "")


class Detached(nn.Module):
    """A network whose logits come out of torch's sight: no gradient leads to the image."""

    def __init__(self):
        super().__init__()
        self.network = convnet(gain=3).eval()

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(images)


@pytest.mark.parametrize("norm", ["linf", "l2", "l0"])
def test_a_model_without_a_gradient_gets_a_verdict_in_every_norm(norm: Norm):
    model = Detached().eval()
    found = audit(model, split_of(model, 20), norm=norm, eps=4 if norm == "l0" else 0.3, budget="quick")
    assert found.verdict.kind in ("broken", "masked", "inconclusive")
    if norm == "l0":  # what follows a gradient is left out, and what asks for outputs alone is the baseline
        assert [step.name for step in found.steps] == ["Song's algorithm 2"]
        assert found.common == found.left
        assert found.left.value < 1


def test_a_blocked_gradient_in_l0_is_gone_round():
    network = convnet(gain=3).eval()
    model = Made(lambda x: network((255 * x.detach()).round() / 255)).eval()
    found = audit(model, split_of(model, 20), norm="l0", eps=4, budget="quick")
    names = [step.name for step in found.steps]
    assert names == ["Song's algorithm 2", "Carlini and Wagner's L0 straight through"]


def test_a_network_that_has_not_learned_is_said_first_and_is_no_reference():
    model, images = convnet(gain=3).eval(), pictures(60)
    dead = Made(lambda x: x.new_tensor([1.0, 0, 0, 0]).expand(len(x), 4) + 0 * x.flatten(1)[:, :4]).eval()
    labels = torch.arange(60) % 4
    found = audit(dead, Split(images, labels), eps=0.1, budget="quick")
    assert found.verdict.kind == "inconclusive"
    said = "This network has not learned: clean accuracy 25.0% (15.8% to 37.2%), a constant answer has 25%."
    assert found.verdict.sentences[0] == said
    assert "nan" not in found.summary().lower()
    wrong = audit(Made(lambda x: -model(x)), split_of(model, 20), eps=0.1, budget="quick")  # not one image is right
    assert wrong.verdict.kind == "inconclusive"
    assert "nan" not in wrong.summary().lower()
    beside = audit(model, split_of(model, 60), eps=0.1, budget="quick", reference=dead)
    assert beside.reference is None
    assert any(one.startswith("The reference was not used, as it has not learned") for one in beside.door.remedies)
    with pytest.raises(InputError, match=r"the reference must return one tensor of logits, .*, got a list"):
        audit(model, split_of(model, 20), reference=Made(lambda x: [1]))


# In Python ------------------------------------------------------------------------------------------------------------


def test_an_audit_says_itself_in_a_line_a_summary_a_table_and_a_page(small: Audit, tmp_path: Path):
    assert repr(small).startswith(f"<Audit: {small.verdict.kind}; robust accuracy ")
    assert len(repr(small)) < 200
    summary = small.summary()
    assert summary.startswith(small.verdict.kind.capitalize())
    assert "40 test images: all 40 given. Budget quick." in summary
    assert "a third of the usual 0.3" in summary
    assert "[" not in summary
    assert "<th>verdict</th>" in small._repr_html_()
    page = small.write(tmp_path / "page", classes=["<i>one</i>"], name="<b>mine</b>")
    text = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;mine&lt;/b&gt;" in text
    assert "<i>one</i>" not in text
    assert json.loads((page.parent / "audit.json").read_text())["verdicts"][0]["images"] == 40


def test_images_may_come_as_a_pair_or_a_loader_and_it_is_said_which_were_taken():
    model = Detached().eval()
    split = split_of(model, 20)
    pairs = torch.utils.data.TensorDataset(split.images, split.labels)
    options: dict[str, Any] = {"norm": "l0", "eps": 4, "budget": "quick"}  # one attack is all that there is to do
    whole = audit(model, split, rows=8, **options)
    assert whole.chosen == "the first 8 of 20"
    assert (
        audit(model, (split.images, split.labels), rows=8, **options).chosen == "8 drawn at random, with a fixed seed"
    )
    loaded = audit(model, torch.utils.data.DataLoader(pairs, batch_size=4), **options)
    assert (loaded.left.total, loaded.chosen) == (20, "all 20 given")
    with pytest.raises(InputError, match="a torch Dataset or a DataLoader, got Tensor"):
        audit(model, cast(Any, split.images))


class Noisy(nn.Module):
    """Answers differently each time, so that an audit's random numbers tell."""

    def __init__(self):
        super().__init__()
        self.network = convnet(gain=3)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images + 0.02 * torch.randn_like(images))


@pytest.mark.parametrize("make", [lambda: convnet(gain=3).eval(), lambda: Noisy().eval()])
def test_an_audit_that_is_killed_goes_on_to_the_same_end(make: Callable[[], nn.Module], tmp_path: Path):
    options: dict[str, Any] = {"eps": 0.1, "budget": "quick", "reference": undefended()}
    split, file = split_of(convnet(gain=3), 12), tmp_path / "audit.safetensors"
    told: list[str] = []
    whole = audit(make(), split, progress=lambda done, total, note="": told.append(note), **options)
    assert len(told) > 20
    for stop in (1, 4, 9, len(told) // 2, len(told) - 2):  # each goes on where the one before was stopped
        seen: list[str] = []

        def stopped(done: int, total: int, note: str = "", seen: list[str] = seen, stop: int = stop) -> None:
            seen.append(note)
            if len(seen) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            audit(make(), split, checkpoint=file, progress=stopped, **options)
    with safe_open(file, "pt") as kept:
        done = json.loads(kept.metadata()["done"])
    assert len(done) == len(told) - 3  # all but the two last of what is told, and the verdict
    assert without_times(audit(make(), split, checkpoint=file, **options)) == without_times(whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The checkpoint of a whole audit of 12 images at eps 0.1, and how many images the model was asked about."""
    file, model = tmp_path_factory.mktemp("whole") / "audit.safetensors", Counting(convnet(gain=3)).eval()
    audit(model, split_of(convnet(gain=3), 12), eps=0.1, budget="quick", checkpoint=file)
    return file, sum(model.sizes)


def test_what_is_done_is_not_done_again(whole: tuple[Path, int], tmp_path: Path):
    (kept, spent), model = whole, Counting(convnet(gain=3)).eval()
    file = Path(shutil.copy(kept, tmp_path))
    audit(model, split_of(convnet(gain=3), 12), eps=0.1, budget="quick", checkpoint=file)
    assert sum(model.sizes) < spent / 4  # what is left is the door, and a look at the gradients


def test_what_another_audit_had_done_is_not_taken(whole: tuple[Path, int], tmp_path: Path):
    model, split = Counting(convnet(gain=3)).eval(), split_of(convnet(gain=3), 12)
    file = Path(shutil.copy(whole[0], tmp_path))
    fresh = without_times(audit(model, split, eps=0.05, budget="quick"))
    assert without_times(audit(model, split, eps=0.05, budget="quick", checkpoint=file)) == fresh
    file.write_bytes(file.read_bytes()[:100])
    assert without_times(audit(model, split, eps=0.05, budget="quick", checkpoint=file)) == fresh


def test_an_audit_leaves_the_model_the_split_and_the_random_numbers_as_they_were():
    model = convnet(dropout=0.5, gain=3).train()
    split = split_of(convnet(gain=3), 10)
    before = condition(model), split.images.clone(), torch.get_rng_state()
    told: list[int] = []
    audit(model, split, eps=0.1, budget="quick", progress=lambda done, total, note="": told.append(done))
    assert condition(model) == before[0]
    assert torch.equal(split.images, before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
    assert told == sorted(told)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"eps": 0.0}, r"eps must be positive and finite, got 0\.0"),
        ({"eps": 1.5}, r"eps must be at most 1 in L-infinity, as images lie in \[0, 1\], got 1\.5"),
        ({"eps": 2.5, "norm": "l0"}, r"eps must be a whole number of pixels in L0, got 2\.5"),
        ({"norm": "l1"}, "unknown norm 'l1'"),
        ({"budget": "huge"}, "unknown budget 'huge'"),
        ({"rows": 0}, "rows must be at least 1, got 0"),
    ],
)
def test_a_request_that_cannot_be_met_says_what_came(wrong: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        audit(convnet(), blobs().test, **wrong)


def test_the_usual_bounds():
    assert usual_eps(torch.zeros(1, 1, 28, 28), "linf") == 0.3
    assert usual_eps(torch.zeros(1, 3, 32, 32), "linf") == 8 / 255
    assert usual_eps(torch.zeros(1, 3, 224, 224), "linf") == 4 / 255
    assert (usual_eps(torch.zeros(1, 1, 28, 28), "l2"), usual_eps(torch.zeros(1, 3, 32, 32), "l2")) == (1.5, 0.5)
    assert usual_eps(torch.zeros(1, 3, 32, 32), "l0") == 10
