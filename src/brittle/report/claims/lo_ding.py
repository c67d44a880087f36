"""The claims of Lo and Ding, "Understanding Deep Networks with Gradients".

The paper has one network of each kind. Its claims are judged over seeds: each seed gives one number, the mean over the
classes whose units go, or over the targets of masks, and the interval is Student's, of the seeds' numbers. One seed has
no interval, and nothing is judged by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from brittle.measures import Share, mean_of_seeds
from brittle.report.claims import Claim, Number, Rule, above, below, between, claim, far_from, near, seeds
from brittle.study.kinds.masks import view as eta_curves
from brittle.study.kinds.masks.cell import Masks
from brittle.study.kinds.units import knockouts
from brittle.study.kinds.units.cell import RANDOM, Units
from brittle.study.kinds.units.profiles import tau
from brittle.study.store.results import Report

EPOCHS = {"yale-faces": 250, "cifar10": 28}  # sections IV-B, VII-A: 10,000 iterations are 28 epochs
FACES = Share(2, 41)  # wrong test faces: the published 4.88 %
FEW, SOME, MANY = 2, 3, 10  # units gone of which the paper speaks
OUT_OF_ORDER = 80  # percent: of 15 classes, one that takes all images for one class has 93 % wrong
_CONTROL = "not in the paper: its control"
Values = Sequence[float]  # one a seed


def claims(report: Report) -> list[Claim]:
    """Each claim that the paper makes, in its order, and controls that it lacks; see `claims.of`."""
    found = [one for _, one in next(iter(knockouts.tables(report).values()), [])]
    units = [one for one in found if len(one.gone) == one.profile.shape[1] + 1]  # claims count single units
    masks = [one for _, one in eta_curves.tables(report)]
    lacking = far_from(report.models, EPOCHS.get(report.data, 0))
    made = [*_errors(report), *_order(units), *_spread(units), *_critical(units), *_masks(masks), *_others_masks(masks)]
    of = seeds(len({model.seed for model in report.models}))
    return [
        claim(says, where, published, rule, f"{compared}, {of}", exact=number, lacking=lacking)
        for says, where, published, rule, compared, number in made
    ]


Made = tuple[str, str, str, Rule, str, Number]  # what a claim says, where, the published number, and ours


def _over(values: Values, unit: str, scale: float = 1.0, digits: int = 1) -> Number:
    """The mean over those seeds that have a number."""
    known = [value for value in values if math.isfinite(value)]
    return Number.of(mean_of_seeds(known), unit, scale=scale, digits=digits)


def _at(units: Sequence[Units], kind: str, scope: str, gone: int) -> list[float]:
    """Error of each seed when so many units have gone."""
    return knockouts.over_classes(units, kind, scope)[:, gone].tolist() if _long(units, gone) else []


def _mean_to(units: Sequence[Units], kind: str, scope: str, gone: int) -> list[float]:
    """Mean error of each seed while the first 1, ..., `gone` units go."""
    return knockouts.over_classes(units, kind, scope)[:, 1 : gone + 1].mean(1).tolist() if _long(units, gone) else []


def _long(units: Sequence[Units], gone: int) -> bool:
    return bool(units) and units[0].wrong.shape[-1] > gone


def _less(ones: Values, others: Values) -> list[float]:
    """Seed by seed; empty where a network has too few units for one of them."""
    return [one - other for one, other in zip(ones, others, strict=True)] if ones and others else []


# IV-B, VII-A, X-B: accuracy ------------------------------------------------------------------------------------------


def _errors(report: Report) -> list[Made]:
    published = Number.percent(FACES)
    theirs = between(round(published.low, 1), round(published.high, 1), f"%, theirs for {FACES.total} faces")
    faces, alexnet, mlp = (_over(_error(report, name), "%", 100) for name in ("faces", "pseudo_alexnet", "mlp"))
    alexnets, mlps = (
        "The pseudo-AlexNet misclassifies 34.19 % of CIFAR-10.",
        "The MLP misclassifies 54.22 % of CIFAR-10.",
    )
    return [
        ("The network misclassifies 4.88 % of the test faces.", "section IV-B", "4.88 %", theirs, "Test error", faces),
        (alexnets, "section VII-A", "34.19 %", near(34.19, 1, "%"), "Test error", alexnet),
        (mlps, "section X-B", "54.22 %", near(54.22, 1, "%"), "Test error", mlp),
    ]


def _error(report: Report, name: str) -> list[float]:
    """Test error of each seed: of all networks on the faces, of those of a name on CIFAR-10."""
    if report.data != ("yale-faces" if name == "faces" else "cifar10"):
        return []
    return [1 - m.measured.accuracy.value for m in report.models if m.measured and name in ("faces", m.name)]


# V: units -----------------------------------------------------------------------------------------------------------


def _order(units: Sequence[Units]) -> list[Made]:
    taus = [tau(one) for one in units]
    within, across = (_over(values, "", 1, 2) for values in (zip(*taus, strict=True) if taus else ([], [])))
    profiles = (
        "Units of strong gradients stay the same over the images of one class: each class has its own profile.",
        "section V-A, table II",
        "pictures only",
        above(0),
        f"Kendall's τ between the rankings of two images of a class ({within}), less that of two classes ({across})",
        _over([one - other for one, other in taus], "", 1, 2),
    )
    against = {  # the orders that the strongest units are compared with, and what is said of each
        "weakest": (
            "Removing strong units causes more errors than removing weak ones.",
            "section V-D",
            "figure 2 only",
        ),
        RANDOM: ("Removing strong units causes more errors than removing random ones.", _CONTROL, "–"),
        "least active": ("Strong units matter more than the least active ones.", _CONTROL, "–"),
    }
    return [profiles, *((*said, above(0), *_against(units, kind)) for kind, said in against.items())]


def _against(units: Sequence[Units], kind: str) -> tuple[str, Number]:
    done = [one for one in units if kind in one.kinds]

    def gaps(scope: str) -> list[float]:
        return _less(*(_mean_to(done, each, scope, MANY) for each in ("strongest", kind)))

    held_out = _over(gaps("overall, held out"), "points", 100)
    compared = f"Mean error over all images while the first {MANY} units go, strongest less {kind}"
    return f"{compared} (on held-out images {held_out})", _over(gaps("overall"), "points", 100)


def _spread(units: Sequence[Units]) -> list[Made]:
    start, rest = _at(units, "strongest", "overall", 0), _others(units, MANY)
    within, overall = (_mean_to(units, "strongest", scope, MANY) for scope in ("within", "overall"))
    ends, weak = (_at(units, kind, "overall", MANY) for kind in ("strongest", "weakest"))
    return [
        (
            "Removing one class's strongest units also causes errors on the other classes.",
            "abstract; section V-D",
            "figure only",
            above(0),
            f"Error on images of the other classes, {MANY} units gone, less the error with none",
            _over(_less(rest, start), "points", 100),
        ),
        (
            "The error within the class rises faster than over all classes.",
            "section V-D",
            "figure only",
            above(0),
            f"Mean error within the class, less that over all, while the {MANY} strongest go",
            _over(_less(within, overall), "points", 100),
        ),
        (
            f"Without the {MANY} strongest units of any class the network fails almost completely.",
            "section V-D, figure 2",
            "near 100 %",
            above(OUT_OF_ORDER, "%"),
            "Error over all images",
            _over(ends, "%", 100),
        ),
        (
            f"Without the {MANY} weakest units the error is below 25 %.",
            "section V-D, figure 2",
            "< 25 %",
            below(25, "%"),
            "Error over all images",
            _over(weak, "%", 100),
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


def _critical(units: Sequence[Units]) -> list[Made]:
    few = _at(units, "strongest", "overall", FEW)
    needed, slower = ([one.needed(kind) for one in units] for kind in ("strongest", "weakest"))
    half = (units[0].wrong.shape[-1] - 1) // 2 if units else 0
    strong, weak = _at(units, "strongest", "overall", SOME), _at(units, "weakest", "overall", half)
    return [
        (
            f"Without {FEW} of the strongest units performance remains high.",
            "section VI",
            "figure only",
            below(25, "%"),
            "Error over all images",
            _over(few, "%", 100),
        ),
        (
            "A class is lost once a critical number of its strongest units has gone.",
            "abstract; section V-D",
            "4 to 8 units",
            between(4, 8, "units"),
            "Units gone until half of the class's images are wrong, mean over the classes",
            _over(needed, "units"),
        ),
        (
            "That number depends on the gradient of the units that go.",
            "abstract",
            "figure only",
            above(0),
            "Units gone until half are wrong, weakest first less strongest first",
            _over(_less(slower, needed), "units"),
        ),
        (
            "Three strong units are worth the weaker half of all.",
            "section VI",
            "the same",
            near(0, 15, "points"),
            f"Error over all images, {SOME} strongest gone, less that with the {half} weakest gone",
            _over(_less(strong, weak), "points", 100),
        ),
    ]


# VII to X: masks ----------------------------------------------------------------------------------------------------


def _masks(masks: Sequence[Masks]) -> list[Made]:
    shared = [float((1 - one.fooled[1] / one.counted[1]).nanmean()) for one in masks]
    best = [float(torch.tensor(one.etas, dtype=torch.float64)[one.best()].mean()) for one in masks]
    reached = [float(_at_best(one, "trained").mean()) for one in masks]
    sizes = [[float(one.sizes[place].mean()) for one in masks] for place in (0, 1)]
    norms = [str(_over(each, name, 1, 2)) for each, name in zip(sizes, ("in L2", "in L∞"), strict=True)]
    return [
        (
            "One mask for all images does not take them to the target: masks do not generalise within a class.",
            "section VIII-A",
            "88 % error",
            above(50, "%"),
            "Held-out images of other classes, kept in [0, 1], not taken for the target, mean over all targets",
            _over(shared, "%", 100),
        ),
        (
            "The best η lies between 5 000 and 10 000.",
            "section IX-A, figure 6",
            "5 000 to 10 000",
            between(5000, 10_000),
            "Best η, unclipped, training images, of pixels in 0..255, mean over the targets",
            _over(best, "", 1, 0),
        ),
        (
            "With the best η any image becomes any class, with very little error.",
            "section IX-A, figure 6",
            "figure only",
            above(90, "%"),
            f"Training images taken for the target, unclipped, mean over the targets, mean size {', '.join(norms)}",
            _over(reached, "%", 100),
        ),
    ]


def _at_best(masks: Masks, way: str) -> Tensor:
    """(K,) success at the eta that is best for the model's own masks of training images."""
    return masks.success(way).gather(1, masks.best()[:, None])[:, 0]


def _others_masks(masks: Sequence[Masks]) -> list[Made]:
    told = {
        "held out": ("The same η serves for images that it was not chosen on.", "not in the paper", "–", above(-5)),
        "borrowed": (
            "The mask of the nearest training image does not reach the target reliably.",
            "section X-A, figure 8",
            "figure only",
            below(0),
        ),
        "transferred": (
            "On the MLP the masks are not nearly as effective.",
            "section X-B, figure 8",
            "figure only",
            below(0),
        ),
    }
    found = []
    for way, said in told.items():
        gaps = [float((_at_best(one, way) - _at_best(one, "trained")).nanmean()) for one in masks]
        share = _over([float(_at_best(one, way).nanmean()) for one in masks], "%", 100)
        compared = f"Success at the best η ({share}), less that of the model's own masks on training images"
        found.append((*said, compared, _over(gaps, "points", 100)))
    return found
