"""Figures over temperatures and generations, of numbers that are known."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from made import chain, network, report, sized

from brittle.drawing import charts
from brittle.measures import Share
from brittle.study.kinds import colours
from brittle.study.kinds.attack import chains, figures
from brittle.study.kinds.lines import Line, lines
from brittle.study.store.results import Report

CHARTS = (chains.networks, chains.robustness, chains.generations, chains.survival)
TEMPERATURES = (1.0, 5.0, 20.0, 40.0)


def of(generation: int, t: float, seed: int) -> list:
    """Mean 10 (generation + 1) + T / 10 + seed, largest one more; over T a half of it."""
    middle = 10 * (generation + 1) + t / 10 + seed
    sizes = torch.tensor([0, middle - 1, middle, middle + 1])
    linf = [middle / 100, math.inf, middle / 100, 0]
    return [
        sized("l2", sizes),
        sized("l2 / T", sizes / 2, over_temperature=True),
        sized("linf", linf, norm=math.inf, function="brittle.attacks.carlini_linf"),
    ]


def made(seeds: tuple[int, ...] = (0, 1, 2)) -> Report:
    share = {(g, t): Share(900 + 10 * g - int(t), 1000) for g in range(3) for t in TEMPERATURES}
    small = {(g, t): {"exact": Share(int(t), 100), "float32": Share(2 * int(t), 100)} for g, t in share}
    control = [network("control", 1, [sized("l2", [5.0] * 4)], seed=seed) for seed in seeds]
    return report(*chain(of, seeds=seeds, accuracy=share, small=small), *control, paper=None)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Report], str], Report], Any]:
    """The matplotlib figure that a chart makes."""

    def figure(chart: Callable[[Report], str], of: Report) -> Any:
        kept: list[Any] = []
        monkeypatch.setattr(chains, "svg_of", lambda figure, *_: kept.append(figure) or "")
        chart(of)
        return kept[0]

    return figure


def values(axes: Any, colour: str, style: str = "-") -> list[float]:
    """Of the one line in this colour that has a marker at each of its points."""
    (found,) = [
        line.get_ydata()
        for line in axes.lines
        if line.get_color() == colour and line.get_linestyle() == style and line.get_marker() in "oD"
    ]
    return [float(one) for one in found]


def test_points_are_every_seed_with_the_interval_of_all():
    teacher = lines(made())[0]
    points = chains.by_temperature(teacher, chains.mean_size("l2"))
    assert [point.at for point in points] == [1, 5, 20, 40]
    assert points[3].each == pytest.approx((14, 15, 16))
    assert points[3].mean == pytest.approx(15)
    assert points[3].low < 14.5 < 15.5 < points[3].high
    assert chains.by_temperature(teacher, chains.largest_size("l2"))[0].each == pytest.approx((11.1, 12.1, 13.1))
    assert chains.by_temperature(teacher, chains.mean_size("linf"))[0].each == pytest.approx((0.101, 0.111, 0.121))


def test_accuracy_and_small_gradients_are_percent_of_all_seeds_together():
    student = lines(made())[2]
    accuracy = chains.by_temperature(student, chains.accuracy)[2]
    assert accuracy.each == (90, 90, 90)
    assert (accuracy.low, accuracy.high) == pytest.approx(tuple(100 * end for end in Share(2700, 3000).interval))
    assert [p.mean for p in chains.by_temperature(student, chains.small_gradients("float32"))] == [2, 10, 40, 80]
    assert chains.by_temperature(student, chains.small_gradients("none")) == []


def test_one_seed_has_its_own_interval_and_several_have_none_for_confidence():
    for seeds, known in (((0,), True), ((0, 1), False)):
        point = chains.by_temperature(lines(made(seeds))[0], chains.confidence)[0]
        assert point.mean == pytest.approx(90)
        assert math.isfinite(point.low) == known


def test_figure_5_has_a_line_a_generation_and_dashes_where_logits_are_divided_by_t(drawn: Callable):
    figure = drawn(chains.robustness, made())
    mean, _, largest, _ = figure.axes
    teacher, assistant, student = charts.COLOURS[:3]
    assert (mean.get_title(loc="left"), mean.get_ylabel(), largest.get_ylabel()) == ("l2", "mean, L2", "largest, L2")
    assert values(mean, teacher) == pytest.approx([11.1, 11.5, 13, 15])
    assert values(mean, student) == pytest.approx([31.1, 31.5, 33, 35])
    assert values(mean, student, "--") == pytest.approx([15.55, 15.75, 16.5, 17.5])
    assert values(largest, assistant) == pytest.approx([22.1, 22.5, 24, 26])
    assert values(mean, charts.INK) == [5]  # the control, a diamond by itself and not a teacher
    assert figure.axes[1].get_ylabel() == "mean, L∞"


def test_temperatures_stand_at_equal_distances(drawn: Callable):
    axes = drawn(chains.networks, made()).axes[0]
    assert axes.get_xticks().tolist() == [0, 1, 2, 3]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "5", "20", "40"]
    lines = [line.get_xdata() for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata()) == 4]
    assert len(lines) == 3
    assert all(abs(float(x) - place) < 0.3 for line in lines for place, x in enumerate(line))


def test_figures_7_and_8_average_over_the_temperatures(drawn: Callable):
    by_heat, averages = chains.over_generations(chains.chains(made()), chains.mean_size("l2"))
    assert [point.mean for point in by_heat[40]] == pytest.approx([15, 25, 35])
    assert [(point.at, point.mean) for point in averages] == [
        (0, pytest.approx((11.1 + 11.5 + 13 + 15) / 4)),
        (1, pytest.approx((21.1 + 21.5 + 23 + 25) / 4)),
        (2, pytest.approx((31.1 + 31.5 + 33 + 35) / 4)),
    ]
    axes = drawn(chains.generations, made()).axes
    assert [one.get_title(loc="left") for one in axes] == ["accuracy, %", "l2", "linf"]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["teacher", "assistant", "student"]


def test_a_temperature_that_a_generation_lacks_is_not_in_the_average():
    models = [m for m in made((0,)).models if not (m.name == "student" and m.temperature == 40)]
    by_heat, averages = chains.over_generations(chains.chains(report(*models)), chains.mean_size("l2"))
    assert [point.at for point in by_heat[40]] == [0, 1]
    assert averages[0].mean == pytest.approx((10.1 + 10.5 + 12) / 3)


def test_survival_is_of_all_rows_of_all_seeds():
    models = [m for m in made((0, 1)).models if m.label == "teacher T=40"]  # 13, 14, 15 and 14, 15, 16; 1 in 4 wrong
    share = chains.surviving(models, "l2", torch.tensor([0.0, 13.0, 14.0, 15.5, 16.0], dtype=torch.float64))
    assert share is not None
    assert share.tolist() == pytest.approx([6 / 8, 5 / 8, 3 / 8, 1 / 8, 0])
    withstood = chains.surviving(models, "linf", torch.tensor([9.0]))
    assert withstood is not None
    assert withstood.tolist() == [0.25]
    assert chains.surviving(models, "none", torch.tensor([1.0])) is None


def test_survival_has_a_row_a_generation_and_the_control_in_each(drawn: Callable):
    figure = drawn(chains.survival, made())
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == 3 * 2
    assert [axes.get_ylabel().split("\n")[0] for axes in panels[::2]] == ["teacher", "assistant", "student"]
    for axes in panels[::2]:
        solid = [line.get_color() for line in axes.lines if line.get_linestyle() == "-"]
        assert solid == [*colours.heat(made()).values(), charts.INK]
    assert panels[-1].get_xlabel() == "change allowed, L∞"


def test_without_temperatures_survival_is_one_row_of_models(drawn: Callable):
    one = report(network("plain", 1, of(0, 1, 0)), network("hot", 20, of(0, 20, 0)), paper=None)
    panels = drawn(chains.survival, one).axes
    assert len(panels) == 2
    assert {line.get_color() for line in panels[0].lines} == set(charts.COLOURS[:2])


def test_targeted_attacks_are_in_no_curve():
    targets = torch.tensor([1, 1, 1, 1])
    one = report(network("plain", 1, [sized("aimed", [1.0] * 4, targets=targets)]), network("plain", 20), paper=None)
    assert chains.attacks(one) == []
    assert chains.survival(one) == chains.robustness(one) == ""


def test_attacks_of_one_function_and_other_options_have_panels_of_their_own():
    columns = chains.attacks(report(network("one", 1, [sized("short", [1.0]), sized("long", [1.0])])))
    assert [[attack.label for attack in column] for column in columns] == [["short"], ["long"]]


def test_every_figure_is_xml_with_a_name():
    for chart in CHARTS:
        root = ElementTree.fromstring(chart(made()))
        assert root.get("role") == "img"
        assert root.get("aria-label")


def test_charts_share_no_identifier_and_are_the_same_each_time():
    import re

    drawn = [chart(made()) for chart in CHARTS]
    seen = [set(re.findall(r' id="([^"]*)"', svg)) for svg in drawn]
    assert sum(map(len, seen)) == len(set.union(*seen))
    assert drawn == [chart(made()) for chart in CHARTS]


def test_less_is_drawn_where_there_is_less():
    pair = report(network("tempered", 20, of(0, 20, 0)), network("d", 20, teacher="tempered", generation=1), paper=None)
    assert [chart(pair) != "" for chart in CHARTS] == [False, False, False, True]
    sweep = report(*(network("hard", t, of(0, t, 0)) for t in TEMPERATURES), paper=None)
    assert [chart(sweep) != "" for chart in CHARTS] == [True, True, False, True]
    deep = report(*chain(of, temperatures=(20.0,)), paper=None)
    assert [chart(deep) != "" for chart in CHARTS] == [False, False, True, True]
    assert [chart(report(paper=None)) for chart in CHARTS] == [""] * 4


def test_success_is_not_drawn_where_every_image_is_fooled():
    one = report(*chain(lambda g, t, s: [sized("l2", [1.0] * 40)]), paper=None)
    assert figures.success_bars(one) == figures.against_temperature(one) == ""
    weak = report(*chain(lambda g, t, s: [sized("l2", [1.0] * 20 + [math.inf] * 20)]), paper=None)
    assert figures.success_bars(weak)


def test_a_model_s_colour_is_its_temperature_s_where_there_are_many():
    colour = figures.colours(made())
    assert colour["teacher T=40"] == colour["student T=40"] != colour["teacher T=1"]
    assert list(colours.key(made())) == ["T = 1", "T = 5", "T = 20", "T = 40"]
    assert colours.line_colours(made())["control"] == charts.INK


def test_many_generations_have_a_colour_each():
    found = report(*chain(of, names=[f"g{n}" for n in range(8)]), paper=None)
    assert len(set(colours.line_colours(found).values())) == 8
    assert Line("g0", 0, ()).temperatures == []


def test_an_attack_over_t_that_not_every_seed_has_is_left_out():
    whole = made()
    assert [[one.over_temperature for one in column] for column in chains.attacks(whole)] == [[False, True], [False]]
    fewer = [
        model if model.seed == 0 else replace(model, attacks=tuple(a for a in model.attacks if not a.over_temperature))
        for model in whole.models
    ]
    columns = chains.attacks(replace(whole, models=tuple(fewer)))
    assert [[one.over_temperature for one in column] for column in columns] == [[False], [False]]
