from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from made import chain, network, report, sized
from seen import HOSTILE, Outline, words

from brittle import measures
from brittle.report import Report, claims, gather, table
from brittle.report.page import html
from brittle.report.results import as_csv, as_json
from brittle.study.store.store import Store

Build = Callable[..., Store]


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


def test_landmarks_have_names_of_their_own(build: Build, monkeypatch: pytest.MonkeyPatch):
    for kind in ("attack", "measure"):
        monkeypatch.setattr(f"brittle.study.kinds.{kind}.view._FIRST", 1)  # two of the three classes are folded away
    outline = Outline(html(gather(build(), "tiny")))
    regions = [str(one["aria-label"]) for _, one in outline.seen if one.get("role") == "region"]
    assert len(regions) == len(set(regions))
    assert sum("Other classes" in label for label in regions) == 2


def test_a_study_that_is_not_finished_says_so(build: Build):
    skip = [("attack", HOSTILE, 0, "first", 6), ("measure", "plain", 0), ("train", "plain", 0)]
    text = words(Outline(html(gather(build(skip=skip), "tiny"))))

    assert "This study is not finished: 3 of its 14 cells are missing." in text
    assert "measure plain, seed 0: not done yet" in text
    assert "6 images so far" in text


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
    report = gather(build(soft=True, scalars={"minimises": 2}), "tiny")
    found = report.models[0].attacks[2].found["result"]

    assert (found.success.count, found.success.total, found.flips, found.curve) == (6, 12, None, None)
    fooled = found.sizes[2].isfinite()
    assert fooled.tolist() == [True, False] * 6
    assert found.sizes[2][fooled].tolist() == pytest.approx([0.05 * 6] * 6)
    assert found.sizes[math.inf][fooled].tolist() == pytest.approx([0.05] * 6)
    text = words(Outline(html(report)))
    assert "soft 0 6 6 L2 0.300 0.300 – 0.300 0.300 0.300 9 9" in text
    assert "Figure 4. Test images before and after soft" in text
    assert "L2 0.300" in text
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
    assert text.count("not judged") >= 1
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


# Chains -------------------------------------------------------------------------------------------------------------


def chained(seeds: tuple[int, ...] = (0, 1, 2)) -> Report:
    """Twelve networks and a control; changes of 1 + generation in L2, of which one row was wrong and one withstood."""

    def attacks(generation: int, t: float, seed: int) -> list:
        size = 1.0 + generation
        aimed = sized("aimed", [size] * 4, rows=torch.tensor([0, 0, 1, 1]), targets=torch.tensor([1, 1, 0, 0]))
        return [
            sized("l2", [0, size, size + 0.5, math.inf]),
            sized("l2 / T", [0, size, size, size], over_temperature=True),
            *([aimed] if generation == 0 and t == 1 else []),
        ]

    models = [*chain(attacks, seeds=seeds), *(network("control", 1, seed=seed, seeds=len(seeds)) for seed in seeds)]
    return replace(report(*models, paper=None), labels=torch.tensor([0, 1, 0, 1]), images=torch.zeros(4, 1, 2, 2))


def test_a_study_of_chains_has_the_paper_s_figures_and_is_well_formed():
    page = html(chained())
    outline = Outline(page)
    text = words(outline)
    for title in (
        "Figure 1. How many images each attack fools",
        "Figure 2. Smallest perturbation, against the temperature",
        "Figure 3. Generation after generation",
        "Figure 4. Accuracy against the size of the perturbation",
        "Figure 5. Test images before and after l2",
        "Figure 6. From each class to each other class by aimed",
        "Figure 7. What temperature and distillation do to the networks",
    ):
        assert title in text
    assert len(re.findall(r"Figure \d+\.", text)) == 7
    found = re.findall(r' id="([^"]*)"', page)
    assert len(found) == len(set(found))


def test_the_first_table_has_a_row_for_all_seeds_and_the_mean_size():
    text = words(Outline(html(chained())))
    measured = "99.0 % 98.6 – 99.3 0.0 % 0.0 – 0.1"  # 2,970 and 0 of 3,000
    assert (
        "model trained at T test accuracy one-hot softmax l2 mean smallest L2: higher is more robust teacher T=1"
        in text
    )
    assert f"student T=40 99.0 % accuracy 0.0 % one-hot 40 {measured} 3.25 3.00 – 3.50 67 % fooled control T=1" in text
    assert "The seeds of a model are taken together" in text
    assert f"control T=1 99.0 % accuracy 0.0 % one-hot 1 {measured} not done" in text


def test_details_give_each_seed_s_sizes_in_the_attack_s_norm():
    text = words(Outline(html(chained())))
    assert "The smallest perturbations that each attack finds on each model (75 rows)" in text
    assert "student T=40, seed 2 l2 1 2 1 L2 3.25 3.00 – 3.50 3.25 3.50 400 200 l2 / T 1 3 0 L2 3.00" in text
    assert "aimed 0 4 0 L2 1.00" in text
    few = words(Outline(html(chained((0,)))))
    assert "(25 rows)" in few
    assert "student T=40 l2 1 2 1 L2 3.25" in few


def test_tables_of_many_rows_are_folded_and_of_few_are_not():
    assert "<details" in html(chained())
    short = replace(chained((0,)), models=chained((0,)).models[:3])
    assert "Smallest perturbations" in words(Outline(html(short)))
    assert "The smallest perturbations that each attack finds on each model" not in words(Outline(html(short)))


def test_what_the_page_has_computed_the_results_do_not_compute_again(monkeypatch: pytest.MonkeyPatch):
    of = chained()
    calls: list[int] = []
    mean = measures.mean
    monkeypatch.setattr(measures, "mean", lambda *args, **named: calls.append(1) or mean(*args, **named))
    html(of)
    once = len(calls)
    html(of)
    as_json(of)
    as_csv(of)
    table(of)
    assert once > 0
    assert len(calls) == once


# What a network is, and what it is worth ---------------------------------------------------------------------------


def test_the_command_that_repeats_a_study_stands_at_its_foot_if_it_is_known(build: Build):
    of = gather(build(), "tiny")
    assert "again" not in words(Outline(html(replace(of, again=None)))).split()
    typed = "brittle study run my.toml --set training.epochs=3"
    assert f"again {typed} as data" in words(Outline(html(replace(of, again=typed))))


def test_a_network_that_has_not_learned_is_named_at_the_top_and_in_its_row(build: Build):
    of = gather(build(), "tiny")
    assert "has not learned" not in words(Outline(html(of)))
    measured = of.models[1].measured
    assert measured is not None
    dead = replace(of.models[1], measured=replace(measured, accuracy=measures.Share(4, 12)))  # three classes
    page = html(replace(of, models=(of.models[0], dead)))
    text = words(Outline(page))
    assert re.search(r'role="note">\s*<p>&lt;script&gt;alert\(1\)&lt;/script&gt; has not learned', page)
    assert text.count(f"{HOSTILE} has not learned: its test accuracy is 33.3 %") == 1
    assert f"{HOSTILE} has not learned 33 % accuracy" in text


def test_the_verdict_is_the_first_column_of_the_claims(build: Build):
    page = html(replace(gather(build(), "tiny"), paper="song-2017"))
    table = page[page.index('<table class="claims">') :]
    assert [words(Outline(f"<p>{one}</p>")) for one in re.findall(r"<th scope=\"col\"[^>]*>(.*?)</th>", table)[:2]] == [
        "verdict",
        "claim of the paper",
    ]
    first = re.search(r"<tbody>\s*<tr><td[^>]*>(.*?)</td>", table)
    assert first is not None
    assert first[1].partition("&nbsp;")[2] in ("holds", "contradicted", "undecided", "not judged")


def test_an_attack_with_a_budget_is_reported_by_robust_accuracy(build: Build):
    """Of twelve images six are fooled: 50 % are left, whatever was wrong before."""
    bound = {"minimises": None, "bound": {"norm": "inf", "eps": 0.1}}
    page = html(gather(build(soft=True, scalars=bound), "tiny"))
    text = words(Outline(page))
    assert "soft robust accuracy, L∞ ≤ 0.1: higher is more robust" in text
    assert "soft L∞ ≤ 0.1 6 of 12 50 " in text
    assert "first fooled: lower is more robust" in text
    assert "Smallest perturbations" not in text
    assert "Accuracy against the size of the perturbation" not in text


def test_brittle_s_own_attacks_are_explained_in_a_line_each():
    of = report(network("net", 1, [sized("mine", [1.0] * 4, function="brittle.attacks.pgd")]), paper=None)
    assert "mine : Projected gradient descent inside a ball." in words(Outline(html(of)))
    other = report(network("net", 1, [sized("mine", [1.0] * 4, function="mylab.pgd")]), paper=None)
    assert "mine :" not in words(Outline(html(other)))


def test_names_from_right_to_left_turn_nothing_round(build: Build):
    name = "\u05e9\u05dc\u05d5\u05dd"  # a Hebrew word
    of = gather(build(), "tiny")
    renamed = replace(of, title=name, models=(replace(of.models[0], label=name, title=name), of.models[1]))
    page = re.sub(r"<(svg|title|script)\b.*?</\1>", "", html(renamed), flags=re.DOTALL)
    seen = re.sub(r"<[^>]*>", lambda tag: tag[0] if tag[0] in ("<bdi>", "</bdi>") else "", page)
    outside = re.sub(r"<bdi>[^<]*</bdi>", "", seen)
    assert seen.count(name) > 5
    assert name not in outside


def test_a_network_alone_is_named_by_what_it_is(build: Build):
    of = gather(build(), "tiny")
    alone = replace(of, title="Attacks on 0b4f", models=(replace(of.models[0], name="model"),))
    assert "<h1>Attacks: mylab.network, made &lt;i&gt;up&lt;/i&gt;, T = 1</h1>" in html(alone)
    assert "How it was trained" in html(alone)
    assert "How they were trained" not in html(alone)
    assert "Attacks on 0b4f" in html(replace(alone, models=(replace(of.models[0], name="mine"),)))


def test_no_figure_of_gradients_that_float32_can_hold(build: Build):
    of = gather(build(), "tiny")
    title = "Why: gradients too small for float32"
    assert title in html(of)
    assert title not in html(replace(of, models=of.models[:1]))  # 'plain' loses none


# Colours ------------------------------------------------------------------------------------------------------------


def test_every_legend_has_colours_of_the_page():
    """The markers of the text's and the page's colour never reach a page, nor the raw colours of models."""
    page = html(chained())
    assert "#010203" not in page
    assert "#fefdfc" not in page
    assert page.count("var(--model-1)") > 3
