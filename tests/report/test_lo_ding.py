"""Lo and Ding's claims and figures, of units and masks whose errors are given."""

import json
import re

import pytest
import torch

from brittle.measures import Mean, Share
from brittle.report.claims import lo_ding
from brittle.report.results import as_json
from brittle.report.sentences import verdict_sentences
from brittle.study.kinds.masks import view as eta_curves
from brittle.study.kinds.masks.cell import Masks
from brittle.study.kinds.measure.result import Measured
from brittle.study.kinds.units import knockouts, profiles
from brittle.study.kinds.units.cell import Units
from brittle.study.store.results import Model, Provenance, Report

U = 12  # units: 4 in one layer, 8 in the other


def units(strongest, weakest, *, within=0.6, between=0.4, random=None):
    """One class of 10 images of 30, and errors in percent after 0, 1, ... units; all wrong at the end."""

    def curve(errors):
        return torch.tensor([*errors, *[errors[-1]] * (U + 1 - len(errors))])

    lines = [strongest, weakest, weakest, *([random] * 2 if random else [])]
    wrong = torch.stack([torch.stack([curve(line) * total // 100 for total in (10, 30, 10, 30)]) for line in lines])
    agreement = torch.full((3, 3), between, dtype=torch.float64)
    agreement.fill_diagonal_(within)
    return Units(
        name="maps",
        layers={"one": 4, "two": 8},
        output="softmax",
        classes=(1,),
        profile=torch.linspace(0, -1.1, U).double().repeat(3, 1),
        each=torch.linspace(0, -1.1, U).double().repeat(30, 1),
        labels=torch.arange(3).repeat(10),
        held_out=torch.arange(30) >= 24,
        agreement=agreement,
        gone=tuple(range(U + 1)),
        wrong=wrong[None].int(),
        total=torch.tensor([[10, 30, 10, 30]]),
        moves=torch.eye(3).int().mul(10).repeat(1, U + 1, 1, 1),
        maps={
            "places": torch.tensor([[0, 5, -1, -1, -1, -1]]),
            "rows": torch.tensor([[1, -1, -1]]),
            "outputs": torch.rand(1, 3, 6, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.5,
        },
    )


def masks(best=6000, held_out=0.9, borrowed=0.3, transferred=0.2, learned=0.1):
    """Two targets, 100 images each; all are there at the best eta, a tenth at others."""
    etas = (0, 3000, 6000, 9000, 12_000)
    at = torch.tensor([eta == best for eta in etas])
    shares = torch.tensor([1.0, held_out, borrowed, transferred])
    reached = torch.where(at, 100 * shares.view(4, 1, 1, 1), 10.0).round().long().expand(4, 2, 2, 5)
    return Masks(
        name="linear",
        etas=etas,
        reached=reached,
        total=torch.full((4, 2), 100),
        sizes=torch.tensor([[2.0, 2.0], [0.1, 0.1]]).double(),
        learned=torch.zeros(2, 3, 4, 4),
        fooled=torch.full((2, 2), round(100 * learned)),
        counted=torch.full((2, 2), 100),
        images=torch.full((2, 3, 4, 4), 0.5),
        masks=torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)),
        labels=torch.tensor([0, 1]),
        targets=torch.tensor([1, 0]),
    )


def model(seed, *, units=None, masks=None, name="faces", wrong=2, of=41):
    right = Share(of - wrong, of)
    labels = torch.arange(100)  # each of a class of its own: any accuracy is above chance
    measured = Measured(right, right, Mean(1, (1, 1), of), {}, {}, torch.zeros(2, 3), labels, None)
    results = tuple(one for one in (units, masks) if one is not None)
    return Model(name, name, f"{name}, seed {seed}", seed, {}, 1.0, None, 0, None, measured, (), results)


def report(*models, data="yale-faces"):
    images, labels = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(3).repeat(2)
    nothing = Provenance({}, 0.0, "", "")
    return Report("made", "made", "", "lo-ding", data, "", ("a", "b", "c"), images, labels, models, 1, (), nothing)


def verdicts(*models, data="yale-faces"):
    return {claim.says: claim.verdict for claim in lo_ding.claims(report(*models, data=data))}


def claim(piece, *models, data="yale-faces"):
    (found,) = [one for one in lo_ding.claims(report(*models, data=data)) if piece in one.says]
    return found


def value(piece, *models, data="yale-faces"):
    number = claim(piece, *models, data=data).exact
    assert number is not None
    return number.value


AS_PUBLISHED = [0, 0, 10, 40, 60, 70, 80, 90, 90, 90, 90, 90, 100], [0, 0, 0, 0, 0, 0, 40, 40, 40, 20, 20, 90, 100]


def faces(strongest=AS_PUBLISHED[0], weakest=AS_PUBLISHED[1], *, seeds=3, **others):
    """Seeds that differ by one wrong face, and in nothing else."""
    return [model(seed, units=units(strongest, weakest, **others), wrong=2 + seed // 2) for seed in range(seeds)]


def test_a_network_as_the_paper_describes_it_bears_its_claims_on_units_out():
    found = [one for one in lo_ding.claims(report(*faces())) if one.verdict != "not judged"]
    assert [one.says for one in found if one.verdict != "holds"] == [
        "The error within the class rises faster than over all classes.",  # here both are alike
    ]
    assert len(found) == 12


def test_without_seeds_nothing_is_judged():
    assert set(verdicts(*faces(seeds=1)).values()) == {"not judged"}
    assert set(verdicts().values()) == {"not judged"}


def test_the_numbers_are_those_of_the_curves():
    assert value("removing weak ones", *faces()) == pytest.approx(
        sum(AS_PUBLISHED[0][1:11]) / 10 - sum(AS_PUBLISHED[1][1:11]) / 10
    )
    assert value("critical number", *faces()) == 4  # the first with half or more wrong
    assert value("That number depends", *faces()) == 11 - 4
    assert value("10 weakest", *faces()) == pytest.approx(20)
    assert value("Three strong", *faces()) == pytest.approx(40 - 40)  # 3 strongest, 6 weakest
    assert value("its own profile", *faces()) == pytest.approx(0.2)


def test_units_that_all_matter_alike_bear_none_of_them_out():
    same = AS_PUBLISHED[1]
    found = verdicts(*faces(same, same, within=0.3, between=0.3, random=same))
    for says, verdict in found.items():
        if any(piece in says for piece in ("profile", "removing weak", "random ones", "least active", "That number")):
            assert verdict == "contradicted"


def test_random_draws_are_compared_where_there_are_some():
    assert claim("random ones", *faces()).verdict == "not judged"
    tried = claim("random ones", *faces(random=[0] * 11 + [50, 100]))
    assert tried.verdict == "holds"
    assert value("random ones", *faces(random=[0] * 11 + [50, 100])) == pytest.approx(sum(AS_PUBLISHED[0][1:11]) / 10)


def test_an_error_that_two_of_41_cannot_be_is_not_the_published_one():
    assert claim("4.88", *faces()).verdict == "holds"
    bad = [model(seed, wrong=20 + seed) for seed in range(3)]
    assert claim("4.88", *bad).verdict == "contradicted"


def cifar(**changed):
    seeds = [
        model(seed, masks=masks(**changed), name="pseudo_alexnet", wrong=3400 + 20 * seed, of=10_000)
        for seed in (0, 1, 2)
    ]
    return seeds + [model(seed, name="mlp", wrong=4000 + seed, of=10_000) for seed in (0, 1, 2)]


def test_masks_as_the_paper_describes_them_bear_its_claims_out():
    found = [one for one in lo_ding.claims(report(*cifar(), data="cifar10")) if one.verdict != "not judged"]
    assert [one.says for one in found if one.verdict != "holds"] == [
        "The MLP misclassifies 54.22 % of CIFAR-10.",
        "The same η serves for images that it was not chosen on.",  # 10 points lost
    ]
    assert len(found) == 8
    assert value("One mask for all", *cifar(), data="cifar10") == pytest.approx(90)
    assert value("On the MLP", *cifar(), data="cifar10") == pytest.approx(20 - 100)


@pytest.mark.parametrize(
    ("piece", "changed"),
    [("best η lies", {"best": 3000}), ("nearest", {"borrowed": 1.0}), ("One mask", {"learned": 0.9})],
)
def test_masks_that_do_otherwise_do_not(piece, changed):
    assert claim(piece, *cifar(**changed), data="cifar10").verdict == "contradicted"


def test_a_unit_is_named_by_its_layer_and_its_place_there():
    one = units(*AS_PUBLISHED)
    assert [one.unit(place) for place in (0, 3, 4, 11)] == [("one", 0), ("one", 3), ("two", 0), ("two", 7)]


def test_the_strongest_and_the_weakest_are_listed_from_the_ends():
    rows = profiles.ranked(report(*faces()))
    assert len(rows) == 6  # half of twelve, of one class
    assert rows[0] == {
        "class": "b",
        "pair": [{"layer": "one", "unit": 1, "gradient": "1"}, {"layer": "two", "unit": 8, "gradient": "0.079"}],
    }


def test_circles_are_as_bright_as_their_share_of_the_strongest():
    svg = profiles.networks(report(*faces()))
    assert svg.count("<circle") == U * 3  # of two held-out images of class b, and the class
    assert svg.count(">one 1: 1<") == 3
    assert svg.index("#ffecaa") < svg.index("two 8: 0.0794")  # the brightest is the first


def test_a_report_of_units_alone_says_how_many_it_takes():
    models = faces([0] * 4 + [60], [0] * 9 + [80], seeds=2)
    assert verdict_sentences(report(*models)) == [
        "Faces: removing the 4 strongest of 12 units halves a class's accuracy; it takes 9 if the weakest are removed "
        "first."
    ]


def test_the_strongest_maps_are_shown_beside_the_images_that_are_there():
    svg = profiles.maps(report(*faces()))
    assert svg.count("<image") == 3  # a held-out image of class b, and two maps
    assert ">one 1<" in svg
    assert ">two 2<" in svg


def test_a_layer_of_many_units_is_drawn_on_several_lines(monkeypatch):
    monkeypatch.setattr(profiles, "MOST", 5)
    circles = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', profiles.networks(report(*faces())))[:U]
    lines = [y for _, y in circles]
    assert [lines.count(y) for y in dict.fromkeys(lines)] == [4, 5, 3]  # layers of 4 and of 8
    assert len(set(circles)) == U


def test_figures_are_drawn_where_there_is_something_to_draw():
    seen = report(*faces(random=[0] * 12 + [100]))
    for draw in (knockouts.curves, knockouts.by_class, knockouts.moves, profiles.profiles):
        assert draw(seen).startswith("<svg")
        assert draw(report()) == ""
    masked = report(*cifar(), data="cifar10")
    for draw in (eta_curves.curves, eta_curves.examples, eta_curves.histograms):
        assert draw(masked).startswith("<svg")
        assert draw(seen) == ""
    assert set(knockouts.legend(report(*faces()))) == {"strongest", "weakest", "least active"}


def test_masks_are_in_the_results_as_numbers():
    (told,) = json.loads(as_json(report(*cifar(), data="cifar10")))["models"][0]["masks"]
    assert told["etas"] == [0, 3000, 6000, 9000, 12_000]
    assert told["reached"]["held out"]["unclipped"] == [0.1, 0.1, 0.9, 0.1, 0.1]
    assert told["reached"]["trained"]["clipped"][2] == 1
