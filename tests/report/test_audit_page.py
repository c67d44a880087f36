"""The page of an audit, made from records by hand."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from made import audit_check, audit_record, audit_share
from seen import HOSTILE, Outline

from brittle.errors import InputError
from brittle.report import audit as report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def words(outline: Outline) -> str:
    """The page's text; spaces that do not break stay."""
    return re.sub(r"[ \n]+", " ", " ".join(outline.text))


ABOUT = {
    "model": HOSTILE,
    "data": "digits",
    "source": "scikit-learn",
    "classes": ["zero", "<b>one</b>", "two"],
    "rows": 200,
    "facts": [["budget", "quick, seed 0"], ["digest of the data", "abcdef"]],
    "again": "brittle audit mine:net --data digits",
}


def text(*audits: dict[str, Any]) -> str:
    return words(Outline(report.html(audits or (audit_record(),), ABOUT)))


def test_the_page_is_well_formed_and_needs_nothing_else():
    page = report.html([audit_record(), audit_record("broken", "l2"), audit_record("robust", "l0")], ABOUT)
    outline = Outline(page)
    assert outline.all("html")[0]["lang"] == "en"
    assert {"header", "main", "figure", "table", "title", "h1"} <= {tag for tag, _ in outline.seen}
    assert all("scope" in attributes for attributes in outline.all("th"))
    assert all(attributes.get("alt") for attributes in outline.all("img"))
    assert all(attributes.get("aria-label") for attributes in outline.all("svg"))
    assert not outline.all("script")
    policy = next(one for one in outline.all("meta") if one.get("http-equiv"))
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    for _, attributes in outline.seen:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    found = re.findall(r' id="([^"]*)"', page)
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            "masked",
            "It only looks robust: 96\xa0% of the images withstand a common attack, but none withstand them all.",
        ),
        ("broken", "Not robust: none of the images withstand attack."),
        ("robust", "Robust, as far as can be shown: 70\xa0% of the images withstand every attack."),
        ("inconclusive", "Undecided: 70\xa0% of the images withstand what was tried"),
    ],
)
def test_the_verdict_stands_on_top_in_plain_words(kind, said):
    left = audit_share(0 if kind in ("masked", "broken") else 140)
    page = report.html([audit_record(kind, left=left)], ABOUT)
    assert page.index("<h1>") < page.index("<table")
    heading = re.search(r"<h1>(.*?)</h1>", page)
    assert heading is not None
    assert heading[1].startswith(said)
    assert (report.CAUSES["scale"].split(":")[0] in text(audit_record(kind))) == (kind == "masked")
    assert ("Next: audit more rows." in text(audit_record(kind))) == (kind == "inconclusive")


def test_the_three_numbers_have_their_intervals():
    said = text()
    assert "A common attack reports 96\xa0% 92.3 – 98.0\xa0%" in said
    assert "Left under everything 0\xa0% 0.0 – 1.9\xa0%" in said
    assert "An undefended network has left 0.5\xa0% 0.1 – 2.8\xa0%" in said
    assert "not measured Give an undefended network" in text(audit_record(reference=None))


def test_attacks_stand_in_their_order_with_what_each_added():
    said = text()
    assert "PGD on cross entropy in float32 200 4 −2.0 96\xa0%" in said
    assert "PGD on logits brought to scale scale 200 192 −96.0 0\xa0%" in said


def test_checks_have_quantity_threshold_source_and_sentence_and_the_failed_come_first():
    said = text()
    assert "The checks: 1 of 3 passed" in said
    first = "✗ failed Scale. What scale found. To do: report it. Somebody 2020 found 0.5 held against 0.1"
    assert first in said
    assert said.index("Scale.") < said.index("8-bit images.") < said.index("Accuracy.")
    assert "– failed 8-bit images." in said
    assert "the verdict does not rest on it" in said
    assert "found – held" in text(audit_record(checks=[audit_check("binarization", False, quantity=None)]))


def test_a_picture_says_what_it_was_and_what_it_became():
    page = report.html([audit_record()], ABOUT)
    assert page.count("data:image/png;base64,") == 3
    assert "<b>&lt;b&gt;one&lt;/b&gt; → two</b>, L∞ 0.25" in page
    assert "change × 4" in page
    beyond = audit_record(pictures=[{**audit_record()["pictures"][0], "prediction": 812}])
    assert "→ class 812" in text(beyond)


def test_hostile_names_are_text():
    page = report.html([audit_record()], ABOUT)
    assert HOSTILE not in page
    assert "<b>one</b>" not in page


def test_of_several_norms_the_worst_is_on_top():
    kinds = ["robust", "inconclusive", "broken", "masked"]
    for place in range(1, 5):
        assert report.worst([audit_record(kind) for kind in kinds[:place]])["verdict"]["kind"] == kinds[place - 1]
    said = text(audit_record("robust"), audit_record("broken", "l2"))
    assert said.index("Not robust:") < said.index("Robust, as far")
    assert "The evidence in L2" in said


def test_it_is_written_whole_with_its_numbers_beside_it(tmp_path: Path):
    page = report.write_audit([audit_record()], ABOUT, tmp_path / "new" / "folder")
    assert page.name == "audit.html"
    found = json.loads((page.parent / "audit.json").read_text(encoding="utf-8"))
    assert found["verdict"] == "masked"
    assert found["audits"][0]["left"]["count"] == 0
    assert found["audits"][0]["pictures"] == [{"row": 3, "label": 1, "prediction": 2, "size": 0.25, "attack": "PGD"}]
    assert sorted(path.name for path in page.parent.iterdir()) == ["audit.html", "audit.json"]
    with pytest.raises(InputError, match="the report cannot be written to"):
        report.write_audit([audit_record()], ABOUT, page)


def test_a_terminal_gets_the_verdict_the_numbers_and_the_failed_checks():
    said = report.terminal([audit_record()], ABOUT)
    lines = said.splitlines()
    assert lines[0].startswith("[bold red]It only looks robust")
    order = ["A common attack reports", "Left under everything", "An undefended network has left", "failed", "note:"]
    places = [next(n for n, line in enumerate(lines) if word in line) for word in order]
    assert places == sorted(places)
    assert "What accuracy found." not in said


@pytest.mark.skipif(BROWSER is None, reason="no Chromium and no Chrome is installed")
@pytest.mark.parametrize("width", [360, 1100])
def test_only_tables_and_figures_scroll_sideways(tmp_path: Path, width: int):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    file = report.write_audit([audit_record(), audit_record("robust", "l2", reference=None)], ABOUT, tmp_path)
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = started.chromium.launch(executable_path=BROWSER, args=flags)
        grounds = {}
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            asked, complaints = [], []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.on("console", lambda message, complaints=complaints: complaints.append(message.text))
            page.goto(file.as_uri())
            assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
            assert complaints == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width + 1
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
            grounds[scheme] = sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
        assert grounds["light"] > 230
        assert grounds["dark"] < 60
        browser.close()
