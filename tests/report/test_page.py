from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from brittle.report import claims, gather
from brittle.report.page import html
from brittle.store import Store

HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "br", "link", "img", "hr", "input"}
Build = Callable[..., Store]


class Outline(HTMLParser):
    """Reads a page, and fails where an element is not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.seen if name == tag]


def words(outline: Outline) -> str:
    return " ".join(" ".join(outline.text).split())


def test_the_page_is_well_formed_and_whole(build: Build):
    page = html(gather(build(), "tiny"))
    outline = Outline(page)

    assert outline.all("html")[0]["lang"] == "en"
    assert {"header", "main", "figure", "figcaption", "table", "title"} <= {tag for tag, _ in outline.seen}
    assert all("scope" in attributes for attributes in outline.all("th"))
    assert all(attributes.get("aria-label") for attributes in outline.all("svg"))
    assert len(outline.all("figure")) == 6
    assert [int(n) for n in re.findall(r"Figure (\d)\.", words(outline))] == [1, 2, 3, 4, 5, 6]
    assert "Its robustness is an artefact of float32." in words(outline)
    assert "1 for plain and 1 for <script>alert(1)</script>" in words(outline)
    assert "brittle study run tiny" in words(outline)


def test_the_page_needs_no_network(build: Build):
    page = html(gather(build(), "tiny"))
    assert not re.search(r"https?:", re.sub(r' xmlns(:\w+)?="[^"]*"', "", page))
    outline = Outline(page)
    assert outline.all("script") == [{"type": "application/json", "id": "stepper-data"}, {}]
    assert not outline.all("link")
    assert not [name for _, attributes in outline.seen for name in attributes if name.startswith("on")]
    for _, attributes in outline.seen:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))


def test_hostile_names_are_text(build: Build):
    page = html(gather(build(), "tiny"))
    assert HOSTILE not in page
    assert "<b>names</b>" not in page
    assert "<i>up</i>" not in page
    assert f"A study of {HOSTILE}" in words(Outline(page))


def test_identifiers_are_unique(build: Build):
    found = re.findall(r' id="([^"]*)"', html(gather(build(), "tiny")))
    assert len(found) == len(set(found))


def test_a_study_that_is_not_finished_says_so(build: Build):
    skip = [("attack", HOSTILE, 0, "first", 6), ("measure", "plain", 0), ("train", "plain", 0)]
    text = words(Outline(html(gather(build(skip=skip), "tiny"))))

    assert "This study is not finished: 3 of its 14 cells are missing." in text
    assert "measure plain, seed 0: not done yet" in text
    assert "6 rows so far" in text


def test_a_study_of_which_nothing_is_done_has_a_page(build: Build):
    store = build()
    for key in store.keys():  # noqa: SIM118
        store.discard(key)
    text = words(Outline(html(gather(store, "tiny"))))

    assert "Nothing to show yet" in text
    assert "select rows: not done yet" in text


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_seeds_and_colour(build: Build, seeds: tuple[int, ...], channels: int):
    text = words(Outline(html(gather(build(seeds=seeds, channels=channels), "tiny"))))
    assert ("plain, seed 2" in text) == (2 in seeds)


def test_an_attack_without_pixels_or_arithmetics_is_shown_too(build: Build):
    report = gather(build(soft=True), "tiny")
    found = report.models[0].attacks[2].found["result"]

    assert (found.success.count, found.success.total, found.flips, found.curve) == (6, 12, None, None)
    assert found.sizes["l2"] == pytest.approx(0.05 * 6)
    assert found.sizes["linf"] == pytest.approx(0.05)
    text = words(Outline(html(report)))
    assert "mean L2 0.30" in text
    assert "Figure 4. Originals, and what soft made of them" in text
    assert "L2 0.30" in text
    assert "the two attacks fool" in text  # the verdict is on those made in both arithmetics


def test_finished_pages_list_nothing_missing(build: Build):
    assert "What is missing" not in html(gather(build(), "tiny"))


def test_the_claims_of_a_paper_stand_in_the_page_with_their_verdicts(build: Build):
    report = replace(gather(build(), "tiny"), paper="song-2017")
    outline = Outline(html(report))
    text = words(outline)

    for claim in claims.of("song-2017")(report):
        assert " ".join(claim.says.split()) in text
        assert " ".join(claim.why.split()) in text
    assert text.count("was not tested") >= 1
    assert "What the paper says" not in words(Outline(html(gather(build(), "tiny"))))


def test_where_gradients_go_adds_up_in_the_page(build: Build):
    """The plain network's gradients lie around 1e-7; the other's a decade lower at T = 20 and 400 lower at 1."""
    text = words(Outline(html(gather(build(), "tiny"))))

    assert "plain 1.0 −7.00 +0.00 +0.00 −7.00 +0.00 −7.00" in text
    assert f"{HOSTILE} 401.0 −7.00 −1.30 +0.30 −8.00 −399.0 −407.0" in text


def test_sample_images_stand_beside_the_pixels_that_each_attack_set(build: Build):
    text = words(Outline(html(gather(build(), "tiny"))))

    assert f"{HOSTILE} 0 0 " in text  # float32's mean and largest
    assert "– → 1 2 → – " in text  # the third image: withstood the first attack in float32, the second exactly
