"""The verdicts that a study's page opens with, and the same in a terminal and as data."""

from __future__ import annotations

import dataclasses
import io
import json

from made import audit_record, model, report
from rich.console import Console
from seen import HOSTILE, Outline
from seen import words as words_of

from brittle.report import audit_table
from brittle.report.page import html
from brittle.report.results import as_json
from brittle.study.kinds.audit.cell import Audited
from brittle.study.store.results import Model


def words(page: str) -> str:
    return words_of(Outline(page))


def audited(name: str, *kinds: str, beside: str | None = None) -> Model:
    """A model with an audit that ended in each of these verdicts."""
    found = tuple(Audited(f"table {n}", audit_record(kind), beside) for n, kind in enumerate(kinds))
    return dataclasses.replace(model(name, attacks={}), results=found)


def test_the_page_opens_with_the_verdict_on_each_model():
    page = html(report(audited("plain", "broken"), audited("hot", "masked", beside="plain, seed 0")))
    said = words(page)
    first = said.index("plain ✗ Broken Broken, not robust: none of the images survives the full set of attacks.")
    second = said.index("hot ◐ Masked Masked, it only looks robust: 96 % of the images survive the baseline attack")
    assert first < second < said.index("test accuracy") < said.index("The audits")
    assert "the first 200 of 1000. Budget quick. Beside plain, seed 0." in said
    assert "This one is not set beside an undefended network." not in said  # `record` has a reference


def test_each_audit_has_its_evidence_and_its_own_identifiers():
    page = html(report(audited("plain", "broken"), audited("hot", "masked", "robust")))
    outline = Outline(page)
    names = [one["id"] for _, one in outline.seen if "id" in one]
    assert len(names) == len(set(names))
    links = {href for one in outline.all("a") if (href := one.get("href") or "").startswith("#audit-")}
    assert links == {"#audit-0", "#audit-1", "#audit-2"}
    assert {link[1:] for link in links} <= set(names)
    assert words(page).count("a smaller one may exist") == 3


def test_a_study_without_audits_says_nothing_of_them():
    page = html(report(model("plain", attacks={})))
    assert "The audits" not in page
    assert "verdicts" not in page
    assert audit_table(report(model("plain", attacks={}))) is None


def test_a_terminal_shows_a_line_for_each_audit():
    shown = audit_table(report(audited("plain", "broken"), audited("hot", "masked", "inconclusive")))
    assert shown is not None
    columns = [list(column.cells) for column in shown.columns]
    assert columns[0] == ["plain, table 0, L∞", "hot, table 0, L∞", "hot, table 1, L∞"]
    assert columns[1] == ["[red]broken[/]", "[magenta]masked[/]", "[yellow]inconclusive[/]"]
    assert columns[2] == ["", "scale", ""]
    shares = [str(column[0]).replace("\N{NO-BREAK SPACE}", " ") for column in columns[3:]]
    assert shares == ["98 %", "96 %", "0 %", "0.5 %"]
    said = "L∞, eps 0.3: the usual one. 200 test images: the first 200 of 1000. Budget quick."
    assert shown.caption == said
    console = Console(width=60, file=io.StringIO(), record=True)
    console.print(shown)
    text = console.export_text()
    assert "…" not in text
    assert "inconclusive" in text


def test_the_results_hold_the_audits_without_their_images():
    found = json.loads(as_json(report(audited("hot", "masked"))))
    (told,) = found["models"][0]["audits"]
    assert told["verdict"]["causes"] == ["scale"]
    assert told["pictures"][0].keys() == {"row", "label", "prediction", "size", "attack", "minimal"}


def test_hostile_names_of_models_are_text():
    outline = Outline(html(report(audited(HOSTILE, "masked"))))
    assert all("alert(1)" not in str(attributes) for attributes in outline.all("script"))
    assert "<script>alert(1)" not in html(report(audited(HOSTILE, "masked")))
