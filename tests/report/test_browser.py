"""The page in a real browser: skipped where there is none."""

from __future__ import annotations

import io
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from made import audit_record, chain, report, sized
from PIL import Image

from brittle.report import Report, gather, write
from brittle.study.kinds.attack.result import Attack, Found, Steps
from brittle.study.kinds.audit.cell import Audited
from brittle.study.store.store import Store

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium and no Chrome is installed")


@pytest.fixture(scope="module")
def launched() -> Iterator[Browser]:
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield launched
        launched.close()


@pytest.fixture
def browser(launched: Browser) -> Iterator[Browser]:
    """Without a page: each has a context of its own, which shares nothing with others."""
    yield launched
    for context in launched.contexts:
        context.close()


@pytest.fixture(scope="module")
def page_file(build_in: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return write(gather(build_in(folder / "store"), "tiny"), folder / "report")


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


@pytest.mark.parametrize("width", [360, 1100])
def test_a_page_of_chains_is_as_wide_as_the_screen_and_its_matrix_as_the_page(
    browser: Browser, tmp_path: Path, width: int
):
    rows, targets = (
        torch.arange(10).repeat_interleave(9),
        torch.tensor([t for r in range(10) for t in range(10) if t != r]),
    )
    aimed = sized("aimed", [1.0] * 90, rows=rows, targets=targets, adversarial=torch.rand(90, 1, 8, 8))
    models = chain(lambda *at: [sized("l2", [1.0] * 10, adversarial=torch.rand(10, 1, 8, 8)), aimed], seeds=(0, 1))
    of = replace(report(*models, paper=None), labels=torch.arange(10), images=torch.rand(10, 1, 8, 8), classes=())
    page = opened(browser, write(of, tmp_path / "report"), width)

    assert page.evaluate("document.documentElement.scrollWidth") <= width + 1
    matrix = page.locator("svg[aria-label^='Images of each class']")
    assert matrix.locator("image").count() == 100
    box = matrix.bounding_box()
    assert box is not None
    assert 740 < box["width"] <= 1000
    folded = page.locator("details", has_text="The smallest perturbations that each attack finds")
    assert folded.get_by_role("table").is_hidden()
    folded.locator("summary").click()
    assert folded.get_by_role("table").is_visible()


# Step by step -------------------------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>"
LOGITS: tuple[list[float], ...] = (
    [-99, 0, 198],
    [49.5, 0, 49.5],
    [198, 0, -99],
)  # of row 2 at first and after each of its two pixels


def saturated(report: Report) -> Report:
    """Logits 99 times as large, as a network has them that was trained at a high temperature."""

    def larger(found: Found) -> Found:
        assert found.steps is not None
        return replace(found, steps=Steps(found.steps.rows, 99 * found.steps.logits))

    def attacked(attack: Attack) -> Attack:
        return replace(attack, found={name: larger(found) for name, found in attack.found.items()})

    models = (replace(model, attacks=tuple(map(attacked, model.attacks))) for model in report.models)
    return replace(report, models=tuple(models))


@pytest.fixture(scope="module")
def stepper_file(build_in: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stepper")
    return write(saturated(gather(build_in(folder / "store", channels=3), "tiny")), folder / "report")


@pytest.fixture
def page(browser: Browser, stepper_file: Path) -> Iterator[Page]:
    """Opens at row 2 of the second model; whatever a test does, the page must not complain."""
    page = opened(browser, stepper_file, 1280)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    assert complaints == []


def part(page: Page, name: str) -> Locator:
    return page.locator(f'#stepper [data-part="{name}"]')


def words(page: Page) -> str:
    return part(page, "words").inner_text().replace("\xa0", " ")


def cells(page: Page, kind: str) -> list[tuple[float, str, float]]:
    """Of each class: the number, the mark beside it, and the bar's width in percent."""
    found = []
    for cell in page.locator(f"#stepper td.{kind}").all():
        style = cell.locator("i").get_attribute("style") or ""
        (width,) = re.findall(r"width: ([\d.e-]+)%", style)
        found.append((number(cell.locator(".number").inner_text()), cell.locator("small").inner_text(), float(width)))
    return found


def number(text: str) -> float:
    """'1 − 2.3 × 10⁻⁴' -> 0.99977."""
    text = text.replace("\xa0", "").replace("−", "-").translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    one, rest = ("1", text[1:]) if text.startswith("1-") else ("", text)
    mantissa, _, exponent = rest.partition("×10")
    return float(one or 0) + float(mantissa) * 10.0 ** int(exponent or 0)


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp((value - max(logits)) / temperature) for value in logits]
    return [power / math.fsum(powers) for power in powers]


def colours(page: Page) -> np.ndarray:
    """(6, 6, 3) as seen in the middle of each pixel of the image."""
    seen = np.asarray(Image.open(io.BytesIO(part(page, "image").screenshot())).convert("RGB"))
    size = seen.shape[0] / 6
    middles = [round(size * (place + 0.5)) for place in range(6)]
    return seen[middles][:, middles]


def test_each_step_sets_a_pixel_and_moves_bars_and_words(page: Page):
    clean = colours(page)
    assert (
        words(page)
        == "Before the first of 2 pixels, read at T = 1: takes it for =1+1 with probability 1 − 1.0 × 10⁻⁸⁶."
    )
    assert [one[0] for one in cells(page, "logit")] == LOGITS[0]
    assert [one[2] for one in cells(page, "logit")] == pytest.approx([100 / 3, 0, 200 / 3], rel=1e-4)

    part(page, "next").click()
    assert np.array_equal(colours(page)[0, 0], [255, 255, 255])  # set to 1
    assert np.array_equal(colours(page)[1:], clean[1:])
    assert [one[0] for one in cells(page, "logit")] == LOGITS[1]
    assert [one[0] for one in cells(page, "probability")] == pytest.approx([0.5, math.exp(-49.5) / 2, 0.5], rel=0.05)
    assert words(page) == (
        f"After 1 of 2 pixels, read at T = 1: takes it for {HOSTILE} with probability 0.500 (was =1+1)."
    )

    part(page, "next").click()
    assert np.array_equal(colours(page)[0, 1], [0, 0, 0])  # set to 0
    assert part(page, "image").locator(".raised, .lowered").count() == 2
    assert part(page, "image").locator(".latest").get_attribute("class") == "lowered latest"
    assert [one[0] for one in cells(page, "logit")] == LOGITS[2]
    assert [one[2] for one in cells(page, "probability")] == pytest.approx([100, 0, 0])
    predicted = page.locator("#stepper tr.predicted th")
    assert predicted.inner_text().split() == ["▸", *HOSTILE.split()]
    assert page.locator("#stepper tbody tr", has_text="✓").locator(".class").inner_text() == "=1+1"

    part(page, "next").click(force=True)  # there is no more
    assert words(page).startswith("After 2 of 2 pixels")
    part(page, "previous").click()
    part(page, "previous").click()
    assert np.array_equal(colours(page), clean)


def test_probabilities_are_right_at_every_temperature(page: Page):
    """Beside Python's own, and float32's beside numpy's: 1e-129 at the first T; at the third, 7.4e-46 is not yet 0."""
    slider = part(page, "temperature")
    for value in (0, 10, 28, 45, 46, 47, 48, 60, 80, 100, 125, 160, 200):
        slider.fill(str(value))
        temperature = 10 ** (value / 100)
        assert float(part(page, "temperature-value").inner_text()) == pytest.approx(temperature, rel=5e-3)
        for (shown, mark, width), exact in zip(
            cells(page, "probability"), softmax(LOGITS[0], temperature), strict=True
        ):
            assert shown == pytest.approx(exact, rel=0.05, abs=0.0005 if exact > 0.001 else 0)
            assert width == pytest.approx(100 * exact, abs=1e-3)
            assert mark == {0.0: "0 in float32", 1.0: "1 in float32"}.get(float(np.float32(exact)), "")


def test_a_button_reads_at_the_temperature_of_training(page: Page):
    part(page, "trained").click()

    assert part(page, "trained").inner_text() == "20, as trained"
    assert part(page, "temperature-value").inner_text() == "20"
    assert words(page).endswith("read at T = 20: takes it for =1+1 with probability 1 − 5.1 × 10⁻⁵.")
    assert [one[1] for one in cells(page, "probability")] == ["", "", ""]
    part(page, "model").select_option("plain")
    assert part(page, "trained").is_hidden()  # trained at 1
    part(page, "used").click()
    assert part(page, "temperature-value").inner_text() == "1"


def test_it_works_from_the_keyboard(page: Page):
    part(page, "step").focus()
    page.keyboard.press("ArrowRight")
    assert words(page).startswith("After 1 of 2 pixels")
    page.keyboard.press("End")
    assert words(page).startswith("After 2 of 2 pixels")

    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert words(page).startswith("After 1 of 2 pixels")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # the button says that there is no more, and yet keeps the focus
    assert page.evaluate("document.activeElement.dataset.part") == "previous"

    part(page, "temperature").focus()
    page.keyboard.press("ArrowRight")
    assert part(page, "temperature-value").inner_text() == "1.02"
    part(page, "images").locator("input").nth(2).focus()
    page.keyboard.press("ArrowLeft")
    assert words(page).startswith("Withstood")


def test_every_control_has_a_name(page: Page):
    name = "el => el.tagName === 'BUTTON' ? el.textContent : el.labels[0].textContent.trim() || el.labels[0].title"
    controls = page.locator("#stepper :is(select, input, button)").all()
    assert len(controls) == 3 + 3 + 2 + 5
    assert all(control.evaluate(name) for control in controls)


def test_it_plays_and_pauses(page: Page):
    page.clock.install(time=0)
    page.clock.pause_at(1000)  # time goes on only when it is told to: a busy machine makes no difference
    part(page, "play").click()
    assert part(page, "play").inner_text() == "pause"
    page.clock.run_for(10_000)
    assert words(page).startswith("After 2 of 2 pixels")
    assert part(page, "play").inner_text() == "play"

    part(page, "play").click()  # from the start
    part(page, "play").click()
    page.clock.run_for(10_000)
    assert words(page).startswith("Before the first of 2 pixels")


def test_what_an_attack_did_not_fool_has_no_steps(page: Page):
    choices = part(page, "images").locator("label")
    assert ["faded" in (choice.get_attribute("class") or "") for choice in choices.all()] == [True, True, False]

    choices.nth(1).click()
    assert words(page).startswith("Withstood: within its budget, the attack found no pixels that fool the model;")
    assert part(page, "step").is_disabled()
    assert part(page, "play").is_disabled()
    choices.nth(0).click()
    assert words(page).startswith("Wrong before any attack, read at T = 1")


def test_choices_keep_what_they_can(page: Page):
    part(page, "step").fill("2")
    part(page, "model").select_option("plain")
    assert part(page, "attack").locator("option:checked").inner_text() == "second"
    assert words(page).startswith("After 2 of 2 pixels")
    part(page, "images").locator("label").nth(1).click()
    assert words(page).startswith("After 1 of 1 pixel")
    part(page, "images").locator("label").nth(2).click()
    assert words(page).startswith("After 2 of 2 pixels")  # at the end there, at the end here
    part(page, "model").select_option(HOSTILE)
    part(page, "arithmetic").select_option("float32")
    assert words(page).startswith("Withstood")
    part(page, "attack").select_option("first")
    part(page, "arithmetic").select_option("exact")
    assert words(page).startswith("Before the first of 2 pixels")


@pytest.mark.parametrize("width", [320, 500, 768, 1000, 1280])
def test_no_number_of_it_is_cut(browser: Browser, stepper_file: Path, width: int):
    page = opened(browser, stepper_file, width)

    assert page.evaluate("document.documentElement.scrollWidth") <= width + 1
    cut = "[...document.querySelectorAll('#stepper td')].filter(cell => cell.scrollWidth > cell.clientWidth).length"
    assert page.locator("#stepper td").count() == 6
    assert page.evaluate(cut) == 0


def test_on_paper_it_shows_where_it_stands(browser: Browser, stepper_file: Path):
    page = opened(browser, stepper_file, 688)
    part(page, "next").click()
    page.emulate_media(media="print")

    assert words(page).startswith("After 1 of 2 pixels")
    assert part(page, "image").is_visible()
    assert page.locator("#stepper :is(button, input):visible").count() == 0


def test_it_moves_less_for_those_who_ask(browser: Browser, stepper_file: Path):
    page = opened(browser, stepper_file, 1280)
    duration = "getComputedStyle(document.querySelector('#stepper .track i')).transitionDuration"
    assert page.evaluate(duration).startswith("0.1s")
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(duration) == "0s"


def test_without_scripts_the_page_says_so(browser: Browser, stepper_file: Path):
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(stepper_file.as_uri())

    assert page.locator("noscript p").is_visible()
    assert page.locator("#stepper").is_hidden()


def test_no_other_script_runs(browser: Browser, stepper_file: Path, tmp_path: Path):
    text = stepper_file.read_text(encoding="utf-8")
    file = tmp_path / "report.html"
    file.write_text(text.replace("</main>", "<script>document.title = 'run'</script></main>"), encoding="utf-8")
    page = browser.new_page()
    page.goto(file.as_uri())

    assert page.title() != "run"
    assert page.locator("#stepper").is_visible()


def test_a_link_leads_to_a_state(browser: Browser, stepper_file: Path):
    """A page opened by the link shows the network, the attack, the image, the step and T that it was made at."""
    page = opened(browser, stepper_file, 1280)
    part(page, "model").select_option("plain")
    part(page, "attack").select_option("first")
    part(page, "arithmetic").select_option("float32")
    part(page, "images").locator("label").nth(1).click()
    part(page, "step").fill("1")
    part(page, "temperature").fill("100")
    said, link = words(page), part(page, "link").get_attribute("href")

    there = browser.new_page(viewport={"width": 1280, "height": 800})
    there.goto(f"{stepper_file.as_uri()}{link}")
    assert said.startswith("After 1 of 1 pixel, read at T = 10:")
    assert words(there) == said
    chosen = [part(there, name).locator("option:checked").inner_text() for name in ("model", "attack", "arithmetic")]
    assert chosen == ["plain", "first", "float32"]
    assert part(there, "images").locator("input").nth(1).is_checked()

    lost = browser.new_page()
    lost.goto(f"{stepper_file.as_uri()}#model=nobody&attack=first&arithmetic=float32&image=1&step=1&T=2")
    assert words(lost).startswith("Before the first of 2 pixels, read at T = 1")  # as without a link


def test_another_network_is_read_at_its_own_temperature(page: Page):
    part(page, "model").select_option("plain")
    assert part(page, "temperature-value").inner_text() == "1"
    part(page, "model").select_option(HOSTILE)
    assert part(page, "temperature-value").inner_text() == "20"


# Text whose contrast with the ground behind it is below 4.5, as WCAG 2 has it, with the ratio.
FAINT = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (colour) => colour.slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *:not(svg *):not(script):not(style):not(noscript *)")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest(":disabled, [aria-disabled=true]")) continue;
    const [one, other] = [rgb(getComputedStyle(element).color), ground(element)].map(light).sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    if (ratio < 4.5) found.push(`${element.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_can_be_read(browser: Browser, build: Callable[..., Store], tmp_path: Path, scheme: str):
    of = replace(gather(build(soft=True), "tiny"), paper="song-2017")
    kinds = ("robust", "masked", "broken", "inconclusive")
    audits = tuple(Audited(kind, audit_record(kind), None) for kind in kinds)
    models = (replace(of.models[0], results=audits), *of.models[1:])
    page = opened(browser, write(replace(of, models=models), tmp_path / "report"), 1280, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")

    assert page.locator(".badge").count() == 8
    assert page.evaluate(FAINT) == []
    signs = [word[0] for word in page.locator(".verdicts .badge").all_inner_texts()]
    tones = page.locator(".verdicts .badge").evaluate_all(
        "all => all.map((one) => getComputedStyle(one).backgroundColor)"
    )
    assert len({*signs}) == len({*tones}) == 4


def test_on_a_phone_the_verdict_on_each_claim_is_seen(browser: Browser, build: Callable[..., Store], tmp_path: Path):
    of = replace(gather(build(), "tiny"), paper="song-2017")
    page = opened(browser, write(of, tmp_path / "report"), 390)

    assert page.evaluate("document.documentElement.scrollWidth") <= 391
    boxes = [cell.bounding_box() for cell in page.locator(".claims td.judged").all()]
    assert boxes
    assert all(box and box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
