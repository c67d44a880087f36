"""results.json and results.csv: every number of a report, with its interval, its counts and what it was made with."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from brittle.attacks.export import in_a_cell
from brittle.measures import Flips, Mean, Robustness, Share, why_not_learned
from brittle.report.contents import Attack, Found, Model, Report
from brittle.report.gradients import Split, splits
from brittle.report.samples import Sample, samples
from brittle.report.verdicts import stated, verdict_sentences
from brittle.study.kinds import TABLES

FORMAT = 2  # raise it when a key of results.json changes its meaning or goes away

_KEYS = {0.0: "l0", 1.0: "l1", 2.0: "l2", math.inf: "linf"}  # of `mean_change`

COLUMNS = [
    "model",
    "seed",
    "temperature",
    "teacher",
    "attack",
    "arithmetic",
    "accuracy",
    "learned",
    "saturated",
    "rows",
    "rows_right_before",
    "successes",
    "success",
    "low",
    "high",
    "flips_mean",
    "flips_median",
    "flips_q1",
    "flips_q3",
    "flips_max",
    "failures",
    "forwards_mean",
    "backwards_mean",
    "budget_norm",
    "eps",
    "robust_accuracy",
    "robust_low",
    "robust_high",
    "minimises",
    "size_mean",
    "size_low",
    "size_high",
    "size_median",
    "size_max",
    "wrong_before",
]


def as_json(report: Report) -> str:
    """Strict JSON: what is not a number is null."""
    return json.dumps(_finite(_contents(report)), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def as_csv(report: Report) -> str:
    """One line for each model, seed, attack and arithmetic; a model that was not attacked has one line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for model in report.models:
        writer.writerows([[in_a_cell(line.get(column)) for column in COLUMNS] for line in _lines(model)])
    return text.getvalue()


# JSON ---------------------------------------------------------------------------------------------------------------


def _contents(report: Report) -> dict[str, Any]:
    provenance = report.provenance
    return {
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
        "gradients": [_split(split) for split in splits(report)],
        "samples": [_sample(sample) for sample in samples(report)],
        "missing": [asdict(lost) for lost in report.lost],
        "provenance": {
            **{name.replace(" ", "_"): values for name, values in provenance.values.items()},
            "started": provenance.started,
            "seconds": provenance.seconds,
            "cells": report.cells,
        },
    }


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
        trained = model.trained
        named["training"] = {
            "params": trained.params,
            "dtype": trained.dtype,
            "loss": trained.loss,
            "validation_accuracy": trained.validation_accuracy,
        }
    if model.measured is not None:
        measured = model.measured
        named |= {
            "accuracy": _share(measured.accuracy),
            "learned": model.learned,
            "why_not_learned": why_not_learned(measured.accuracy, measured.labels) or None,
            "saturated": _share(measured.saturated),
            "confidence": _mean(measured.confidence),
            "sensitivity": {name: _share(share) for name, share in measured.sensitivity.items()},
            "log10_amplitudes": {
                name: [round(value, 4) for value in values.tolist()] for name, values in measured.amplitudes.items()
            },
        }
    for kind in TABLES:
        if found := model.results_of(kind.Result):
            named[kind.NAME] = [one.as_json() for one in found]
    return named | {"attacks": [_attack(attack) for attack in model.attacks]}


def _split(split: Split) -> dict[str, Any]:
    return {
        "model": split.model.label,
        "seed": split.model.seed,
        "temperature": split.model.temperature,
        "margin": split.margin,
        "log10_plain": _mean(split.plain),
        "log10_trained": _mean(split.trained),
        "log10_used": _mean(split.used),
        "factor": split.factor,
        "slopes": _mean(split.slopes),
        "saturation": _mean(split.saturation),
    }


def _sample(sample: Sample) -> dict[str, Any]:
    return {
        "row": sample.row,
        "label": sample.label,
        "model": sample.model.label,
        "seed": sample.model.seed,
        **{
            f"{name}_{what}": {"sign": sign, "log10": log10}
            for name, values in (("mean", sample.mean), ("largest", sample.largest))
            for what, (sign, log10) in values.items()
        },
        "pixels": [
            {"attack": attack, "arithmetic": arithmetic, "pixels": count}
            for (attack, arithmetic), count in sample.pixels.items()
        ],
    }


def _attack(attack: Attack) -> dict[str, Any]:
    return {
        "attack": attack.name,
        "label": attack.label,
        "function": attack.function,
        "options": attack.options,
        "rows": len(attack.rows),
        "complete": attack.complete,
        "minimises": _norm(attack.minimises),
        "bound": attack.bound and {"norm": _norm(attack.bound.norm), "eps": attack.bound.eps},
        "over_temperature": attack.over_temperature,
        "targeted": attack.targeted,
        "arithmetic": {
            name: _found(found)
            | {
                "robust_accuracy": _share(found.robust) if attack.bounded else None,
                "robustness": _robustness(attack.robustness[name]) if attack.sized else None,
            }
            for name, found in attack.found.items()
        },
    }


def _norm(norm: float | None) -> int | str | None:
    """As it is stored: 0, 1, 2 or 'inf'."""
    return norm if norm is None else "inf" if math.isinf(norm) else int(norm)


def _found(found: Found) -> dict[str, Any]:
    return {
        "success": _share(found.success),
        "wrong_before": int(found.trivial.sum()),
        "flips": None if found.flips is None else _flips(found.flips),
        "success_by_pixels": None if found.curve is None else found.curve.tolist(),
        "mean_change": {_KEYS[p]: _fooled_mean(sizes) for p, sizes in found.sizes.items()},
        "forwards_mean": found.forwards,
        "backwards_mean": found.backwards,
    }


def _fooled_mean(sizes: Tensor) -> float:
    """Over the rows that were right before and were fooled; NaN if there are none."""
    return float(sizes[(sizes > 0) & sizes.isfinite()].mean())


def _robustness(found: Robustness) -> dict[str, Any]:
    """In the attack's norm; `over_all` counts rows that were wrong before as 0, none counts those that withstood."""
    means = {name: _mean(getattr(found, name)) for name in ("mean", "median", "maximum", "over_all")}
    return means | {"wrong_before": found.trivial, "withstood": found.failures}


def _share(share: Share) -> dict[str, Any]:
    low, high = share.interval
    return {"value": share.value, "low": low, "high": high, "count": share.count, "total": share.total}


def _mean(mean: Mean) -> dict[str, Any]:
    low, high = mean.interval
    return {"value": mean.value, "low": low, "high": high, "rows": mean.rows}


def _flips(flips: Flips) -> dict[str, Any]:
    low, high = flips.quartiles
    return {name: value for name, value in asdict(flips).items() if name != "quartiles"} | {"q1": low, "q3": high}


def _finite(value: Any) -> Any:
    """The same without NaN and infinities, which JSON does not have; tuples as lists, and tensors, to four places."""
    if isinstance(value, Tensor):
        value = value.double().mul(1e4).round().div(1e4).tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


# CSV ----------------------------------------------------------------------------------------------------------------


def _lines(model: Model) -> Iterator[dict[str, Any]]:
    named: dict[str, Any] = {
        "model": model.label,
        "seed": model.seed,
        "temperature": model.temperature,
        "teacher": model.teacher,
    }
    if model.measured is not None:
        named |= {"accuracy": model.measured.accuracy.value, "saturated": model.measured.saturated.value}
        named["learned"] = model.learned
    lines = [
        named | {"attack": attack.label, "arithmetic": "" if name == "result" else name} | _numbers(attack, found)
        for attack in model.attacks
        for name, found in attack.found.items()
    ]
    yield from lines or [named]


def _numbers(attack: Attack, found: Found) -> dict[str, Any]:
    success = found.success
    low, high = success.interval
    numbers = {
        "rows": len(found.trivial),
        "rows_right_before": success.total,
        "successes": success.count,
        "success": success.value,
        "low": low,
        "high": high,
        "failures": success.total - success.count,
        "forwards_mean": found.forwards,
        "backwards_mean": found.backwards,
        "minimises": _norm(attack.minimises),
        "wrong_before": int(found.trivial.sum()),
    }
    if attack.bound is not None:
        numbers |= {"budget_norm": _norm(attack.bound.norm), "eps": attack.bound.eps}
    if attack.bounded:
        low, high = found.robust.interval
        numbers |= {"robust_accuracy": found.robust.value, "robust_low": low, "robust_high": high}
    if attack.sized:
        robustness = attack.robustness[found.arithmetic]
        low, high = robustness.mean.interval
        numbers |= {"size_mean": robustness.mean.value, "size_low": low, "size_high": high}
        numbers |= {"size_median": robustness.median.value, "size_max": robustness.maximum.value}
    if found.flips is not None:
        flips = _flips(found.flips)
        numbers |= {
            f"flips_{column}": flips[name]
            for column, name in (("mean", "mean"), ("median", "median"), ("q1", "q1"), ("q3", "q3"), ("max", "maximum"))
        }
    return numbers
