"""The claims of Lo and Ding, "Understanding Deep Networks with Gradients".

The paper has one network of each kind. What it says is judged over seeds: each seed gives one number, the mean over the
classes whose units go, or over the targets of masks, and the interval is Student's, of the seeds' numbers. With one
seed there is no interval, and nothing is judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from brittle.measures import Mean, Share, mean_of_seeds
from brittle.report import eta_curves, knockouts
from brittle.report.claims import Claim, Number, once
from brittle.report.contents import RANDOM, Masks, Report, Units
from brittle.report.profiles import agreement

FACES = Share(2, 41)  # wrong test faces: the published 4.88 %
FEW, SOME, MANY = 2, 3, 10  # units gone of which the paper speaks
OUT_OF_ORDER = 80  # percent: of 15 classes, one that takes all images for one class has 93 % wrong
ERRORS = {"pseudo_alexnet": 34.19, "mlp": 54.22}  # test error on CIFAR-10, %
_CONTROL = "not in the paper: its control"
_AGAINST = {  # the orders that the strongest units are compared with, and what is said of each
    "weakest": ("Without strong units a network errs more than without weak ones.", "section V-D", "figure 2 only"),
    RANDOM: ("Without strong units it errs more than without units drawn at random.", _CONTROL, "–"),
    "least active": ("Strong units matter more than those that are least active.", _CONTROL, "–"),
}
BEST = (5000.0, 10_000.0)  # eta, of 0..255 pixels


def claims(report: Report) -> list[Claim]:
    """Each claim that the paper makes, in its order, and controls that it lacks; see `claims.of`."""
    found = [one for _, one in next(iter(knockouts.tables(report).values()), [])]
    units = [one for one in found if len(one.gone) == one.profile.shape[1] + 1]  # claims count single units
    masks = [one for _, one in eta_curves.tables(report)]
    return [
        _error_of_faces(report),
        *_stability(units),
        *_order(units),
        *_spread(units),
        *_critical(units),
        *_errors_on_cifar(report),
        _shared_mask(masks),
        *_own_masks(masks),
        *_others_masks(masks),
    ]


# Parts --------------------------------------------------------------------------------------------------------------


def _over(values: Sequence[float], unit: str, digits: int = 1, scale: float = 1.0) -> Number | None:
    """The mean over seeds; None unless there are at least two that have a number."""
    known = [value for value in values if math.isfinite(value)]
    return Number.of(mean_of_seeds(known), unit, scale=scale, digits=digits) if len(known) > 1 else None


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count != 1 else ''}"


def _at(units: Sequence[Units], kind: str, scope: str, gone: int) -> list[float]:
    """Error of each seed when so many units have gone."""
    return [float(one) for one in knockouts.over_classes(units, kind, scope)[:, gone]] if _long(units, gone) else []


def _mean_to(units: Sequence[Units], kind: str, scope: str, gone: int) -> list[float]:
    """Mean error of each seed while the first 1, ..., `gone` units go."""
    if not _long(units, gone):
        return []
    return [float(one) for one in knockouts.over_classes(units, kind, scope)[:, 1 : gone + 1].mean(1)]


def _long(units: Sequence[Units], gone: int) -> bool:
    return bool(units) and units[0].wrong.shape[-1] > gone


def _less(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    """Seed by seed; empty where a network has too few units for one of them."""
    return [one - other for one, other in zip(ones, others, strict=True)] if ones and others else []


def _above(number: Number) -> bool:
    return number.low > 0


# V: units -----------------------------------------------------------------------------------------------------------


def _error_of_faces(report: Report) -> Claim:
    measured = [model.measured for model in report.models if model.measured] if report.data == "yale-faces" else []
    errors = [1 - one.accuracy.value for one in measured]
    published = Number.percent(FACES)
    return Claim(
        "The network errs on 4.88 % of the test faces.",
        "section IV-B",
        f"{FACES.count} of {FACES.total}: {published}",
        *once(_over(errors, "%", scale=100), lambda n: n.meets(published.low, published.high)),
        f"Holds if both intervals meet; theirs is Wilson's of {FACES.total} faces; {_seeds(len(errors))}.",
    )


def _stability(units: Sequence[Units]) -> list[Claim]:
    within, between, gap = agreement(units) if units else (None, None, None)
    return [
        Claim(
            "Units of strong gradients stay the same over the images of one class: each has a profile of its own.",
            "section V-A, table II",
            "pictures only",
            *once(_number(gap), _above),
            f"Kendall's τ between the rankings of two images of a class, less that of two classes; holds if it lies "
            f"above 0; {_seeds(len(units))}. Within: {_number(within) or '–'}; between: {_number(between) or '–'}.",
        )
    ]


def _number(mean: Mean | None) -> Number | None:
    return Number.of(mean, "", digits=2) if mean and mean.rows > 1 else None


def _order(units: Sequence[Units]) -> list[Claim]:
    return [_against(units, kind, *said) for kind, said in _AGAINST.items()]


def _against(units: Sequence[Units], kind: str, says: str, where: str, published: str) -> Claim:
    done = [one for one in units if kind in one.kinds]

    def gap(scope: str) -> Number | None:
        ones, others = (_mean_to(done, each, scope, MANY) for each in ("strongest", kind))
        return _over(_less(ones, others), "points", scale=100)

    return Claim(
        says,
        where,
        published,
        *once(gap("overall"), _above),
        f"Error over all images while the first {MANY} units go, mean, strongest less {kind}; holds if above 0; "
        f"{_seeds(len(done))}. On held-out images: {gap('overall, held out') or '–'}.",
    )


def _spread(units: Sequence[Units]) -> list[Claim]:
    start, three = _at(units, "strongest", "overall", 0), _others(units, MANY)
    within, overall = (_mean_to(units, "strongest", scope, MANY) for scope in ("within", "overall"))
    ends = _at(units, "strongest", "overall", MANY)
    weak = _at(units, "weakest", "overall", MANY)
    return [
        Claim(
            "The loss spans classes: without one class's strongest units the network errs on the others too.",
            "abstract; section V-D",
            "figure only",
            *once(_over(_less(three, start), "points", scale=100), _above),
            f"Error on images of the other classes, {MANY} units gone, less the error with none; holds if above 0; "
            f"{_seeds(len(start))}.",
        ),
        Claim(
            "The error within the class rises faster than over all classes.",
            "section V-D",
            "figure only",
            *once(_over(_less(within, overall), "points", scale=100), _above),
            f"Mean while the {MANY} strongest go; holds if above 0; {_seeds(len(within))}.",
        ),
        Claim(
            f"Without the {MANY} strongest units of any class the network fails almost completely.",
            "section V-D, figure 2",
            "near 100 %",
            *once(_over(ends, "%", scale=100), lambda n: n.low > OUT_OF_ORDER),
            f"Error over all images; holds if the interval lies above {OUT_OF_ORDER} %; {_seeds(len(ends))}.",
        ),
        Claim(
            f"Without the {MANY} weakest it errs on less than 25 %.",
            "section V-D, figure 2",
            "< 25 %",
            *once(_over(weak, "%", scale=100), lambda n: n.high < 25),
            f"Error over all images; holds if the interval lies below 25 %; {_seeds(len(weak))}.",
        ),
    ]


def _others(units: Sequence[Units], gone: int) -> list[float]:
    """Error of each seed on the images of all classes but that whose strongest units have gone."""
    if not _long(units, gone):
        return []
    found = []
    for one in units:
        own, every = one.wrong[:, 0, 0, gone].double(), one.wrong[:, 0, 1, gone].double()
        found.append(float(((every - own) / (one.total[:, 1] - one.total[:, 0])).mean()))
    return found


def _critical(units: Sequence[Units]) -> list[Claim]:
    few = _at(units, "strongest", "overall", FEW)
    needed, slower = ([one.needed(kind) for one in units] for kind in ("strongest", "weakest"))
    half = (units[0].wrong.shape[-1] - 1) // 2 if units else 0
    strong, weak = _at(units, "strongest", "overall", SOME), _at(units, "weakest", "overall", half)
    return [
        Claim(
            f"Without {FEW} of the strongest units performance remains high.",
            "section VI",
            "figure only",
            *once(_over(few, "%", scale=100), lambda n: n.high < 25),
            f"Error over all images; holds if the interval lies below 25 %, as above; {_seeds(len(few))}.",
        ),
        Claim(
            "A class is lost once a critical number of its strongest units has gone.",
            "abstract; section V-D",
            "4 to 8 units",
            *once(_over(needed, "units"), lambda n: n.meets(4, 8)),
            f"Units gone until half of its images are wrong, mean over the classes; holds if it meets 4 to 8; "
            f"{_seeds(len(needed))}.",
        ),
        Claim(
            "That number depends on the gradient of the units that go.",
            "abstract",
            "figure only",
            *once(_over(_less(slower, needed), "units"), _above),
            f"Units until half are wrong, weakest less strongest first; holds if above 0; {_seeds(len(needed))}.",
        ),
        Claim(
            "Three strong units are worth the weaker half of all.",
            "section VI",
            "the same",
            *once(_over(_less(strong, weak), "points", scale=100), lambda n: n.low > -15 and n.high < 15),
            f"Error over all images, {SOME} strongest gone, less that of the {half} weakest; holds if it lies "
            f"within 15 points of 0; {_seeds(len(strong))}.",
        ),
    ]


# VII to X: masks ----------------------------------------------------------------------------------------------------


def _errors_on_cifar(report: Report) -> list[Claim]:
    found = []
    for name, published in ERRORS.items():
        models = [model for model in report.models if model.name == name and report.data == "cifar10"]
        errors = [1 - model.measured.accuracy.value for model in models if model.measured]
        found.append(
            Claim(
                f"The {'pseudo-AlexNet' if name == 'pseudo_alexnet' else 'MLP'} errs on {published} % of CIFAR-10.",
                "section VII-A" if name == "pseudo_alexnet" else "section X-B",
                f"{published} %",
                *once(_over(errors, "%", scale=100), lambda n, at=published: n.meets(at - 1, at + 1)),
                f"Test error; holds if the interval comes within a point of it; {_seeds(len(errors))}.",
            )
        )
    return found


def _shared_mask(masks: Sequence[Masks]) -> Claim:
    errors = [float((1 - one.fooled[1] / one.counted[1]).nanmean()) for one in masks]
    return Claim(
        "One mask for all images does not take them to the target: masks do not generalise within a class.",
        "section VIII-A",
        "88 % error",
        *once(_over(errors, "%", scale=100), lambda n: n.low > 50),
        "Held-out images of other classes that are not taken for the target, kept in [0, 1], mean over all targets; "
        f"holds if most are not; {_seeds(len(masks))}.",
    )


def _own_masks(masks: Sequence[Masks]) -> list[Claim]:
    best = [float(torch.tensor(one.etas, dtype=torch.float64)[one.best()].mean()) for one in masks]
    reached = [float(_at_best(one, "trained").mean()) for one in masks]
    sizes = [[float(one.sizes[place].mean()) for one in masks] for place in (0, 1)]
    norms = [str(_over(each, name, digits=2) or "–") for each, name in zip(sizes, ("in L2", "in L∞"), strict=True)]
    return [
        Claim(
            "The best η lies between 5 000 and 10 000.",
            "section IX-A, figure 6",
            "5 000 to 10 000",
            *once(_over(best, "", digits=0), lambda n: n.low >= BEST[0] and n.high <= BEST[1]),
            f"Unclipped, training images, of pixels in 0..255, mean over the targets; holds if it lies there; "
            f"{_seeds(len(masks))}.",
        ),
        Claim(
            "With the best η any image becomes any class, with very little error.",
            "section IX-A, figure 6",
            "figure only",
            *once(_over(reached, "%", scale=100), lambda n: n.low > 90),
            "Training images taken for the target, unclipped, mean over the targets; holds if above 90 %; mean size "
            f"{norms[0]}, {norms[1]}; {_seeds(len(masks))}.",
        ),
    ]


def _at_best(masks: Masks, way: str) -> Tensor:
    """(K,) success at the eta that is best for the model's own masks of training images."""
    return masks.success(way).gather(1, masks.best()[:, None])[:, 0]


def _others_masks(masks: Sequence[Masks]) -> list[Claim]:
    found = []
    told: dict[str, tuple[str, str, Callable[[Number], bool], str]] = {
        "held out": (
            "The same η serves for images that it was not chosen on.",
            "not in the paper",
            lambda n: n.low > -5,
            "holds if less than 5 points are lost",
        ),
        "borrowed": (
            "The mask of the nearest training image does not reach the target reliably.",
            "section X-A, figure 8",
            lambda n: n.high < 0,
            "holds if the interval lies below 0",
        ),
        "transferred": (
            "On the MLP the masks are not nearly as effective.",
            "section X-B, figure 8",
            lambda n: n.high < 0,
            "holds if the interval lies below 0",
        ),
    }
    for way, (says, where, holds, rule) in told.items():
        gaps = [float((_at_best(one, way) - _at_best(one, "trained")).nanmean()) for one in masks]
        share = _over([float(_at_best(one, way).nanmean()) for one in masks], "%", scale=100) or "–"
        found.append(
            Claim(
                says,
                where,
                "–" if where.startswith("not") else "figure only",
                *once(_over(gaps, "points", scale=100), holds),
                f"Success at the best η, less that of the model's own masks on training images; {rule}; "
                f"{_seeds(len(masks))}. Success itself: {share}.",
            )
        )
    return found
