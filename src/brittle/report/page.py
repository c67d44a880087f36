"""A report -> report.html, results.json and results.csv."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import brittle.attacks
from brittle.drawing.image_grid import scientific
from brittle.drawing.page import templates, write_all
from brittle.measures import Flips, Share
from brittle.report import audited, lineage, results, sizes
from brittle.report.audit import WORDS
from brittle.report.contents import BOTH, Attack, Found, Model, Report
from brittle.report.gradients import Split, splits
from brittle.report.lineage import Group, groups
from brittle.report.pictures import shown_models
from brittle.report.samples import samples
from brittle.report.sizes import NORMS
from brittle.report.verdicts import begun, bounds, higher, joined, not_learned, percent, stated, verdict_sentences
from brittle.study.kinds import TABLES
from brittle.study.kinds.units.cell import Units

if TYPE_CHECKING:
    from markupsafe import Markup

PAGE = "report.html"
_FIRST = 4  # rows of images shown at once; the others are folded away
_LONG = 24  # rows of a table of details beyond which it is folded away
_RIGHT_TO_LEFT = re.compile(
    "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]+(?: +[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]+)*"
)
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

    sections = _sections(report)
    environment = templates()
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {"isolated": _isolated, "themed": _themed}
    return environment.get_template("template.html").render(
        report=report,
        heading=_heading(report),
        network=_one_network(report),
        unlearned=not_learned(report),
        signs=_SIGNS,
        verdicts=_sentences(report),
        hot=any(model.temperature != 1 for model in report.models),
        table=[_summary(group, report) for group in groups(report)],
        columns=_columns(report),
        models=_models(report),
        long=_LONG,
        attacks=_described(report),
        explained=_explained(report),
        firsts=_firsts(report),
        **_results(report),
        measures=[_measure(model) for model in report.models if model.measured],
        claims=stated(report),
        audited=audited.contents(report),
        words=WORDS,
        gradients=[_split(split) for split in splits(report)] if _compared(report) else [],
        samples=_samples(report),
        pixel_attacks=_pixel_attacks(report),
        wrong_before=_wrong_before(report),
        provenance=_provenance(report),
        **_figures(report),
        **_stepper(report),
        sections=sections,
        **sections,
    )


def _sections(report: Report) -> dict[str, dict[str, Any]]:
    """What the section of each kind of cell shows, by the kind's NAME; those that have nothing to show are left out."""
    views = (f"{kind.__name__.rpartition('.')[0]}.view" for kind in TABLES)
    drawn = (import_module(view) if find_spec(view) else None for view in views)
    shown = {kind.NAME: view.section(report) for kind, view in zip(TABLES, drawn, strict=True) if view is not None}
    return {name: section for name, section in shown.items() if section}


def _isolated(text: object) -> Markup:
    """Text in which names that run from right to left turn nothing beside them round."""
    from markupsafe import Markup, escape

    return Markup(_RIGHT_TO_LEFT.sub(lambda found: f"<bdi>{found[0]}</bdi>", str(escape(text))))


def _themed(colour: str) -> str:
    """A colour of a legend: the page's own variable where there is one, so that it can be seen on light and on dark."""
    from brittle.drawing.charts import COLOURS, INK

    if colour == INK:
        return "currentColor"
    return f"var(--model-{COLOURS.index(colour) + 1})" if colour in COLOURS else colour


def _heading(report: Report) -> str:
    """The title; of one network that only has the name which a command gave it, what is done to it and what it is."""
    network = _one_network(report)
    if network is None or network["name"] != "model":
        return report.title
    (model,) = report.models
    done = "Which units matter" if model.results_of(Units) else "Attacks" if model.attacks else "Training"
    return f"{done}: {network['what']}"


def _one_network(report: Report) -> dict[str, Any] | None:
    """What a study of one network says of it instead of a table of one row; None where there are several."""
    if len(report.models) != 1:
        return None
    (model,) = report.models
    path = str(model.trained.params.get("network", "")) if model.trained else ""
    short = path.removeprefix("brittle.networks.") or model.label
    what = f"{short}, {report.data}, T = {model.temperature:g}"
    return {"name": model.name, "what": what, **_summary(groups(report)[0], report)}


def _sentences(report: Report) -> list[str]:
    """What the numbers say beside the notices; a network that is alone need not be named."""
    alone = f"{begun(report.models[0].label)}: " if len(report.models) == 1 else ""
    said = [one for one in verdict_sentences(report) if one not in not_learned(report)]
    return [one.removeprefix(alone).replace(" %", "\N{NO-BREAK SPACE}%") for one in said]


def _compared(report: Report) -> bool:
    """Whether there is anything to compare: one network that is used as it was trained has only one gradient."""
    return len(report.models) > 1 or any(model.temperature != 1 for model in report.models)


# Figures ------------------------------------------------------------------------------------------------------------


def _figures(report: Report) -> dict[str, Any]:
    """Every figure, as markup that is safe to put into the page; empty where there is nothing to show."""
    from markupsafe import Markup

    from brittle.report import chains, figures, matrix, pictures

    attack = pictures.shown_attack(report)
    rows = pictures.sample_rows(report, attack) if attack else []
    maps = list(range(pictures.saliency_rows(report)))
    shown = {
        "bars": figures.success_bars(report),
        "curves": figures.success_curves(report),
        "temperature": figures.against_temperature(report),
        "amplitudes": figures.amplitudes(report),
        "training": figures.training(report),
        "survival": chains.survival(report),
        "networks": chains.networks(report),
        "robustness": chains.robustness(report),
        "generations": chains.generations(report),
        "adversarial": pictures.adversarial(report, attack, rows[:_FIRST]) if attack and rows else "",
        "more_adversarial": pictures.adversarial(report, attack, rows[_FIRST:]) if attack and rows[_FIRST:] else "",
        "saliency": pictures.saliency(report, maps[:_FIRST]) if maps else "",
        "more_saliency": pictures.saliency(report, maps[_FIRST:]) if maps[_FIRST:] else "",
    }
    matrices = [(one, Markup(matrix.drawn(report, one))) for one in matrix.matrices(report)]
    return {
        "figures": {name: Markup(svg) for name, svg in shown.items()},
        "matrices": [
            {"attack": one.attack.label, "model": one.model.title, "norm": _norm(one.attack), "svg": svg}
            for one, svg in matrices
        ],
        "colour": figures.key(report),
        "heat": (heat := {f"T = {t:g}": colour for t, colour in figures.heat(report).items()}),
        "taught": dict(zip(("hard labels", "another network"), figures.COLOURS, strict=False)),
        "generations": (by_line := figures.line_colours(report)),
        "survivors": heat | {line.name: by_line[line.name] for line in chains.outside(report)},
        "swept": lineage.swept(report),
        "logits": any(one.over_temperature for column in chains.attacks(report) for one in column),
        "drawn": len(figures.histogrammed(report)),
        "pictured": attack,
        "pixelwise": any(
            f.flips for m in report.models for a in m.attacks if a.label == attack for f in a.found.values()
        ),
        "twice": any(len(a.found) > 1 for m in report.models for a in m.attacks),
        "alone": any("result" in a.found and not a.sized for m in report.models for a in m.attacks),
        "more": {"adversarial": len(rows[_FIRST:]), "saliency": len(maps[_FIRST:])},
        "left_out": len(report.models) - len(pictures.shown_models(report)) if report.models else 0,
    }


def _stepper(report: Report) -> dict[str, Any]:
    """What can be stepped through, with the one script of the page; none where there is nothing."""
    from markupsafe import Markup

    from brittle.report import stepper

    script = stepper.script()
    return {
        "stepper": stepper.contents(report),
        "stepper_script": Markup(script),
        "stepper_digest": Markup(stepper.digest(script)),  # base64: no character needs escaping, '+' must not be
    }


# Tables -------------------------------------------------------------------------------------------------------------


def _columns(report: Report) -> list[dict[str, Any]]:
    """The attacks that the first table has room for, each with the arithmetics that it has anywhere."""
    columns = []
    for label in sizes.shown_first(report):
        attacks = [a for m in report.models for a in m.attacks if a.label == label]
        done = next((attack for attack in attacks if attack.found), attacks[0])
        names = {name for attack in attacks for name in attack.found}
        ordered = [name for name in (*BOTH, "result") if name in names] or ["result"]
        heads = [name.replace("result", "") for name in ordered]
        columns.append({"label": label, "arithmetics": ordered, "heads": heads, "quantity": _quantity(done)})
    return columns


def _quantity(attack: Attack) -> str:
    """What the first table says of an attack, and which way a more robust network differs."""
    if attack.sized:
        return f"mean smallest {_norm(attack)}: higher is more robust"
    if attack.bounded and attack.bound:
        return f"robust accuracy, {sizes.limit(attack.bound)}: higher is more robust"
    return "fooled: lower is more robust"


def _norm(attack: Attack) -> str:
    return "" if attack.norm is None else NORMS[attack.norm]


def _firsts(report: Report) -> list[int]:
    """Which of the columns of success begin a new attack."""
    counts = [len(column["arithmetics"]) for column in _columns(report)]
    return [sum(counts[:place]) for place in range(len(counts))]


def _summary(group: Group, report: Report) -> dict[str, Any]:
    """A row of the first table."""
    accuracy, saturated = group.accuracy, group.saturated
    return {
        "title": group.title,
        "unlearned": any(model.learned is False for model in group.models),
        "temperature": group.models[0].temperature,
        "accuracy": _cell(accuracy) if accuracy else None,
        "saturated": _cell(saturated) if saturated else None,
        "success": [
            _attacked(group, column["label"], name) for column in _columns(report) for name in column["arithmetics"]
        ],
    }


def _attacked(group: Group, label: str, name: str) -> dict[str, Any] | None:
    """Share that was fooled, robust accuracy within a budget, or how small a perturbation fools; None if not done."""
    success = group.success(label, name)
    if success is None:
        return None
    robust = group.robust(label, name)
    if robust is not None:
        return _cell(robust) | {"worse": False, "rows": group.rows(label)}
    attacks = [attack for attack in group.attacks(label) if name in attack.found]
    if all(attack.sized for attack in attacks):
        mean = sizes.together([(attack, name) for attack in attacks])
        low, high = sizes.bounds(mean)
        fooled = "" if success.count == success.total else f"{percent(success)} % fooled"
        size = {"size": sizes.written(mean.value), "low": low, "high": high, "fooled": fooled}
        return size | {"worse": False, "rows": group.rows(label)}
    shares = [group.success(label, one) for one in BOTH]
    worse = name == "exact" and shares[0] is not None and higher(success, shares[0])
    return _cell(success) | {"worse": worse, "rows": group.rows(label)}


def _cell(share: Share) -> dict[str, Any]:
    low, high = bounds(share)
    return {"value": percent(share), "low": low, "high": high, "count": share.count, "total": share.total}


def _results(report: Report) -> dict[str, list[dict[str, Any]]]:
    """Rows of the three tables of attacks: by images and pixels, within a budget, and by the smallest perturbation."""
    lines = [
        (place, model, attack, found)
        for place, model in enumerate(report.models)
        for attack in model.attacks
        for found in attack.found.values()
    ]
    return {
        "results": [_line(*line) for line in lines if not line[2].sized and not line[2].bounded],
        "bounded": [_within(*line) for line in lines if line[2].bounded],
        "changes": [_change(*line) for line in lines if line[2].sized],
    }


def _line(place: int, model: Model, attack: Attack, found: Found) -> dict[str, Any]:
    """What both tables of attacks say."""
    return {
        "place": place,
        "model": model.title,
        "attack": attack.label,
        "arithmetic": "" if found.arithmetic == "result" else found.arithmetic,
        "success": _cell(found.success),
        "withstood": found.success.total - found.success.count,
        "flips": ["–"] * 4 if found.flips is None else _flips(found.flips),
        "forwards": _digits(found.forwards, 0),
        "backwards": _digits(found.backwards, 0),
    }


def _within(place: int, model: Model, attack: Attack, found: Found) -> dict[str, Any]:
    """A row of the table of robust accuracy."""
    return _line(place, model, attack, found) | {"limit": sizes.aim(attack), "robust": _cell(found.robust)}


def _change(place: int, model: Model, attack: Attack, found: Found) -> dict[str, Any]:
    """A row of the table of smallest perturbations."""
    robustness = attack.robustness[found.arithmetic]
    low, high = sizes.bounds(robustness.mean)
    middle = robustness.mean.value
    return _line(place, model, attack, found) | {
        "norm": _norm(attack),
        "wrong": robustness.trivial,
        "withstood": robustness.failures,
        "mean": sizes.written(middle),
        "interval": f"{low} – {high}" if robustness.mean.rows else "–",
        "median": sizes.written(robustness.median.value, middle),
        "maximum": sizes.written(robustness.maximum.value, middle),
    }


def _flips(flips: Flips) -> list[str]:
    """Mean, median, quartiles and most pixels; dashes if nothing was fooled."""
    low, high = map(_digits, flips.quartiles)
    quartiles = f"{low} – {high}" if flips.successes else "–"
    return [_digits(flips.mean), _digits(flips.median), quartiles, _digits(flips.maximum, 0)]


def _measure(model: Model) -> dict[str, Any]:
    assert model.measured is not None
    confidence = model.measured.confidence
    low, high = confidence.interval
    return {
        "model": model.title,
        "sensitivity": {name: _cell(share) for name, share in model.measured.sensitivity.items()},
        "confidence": [_digits(100 * number) for number in (confidence.value, low, high)],
    }


def _split(split: Split) -> dict[str, Any]:
    """A row of the table of gradients, in decades."""
    return {
        "model": split.model.title,
        "margin": _digits(split.margin),
        "plain": _signed(split.plain.value),
        "factor": _signed(split.factor),
        "slopes": _signed(split.slopes.value),
        "trained": _signed(split.trained.value),
        "saturation": _signed(split.saturation.value),
        "used": _signed(split.used.value),
    }


def _samples(report: Report) -> list[dict[str, Any]]:
    """Rows of the table of sample images, for the first seed."""
    first = {model.title for model in shown_models(report)} if report.models else set()
    return [
        {
            "row": sample.row,
            "class": report.class_name(sample.label),
            "model": sample.model.title,
            "numbers": [scientific(*values[name]) for name in BOTH for values in (sample.mean, sample.largest)],
            "pixels": [
                " → ".join(_count(sample.pixels, label, name) for name in BOTH if (label, name) in sample.pixels) or "·"
                for label in _pixel_attacks(report)
            ],
        }
        for sample in samples(report)
        if sample.model.title in first
    ]


def _pixel_attacks(report: Report) -> list[str]:
    """Labels of those that set pixels, one after another."""
    tried = [attack for model in report.models for attack in model.attacks]
    return list(dict.fromkeys(one.label for one in tried if any(found.flips for found in one.found.values())))


def _count(pixels: Mapping[tuple[str, str], int | None], label: str, name: str) -> str:
    count = pixels[label, name]
    return "–" if count is None else str(count)


def _signed(value: float) -> str:
    """'−9.17', '+1.3', '−143.2'."""
    digits = 2 if abs(value) < 20 else 1
    return f"{value:+.{digits}f}".replace("-", "−") if math.isfinite(value) else "–"


def _digits(value: float, digits: int = 1) -> str:
    return f"{value:,.{digits}f}".replace(",", " ") if math.isfinite(value) else "–"


def _models(report: Report) -> list[dict[str, Any]]:
    """How each model was trained; seeds for which that is the same in one row."""
    rows: dict[tuple, list[int]] = {}
    for model in report.models:
        params = model.trained.params if model.trained else {}
        trained = (str(params.get("network", "")), str(params.get("epochs", ""))) if model.trained else None
        rows.setdefault((model.label, model.temperature, model.teacher, trained), []).append(model.seed)
    return [
        {"label": label, "temperature": temperature, "teacher": teacher, "trained": trained, "seeds": seeds}
        for (label, temperature, teacher, trained), seeds in rows.items()
    ]


# Words --------------------------------------------------------------------------------------------------------------


def _described(report: Report) -> list[dict[str, Any]]:
    """Each attack: its label, its function, how many images it was tried on, its options."""
    seen: dict[str, Attack] = {}
    for attack in (attack for model in report.models for attack in model.attacks):
        if attack.label not in seen or attack.found:
            seen[attack.label] = attack
    return [
        {
            "label": label,
            "function": attack.function,
            "rows": max(len(a.rows.unique()) for m in report.models for a in m.attacks if a.label == label),
            "aim": sizes.aim(attack),
            "options": ", ".join(
                [f"{name} = {value}" for name, value in attack.options.items()]
                + ["on the logits over T"] * attack.over_temperature
                + ["to each other class"] * attack.targeted
            ),
        }
        for label, attack in seen.items()
    ]


def _explained(report: Report) -> dict[str, str]:
    """By label, what each of brittle's own attacks does: the first sentence of its docstring, without its source."""
    found = {}
    for attack in (attack for model in report.models for attack in model.attacks):
        module, _, name = attack.function.rpartition(".")
        own = getattr(brittle.attacks, name, None) if module == "brittle.attacks" else None
        first = re.split(r"[.:](?: |$)", " ".join((own.__doc__ or "").split()) if own else "", maxsplit=1)[0]
        if first:
            found[attack.label] = f"{first}."
    return found


def _wrong_before(report: Report) -> str:
    """'1 for standard, 3 for tempered': images left out since the model has them wrong without any attack."""
    counts = []
    for model in report.models:
        found = [one for attack in model.attacks if not attack.targeted for one in attack.found.values()]
        if found:
            counts.append((int(max(one.trivial.sum() for one in found)), model.title))
    if len(counts) <= 4:
        return joined([f"{count} for {title}" for count, title in counts]) if counts else ""
    low, high = min(counts)[0], max(counts)[0]
    return f"{low} a model" if low == high else f"{low} to {high} a model"


def _provenance(report: Report) -> list[tuple[str, str]]:
    made = report.provenance
    lines = [(name, ", ".join(values)) for name, values in made.values.items()]
    lines.append(("computing time", f"{_duration(made.seconds)}, {report.cells} cells"))
    if made.started:
        lines.append(("begun", made.started.replace("T", " ").replace("+00:00", " UTC")))
    if report.seeds:
        lines.append(("seeds" if len(report.seeds) > 1 else "seed", ", ".join(map(str, report.seeds))))
    lines.append(("digest of the data", made.digest))
    return lines


def _duration(seconds: float) -> str:
    """'1 h 05 min', '3 min 20 s', '12 s'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
