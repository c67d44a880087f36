"""A study of units and masks, run whole on a tiny network: from its tables to its page."""

import json
import re
from dataclasses import replace

import pytest
import torch
from problems import blobs

from brittle.drawing import charts
from brittle.report import gather
from brittle.report.page import html
from brittle.report.results import as_json
from brittle.study import schema
from brittle.study.expand import expand
from brittle.study.kinds.masks.cell import Masks
from brittle.study.kinds.units import knockouts
from brittle.study.kinds.units.cell import Units
from brittle.study.run import scheduler
from brittle.study.run.worker import Worker
from brittle.study.store.store import Store

TABLES = {
    "name": "tiny",
    "title": "Units and masks",
    "data": "blobs",
    "rows": 6,
    "seeds": [0, 1],
    "claims": "lo-ding",
    "training": {"network": "brittle.networks.mlp", "network_options": {"hidden": 4}, "epochs": 1},
    "models": {"plain": {}, "other": {}},
    "units": {"hidden": {"layers": ["tanh"], "classes": ["square at 1"], "random": 2, "models": ["plain"]}},
    "carriers": {"some": {"layers": ["tanh"], "random": 2, "models": ["plain"]}},
    "masks": {"linear": {"models": ["plain"], "other": "other", "etas": [0, 5000, 10000], "images": 6, "epochs": 1}},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    data, made = blobs(), Store(tmp_path_factory.mktemp("store"))
    plan = expand(schema.check(TABLES, "tiny"), data, device="cpu", dtype="float32")
    made.write_study("tiny", plan.record)
    scheduler.run(plan.cells, made, scheduler.InProcess(Worker(made, lambda _: data, torch.device("cpu"))))
    return made


def test_what_a_study_stores_of_units_and_masks_comes_back(store):
    plain, other = gather(store, "tiny").models[:2]
    (units,), (masks,) = plain.results_of(Units), plain.results_of(Masks)
    assert other.results == ()
    assert (units.layers, units.classes, units.profile.shape, units.each.shape) == ({"tanh": 4}, (1,), (3, 4), (120, 4))
    assert units.errors("strongest", "overall").shape == units.errors("random", "overall").shape == (1, 5)
    assert plain.measured is not None
    labels, predictions = plain.measured.labels, plain.measured.logits.argmax(1)
    wrong = int((predictions != labels).sum())  # none gone: the test split, which is held out
    assert units.errors("strongest", "overall, held out")[0, 0] == pytest.approx(wrong / len(labels))
    assert masks.success("transferred").shape == (3, 3)
    assert masks.etas == (0, 5000, 10_000)


def test_the_results_hold_them_in_an_order_of_their_own_before_the_attacks(store):
    plain, other = json.loads(as_json(gather(store, "tiny")))["models"][:2]
    assert [*plain][-4:] == ["units", "carriers", "masks", "attacks"]
    assert not {"units", "carriers", "masks", "audits"} & {*other}


def test_the_page_shows_them(store):
    page = html(gather(store, "tiny"))
    for words in (
        "Which units matter",
        "Error against the number of silenced units",
        "Kendall’s τ between the rankings",
        "How strong a mask",
    ):
        assert words in page
    assert "What the paper says" in page


def test_a_page_without_units_has_no_such_section(build):
    page = html(gather(build(), "tiny"))
    assert "Which units matter" not in page
    assert "What additive masks do" not in page


def test_units_that_are_not_done_are_missing_and_nothing_else(store, tmp_path):
    record = store.read_study("tiny")
    record["models"][0]["units"][0]["cell"] = "0" * 32
    store.write_study("part", record)
    found = gather(store, "part")
    assert [lost.title for lost in found.lost] == ["units hidden of plain, seed 0"]
    assert [len(model.results_of(Units)) for model in found.models] == [0, 0, 1, 0]
    assert "Error against the number of silenced units" in html(found)


def test_every_figure_and_legend_follows_the_colours_of_the_page(store):
    """Of units, carriers and masks: markers of the colour of the text or of the page never reach it."""
    page = html(gather(store, "tiny"))
    assert "Accuracy as units are silenced" in page
    assert '<i style="color: currentColor"></i><bdi>random</bdi>' in page
    assert not re.findall("#010203|#fefdfc", page)
    legends = re.findall(r'<i style="color: ([^"]*)"', page)
    assert not {*legends} & {*charts.COLOURS, charts.INK}


def test_one_network_has_a_short_page_without_words_of_attacks(store):
    of = gather(store, "tiny")
    page = html(replace(of, paper=None, models=(replace(of.models[0], results=of.models[0].results_of(Units)),)))
    assert page.count('<details class="figure">') >= 4
    text = re.sub(r"<(style|svg|script)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert "attack" not in re.sub(r"<[^>]*>", "", text).lower()
    assert all(table.count("<tr") > 2 for table in re.findall(r"<table.*?</table>", page, flags=re.DOTALL))


def test_each_class_has_a_colour_of_its_own(store):
    (units,) = gather(store, "tiny").models[0].results_of(Units)
    for count in (3, 10, 25):
        of = replace(gather(store, "tiny"), classes=tuple(f"class {place}" for place in range(count)))
        many = replace(of.models[0], results=(replace(units, classes=tuple(range(count))),))
        shades = knockouts.class_colours(replace(of, models=(many,)))
        assert len(shades) == len({*shades.values()}) == count
