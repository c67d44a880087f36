from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from PIL import Image

from brittle.report import Report, gather
from brittle.report.page import html
from brittle.study.kinds.attack import stepper
from brittle.study.kinds.attack.result import Attack, Found, Steps
from brittle.study.store.store import Store

HOSTILE = "<script>alert(1)</script>"
Build = Callable[..., Store]


def changed(report: Report, change: Callable[[Found], Found]) -> Report:
    """The report with something else in place of everything that its attacks found."""

    def attacked(attack: Attack) -> Attack:
        return replace(attack, found={name: change(found) for name, found in attack.found.items()})

    models = (replace(model, attacks=tuple(map(attacked, model.attacks))) for model in report.models)
    return replace(report, models=tuple(models))


def without_steps(report: Report) -> Report:
    return changed(report, lambda found: replace(found, steps=None))


def contents(report: Report) -> dict:
    shown = stepper.contents(report)
    assert shown is not None
    return shown


def script_of(page: str) -> str:
    """The one script that a browser runs: the block of data has a type that it does not."""
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    return script


def test_each_step_of_each_image_is_there(build: Build):
    shown = contents(gather(build(), "tiny"))

    assert (shown["height"], shown["width"]) == (6, 6)
    assert [image["label"] for image in shown["images"]] == [0, 1, 2]
    assert [(model["name"], model["temperature"]) for model in shown["models"]] == [("plain", 1), (HOSTILE, 20)]
    assert [attack["name"] for attack in shown["models"][1]["attacks"]] == ["first", "second"]
    runs = shown["models"][0]["attacks"][0]["found"]
    assert list(runs) == ["float32", "exact"]
    assert [run["outcome"] for run in runs["exact"]] == ["wrong", "fooled", "fooled"]
    assert runs["exact"][2] == {
        "outcome": "fooled",
        "pixels": [0, 1],
        "levels": [1, 0],
        "largest": [2, 0.5, 2],
        "gaps": [[3, 2, 0], [0, 0.5, 0], [0, 2, 3]],  # of class 2, whose logit falls as that of class 0 rises
    }
    assert shown["models"][1]["attacks"][0]["found"]["float32"][2] == {
        "outcome": "withstood",
        "pixels": [],
        "levels": [],
        "largest": [2],
        "gaps": [[3, 2, 0]],
    }


def test_it_starts_at_a_fooled_image_wherever_there_is_one(build: Build):
    """First of the hot network by the second attack: exactly, else in float32, else by the first, else of the other."""

    def unfooled(*gone: tuple[str, str]) -> Report:
        def none(found: Found) -> Found:
            return replace(found, packed={**found.packed, "success": torch.zeros_like(found.packed["success"])})

        report = gather(build(), "tiny")
        attacks = tuple(
            replace(a, found={n: none(one) if (a.label, n) in gone else one for n, one in a.found.items()})
            for a in report.models[1].attacks
        )
        return replace(report, models=(report.models[0], replace(report.models[1], attacks=attacks)))

    second = ("second", "exact"), ("second", "float32")
    hot = {"model": 1, "image": 1}
    assert contents(unfooled(second[0]))["start"] == {**hot, "attack": 1, "arithmetic": "float32"}
    assert contents(unfooled(*second))["start"] == {**hot, "attack": 0, "arithmetic": "exact"}
    start = contents(unfooled(*second, ("first", "exact"), ("first", "float32")))["start"]
    assert start == {"model": 0, "attack": 1, "arithmetic": "exact", "image": 1}


def test_it_starts_where_temperature_tells_most_and_an_image_was_fooled(build: Build):
    shown = contents(gather(build(), "tiny"))
    assert shown["start"] == {"model": 1, "attack": 1, "arithmetic": "exact", "image": 2}  # row 1 withstood


def test_images_are_the_report_s_own(build: Build):
    report = gather(build(channels=3), "tiny")
    assert report.images is not None
    source = contents(report)["images"][1]["source"]
    kind, _, data = source.partition(",")

    assert kind == "data:image/png;base64"
    shown = torch.tensor(list(Image.open(io.BytesIO(base64.b64decode(data))).tobytes())).view(6, 6, 3)
    assert torch.equal(shown, (report.images[1] * 255).round().long().permute(1, 2, 0))


def test_rounding_leaves_the_prediction_as_it_was(build: Build):
    """12345.678 and 12345.680 are alike to five digits, and yet the third is the larger."""

    def close(found: Found) -> Found:
        assert found.steps is not None
        logits = torch.tensor([-1.0, 12345.678, 12345.680], dtype=torch.float64).expand(3, 12, 3).clone()
        return replace(found, steps=Steps(found.steps.rows, logits))

    run = contents(changed(gather(build(), "tiny"), close))["models"][0]["attacks"][0]["found"]["exact"][1]
    assert run["largest"] == [12346, 12346]
    assert run["gaps"][0] == pytest.approx([12347, 0.002, 0])


def test_an_attack_that_was_not_made_on_an_image_has_no_run_of_it(build: Build):
    def fewer(found: Found) -> Found:
        assert found.steps is not None
        keep = found.steps.rows != (1 if found.arithmetic == "exact" else -1)
        return replace(found, steps=Steps(found.steps.rows[keep], found.steps.logits[keep]))

    runs = contents(changed(gather(build(), "tiny"), fewer))["models"][0]["attacks"][0]["found"]
    assert [run is None for run in runs["exact"]] == [False, True, False]
    assert [run is None for run in runs["float32"]] == [False, False, False]


def test_logits_that_are_no_numbers_end_a_run(build: Build):
    def broken(found: Found) -> Found:
        assert found.steps is not None
        logits = found.steps.logits.clone()
        logits[0, 0, 0] = torch.nan
        logits[2, 2:, 1] = torch.inf
        return replace(found, steps=Steps(found.steps.rows, logits))

    shown = contents(changed(gather(build(), "tiny"), broken))
    runs = shown["models"][0]["attacks"][0]["found"]["exact"]
    assert [image["label"] for image in shown["images"]] == [1, 2]
    assert [run["pixels"] for run in runs] == [[0], [0]]
    assert [len(run["gaps"]) for run in runs] == [2, 2]


def test_many_classes_show_some_images(build: Build):
    def many(found: Found) -> Found:
        return replace(found, steps=Steps(torch.arange(12), torch.zeros(12, 1, 3)))

    assert len(contents(changed(gather(build(), "tiny"), many))["images"]) == stepper.IMAGES


def test_only_the_shown_models_weigh_upon_the_page(build: Build):
    shown = contents(gather(build(seeds=(0, 1, 2)), "tiny"))
    assert [model["name"] for model in shown["models"]] == ["plain", HOSTILE]


def test_what_has_no_steps_is_left_out(build: Build):
    skip = [("attack", "plain", 0, attack, 0) for attack in ("first", "second")]
    shown = contents(gather(build(skip=skip, soft=True), "tiny"))

    assert [model["name"] for model in shown["models"]] == [HOSTILE]
    assert [attack["name"] for attack in shown["models"][0]["attacks"]] == ["first", "second"]


def test_without_steps_there_is_no_section_and_no_script(build: Build):
    report = without_steps(gather(build(), "tiny"))
    page = html(report)

    assert stepper.contents(report) is None
    assert "<script" not in page
    assert "script-src" not in page
    assert "Step by step" not in page


def test_a_report_of_nothing_has_nothing_to_step_through(build: Build):
    report = gather(build(), "tiny")
    assert stepper.contents(replace(report, images=None, labels=None)) is None
    assert stepper.contents(replace(report, models=())) is None


def test_the_page_holds_the_contents_and_hostile_names_stay_in_them(build: Build):
    report = gather(build(), "tiny")
    report = replace(report, classes=(HOSTILE, "</script><b>&amp;", "<!--<script>"))
    page = html(report)

    (block,) = re.findall(r'<script type="application/json" id="stepper-data">(.*?)</script>', page, flags=re.DOTALL)
    assert not set("<>&") & set(block)
    assert json.loads(block) == contents(report)
    assert json.loads(block)["classes"] == [HOSTILE, "</script><b>&amp;", "<!--<script>"]
    assert page.count("<script") == 2
    assert page.count("</script") == 2


def test_the_policy_allows_this_script_and_no_other(build: Build):
    page = html(gather(build(), "tiny"))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    script = script_of(page)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()

    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert script == stepper.script()


def test_the_script_needs_nothing_and_writes_text_only():
    script = stepper.script()
    for unwanted in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval", "fetch", "http", "\r"):
        assert unwanted not in script
    assert not re.search(r"</?script|<!--", script)  # would end the element that holds it, or not let it end


def test_models_whose_names_are_cut_alike_stay_apart(build: Build):
    report = gather(build(), "tiny")
    models = tuple(replace(model, label="m" * 40 + model.label) for model in report.models)
    assert [len(model["attacks"]) for model in contents(replace(report, models=models))["models"]] == [2, 2]
