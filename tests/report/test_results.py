from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from brittle.errors import InputError
from brittle.report import gather, table, write
from brittle.report.results import COLUMNS, as_csv, as_json
from brittle.store import Store

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
    assert "first 6 rows" in text
    assert "This study is not finished: 2 of its 14 cells are missing." in text


def test_an_attack_without_arithmetics_is_not_headed_by_them(build: Build):
    head = shown(build(soft=True)).split("─")[0].split()

    assert head[-3:] == ["float32→exact", "float32→exact", "fooled"]
