from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from brittle.drawing import charts, image_grid
from brittle.drawing import text as words
from brittle.models.softmax import SignedLog
from brittle.report import Report, gather
from brittle.study.kinds.attack import figures, pictures
from brittle.study.kinds.measure import figures as gradients
from brittle.study.kinds.measure import samples
from brittle.study.kinds.network import view as network
from brittle.study.store.store import Store

HOSTILE = "<script>alert(1)</script>"
Build = Callable[..., Store]

CHARTS = (figures.success_bars, figures.success_curves, gradients.amplitudes, network.training)


def grids(report: Report) -> list[str]:
    rows = pictures.sample_rows(report, "second")
    return [
        pictures.adversarial(report, "second", rows),
        gradients.saliency(report, range(gradients.saliency_rows(report))),
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_every_figure_is_xml_that_needs_no_network(build: Build, channels: int):
    report = gather(build(channels=channels), "tiny")

    for svg in [*(chart(report) for chart in CHARTS), *grids(report)]:
        root = ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert "<script" not in svg
        assert "http" not in re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)


def test_charts_take_the_page_s_colours_and_font(build: Build):
    report = gather(build(), "tiny")
    for chart in CHARTS:
        svg = chart(report)
        assert "currentColor" in svg
        assert "var(--model-1, #0072b2)" in svg
        assert "DejaVu" not in svg
        assert "#ffffff" not in svg.replace("var(--paper, #ffffff)", "")
        assert not re.search(r"<svg[^>]* (width|height)=", svg)


def test_charts_are_the_same_each_time_and_leave_matplotlib_alone(build: Build):
    report = gather(build(), "tiny")
    before = dict(matplotlib.rcParams)
    assert [chart(report) for chart in CHARTS] == [chart(report) for chart in CHARTS]
    assert dict(matplotlib.rcParams) == before


def test_no_identifier_is_used_by_two_charts(build: Build):
    report = gather(build(), "tiny")
    seen = [set(re.findall(r' id="([^"]*)"', chart(report))) for chart in CHARTS]
    assert sum(map(len, seen)) == len(set.union(*seen))


@pytest.mark.parametrize("name", ["$\\frac$", "_hidden", "x" * 300, "\x00\x1b[31m", "漢字", "&amp;\"'"])
def test_charts_survive_any_name(build: Build, name: str):
    report = gather(build(), "tiny")
    report = replace(report, models=(replace(report.models[1], title=name, label=name),), classes=(name,) * 3)
    for svg in [*(chart(report) for chart in CHARTS), *grids(report)]:
        ElementTree.fromstring(svg)


def test_nothing_finished_gives_no_figure(build: Build):
    store = build()
    for key in store.keys():  # noqa: SIM118
        store.discard(key)
    report = gather(store, "tiny")

    assert [chart(report) for chart in CHARTS] == [""] * 4
    assert pictures.shown_attack(report) is None
    assert gradients.saliency_rows(report) == 0


def test_many_models_have_a_colour_each(build: Build):
    report = gather(build(), "tiny")
    models = tuple(replace(report.models[0], label=f"T={t}", title=f"T={t}") for t in range(9))

    assert len(set(figures.colours(replace(report, models=models)).values())) == 9


def test_amplitudes_say_what_float32_loses(build: Build):
    svg = gradients.amplitudes(gather(build(), "tiny"))
    assert "float32 gives exactly 0 for 12 of 12 images" in svg
    assert "float32 gives exactly 0 for 0 of 12 images" in svg


def test_samples_are_a_row_of_each_class_that_all_had_right(build: Build):
    report = gather(build(), "tiny")
    assert pictures.shown_attack(report) == "second"
    assert pictures.sample_rows(report, "second") == [3, 1, 2]  # row 0 is wrong before any attack


def test_images_show_prediction_pixels_and_outlines(build: Build):
    report = gather(build(), "tiny")
    svg = pictures.adversarial(report, "second", [2])

    texts = [text for element in ElementTree.fromstring(svg).iter() if (text := element.text)]
    assert "→ <script>al…" in texts
    assert texts.count("2 px") == 3  # two of plain, the exact one of the other
    assert texts.count("not fooled") == 1
    paths = re.findall(r'd="([^"]*)" fill="none" stroke="(#\w+)"', svg)
    assert paths[:2] == [("M0 0h1v1h-1z", "#ff3b30"), ("M1 0h1v1h-1z", "#2b9dff")]  # set to 1, then to 0


def test_short_names_stand_side_by_side(build: Build):
    report = replace(gather(build(), "tiny"), classes=("0", "1", "2"))
    assert "1 → 2" in pictures.adversarial(report, "second", [1])


def test_what_is_not_done_has_an_empty_frame(build: Build):
    report = gather(build(skip=[("attack", HOSTILE, 0, "second", 0)]), "tiny")
    assert "not done" in pictures.adversarial(report, "second", [2])


def test_saliency_prints_numbers_that_no_float_holds(build: Build):
    svg = gradients.saliency(gather(build(), "tiny"), [0])

    # 35 pixels at 1e-405 and one at -1e-405: a mean of 34 / 36 of it
    assert "mean 9.4e−406" in svg
    assert "max 1.0e−405" in svg
    assert svg.count("all zeros</text>") == 1
    assert "mean 9.4e−06" in svg


@pytest.mark.parametrize(
    ("sign", "log10", "text"),
    [
        (1, -142.51, "3.1e−143"),
        (-1, -7.64, "−2.3e−08"),
        (0, -np.inf, "0"),
        (1, 0.0, "1.0e+00"),
        (1, -5 - 1e-12, "1.0e−05"),
        (-1, 12.3, "−2.0e+12"),
    ],
)
def test_scientific(sign: int, log10: float, text: str):
    assert words.scientific(sign, log10) == text


def test_largest_is_signed():
    negative = SignedLog.of(torch.tensor([[-3.0, -2.0]]))
    assert words.scientific(*samples.largest_of(negative)) == "−2.0e+00"
    assert words.scientific(*samples.largest_of(SignedLog.of(torch.tensor([-1.0, 0.0])))) == "0"


def test_colours_of_gradients_and_images():
    assert image_grid.diverging(np.array([[1.0, -1.0, 0.0]])).tolist() == [[[178, 24, 43], [33, 102, 172], [250] * 3]]
    assert image_grid.picture(torch.tensor([[[0.5]]])).tolist() == [[[128] * 3]]
    assert image_grid.picture(torch.tensor([[[1.0]], [[0.0]], [[0.5]]])).tolist() == [[[255, 0, 128]]]


def test_an_image_comes_back_from_its_uri():
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    header, data = image_grid.data_uri(image).split(",")
    assert header == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), image)


def test_a_map_that_is_no_number_says_so_instead_of_failing(build: Build):
    report = gather(build(), "tiny")
    model = report.models[0]
    assert model.measured is not None
    assert model.measured.saliency is not None
    maps = replace(model.measured.saliency, float32=torch.full_like(model.measured.saliency.float32, torch.nan))
    broken = replace(report, models=(replace(model, measured=replace(model.measured, saliency=maps)),))

    svg = gradients.saliency(broken, [0])

    assert svg.count("not a number") == 2  # in words, and for those who cannot see it
    assert words.scientific(*samples.mean_of(SignedLog.of(maps.float32[0]))) == "NaN"


def swept(report: Report) -> Report:
    """The study's models as if each had been trained at three temperatures; the second learns from the first."""
    models = [replace(m, temperature=t, axes={"temperature": t}) for m in report.models for t in (1.0, 5.0, 20.0)]
    return replace(report, models=tuple(models))


def test_success_and_gradients_are_drawn_against_three_temperatures_or_more(
    build: Build, monkeypatch: pytest.MonkeyPatch
):
    report = gather(build(seeds=(0, 1)), "tiny")
    assert figures.against_temperature(report) == ""
    assert "trained at T" in figures.against_temperature(swept(report))

    drawn: list[Any] = []
    monkeypatch.setattr(figures, "svg_of", lambda figure, *_: drawn.append(figure) or "")
    figures.against_temperature(swept(report))
    first, second, gradients = (axes for axes in drawn[0].axes if axes.get_visible())
    lines = {(line.get_color(), line.get_linestyle()): line.get_ydata().tolist() for line in first.lines}
    plain, hostile = charts.COLOURS[:2]
    assert lines[plain, "-"] == lines[plain, "--"] == lines[hostile, "-"] == pytest.approx([100.0] * 3)
    assert lines[hostile, "--"] == pytest.approx([0.0] * 3)
    dots = [line for line in second.lines if line.get_linestyle() == "None"]
    assert all(len(line.get_xdata()) == 6 for line in dots)  # two seeds
    assert min(min(line.get_ydata()) for line in gradients.lines) == pytest.approx(-407)
