"""The page in a real browser: skipped where there is none."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from brittle.report import gather, write
from brittle.store import Store

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium and no Chrome is installed")


@pytest.fixture
def browser() -> Iterator[Browser]:
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield launched
        launched.close()


@pytest.fixture
def page_file(build: Callable[..., Store], tmp_path: Path) -> Path:
    return write(gather(build(), "tiny"), tmp_path / "report")


def opened(browser: Browser, file: Path, width: int, scheme: str = "light") -> Page:
    """The page, after it has been watched while it loaded: it asks for nothing, and complains of nothing."""
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)  # type: ignore[arg-type]
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_load_state("networkidle")
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert complaints == []
    return page


def lightness(page: Page, what: str) -> float:
    """0 for black, 255 for white."""
    colour = page.evaluate(f"getComputedStyle(document.body).{what}")
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


def test_it_opens_from_disk_alone(browser: Browser, page_file: Path):
    page = opened(browser, page_file, 1280)

    assert page.title() == "A study of <script>alert(1)</script>"
    assert page.locator("figure svg:visible").count() == 6
    images = page.locator("svg image")
    assert images.count() > 0
    assert all(box["width"] > 40 for box in (image.bounding_box() for image in images.all()) if box)


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
def test_only_tables_and_figures_scroll_sideways(browser: Browser, page_file: Path, width: int):
    page = opened(browser, page_file, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width + 1


def test_it_follows_the_reader_s_colour_scheme(browser: Browser, page_file: Path):
    light, dark = (opened(browser, page_file, 1280, scheme) for scheme in ("light", "dark"))

    assert lightness(light, "backgroundColor") > 230
    assert lightness(light, "color") < 60
    assert lightness(dark, "backgroundColor") < 60
    assert lightness(dark, "color") > 200


def test_it_prints_black_on_white_and_whole(browser: Browser, page_file: Path):
    page = opened(browser, page_file, 688, "dark")  # as wide as a sheet of A4 between its margins
    page.emulate_media(media="print")

    assert lightness(page, "backgroundColor") == 255
    assert lightness(page, "color") == 0
    cut = "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth + 1).length"
    assert page.evaluate(cut) == 0
    assert len(page.pdf()) > 10_000
