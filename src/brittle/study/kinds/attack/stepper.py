"""What the page's stepper shows: some images, and the logits after each pixel that an attack set.

The page carries it as JSON, and one small script, stepper.js, that reads nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

from torch import Tensor

from brittle.drawing.image_grid import data_uri, picture
from brittle.drawing.text import legible
from brittle.study.kinds.attack.pictures import shown_attack
from brittle.study.kinds.attack.result import Attack, Found
from brittle.study.kinds.lines import shown_models
from brittle.study.store.results import Report

IMAGES = 10  # of each model: one a class where there are no more classes
_DIGITS = 5  # significant digits of a logit


def contents(report: Report) -> dict[str, Any] | None:
    """Everything that the stepper shows, ready for JSON; None if no shown model has the steps of an attack.

    `images` lists rows of the report. Each model has its `attacks`, each attack by arithmetic a list as long as
    `images`: None where there is nothing, else a run, whose `outcome` is 'fooled', 'withstood' or 'wrong' (before any
    attack), whose `pixels` (h * W + w) were set to `levels` in this order, and whose logits at first and after each
    pixel are `largest[step] - gaps[step][class]`. As gaps, rounding leaves the prediction as it was.
    """
    if report.images is None or report.labels is None:
        return None
    shown = [(model, [attack for attack in model.attacks if _stepped(attack)]) for model in shown_models(report)]
    ways = [(attack, found) for _, attacks in shown for attack in attacks for found in _stepped(attack).values()]
    rows = sorted({row for attack, found in ways for row in _begun(attack, found)})[:IMAGES]
    if not rows:
        return None
    kept = [
        {
            "name": legible(model.label),
            "temperature": model.temperature,
            "attacks": [{"name": legible(attack.label), "found": _runs(attack, rows)} for attack in attacks],
        }
        for model, attacks in shown
        if attacks
    ]
    runs = [run for one in kept for attack in one["attacks"] for each in attack["found"].values() for run in each]
    classes = max(len(run["gaps"][0]) for run in runs if run)
    labels = report.labels[rows].tolist()
    return {
        "height": report.images.shape[2],
        "width": report.images.shape[3],
        "classes": [legible(report.class_name(place)) for place in range(classes)],
        "images": [
            {"label": label, "source": data_uri(picture(report.images[row]))}
            for row, label in zip(rows, labels, strict=True)
        ],
        "models": kept,
        "start": _start(kept, shown_attack(report)),
    }


def script() -> str:
    """The stepper's script, as it must stand in the page for its digest to fit."""
    return (files("brittle.study.kinds.attack") / "stepper.js").read_text(encoding="utf-8")


def digest(script: str) -> str:
    """What a Content-Security-Policy calls a script by, so that the page runs this one and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


# Parts --------------------------------------------------------------------------------------------------------------


def _stepped(attack: Attack) -> dict[str, Found]:
    """By arithmetic, what has steps to show; float32 first."""
    return {name: attack.found[name] for name in attack.arithmetics if _begun(attack, attack.found[name])}


def _begun(attack: Attack, found: Found) -> list[int]:
    """The rows whose logits before any pixel are numbers."""
    if found.steps is None:
        return []
    rows = found.steps.rows[found.steps.logits[:, 0].isfinite().all(1)].tolist()
    return [row for row in rows if row in attack.rows]


def _runs(attack: Attack, rows: list[int]) -> dict[str, list[dict[str, Any] | None]]:
    """By arithmetic, a run for each of these rows of the report."""
    return {
        name: [_run(attack, found, row) if row in _begun(attack, found) else None for row in rows]
        for name, found in _stepped(attack).items()
    }


def _run(attack: Attack, found: Found, row: int) -> dict[str, Any]:
    """One image's way, as far as its logits are finite."""
    assert found.steps is not None
    place = attack.rows.tolist().index(row)
    pixels, levels = (found.packed[name][place].tolist() for name in ("pixels", "levels"))
    logits = found.steps.logits[found.steps.rows.tolist().index(row)].double()
    finite = int(logits.isfinite().all(1).int().cumprod(0).sum())
    count = min(sum(pixel >= 0 for pixel in pixels), finite - 1)
    largest = logits[: count + 1].amax(1)
    return {
        "outcome": _outcome(found, place),
        "pixels": pixels[:count],
        "levels": levels[:count],
        "largest": _rounded(largest),
        "gaps": [_rounded(gaps) for gaps in largest[:, None] - logits[: count + 1]],
    }


def _outcome(found: Found, place: int) -> str:
    if found.trivial[place]:
        return "wrong"
    return "fooled" if found.packed["success"][place] else "withstood"


def _rounded(values: Tensor) -> list[float]:
    """To five digits, whole numbers without a point: two thirds of what the page would weigh otherwise."""
    short = [float(f"{value:.{_DIGITS}g}") for value in values.tolist()]
    return [int(value) if value.is_integer() else value for value in short]


def _start(models: list[dict[str, Any]], attack: str | None) -> dict[str, Any]:
    """What is shown first: an image that was fooled, of the hottest model, whose probabilities change most with T.

    If possible, it is an image of the attack that the page shows, computed exactly.
    """
    ways = [
        {"model": place, "attack": number, "arithmetic": arithmetic, "image": image}
        for place, model in enumerate(models)
        for number, one in enumerate(model["attacks"])
        for arithmetic, runs in one["found"].items()
        for image, run in enumerate(runs)
        if run
    ]

    def worth(way: dict[str, Any]) -> tuple[bool, float, bool, int]:
        model = models[way["model"]]
        one = model["attacks"][way["attack"]]
        fooled = one["found"][way["arithmetic"]][way["image"]]["outcome"] == "fooled"
        latest = list(one["found"]).index(way["arithmetic"])
        return fooled, model["temperature"], bool(attack) and one["name"] == legible(attack), latest

    return max(ways, key=worth)
