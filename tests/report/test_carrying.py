"""How work is spread over units, and what is restored when carriers go, of networks whose curves are given."""

import json

import pytest
import torch

from brittle.report.results import as_json
from brittle.study.kinds.carriers import view as carrying
from brittle.study.kinds.carriers.cell import Carriers
from brittle.study.kinds.carriers.view import section
from brittle.study.kinds.units import view
from brittle.study.kinds.units.cell import Units
from brittle.study.store.results import Model, Provenance, Report


def units(profile):
    """Two classes with such gradients; half of a class is lost after one strong unit, or after three weak ones."""
    strong, weak = torch.tensor([0, 6, 8, 10]), torch.tensor([0, 0, 4, 10])
    wrong = torch.stack([torch.stack([line] * 4) for line in (strong, weak, weak)]).int()
    log10 = torch.tensor(profile).double().log10()
    return Units(
        name="maps",
        layers={"one": 3},
        output="logits",
        classes=(0, 1),
        profile=log10,
        each=log10.repeat(5, 1),
        labels=torch.arange(2).repeat(5),
        held_out=torch.arange(10) >= 8,
        agreement=torch.eye(2).double(),
        gone=(0, 2, 4, 6),
        wrong=wrong.repeat(2, 1, 1, 1),
        total=torch.full((2, 4), 10),
        moves=torch.eye(2).int().repeat(2, 4, 1, 1),
        maps={"places": torch.full((2, 6), -1)},
    )


def carriers(adversarial, clean=(20, 20, 19, 10), *, images=20):
    """Of such curves for carriers; nothing is restored in any other order."""
    right = torch.zeros(2 + 2, 2, 4, dtype=torch.int32)
    right[:, 0] = torch.tensor(clean)
    right[0, 1] = torch.tensor(adversarial)
    return Carriers("pgd", 0.3, {"one": 3}, images, 25, 0.5, (0, 1, 2, 3), right)


def model(name, seed, *, profile=((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)), carried=None):
    results = (units(profile),) if carried is None else (units(profile), carried)
    title = f"{name}, seed {seed}"
    return Model(name, name, title, seed, {}, 1.0, None, 0, None, None, (), results)


def report(*models):
    nothing = Provenance({}, 0.0, "", "")
    return Report("made", "made", "", None, "digits", "", ("a", "b"), None, None, models, 1, (), nothing)


@pytest.mark.parametrize(
    ("profile", "count"),
    [
        ([[5.0, 5.0, 5.0]] * 2, 3),
        ([[1.0, 0.0, 0.0]] * 2, 1),
        ([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]], 1.5),
        ([[2.0, 1.0, 0.0]] * 2, 9 / 5),
    ],
)
def test_work_is_spread_over_as_many_units_as_share_it(profile, count):
    assert view.effective(units(profile)) == pytest.approx(count)


def test_networks_are_alike_as_their_rankings_are():
    rising, falling = units([[1.0, 2.0, 3.0]] * 2), units([[3.0, 2.0, 1.0]] * 2)
    assert view.likeness(rising, rising) == pytest.approx(1)
    assert view.likeness(rising, falling) == pytest.approx(-1)
    assert view.likeness(rising, units([[1.0, 3.0, 2.0]] * 2)) == pytest.approx(1 / 3)


def test_the_spread_is_told_where_there_are_networks_to_compare():
    one, other = (
        [model(name, seed, profile=each) for seed in (0, 1)]
        for name, each in (("plain", [[1.0, 2.0, 3.0]] * 2), ("hot", [[3.0, 2.0, 1.0]] * 2))
    )
    assert view.spread(report(*one)) == []
    plain, hot = view.spread(report(*one, *other))
    assert plain["alike"] == "–"
    assert hot["alike"] == "-1.00 (-1.00 to -1.00)"
    assert (hot["units"], hot["strongest"], hot["weakest"]) == (3, "2.0 (2.0 to 2.0)", "6.0 (6.0 to 6.0)")


def test_what_is_restored_is_counted_where_clean_images_are_kept():
    (line,) = carrying.defence(report(model("plain", 0, carried=carriers([0, 4, 10, 20]))))
    told = ("model", "eps", "fooled", "alike", "carriers", "important", "random")
    assert [line[one] for one in told] == ["plain", "0.3", "80.0", "0.50", "50.0", "0.0", "0.0"]
    assert carriers([0, 4, 10, 20]).restored("carriers", 0) == pytest.approx(0.2)
    assert carrying.curves(report(model("plain", 0, carried=carriers([0, 4, 10, 20])))).startswith("<svg")


def test_a_network_that_nothing_fooled_is_left_out():
    seen = report(model("plain", 0, carried=carriers([0] * 4, images=0)))
    assert carrying.tables(seen) == {}
    assert section(seen) == {}


def test_the_curves_are_in_the_results_as_numbers():
    (found,) = json.loads(as_json(report(model("plain", 0, carried=carriers([0, 4, 10, 20])))))["models"]
    (told,) = found["units"]
    assert told["gone"] == [0, 2, 4, 6]
    assert told["wrong"]["strongest"]["within"] == [0, 0.6, 0.8, 1]
    assert told["needed"] == {"strongest": 2, "weakest": 6, "least active": 6}
    assert told["log10_gradients"] == [[0, 0, 0]] * 2
    (told,) = found["carriers"]
    assert told["right"]["carriers"] == {"clean": [1, 1, 0.95, 0.5], "adversarial": [0, 0.2, 0.5, 1]}
    assert told["right"]["random"]["adversarial"] == [0, 0, 0, 0]
    assert (told["fooled"], told["tried"]) == (20, 25)
