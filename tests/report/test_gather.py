from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from brittle.attacks.result import Bound
from brittle.drawing.text import percent
from brittle.errors import InputError
from brittle.measures import Share
from brittle.report import gather, table, verdict_sentences
from brittle.study.store.results import NOT_DONE
from brittle.study.store.store import Store

HOSTILE = "<script>alert(1)</script>"
Build = Callable[..., Store]


def test_every_number_is_what_was_put_in(build: Build):
    report = gather(build(), "tiny")

    plain, hot = report.models
    assert (report.rows, report.seeds, report.attacks, report.lost) == (12, (0,), ("first", "second"), ())
    assert (plain.title, hot.temperature, hot.teacher) == ("plain", 20.0, "plain")
    assert plain.measured is not None
    assert plain.measured.accuracy == Share(11, 12)
    assert plain.measured.confidence.interval == (0.8, 0.95)
    first, second = hot.attacks
    assert first.found["float32"].success == Share(0, 11)  # row 0 was wrong before: it does not count
    assert first.found["float32"].success.interval[1] == pytest.approx(3.8415 / 14.8415, abs=1e-4)
    assert first.found["exact"].success == Share(11, 11)
    assert first.found["float32"].robust == Share(11, 12)  # row 0 counts here: it is not classified correctly
    assert first.found["exact"].robust == Share(0, 12)
    assert second.found["float32"].success == Share(1, 11)
    assert second.found["exact"].success == Share(10, 11)


def test_shards_of_different_widths_are_joined_in_order(build: Build):
    found = gather(build(), "tiny").models[0].attacks[0].found["exact"]

    assert found.flips is not None
    assert found.curve is not None
    assert (found.flips.mean, found.flips.median, found.flips.quartiles, found.flips.maximum) == (6, 6, (3.5, 8.5), 11)
    assert (found.flips.successes, found.flips.failures) == (11, 0)
    assert found.curve.tolist() == pytest.approx([min(k, 11) / 11 for k in range(21)])  # up to max_pixels
    assert found.sizes[0].tolist() == list(range(12))
    assert (found.forwards, found.backwards) == (7, 1)
    assert found.trivial.tolist() == [True] + [False] * 11


def test_a_row_can_be_had_back(build: Build):
    report = gather(build(), "tiny")
    attack = report.models[1].attacks[0]

    row = attack.result("exact", 7, report)  # of the second shard

    assert row is not None
    assert report.images is not None
    assert row.flips.tolist() == [7]
    assert row.prediction.tolist() == [2]  # 7 % 3 is 1, and the class after it
    assert torch.equal(row.images[0], report.images[7])
    assert row.adversarial[0, 0, 0, :4].tolist() == [1, 0, 1, 0]
    assert attack.result("float32", 7, report).success.tolist() == [False]  # type: ignore[union-attr]


def test_provenance_lists_distinct_values_and_adds_up_time(build: Build):
    report = gather(build(), "tiny")

    assert report.provenance.values["torch"] == ("2.0", "2.1")
    assert report.provenance.values["training precision"] == ("float32",)
    assert report.cells == 1 + 2 * (1 + 1 + 4) + 1  # the labels of the student count, those of the plain one do not
    assert report.provenance.seconds == 1.5 * report.cells


def test_what_is_not_done_is_listed_and_the_rest_is_there(build: Build):
    skip = [("attack", HOSTILE, 0, "first", 6), ("measure", "plain", 0), ("train", "plain", 0)]
    report = gather(build(skip=skip), "tiny")

    assert report.unfinished == "This study is not finished: 3 of its 14 cells are missing."
    assert [lost.title for lost in report.lost] == [
        "train plain, seed 0",
        "measure plain, seed 0",
        f"first on {HOSTILE}, seed 0, shard 2 of 2",
    ]
    attack = report.models[1].attacks[0]
    assert (attack.complete, attack.rows.tolist()) == (False, list(range(6)))
    assert attack.found["exact"].success == Share(5, 5)
    assert attack.result("exact", 7, report) is None
    assert report.models[0].measured is None


def test_without_the_rows_there_are_no_attacks_but_there_is_a_report(build: Build):
    report = gather(build(skip=[("select",)]), "tiny")

    assert (report.rows, report.data, report.classes) == (0, "made up", ())
    assert report.models[0].attacks[0].found == {}
    assert report.models[0].measured is not None


def test_a_damaged_cell_counts_as_missing_and_says_so(build: Build):
    store = build()
    key = store.read_study("tiny")["models"][1]["attacks"][0]["cells"][0]
    file = store.root / "cells" / key / "exact.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")

    report = gather(store, "tiny")

    (lost,) = report.lost
    assert lost.title == f"first on {HOSTILE}, seed 0, shard 1 of 2"
    assert "damaged (exact.safetensors" in lost.why
    assert "1 of them damaged" in report.unfinished
    assert report.models[1].attacks[0].rows.tolist() == list(range(6, 12))


def test_a_cell_of_another_form_counts_as_missing(build: Build):
    store = build()
    key = store.read_study("tiny")["models"][0]["measure"]
    store.discard(key)
    store.put(key, {"scalars": {}}, {})

    (lost,) = gather(store, "tiny").lost
    assert (lost.title, "another version" in lost.why) == ("measure plain, seed 0", True)


def test_an_unknown_study_is_an_input_error(build: Build):
    with pytest.raises(InputError, match="unknown study 'tinny': did you mean 'tiny'"):
        gather(build(), "tinny")


def test_seeds_have_a_row_each(build: Build):
    report = gather(build(seeds=(0, 3)), "tiny")

    assert [model.title for model in report.models] == [
        "plain, seed 0",
        f"{HOSTILE}, seed 0",
        "plain, seed 3",
        f"{HOSTILE}, seed 3",
    ]
    assert len(verdict_sentences(report)) == 3  # one a label, and one that compares them


def test_the_verdict_names_the_artefact(build: Build):
    sentences = verdict_sentences(gather(build(), "tiny"))

    assert sentences == [
        f"{HOSTILE} only looks robust: the two attacks fool 0 to 9 % of the test images in float32 and 91 to 100 % in "
        "exact arithmetic. Its robustness is an artefact of float32.",
        "Plain: no measurable difference between float32 and exact arithmetic: the two attacks fool 100 % of the test "
        "images in float32 and 100 % in exact arithmetic.",
        f"In exact arithmetic no attack finds {HOSTILE} harder to fool than plain.",
    ]


def test_the_verdict_claims_nothing_that_intervals_do_not_bear_out(build: Build):
    """With one row left, 0 of 1 and 1 of 1 have intervals that overlap."""
    report = gather(build(skip=[("attack", HOSTILE, 0, a, s) for a in ("first", "second") for s in (0, 6)]), "tiny")

    sentences = verdict_sentences(report)

    assert sentences[1] == f"{HOSTILE}: no attack is finished yet."
    assert not any("artefact" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (Share(0, 100), "0"),
        (Share(1, 2), "50"),
        (Share(344, 359), "95.8"),
        (Share(199, 200), "99.5"),
        (Share(1, 100000), "0.001"),
        (Share(3, 3), "100"),
        (Share(0, 0), "–"),
    ],
)
def test_a_percentage_is_0_or_100_only_where_it_is_so(share: Share, text: str):
    assert float(percent(share)) == float(text) if share.total else percent(share) == text


def test_gathering_needs_no_matplotlib():
    code = "import sys; from brittle.report import gather, table; print({'matplotlib', 'jinja2'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("scalars", "minimises", "bound"),
    [
        ({"minimises": 0, "bound": None}, 0.0, None),
        ({"minimises": "inf", "bound": None}, math.inf, None),
        ({"minimises": None, "bound": {"norm": "inf", "eps": 0.3}}, None, Bound(math.inf, 0.3)),
        ({"minimises": None, "bound": None}, None, None),
    ],
)
def test_what_an_attack_aims_at_is_what_its_cells_say(build: Build, scalars: dict, minimises, bound):
    attack = gather(build(soft=True, scalars=scalars), "tiny").models[0].attacks[2]
    assert (attack.minimises, attack.bound) == (minimises, bound)


def test_the_name_of_a_function_decides_nothing(build: Build):
    store = build(soft=True)
    record = store.read_study("tiny")
    for model in record["models"]:
        model["attacks"][2]["function"] = "mylab.soft_linf"
    store.write_study("tiny", record)
    assert gather(store, "tiny").models[0].attacks[2].minimises is None


def test_a_cell_that_is_removed_while_it_is_read_counts_as_missing(build: Build, monkeypatch: pytest.MonkeyPatch):
    store = build()
    key = store.read_study("tiny")["models"][0]["measure"]
    get = store.get

    def raced(wanted: str):
        found = get(wanted)
        if wanted == key:
            store.discard(wanted)
        return found

    monkeypatch.setattr(store, "get", raced)
    (lost,) = gather(store, "tiny").lost
    assert (lost.title, lost.why) == ("measure plain, seed 0", NOT_DONE)


@pytest.mark.parametrize(
    ("where", "damage"),
    [
        ("rows", lambda record: record.pop("rows")),
        ("rows", lambda record: record.update(rows=None)),
        ("models", lambda record: record.update(models="none")),
        ("models.0", lambda record: record.update(models=[3])),
        ("models.1.attacks.0.cells", lambda record: record["models"][1]["attacks"][0].update(cells={})),
        ("models.0.temperature", lambda record: record["models"][0].update(temperature="hot")),
        ("study", lambda record: record.update(study=[])),
        ("title", lambda record: record.update(title={})),
    ],
)
def test_a_damaged_study_file_is_one_line_that_says_where(build: Build, where: str, damage: Callable):
    store = build()
    record = store.read_study("tiny")
    damage(record)
    store.write_study("tiny", record)  # sealed, as another version would
    with pytest.raises(InputError, match=rf"^the file of study 'tiny' is damaged: {where}: [^\n]+$"):
        gather(store, "tiny")


def test_teachers_in_a_circle_end(build: Build):
    store = build()
    record = store.read_study("tiny")
    record["models"][0]["teacher"] = HOSTILE
    store.write_study("tiny", record)
    assert len(gather(store, "tiny").models) == 2


def test_no_name_can_steer_the_terminal_or_turn_text_round(build: Build, capsys: pytest.CaptureFixture):
    from rich.console import Console

    store = build()
    record = store.read_study("tiny")
    record["title"] = "red \x1b[31m and \u202edesrever"
    record["models"][0]["label"] = "\x1b]8;;http://x\x07link"
    record["models"][1]["attacks"][0]["label"] = "\x9b2J"
    store.write_study("tiny", record)
    report = gather(store, "tiny")
    Console(width=120, color_system=None).print(table(report))
    text = capsys.readouterr().out
    assert not set(text) & set("\x1b\x07\x9b\u202e")
    assert "red \\x1b[31m and \\u202edesrever" in text
    assert report.models[0].label == "\\x1b]8;;http://x\\x07link"


def test_a_network_that_is_alone_is_called_by_its_function_and_its_data(build: Build):
    store = build()
    record = store.read_study("tiny")
    store.write_study("tiny", record | {"models": record["models"][:1]})
    (model,) = gather(store, "tiny").models
    assert (model.name, model.label, model.title) == ("plain", "network on made <i>up</i>", "network on made <i>up</i>")
    assert verdict_sentences(gather(store, "tiny"))[0].startswith("Network on made <i>up</i>: no measurable difference")
