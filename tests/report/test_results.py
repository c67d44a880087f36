from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made import chain, network, report, sized
from rich.console import Console
from rich.table import Table

from brittle.attacks.result import Bound
from brittle.errors import InputError
from brittle.measures import Share
from brittle.report import Report, gather, table, write
from brittle.report.results import COLUMNS, as_csv, as_json
from brittle.study.store.store import Store

HOSTILE = "<script>alert(1)</script>"
Build = Callable[..., Store]


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_json_is_strict_and_holds_the_numbers(build: Build):
    found = json.loads(as_json(gather(build(), "tiny")), parse_constant=refuse)

    assert found["study"]["title"] == f"A study of {HOSTILE}"
    assert found["data"]["rows"] == 12
    hot = found["models"][1]
    assert hot["accuracy"]["count"] == 11
    assert hot["training"]["validation_accuracy"] == [0.5, None]
    float32, exact = (hot["attacks"][0]["arithmetic"][name] for name in ("float32", "exact"))
    assert (float32["success"]["value"], exact["success"]["value"]) == (0, 1)
    assert float32["flips"]["mean"] is None  # nothing was fooled: no mean, and it is not 0
    assert (float32["flips"]["failures"], exact["flips"]["q1"], exact["wrong_before"]) == (11, 3.5, 1)
    assert hot["log10_amplitudes"]["float32"] == [None] * 12
    assert found["missing"] == []


def test_csv_has_a_line_for_each_arithmetic(build: Build):
    lines = list(csv.DictReader(io.StringIO(as_csv(gather(build(), "tiny")))))

    assert len(lines) == 2 * 2 * 2
    assert tuple(lines[0]) == tuple(COLUMNS)
    hot = next(line for line in lines if line["model"] == HOSTILE and line["arithmetic"] == "float32")
    assert (hot["rows"], hot["rows_right_before"], hot["successes"], hot["failures"]) == ("12", "11", "0", "11")
    assert (hot["success"], hot["flips_mean"], hot["teacher"]) == ("0", "", "plain")
    assert float(hot["high"]) == pytest.approx(3.8415 / 14.8415, abs=1e-4)


def test_sizes_of_the_smallest_changes_are_in_both_files():
    of = report(network("plain", 1, [sized("l2", [0, 1, 2, 6, math.inf])]), paper=None)
    (attack,) = json.loads(as_json(of), parse_constant=refuse)["models"][0]["attacks"]
    assert (attack["minimises"], attack["bound"]) == (2, None)
    assert (attack["over_temperature"], attack["targeted"]) == (False, False)
    found = attack["arithmetic"]["result"]
    robustness = found["robustness"]
    assert found["mean_change"] == {"l0": 3, "l1": 3, "l2": 3, "linf": 3}
    assert found["robust_accuracy"] is None
    assert [robustness[name]["value"] for name in ("mean", "median", "maximum", "over_all")] == [3, 2, 6, 2.25]
    assert (robustness["mean"]["rows"], robustness["wrong_before"], robustness["withstood"]) == (3, 1, 1)
    assert 1 <= robustness["mean"]["low"] < 3 < robustness["mean"]["high"] <= 6

    (line,) = csv.DictReader(io.StringIO(as_csv(of)))
    assert (line["minimises"], line["size_mean"], line["size_median"], line["size_max"]) == ("2", "3", "2", "6")
    assert (line["wrong_before"], line["failures"], line["successes"]) == ("1", "1", "3")
    assert float(line["size_low"]) == robustness["mean"]["low"]


def test_pixel_attacks_count_pixels_and_have_no_sizes(build: Build):
    found = json.loads(as_json(gather(build(), "tiny")), parse_constant=refuse)["models"][0]["attacks"][0]
    assert found["minimises"] == 0
    assert found["arithmetic"]["exact"]["robustness"] is None
    assert found["arithmetic"]["exact"]["mean_change"]["l0"] == 6
    line = next(csv.DictReader(io.StringIO(as_csv(gather(build(), "tiny")))))
    assert (line["size_mean"], line["flips_mean"]) == ("", "6")


def test_the_table_shows_sizes_of_all_seeds_together():
    def attacks(generation: int, _t: float, seed: int) -> list:
        return [sized("l2", [1.0 + seed, 3.0 + seed, math.inf]), sized("l2 / T", [1.0], over_temperature=True)]

    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(table(report(*chain(attacks, seeds=(0, 1, 2)), paper=None)))
    assert isinstance(console.file, io.StringIO)
    text, below = console.file.getvalue().split("No network differs")
    assert "mean L2" in text
    assert "l2 / T" not in text
    assert "the smallest perturbations that l2 finds are on average" in " ".join(below.split())
    assert text.count(" 3.00") == 12
    assert text.count("67 % fooled") == 12


def test_csv_gives_spreadsheets_no_formulas(build: Build):
    report = gather(build(), "tiny")
    evil = replace(report.models[0], label='=HYPERLINK("x")', teacher="@SUM(1)")

    lines = list(csv.DictReader(io.StringIO(as_csv(replace(report, models=(evil,))))))

    assert {(line["model"], line["teacher"]) for line in lines} == {('\'=HYPERLINK("x")', "'@SUM(1)")}


def test_a_model_without_attacks_still_has_its_line(build: Build):
    report = gather(build(skip=[("select",)]), "tiny")

    lines = list(csv.DictReader(io.StringIO(as_csv(report))))

    assert [(line["model"], line["attack"], line["accuracy"]) for line in lines] == [
        ("plain", "", "0.916667"),
        (HOSTILE, "", "0.916667"),
    ]


def test_write_replaces_all_three_and_leaves_nothing_else(build: Build, tmp_path: Path):
    report = gather(build(), "tiny")
    folder = tmp_path / "deep" / "report"

    page = write(report, folder)
    first = page.read_bytes()
    write(report, folder)

    assert page == folder / "report.html"
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "results.csv", "results.json"]
    assert page.read_bytes() == first  # the same store gives the same bytes


def test_a_folder_that_cannot_be_written_is_an_input_error(build: Build, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"^the report cannot be written to [^\n]*file[^\n]*$"):
        write(gather(build(), "tiny"), tmp_path / "file" / "report")


def shown(store: Store, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table(gather(store, "tiny")))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_makes_the_point_within_100_columns(build: Build):
    text = shown(build())

    assert max(map(len, text.splitlines())) <= 100
    assert "0 → 100 %" in text
    assert "0–26 → 74–100" in text  # Wilson's intervals of 0 and of 11 of 11
    assert HOSTILE in text  # a name is text, not markup
    assert "Its robustness is an artefact of float32." in " ".join(text.split())


def test_many_attacks_are_listed_one_below_the_other(build: Build):
    report = gather(build(soft=True), "tiny")
    wide = replace(report.models[0], attacks=report.models[0].attacks * 2)
    renamed = tuple(replace(attack, label=f"attack {n}") for n, attack in enumerate(wide.attacks))
    console = Console(width=100, file=io.StringIO(), color_system=None)

    console.print(table(replace(report, models=(replace(wide, attacks=renamed),))))

    assert isinstance(console.file, io.StringIO)
    assert all(f"attack {n}" in console.file.getvalue() for n in range(6))


def test_the_table_says_what_is_not_done(build: Build):
    text = shown(build(skip=[("attack", HOSTILE, 0, "first", 6), ("measure", "plain", 0)]))

    assert "not done" in text
    assert "first 6 images" in text
    assert "This study is not finished: 2 of its 14 cells are missing." in text


@pytest.mark.parametrize(
    ("scalars", "heading"),
    [
        ({"minimises": 2}, "mean L2, higher is better"),
        ({"bound": {"norm": "inf", "eps": 0.3}}, "accuracy at L∞ ≤ 0.3, higher is better"),
        ({}, "fooled, lower is better"),
    ],
)
def test_an_attack_is_headed_by_what_it_is_reported_by(build: Build, scalars: dict, heading: str):
    report = gather(build(soft=True, scalars=scalars), "tiny")
    alone = tuple(replace(model, attacks=model.attacks[2:]) for model in report.models)
    (shown,) = (part for part in table(replace(report, models=alone)).renderables if isinstance(part, Table))
    assert " ".join(str(shown.columns[-1].header).split()) == f"soft {heading}"


def printed(of: Report, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table(of))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80])
def test_nothing_is_cut_in_a_narrow_terminal(build: Build, width: int):
    text = printed(gather(build(soft=True, scalars={"bound": {"norm": "inf", "eps": 0.3}}), "tiny"), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    said = "Under soft (L∞ ≤ 0.3) the robust accuracy is 50 % (25 to 75) for plain and 50 % (25 to 75) for"
    assert said in " ".join(text.split())


def test_prose_is_not_wrapped_to_the_table_s_width():
    text = printed(report(network("plain", 1, [sized("mine", [1.0, 1.0], norm=None)]), paper=None), 100)
    assert "Below each number, its 95 % interval. One-hot: test images whose float32 softmax" in text


def test_a_network_that_has_not_learned_is_named_above_the_table_and_in_the_results():
    of = report(network("dead", 1, [sized("l2", [1.0])], accuracy=Share(500, 1000)), paper=None)
    lines = printed(of, 100).splitlines()
    assert lines[1].startswith("Dead T=1 has not learned: its test accuracy is 50.0 %")
    (told,) = json.loads(as_json(of))["models"]
    assert told["learned"] is False
    assert told["why_not_learned"].startswith("its test accuracy is 50.0 % (46.9 % to 53.1 %), and the commonest class")
    assert told["accuracy"]["count"] == 500
    (line,) = csv.DictReader(io.StringIO(as_csv(of)))
    assert line["learned"] == "False"


def test_robust_accuracy_is_in_both_files_for_an_attack_within_a_budget():
    attack = sized("pgd", [0.0, 1.0, *[math.inf] * 8], bound=Bound(math.inf, 0.3))
    of = report(network("plain", 1, [attack]), paper=None)
    (told,) = json.loads(as_json(of))["models"][0]["attacks"]
    found = told["arithmetic"]["result"]
    assert (told["minimises"], told["bound"], found["robustness"]) == (None, {"norm": "inf", "eps": 0.3}, None)
    assert (found["robust_accuracy"]["count"], found["robust_accuracy"]["total"]) == (8, 10)
    (line,) = csv.DictReader(io.StringIO(as_csv(of)))
    assert (line["budget_norm"], line["eps"], line["robust_accuracy"]) == ("inf", "0.3", "0.8")
    assert (line["minimises"], line["size_mean"]) == ("", "")
    assert " 80 % \n" in printed(of, 100)


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@A1", " =1+1", "\t=1+1", "＝1+1"])
def test_no_cell_of_the_csv_is_a_formula(name: str):
    of = report(replace(network("plain", 1), label=name), paper=None)
    (line,) = csv.DictReader(io.StringIO(as_csv(of)))
    assert line["model"] == f"'{name}"
