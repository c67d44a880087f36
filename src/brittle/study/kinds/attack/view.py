"""The page's section on attacks: what each found on each model, drawn, stepped through and in tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import brittle.attacks
from brittle.drawing.charts import COLOURS
from brittle.drawing.text import joined
from brittle.study.kinds.attack import chains, figures, matrix, pictures, sizes, stepper
from brittle.study.kinds.attack.result import Attack, Found
from brittle.study.kinds.attack.sizes import NORMS
from brittle.study.kinds.colours import heat, line_colours
from brittle.study.kinds.lines import shown_models, swept
from brittle.study.store.results import Model, Report

_FIRST = 4  # rows of images shown at once; the others are folded away


def section(report: Report) -> dict[str, Any]:
    """What section.html shows, figures as markup; empty if the study has no attack."""
    from markupsafe import Markup

    attacks = [attack for model in report.models for attack in model.attacks]
    if not attacks:
        return {}
    shown = pictures.shown_attack(report)
    rows = pictures.sample_rows(report, shown) if shown else []
    drawn = {
        "bars": figures.success_bars(report),
        "curves": figures.success_curves(report),
        "temperature": figures.against_temperature(report),
        "survival": chains.survival(report),
        "robustness": chains.robustness(report),
        "generations": chains.generations(report),
        "adversarial": pictures.adversarial(report, shown or "", rows[:_FIRST]),
        "more_adversarial": pictures.adversarial(report, shown or "", rows[_FIRST:]),
    }
    by_heat, by_line = {f"T = {t:g}": colour for t, colour in heat(report).items()}, line_colours(report)
    tables = _tables(report)
    script = stepper.script()
    steps = stepper.contents(report)
    return {
        "figures": {name: Markup(svg) for name, svg in drawn.items()},
        "matrices": [
            {
                "attack": one.attack.label,
                "model": one.model.title,
                "norm": "" if one.attack.norm is None else NORMS[one.attack.norm],
                "svg": Markup(matrix.drawn(report, one)),
            }
            for one in matrix.matrices(report)
        ],
        "stepper": steps,
        "script": Markup(script),
        "digest": Markup(stepper.digest(script)) if steps else "",  # base64: no character needs escaping
        "described": _described(report),
        "explained": _explained(attacks),
        "wrong_before": _wrong_before(report),
        "tables": tables,
        "counts": {name: sum(len(found) for _, found in models) for name, models in tables.items()},
        "heat": by_heat,
        "taught": dict(zip(("hard labels", "another network"), COLOURS, strict=False)),
        "generations": by_line,
        "survivors": by_heat | {line.name: by_line[line.name] for line in chains.outside(report)},
        "swept": swept(report),
        "logits": any(one.over_temperature for column in chains.attacks(report) for one in column),
        "pictured": shown,
        "pixelwise": any(found.flips for attack in report.attacks_of(shown or "") for found in attack.found.values()),
        "twice": any(len(attack.found) > 1 for attack in attacks),
        "alone": any("result" in attack.found and not attack.sized for attack in attacks),
        "more": len(rows[_FIRST:]),
        "left_out": len(report.models) - len(shown_models(report)),
    }


def _tables(report: Report) -> dict[str, list[tuple[Model, list[tuple[Attack, Found]]]]]:
    """For each table of attacks the models that have rows in it, and these."""
    wanted: dict[str, Callable[[Attack], bool]] = {
        "pixels": lambda attack: not attack.sized and not attack.bounded,
        "bounded": lambda attack: attack.bounded,
        "sizes": lambda attack: attack.sized,
    }
    found = {
        name: [(m, [(a, one) for a in m.attacks if among(a) for one in a.found.values()]) for m in report.models]
        for name, among in wanted.items()
    }
    return {name: [(model, rows) for model, rows in models if rows] for name, models in found.items()}


def _described(report: Report) -> list[dict[str, Any]]:
    """Each attack: its label, its function, how many images it was tried on, its options."""
    lines = []
    for label in report.attacks:
        attacks = report.attacks_of(label)
        one = ([attack for attack in attacks if attack.found] or attacks)[-1]
        options = [f"{name} = {value}" for name, value in one.options.items()]
        options += ["on the logits over T"] * one.over_temperature + ["to each other class"] * one.targeted
        images = max(len(attack.rows.unique()) for attack in attacks)
        line = {"label": label, "function": one.function, "images": images, "aim": sizes.aim(one)}
        lines.append(line | {"options": ", ".join(options)})
    return lines


def _explained(attacks: list[Attack]) -> dict[str, str]:
    """By label, what each of brittle's own attacks does: the first sentence of its docstring, without its source."""
    found = {}
    for attack in attacks:
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
