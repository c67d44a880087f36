"""The record of an audit -> a page, and a few lines for a terminal: the verdict first, then what it rests on.

A record is what `Audit.record()` gives and `about` says what was audited; both are plain JSON, so a page can be made
again from the store alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brittle.report.writing import templates, write_all

PAGE = "audit.html"
Record = Mapping[str, Any]

NORMS = {"linf": "L∞", "l2": "L2", "l0": "L0"}
CAUSES = {
    "scale": "Its outputs are so large that ordinary arithmetic rounds the attack’s trail to zero. The trail is "
    "hidden, not gone: computed exactly, the same attack works.",
    "precision": "Numbers inside the model are too coarse to show an attack its way. Computed more finely, the same "
    "attack works.",
    "loss": "The quantity that common attacks follow says little about how close this model is to an error. An attack "
    "that follows a better one works.",
    "shattered": "A step inside the model blocks or bends the trail that common attacks follow. Attacks that go "
    "through or round that step work.",
    "stochastic": "The model answers differently each time, which hides the trail in noise. Averaged over many runs, "
    "the same attack works.",
    "budget": "The common attack is too short, or gets stuck. Given more steps and more starts, it works.",
}
LIMITS = (
    "It tries the attacks that are known and listed here. A cleverer one may find more: what is left is an upper "
    "bound.",
    "It holds for these images and for changes of this kind and size. Turned, blurred or newly photographed images are "
    "another question.",
    "It assumes an attacker who knows the model and its weights. Whoever does not has a harder task.",
    "The interval tells how well the share is known for images like these, not how strong tomorrow’s attacks will be.",
)
LACKING = "Give an undefended network of the same shape and training with --reference."
WORDS = {"robust": "Robust", "masked": "Masked", "broken": "Broken", "inconclusive": "Inconclusive"}
COLOURS = {"robust": "green", "masked": "red", "broken": "red", "inconclusive": "yellow"}  # of a terminal
_RANK = ("robust", "inconclusive", "broken", "masked")  # the last is the worst


# Words --------------------------------------------------------------------------------------------------------------


def worst(audits: Sequence[Record]) -> Record:
    """Of several norms the one that decides: masked before broken before inconclusive before robust."""
    return max(audits, key=lambda one: _RANK.index(one["verdict"]["kind"]))


def headline(record: Record) -> str:
    """The verdict in one sentence."""
    common, left = percent(record["common"]), percent(record["left"])
    if record["left"]["count"] == 0:
        left = "none"
    return {
        "robust": f"Robust, as far as can be shown: {left} of the images withstand every attack.",
        "masked": f"It only looks robust: {common} of the images withstand a common attack, but {left} withstand them "
        "all.",
        "broken": f"Not robust: {'only ' * (left != 'none')}{left} of the images withstand attack.",
        "inconclusive": f"Undecided: {left} of the images withstand what was tried, but that is not shown to hold.",
    }[record["verdict"]["kind"]]


def bound(record: Record) -> str:
    """What the attacker may change."""
    eps = f"{record['eps']:.4g}"
    return {
        "linf": f"Every pixel may change by up to {eps}, where black is 0 and white is 1 (L∞, eps = {eps}).",
        "l2": f"The whole change may be up to {eps} long, where black is 0 and white is 1 (L2, eps = {eps}).",
        "l0": f"Up to {eps} pixels may change, to any value (L0, eps = {eps}).",
    }[record["norm"]]


def reasons(record: Record) -> list[str]:
    """Why the verdict is what it is: the causes of a masked model, or what an undecided one lacks."""
    verdict = record["verdict"]
    said = [CAUSES[cause] if cause in CAUSES else str(cause) for cause in verdict["causes"]]
    shown = ("Cause:", "An undefended network has")  # in other words above, and among the three numbers
    return said + [one[:1].upper() + one[1:] for one in verdict["sentences"][1:] if not one.startswith(shown)]


def numbers(record: Record) -> list[dict[str, Any]]:
    """The three shares that a verdict rests on, the attacked model's first; the reference's may not be there."""
    rows = (
        ("common", "A common attack reports", record["steps"][0]["name"] if record["steps"] else ""),
        ("left", "Left under everything", "an image counts only if no attack fools it"),
        ("reference", "An undefended network has left", "the same shape and training, no defence"),
    )
    return [{"key": key, "label": label, "note": note, **_shown(record[key])} for key, label, note in rows]


def percent(share: Record | None) -> str:
    """'97.4 %'; a dash if there is none."""
    return _percent(share["value"]) if share else "–"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}".removesuffix(".0") + "\N{NO-BREAK SPACE}%"


def _shown(share: Record | None) -> dict[str, Any]:
    if not share:
        return {"value": None, "interval": "", "bar": 0, "low": 0, "high": 0, "count": ""}
    low, high = share["interval"]
    return {
        "value": percent(share),
        "interval": f"{100 * low:.1f} – {100 * high:.1f}\N{NO-BREAK SPACE}%",
        "count": f"{share['count']} of {share['total']} images",
        "bar": round(100 * share["value"], 2),
        "low": round(100 * low, 2),
        "high": round(100 * high, 2),
    }


def failed(record: Record) -> list[Record]:
    """The checks that did not pass, those that the verdict needs first."""
    return sorted((one for one in record["checks"] if not one["passed"]), key=lambda one: not one["needed"])


def terminal(audits: Sequence[Record], about: Record) -> str:
    """The same in a terminal, with rich's markup."""
    from rich.markup import escape

    lines = []
    for record in audits:
        colour = COLOURS[record["verdict"]["kind"]]
        lines += [f"[bold {colour}]{escape(headline(record))}[/]", f"[dim]{escape(bound(record))}[/]"]
        lines += [escape(one) for one in reasons(record)[:6]] + [""]
        for one in numbers(record):
            share = (
                f"{one['value']:>8}  {one['interval']}" if one["value"] else f"{'–':>8}  not asked: --reference MODEL"
            )
            lines.append(f"  {one['label']:<31}{escape(share)}")
        bad = failed(record)
        lines.append("")
        lines.append(f"{len(record['checks']) - len(bad)} of {len(record['checks'])} checks passed.")
        lines += [f"  [{colour}]failed[/] {escape(one['name'])}: {escape(one['sentence'])}" for one in bad]
        lines += [f"Next: {escape(one)}." for one in record["verdict"]["next"]]
        lines.append("")
    lines += [f"[yellow]note:[/] {escape(one)}" for one in audits[0]["door"]["remedies"]]
    return "\n".join(lines).rstrip()


# Files --------------------------------------------------------------------------------------------------------------


def as_json(audits: Sequence[Record], about: Record) -> str:
    """All that was found, but for the pixels of the images."""
    verdict = worst(audits)["verdict"]["kind"]
    kept = [without_images(record) for record in audits]
    return json.dumps({"verdict": verdict, "about": dict(about), "audits": kept}, indent=1, allow_nan=False) + "\n"


def without_images(record: Record) -> dict[str, Any]:
    """The record as JSON takes it."""
    images = ("clean", "adversarial")
    pictures = [{name: value for name, value in one.items() if name not in images} for one in record["pictures"]]
    return {**record, "pictures": pictures}


def write_audit(audits: Sequence[Record], about: Record, folder: Path | str) -> Path:
    """Writes audit.html and audit.json, each whole or not at all; what was there is replaced.

    Args:
        audits: one record for each norm, as `brittle.audit_cells.record_of` has them.
        about: what was audited: "model", "data", "source", "classes", "rows", "facts" (pairs of words) and "again" (the
            command line).
        folder: made if need be.

    Returns:
        The path of the page. It needs no network and no other file.

    Raises:
        InputError: if the folder cannot be written.
    """
    folder = Path(folder)
    texts = {"audit.json": as_json(audits, about), PAGE: html(audits, about)}
    write_all(texts, folder)
    return folder / PAGE


def html(audits: Sequence[Record], about: Record) -> str:
    """The page. All that users named is escaped; only figures made here are put in as they are."""
    ordered = sorted(audits, key=lambda one: -_RANK.index(one["verdict"]["kind"]))
    return (
        templates()
        .get_template("audit.html")
        .render(
            about=about,
            words=WORDS,
            top=section(ordered[0], about),
            sections=[section(record, about) for record in ordered],
            remedies=ordered[0]["door"]["remedies"],
            door=ordered[0]["door"],
            clean=percent(ordered[0]["door"]["accuracy"]),
            limits=LIMITS,
        )
    )


def section(record: Record, about: Record, *, figure: str = "", lacking: str = LACKING) -> dict[str, Any]:
    """What a page shows of one norm.

    Args:
        record: of the audit.
        about: "classes", the names.
        figure: sets its figure's names apart from those of others on the page.
        lacking: what is said where there is no reference.
    """
    from markupsafe import Markup

    curves = {curve["name"] for curve in record["curves"]}
    return {
        "kind": record["verdict"]["kind"],
        "norm": record["norm"],
        "title": NORMS[record["norm"]],
        "headline": headline(record),
        "bound": bound(record),
        "reasons": reasons(record),
        "next": record["verdict"]["next"],
        "numbers": numbers(record),
        "lacking": lacking,
        "figure": Markup(curve_figure(record, figure)),
        "legend": [(name, style) for name, style in STYLES.items() if name in curves],
        "steps": [_step(*pair) for pair in zip(record["steps"], _before(record), strict=True) if pair[0]["tried"]],
        "spared": [step["name"] for step in record["steps"] if not step["tried"]],
        "checks": [_check(one) for one in sorted(record["checks"], key=lambda one: one["passed"])],
        "passed": len(record["checks"]) - len(failed(record)),
        "pictures": [_picture(one, about, record["norm"]) for one in record["pictures"][:6]],
    }


def _before(record: Record) -> list[float]:
    """The share of rows that were right before each step."""
    return [record["door"]["accuracy"]["value"], *(step["left"] for step in record["steps"])][: len(record["steps"])]


def _step(step: Record, before: float) -> dict[str, Any]:
    gained = before - step["left"]
    return {
        "name": step["name"],
        "mends": step["mends"] or "",
        "tried": step["tried"],
        "broken": step["broken"],
        "added": "0" if gained < 5e-4 else f"−{100 * gained:.1f}",
        "left": _percent(step["left"]),
        "bar": round(100 * step["left"], 2),
        "seconds": f"{step['seconds']:.1f}",
    }


def _check(one: Record) -> dict[str, Any]:
    return {
        "name": one["name"],
        "passed": one["passed"],
        "needed": one["needed"],
        "quantity": _number(one["quantity"]),
        "threshold": _number(one["threshold"]),
        "source": one["source"],
        "sentence": one["sentence"],
        "next": one["next"],
    }


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


# Pictures -----------------------------------------------------------------------------------------------------------


def _picture(one: Record, about: Record, norm: str) -> dict[str, Any]:
    """An original, what became of it, and their difference, as large as it can be shown."""
    from brittle.report.pictures import data_uri, diverging, picture

    clean, changed = one["clean"], one["adversarial"]
    change = changed - clean
    strongest = change.gather(0, change.abs().argmax(0, keepdim=True))[0]
    most = float(strongest.abs().max())
    shown = diverging((strongest / most if most else strongest).numpy())
    size = f"{one['size']:.0f} pixels" if norm == "l0" else f"{NORMS[norm]} {one['size']:.3g}"
    return {
        "images": [data_uri(picture(clean)), data_uri(shown), data_uri(picture(changed))],
        "before": _class(one["label"], about),
        "after": _class(one["prediction"], about),
        "size": size,
        "attack": one["attack"],
        "row": one["row"],
        "factor": f"{1 / most:.0f}" if most else "1",
    }


def _class(label: int, about: Record) -> str:
    return about["classes"][label] if 0 <= label < len(about["classes"]) else f"class {label}"


# Curves -------------------------------------------------------------------------------------------------------------

# name in a record -> place among the page's colours, line style and words of the legend
STYLES: dict[str, tuple[int, str, str]] = {
    "common attack": (1, "--", "a common attack"),
    "everything": (2, "-", "everything"),
    "undefended reference": (3, ":", "an undefended network, under everything"),
}


def curve_figure(record: Record, name: str = "") -> str:
    """The share of images that stay right against the size of the change, as <svg>; empty if nothing was drawn."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    from brittle.report.figures import COLOURS, INK, PAPER, STYLE, svg_of

    if not record["curves"]:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.3), layout="constrained")
        axes = figure.subplots()
        grid = sorted({eps for curve in record["curves"] for eps in curve["eps"] if eps})
        for curve in record["curves"]:
            place, line, _ = STYLES.get(curve["name"], (4, "-", curve["name"]))
            points = [(eps, 100 * left) for eps, left in zip(curve["eps"], curve["left"], strict=True) if eps]
            colour = COLOURS[place - 1]
            axes.plot(*zip(*points, strict=True), line, color=colour, linewidth=2, marker="o", markersize=4)
        clean = 100 * record["door"]["accuracy"]["value"]
        axes.axhline(clean, color=INK, linewidth=0.7, alpha=0.5)
        axes.axvline(record["eps"], color=INK, linewidth=0.9, linestyle=(0, (2, 2)))
        around = {"facecolor": PAPER, "edgecolor": "none", "pad": 2}
        axes.annotate(
            "audited here", (record["eps"], 105), va="top", xytext=(5, 0), textcoords="offset points", bbox=around
        )
        axes.annotate("without any attack", (grid[-1], clean), xytext=(0, 3), textcoords="offset points", ha="right")
        axes.set(xscale="log", ylim=(-3, 108), ylabel="images still right, %", xlabel=_axis(record["norm"]))
        axes.xaxis.set_major_locator(FixedLocator(grid))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{eps:.3g}" for eps in grid])
        axes.set_yticks([0, 25, 50, 75, 100])
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.5)
        return svg_of(figure, f"{name}curves-{record['norm']}", "Images still right against the size of the change")


def _axis(norm: str) -> str:
    return {
        "linf": "largest change of a pixel (L∞)",
        "l2": "length of the change (L2)",
        "l0": "pixels changed (L0)",
    }[norm] + ", up to no bound at all"
