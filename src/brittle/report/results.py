"""results.json and results.csv: every number of a report, with its interval, its counts and what it was made with."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from brittle.attacks.export import in_a_cell
from brittle.measures import Mean, Share
from brittle.report.sentences import stated, verdict_sentences
from brittle.study.kinds import TABLES
from brittle.study.kinds.measure.gradients import splits
from brittle.study.kinds.measure.samples import samples
from brittle.study.store.results import Model, Report

FORMAT = 2  # raise it when a key of results.json changes its meaning or goes away

# Of results.csv, and where results.json has the number: in a model, an attack, or what it found in one arithmetic.
COLUMNS = {
    "model": "model.label",
    "seed": "model.seed",
    "temperature": "model.temperature",
    "teacher": "model.teacher",
    "attack": "attack.label",
    "arithmetic": "arithmetic",
    "accuracy": "model.accuracy.value",
    "learned": "model.learned",
    "saturated": "model.saturated.value",
    "rows": "attack.rows",
    "rows_right_before": "found.success.total",
    "successes": "found.success.count",
    "success": "found.success.value",
    "low": "found.success.low",
    "high": "found.success.high",
    "flips_mean": "found.flips.mean",
    "flips_median": "found.flips.median",
    "flips_q1": "found.flips.q1",
    "flips_q3": "found.flips.q3",
    "flips_max": "found.flips.maximum",
    "failures": "failures",
    "forwards_mean": "found.forwards_mean",
    "backwards_mean": "found.backwards_mean",
    "budget_norm": "attack.bound.norm",
    "eps": "attack.bound.eps",
    "robust_accuracy": "found.robust_accuracy.value",
    "robust_low": "found.robust_accuracy.low",
    "robust_high": "found.robust_accuracy.high",
    "minimises": "attack.minimises",
    "size_mean": "found.robustness.mean.value",
    "size_low": "found.robustness.mean.low",
    "size_high": "found.robustness.mean.high",
    "size_median": "found.robustness.median.value",
    "size_max": "found.robustness.maximum.value",
    "wrong_before": "found.wrong_before",
}


def as_json(report: Report) -> str:
    """Strict JSON: what is not a number is null."""
    return json.dumps(_contents(report), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def as_csv(report: Report) -> str:
    """One line for each model, seed, attack and arithmetic; a model that was not attacked has one line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for model in report.models:
        for line in _lines(_plain_json(_model(model))):
            writer.writerow([in_a_cell(_at(line, path)) for path in COLUMNS.values()])
    return text.getvalue()


def _contents(report: Report) -> dict[str, Any]:
    provenance = report.provenance
    return _plain_json(
        {
            "format": FORMAT,
            "study": {"name": report.name, "title": report.title, "about": report.about},
            "data": {
                "name": report.data,
                "source": report.source,
                "digest": provenance.digest,
                "classes": report.classes,
                "rows": report.rows,
            },
            "seeds": report.seeds,
            "verdicts": verdict_sentences(report),
            "claims": [asdict(claim) for claim in stated(report)],
            "models": [_model(model) for model in report.models],
            "gradients": [split.as_json() for split in splits(report)],
            "samples": [sample.as_json() for sample in samples(report)],
            "missing": [asdict(lost) for lost in report.lost],
            "provenance": {
                **{name.replace(" ", "_"): values for name, values in provenance.values.items()},
                "started": provenance.started,
                "seconds": provenance.seconds,
                "cells": report.cells,
            },
        }
    )


def _model(model: Model) -> dict[str, Any]:
    named: dict[str, Any] = {
        "model": model.name,
        "label": model.label,
        "seed": model.seed,
        "axes": model.axes,
        "temperature": model.temperature,
        "teacher": model.teacher,
    }
    if model.trained is not None:
        named["training"] = asdict(model.trained)
    if model.measured is not None:
        named |= model.measured.as_json()
    for kind in reversed(TABLES):
        if found := model.results_of(kind.Result):
            named[kind.NAME] = [one.as_json() for one in found]
    return named | {"attacks": [attack.as_json() for attack in model.attacks]}


def _plain_json(value: Any) -> Any:
    """The same as JSON has it: no NaN or infinity, tuples as lists, numbers with their intervals as objects, and
    tensors as lists, to four places."""
    if isinstance(value, Share | Mean):
        low, high = value.interval
        counts = {"count": value.count, "total": value.total} if isinstance(value, Share) else {"rows": value.rows}
        value = {"value": value.value, "low": low, "high": high} | counts
    if isinstance(value, Tensor):
        value = value.double().mul(1e4).round().div(1e4).tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain_json(one) for key, one in value.items()}
    return [_plain_json(one) for one in value] if isinstance(value, list | tuple) else value


# CSV ----------------------------------------------------------------------------------------------------------------


def _lines(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    lines = []
    for attack in model["attacks"]:
        for name, found in attack["arithmetic"].items():
            failures = found["success"]["total"] - found["success"]["count"]
            line = {"model": model, "attack": attack, "found": found, "failures": failures}
            lines.append(line | {"arithmetic": "" if name == "result" else name})
    return lines or [{"model": model}]


def _at(value: Any, path: str) -> Any:
    """What lies at a dotted path; None where the path ends earlier."""
    for step in path.split("."):
        value = value.get(step) if isinstance(value, Mapping) else None
    return value
