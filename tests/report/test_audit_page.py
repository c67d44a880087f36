"""The page of an audit, made from records by hand."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from made import audit_check, audit_record, audit_share
from seen import HOSTILE, Outline

from brittle.errors import InputError
from brittle.study.kinds.audit import page as report

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
            "Masked, it only looks robust: 96\xa0% of the images survive the baseline attack (PGD); none survives the "
            "full set of attacks.",
        ),
        ("broken", "Broken, not robust: none of the images survives the full set of attacks."),
        ("robust", "Robust, as far as can be shown: 70\xa0% of the images survive the full set of attacks."),
        ("inconclusive", "Inconclusive: robust accuracy is 70 %, but this is not shown to hold."),
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
    assert "Accuracy under the baseline attack 96\xa0% 92.3 – 98.0\xa0%" in said
    assert "Robust accuracy, under all attacks 0\xa0% 0.0 – 1.9\xa0%" in said
    assert "Robust accuracy, undefended 0.5\xa0% 0.1 – 2.8\xa0%" in said
    assert "not measured Give an undefended network" in text(audit_record(reference=None))


def test_attacks_stand_in_their_order_with_what_each_added():
    said = text()
    assert "PGD on cross entropy in float32 200 4 −2.0 96\xa0%" in said
    assert "PGD on logits brought to scale scale 200 192 −96.0 0\xa0%" in said


def test_checks_have_quantity_threshold_source_and_sentence_and_the_failed_come_first():
    said = text()
    assert "Sanity checks of the attacks: 2 of 3 failed" in said
    assert "Sanity checks of the attacks: all 1 passed" in text(
        audit_record("robust", checks=[audit_check("accuracy")])
    )
    first = "✗ failed Scale. What scale found. Next: report it. Somebody 2020 measured 0.5 threshold 0.1"
    assert first in said
    assert said.index("Scale.") < said.index("8-bit images.") < said.index("Accuracy.")
    assert "– failed 8-bit images." in said
    assert "the verdict does not rest on it" in said
    assert "measured – threshold" in text(audit_record(checks=[audit_check("binarization", False, quantity=None)]))


def test_a_picture_says_what_it_was_and_what_it_became():
    page = report.html([audit_record()], ABOUT)
    assert page.count("data:image/png;base64,") == 3
    assert "<b>&lt;b&gt;one&lt;/b&gt; → two</b>, L∞ 0.25" in page
    assert "perturbation × 4" in page
    assert "<b>Adversarial images</b>" in page
    assert "a smaller one may exist" in page
    minimal = audit_record(pictures=[{**audit_record()["pictures"][0], "minimal": True}])
    assert "The smallest perturbations found" in text(minimal)
    assert "PGD, the smallest perturbation it found; test image 3" in text(minimal)
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
    assert said.index("Broken, not robust:") < said.index("Robust, as far")
    assert "The evidence in L2" in said


def test_it_is_written_whole_with_its_numbers_beside_it(tmp_path: Path):
    page = report.write_audit([audit_record()], ABOUT, tmp_path / "new" / "folder")
    assert page.name == "audit.html"
    found = json.loads((page.parent / "audit.json").read_text(encoding="utf-8"))
    assert found["verdict"] == "masked"
    assert found["audits"][0]["left"]["count"] == 0
    picture = {"row": 3, "label": 1, "prediction": 2, "size": 0.25, "attack": "PGD", "minimal": False}
    assert found["audits"][0]["pictures"] == [picture]
    assert sorted(path.name for path in page.parent.iterdir()) == ["audit.html", "audit.json"]
    with pytest.raises(InputError, match="the report cannot be written to"):
        report.write_audit([audit_record()], ABOUT, page)


def test_a_terminal_gets_the_verdict_the_numbers_and_the_failed_checks():
    said = report.terminal([audit_record()])
    lines = said.splitlines()
    assert lines[0].startswith("[bold magenta]Masked, it only looks robust")
    assert (
        lines[1] == "Clean accuracy 98\xa0% (95.0 – 99.2\xa0%). 200 test images: the first 200 of 1000. Budget quick."
    )
    assert lines[2].endswith("(L∞, eps 0.3: the usual one).")
    assert "Cause, scale: The logits are so large that the float32 gradient is exactly zero." in said
    order = ["under the baseline", "under all attacks", "accuracy, undefended", "failed", "note:"]
    places = [next(n for n, line in enumerate(lines) if word in line) for word in order]
    assert places == sorted(places)
    assert "What accuracy found." not in said


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("kind", ["robust", "masked", "broken", "inconclusive"])
def test_a_narrow_terminal_breaks_lines_between_words(kind: str, width: int):
    from rich.console import Console

    said = report.terminal([audit_record(kind)])
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(said, highlight=False)
    shown = console.export_text()
    assert shown.split() == report.plain([audit_record(kind)]).split()
    assert max(map(len, shown.splitlines())) <= width


def test_what_a_verdict_rests_on_stands_beside_it_in_the_page_and_the_data():
    for kind in ("robust", "masked", "broken", "inconclusive"):
        said = text(audit_record(kind))
        beside = "Clean accuracy 98\xa0% (95.0 – 99.2\xa0%). 200 test images: the first 200 of 1000. Budget quick."
        assert said.index(beside) < said.index("What this audit cannot know")
        assert "(L∞, eps 0.3: the usual one)" in said
    (told,) = json.loads(report.as_json([audit_record()], ABOUT))["verdicts"]
    assert told["clean_accuracy"]["interval"] == audit_share(196)["interval"]
    names = ("verdict", "images", "norm", "eps", "compared", "chosen", "budget")
    assert [told[name] for name in names] == [
        "masked", 200, "linf", 0.3, "the usual one", "the first 200 of 1000", "quick",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("/home/me/nets/net.pt", "net.pt"),
        ("~/nets/net.pt", "net.pt"),
        ("{here}/nets/net.pt", "nets/net.pt"),
        ("audit /home/me/n.py:N '/home/me/my nets/w.pt'", "audit n.py:N 'my nets/w.pt'"),
        ("brittle audit m:n --weights=/home/me/w.pt --eps 8/255", "brittle audit m:n --weights=w.pt --eps 8/255"),
        ("C:\\Users\\me\\net.pt", "net.pt"),
        ("from https://example.org/a/b, see nets/net.pt", "from https://example.org/a/b, see nets/net.pt"),
        ("photos: /home/me/photos; the first 10", "photos: photos; the first 10"),
    ],
)  # fmt: skip
def test_no_folder_of_this_machine_is_published(written: str, shown: str):
    written = written.format(here=Path.cwd())
    assert report.shortened(written) == shown
    about = {**ABOUT, "model": written, "again": written, "facts": [["model", written]]}
    page, data = report.html([audit_record()], about), report.as_json([audit_record()], about)
    assert "/home/me" not in page + data
    assert str(Path.cwd()) not in page + data


def contrast(one: str, other: str) -> float:
    """WCAG 2.1's contrast ratio of two colours, '#rrggbb'."""

    def light(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_verdicts_differ_in_hue_and_sign_and_can_be_read_in_both_themes():
    page = report.html([audit_record()], ABOUT)
    assert len({word[0] for word in report.WORDS.values()}) == 4
    assert len(set(report.COLOURS.values())) == 4
    tones = dict(re.findall(r"\.verdict-(broken|masked|robust|inconclusive) \{ --tone: var\(--(\w+)\); \}", page))
    assert sorted(tones) == sorted(report.WORDS)
    for theme in (0, 1):  # light, then dark
        colours = {name: re.findall(rf"--{name}: (#\w{{6}})", page)[theme] for name in [*tones.values(), "paper"]}
        assert len(set(colours.values())) == 5
        assert min(contrast(colours[tone], colours["paper"]) for tone in tones.values()) >= 4.5


def test_landmarks_have_names_of_their_own_and_lists_of_definitions_hold_nothing_else():
    outline = Outline(report.html([audit_record(), audit_record("broken", "l2"), audit_record("robust", "l0")], ABOUT))
    regions = [one["aria-label"] for _, one in outline.seen if one.get("role") == "region"]
    assert len(regions) == len(set(regions)) == 6
    assert all("role" not in one for tag, one in outline.seen if tag == "dd")


def test_a_table_for_a_notebook_is_escaped():
    said = report.small_table(audit_record(chosen="<script>"))
    assert "<td>◐ Masked</td>" in said
    assert "&lt;script&gt;" in said


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
