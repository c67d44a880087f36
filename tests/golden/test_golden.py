"""The harness of a restructuring: keys are as committed, every kind of cell is run, and a difference is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from golden import compare, keys, results


def test_every_key_title_and_record_is_as_committed():
    found = {name: keys.summary(one) for name, one in keys.plans().items()}
    assert keys.differences(found) == []


def test_the_small_study_asks_for_every_kind_of_cell():
    planned = keys.plan(keys.small(), keys.adopted())
    assert {cell.function for cell in planned.cells} == keys.KINDS


def test_a_plan_that_is_not_as_it_was_is_named():
    found = {name: dict(one) for name, one in keys.reference().items()}
    found["small.toml cpu float32"]["titles"] = ""
    del found["small.toml cuda float32"]
    found["other"] = {}
    assert keys.differences(found) == [
        "other is new",
        "small.toml cpu float32: changed are titles",
        "small.toml cuda float32 is gone",
    ]


# Pages --------------------------------------------------------------------------------------------------------------


def page(seconds: str, accuracy: str, style: str = "") -> str:
    return (
        f"<html><style>{style}</style><p>{accuracy} are\n right</p>"
        f"<table><tr><th>attack</th><th>seconds</th></tr><tr><th>pgd</th><td>{seconds}</td></tr></table>"
        f"<dl><dt>computing time</dt><dd><bdi>{seconds}</bdi> s</dd><dt>data</dt><dd>digits</dd></dl>"
        f'<img src="data:{accuracy}"></html>'
    )


def test_of_a_page_text_and_pictures_are_compared_but_no_times_nor_style():
    facts = ["attack", "seconds", "pgd", "computing time", "data", "digits"]
    assert compare.Page(page("1.5", "95 %", "p {}")).pieces == ["95 % are right", *facts, "data:95 %"]


# A whole run --------------------------------------------------------------------------------------------------------


def record(folder: Path, kind: str) -> Path:
    """The file of some cell of a kind."""
    files = sorted(folder.glob("store/cells/*/cell.json"))
    return next(file for file in files if json.loads(file.read_text())["function"] == kind)


def put(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.slow
def test_the_commands_make_every_kind_of_cell_and_every_difference_but_times_is_found(tmp_path: Path):
    ran, other = tmp_path / "ran", tmp_path / "other"
    results.run_all(ran)
    assert {json.loads(file.read_text())["function"] for file in ran.glob("store/cells/*/cell.json")} == keys.KINDS
    shutil.copytree(ran, other)
    put(record(other, "train"), lambda cell: cell["provenance"].update(seconds=1e9, processor="another"))
    assert list(compare.differences(ran, other)) == []
    put(record(other, "attack"), lambda cell: next(iter(cell["files"].values())).update(sha256=""))
    put(record(other, "audit"), lambda cell: cell["scalars"].update(more=1))
    put(record(other, "carriers"), lambda cell: cell.update(title="another"))
    shutil.move(record(other, "label").parent, other / "store" / "cells" / "another")
    put(other / "pages" / "study" / "results.json", lambda found: found.update(verdicts=[]))
    texts = ("pages/study/report.html", "pages/study/results.csv", "printed/study.txt")
    for name in texts:
        file = other / name
        file.write_text(file.read_text().replace("standard", "plain"))
    found = "\n".join(compare.differences(ran, other))
    for kind in ("attack", "audit", "carriers"):
        assert f"{record(ran, kind).relative_to(ran)} differs" in found
    assert f"{record(ran, 'label').relative_to(ran)} is in {ran} alone" in found
    assert f"store/cells/another/cell.json is in {other} alone" in found
    for name in ("pages/study/results.json", *texts):
        assert f"{name} differs" in found
