"""A report -> report.html, results.json and results.csv."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brittle.drawing import text
from brittle.drawing.page import templates, write_all
from brittle.measures import Share
from brittle.report import results, summary
from brittle.report.sentences import not_learned, stated, verdict_sentences
from brittle.report.summary import Cell
from brittle.study.kinds import KINDS
from brittle.study.kinds.attack import sizes
from brittle.study.kinds.lines import Group, groups
from brittle.study.store.results import Report

if TYPE_CHECKING:
    from markupsafe import Markup

PAGE = "report.html"
_LONG = 24  # rows of a table of details beyond which it is folded away
_HEBREW_TO_ARABIC = "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]+"
_RIGHT_TO_LEFT = re.compile(f"{_HEBREW_TO_ARABIC}(?: +{_HEBREW_TO_ARABIC})*")
_SIGNS = {"holds": "✓", "contradicted": "✕", "undecided": "?", "not judged": "–"}


def write(report: Report, folder: Path | str) -> Path:
    """Writes report.html, results.json and results.csv, each whole or not at all; what was there is replaced.

    Args:
        report: see `gather`.
        folder: made if need be.

    Returns:
        The path of the page. It needs no network and no other file.

    Raises:
        InputError: if the folder cannot be written.
    """
    folder = Path(folder)
    texts = {"results.json": results.as_json(report), "results.csv": results.as_csv(report), PAGE: html(report)}
    write_all(texts, folder)
    return folder / PAGE


def html(report: Report) -> str:
    """The page. All that users named is escaped; only figures made here are put in as they are."""
    from brittle.study.kinds.colours import key

    sections = _sections(report)
    unlearned, columns = not_learned(report), summary.columns(report)
    first = text.begun(report.models[0].label) if len(report.models) == 1 else None  # alone, it need not be named
    said = [one.removeprefix(f"{first}: ") for one in verdict_sentences(report) if one not in unlearned]
    attacks = [attack for model in report.models for attack in model.attacks if attack.found]
    environment = templates()
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {
        "isolated": _isolated,
        "themed": _themed,
        "norm": sizes.NORMS.get,
        "aim": sizes.aim,
        "scientific": lambda number: text.scientific(*number),
        **{name: getattr(text, name) for name in ("fixed", "decades", "size", "percent", "interval", "with_interval")},
    }
    return environment.get_template("template.html").render(
        report=report,
        heading=_heading(report),
        alone=_alone(report),
        unlearned=unlearned,
        signs=_SIGNS,
        verdicts=[one.replace(" %", "\N{NO-BREAK SPACE}%") for one in said],
        hot=any(model.temperature != 1 for model in report.models),
        table=[_row(group, columns) for group in groups(report)],
        columns=columns,
        firsts=[sum(len(one.arithmetics) for one in columns[:place]) for place in range(len(columns))],
        noted={
            "bounded": any(attack.bounded for attack in attacks),
            "sized": any(attack.sized for attack in attacks),
            "fooled": any(not attack.bounded and not attack.sized for attack in attacks),
        },
        long=_LONG,
        empty=not attacks and not any(model.measured or model.results for model in report.models),
        claims=stated(report),
        colour=key(report),
        provenance=_provenance(report),
        scripts=[section["digest"] for section in sections.values() if section.get("digest")],
        sections=sections,
        **sections,
    )


def _sections(report: Report) -> dict[str, dict[str, Any]]:
    """What the section of each kind of cell shows, by its folder, the last kind first; without those that are empty."""
    folders = [kind.__name__.rpartition(".")[0] for kind in reversed(KINDS)]
    views = {folder: import_module(f"{folder}.view") for folder in folders if find_spec(f"{folder}.view")}
    shown = {folder.rpartition(".")[2]: view.section(report) for folder, view in views.items()}
    return {name: section for name, section in shown.items() if section}


def _isolated(words: object) -> Markup:
    """Text in which names that run from right to left turn nothing beside them round."""
    from markupsafe import Markup, escape

    return Markup(_RIGHT_TO_LEFT.sub(lambda found: f"<bdi>{found[0]}</bdi>", str(escape(words))))


def _themed(colour: str) -> str:
    """A colour of a legend: the page's own variable where there is one, so that it can be seen on light and on dark."""
    from brittle.drawing.charts import COLOURS, INK

    if colour == INK:
        return "currentColor"
    return f"var(--model-{COLOURS.index(colour) + 1})" if colour in COLOURS else colour


def _heading(report: Report) -> str:
    """The title; of one network that only has the name which a command gave it, what is done to it and what it is."""
    alone = _alone(report)
    if alone is None or report.models[0].name != "model":
        return report.title
    (model,) = report.models
    done = "Which units matter" if model.results else "Attacks" if model.attacks else "Training"
    return f"{done}: {alone['what']}"


def _alone(report: Report) -> dict[str, Any] | None:
    """What a study of one network says of it instead of a table of one row; None where there are several."""
    if len(report.models) != 1:
        return None
    (model,) = report.models
    network = model.trained.network if model.trained else ""
    short = network.removeprefix("brittle.networks.") or model.label
    return {"what": f"{short}, {report.data}, T = {model.temperature:g}", **_row(groups(report)[0], [])}


def _row(group: Group, columns: list[summary.Column]) -> dict[str, Any]:
    """A row of the first table."""

    def share(of: Share | None) -> Cell | None:
        return Cell.of(of) if of else None

    return {
        "title": group.title,
        "unlearned": any(model.learned is False for model in group.models),
        "temperature": group.models[0].temperature,
        "accuracy": share(group.accuracy),
        "saturated": share(group.saturated),
        "success": [summary.cell(group, column.label, name) for column in columns for name in column.arithmetics],
    }


def _provenance(report: Report) -> list[tuple[str, str]]:
    made = report.provenance
    lines = [(name, ", ".join(values)) for name, values in made.values.items()]
    lines.append(("computing time", f"{text.duration(made.seconds)}, {report.cells} cells"))
    if made.started:
        lines.append(("begun", made.started.replace("T", " ").replace("+00:00", " UTC")))
    if report.seeds:
        lines.append(("seeds" if len(report.seeds) > 1 else "seed", ", ".join(map(str, report.seeds))))
    lines.append(("digest of the data", made.digest))
    return lines
