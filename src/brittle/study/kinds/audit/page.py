"""The record of an audit -> a page, and a few lines for a terminal: the verdict first, then what it rests on.

A record is what `Audit.record()` gives and `about` says what was audited; both are plain JSON, so a page can be made
again from the store alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brittle.drawing.page import templates, write_all
from brittle.study.kinds.audit.cell import without_images

PAGE = "audit.html"
Record = Mapping[str, Any]

NORMS = {"linf": "L∞", "l2": "L2", "l0": "L0"}
CAUSES = {  # what hides a weakness, and what shows it
    "scale": "The logits are so large that the float32 gradient is exactly zero. In exact arithmetic it is not, and "
    "the same attack works.",
    "precision": "Numbers inside the model are too coarse to carry a gradient. Computed more finely, the same attack "
    "works.",
    "loss": "Cross entropy, which the baseline attack follows, says little about how close this model is to an error. "
    "An attack that follows the margin works.",
    "shattered": "A step inside the model blocks or bends the gradient. Attacks that go through that step, or need no "
    "gradient, work.",
    "stochastic": "The model answers differently each time, which hides the gradient in noise. Averaged over many "
    "runs, the same attack works.",
    "budget": "The baseline attack is too short, or gets stuck. With more steps and more starts it works.",
}
LIMITS = (
    "It runs the attacks that are known and listed here. A better one may fool more images: robust accuracy is an "
    "upper bound.",
    "It holds for these images and for perturbations of this kind and size. Turned, blurred or newly photographed "
    "images are another question.",
    "It assumes an attacker who knows the model and its weights. Whoever does not has a harder task.",
    "The interval tells how well the share is known for images like these, not how strong future attacks will be.",
)
LACKING = "Give an undefended network of the same shape and training with --reference."
WORDS = {"robust": "✓ Robust", "masked": "◐ Masked", "broken": "✗ Broken", "inconclusive": "? Inconclusive"}
COLOURS = {"robust": "green", "masked": "magenta", "broken": "red", "inconclusive": "yellow"}  # of a terminal
_RANK = ("robust", "inconclusive", "broken", "masked")  # the last is the worst


# Words --------------------------------------------------------------------------------------------------------------


def worst(audits: Sequence[Record]) -> Record:
    """Of several norms the one that decides: masked before broken before inconclusive before robust."""
    return max(audits, key=lambda one: _RANK.index(one["verdict"]["kind"]))


def headline(record: Record) -> str:
    """The verdict in one sentence that begins with its name."""
    common, left, none = percent(record["common"]), percent(record["left"]), record["left"]["count"] == 0
    survive = "none survives" if none else f"{left} survive"
    of_all = "none of the images survives" if none else f"{left} of the images survive"
    open_question = record["verdict"]["sentences"][0]
    return {
        "robust": f"Robust, as far as can be shown: {of_all} the full set of attacks.",
        "masked": f"Masked, it only looks robust: {common} of the images survive the baseline attack (PGD); "
        f"{survive} the full set of attacks.",
        "broken": f"Broken, not robust: {of_all} the full set of attacks.",
        "inconclusive": f"Inconclusive: {open_question[:1].lower()}{open_question[1:]}",
    }[record["verdict"]["kind"]]


def bound(record: Record) -> str:
    """What the attacker may change."""
    eps, compared = f"{record['eps']:.4g}", record["compared"]
    return {
        "linf": f"Every pixel may change by up to {eps}, where black is 0 and white is 1 (L∞, eps {eps}: {compared}).",
        "l2": f"The perturbation may be up to {eps} long, where black is 0 and white is 1 (L2, eps {eps}: {compared}).",
        "l0": f"Up to {eps} pixels may change, to any value (L0, eps {eps}: {compared}).",
    }[record["norm"]]


def basis(record: Record) -> str:
    """What a verdict rests on, to stand beside it: clean accuracy, images and how they were chosen, budget."""
    accuracy = record["door"]["accuracy"]
    return (
        f"Clean accuracy {percent(accuracy)} ({_interval(accuracy)}). {record['left']['total']} test images: "
        f"{record['chosen']}. Budget {record['budget']}."
    )


def reasons(record: Record) -> list[str]:
    """Why the verdict is what it is: the causes of a masked model, or what an inconclusive one lacks."""
    verdict = record["verdict"]
    causes = [f"Cause, {cause}: {CAUSES.get(cause, '')}" for cause in verdict["causes"]]
    rest = verdict["sentences"][1:] if verdict["kind"] == "inconclusive" else []
    return causes + [one[:1].upper() + one[1:] for one in rest]


def numbers(record: Record) -> list[dict[str, Any]]:
    """The three shares that a verdict rests on, the attacked model's first; the reference's may not be there."""
    rows = (
        ("common", "Accuracy under the baseline attack", record["steps"][0]["name"] if record["steps"] else ""),
        ("left", "Robust accuracy, under all attacks", "an image counts only if no attack fools it"),
        ("reference", "Robust accuracy, undefended", "the same shape and training, no defence"),
    )
    return [{"key": key, "label": label, "note": note, **_shown(record[key])} for key, label, note in rows]


def percent(share: Record | None) -> str:
    """'97.4 %'; a dash if there is none."""
    return _percent(share["value"]) if share else "–"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}".removesuffix(".0") + "\N{NO-BREAK SPACE}%"


def _interval(share: Record) -> str:
    low, high = share["interval"]
    return f"{100 * low:.1f} – {100 * high:.1f}\N{NO-BREAK SPACE}%"


def _shown(share: Record | None) -> dict[str, Any]:
    if not share:
        return {"value": None}
    bar, low, high = (round(100 * end, 2) for end in (share["value"], *share["interval"]))
    count = f"{share['count']} of {share['total']} images"
    return {"value": percent(share), "interval": _interval(share), "count": count, "bar": bar, "low": low, "high": high}


def failed(record: Record) -> list[Record]:
    """The checks that did not pass, those that the verdict needs first."""
    return sorted((one for one in record["checks"] if not one["passed"]), key=lambda one: not one["needed"])


def sanity(record: Record) -> str:
    """How the checks of the attacks ended."""
    total, bad = len(record["checks"]), len(failed(record))
    return f"Sanity checks of the attacks: {f'{bad} of {total} failed' if bad else f'all {total} passed'}"


def terminal(audits: Sequence[Record]) -> str:
    """The same in a terminal, with rich's markup: a paragraph a line, which the terminal wraps between words."""
    from rich.markup import escape

    lines = []
    for record in audits:
        kind = record["verdict"]["kind"]
        lines += [f"[bold {COLOURS[kind]}]{escape(headline(record))}[/]", escape(basis(record)), escape(bound(record))]
        lines += ["", *(escape(one) for one in reasons(record)), ""]
        for one in numbers(record):
            told = f"{one['value']:>8}  {one['interval']}" if one["value"] else f"{'–':>8}  give --reference"
            lines.append(f"{one['label']:<35}{escape(told)}")
        lines.append("")
        if kind == "robust" or failed(record):
            lines.append(f"{sanity(record)}.")
        lines += [
            f"[{COLOURS[kind]}]failed[/] {escape(one['name'])}: {escape(one['sentence'])}" for one in failed(record)
        ]
        lines += [f"Next: {escape(one)}." for one in record["verdict"]["next"]]
        lines.append("")
    lines += [f"[yellow]note:[/] {escape(one)}" for one in audits[0]["door"]["remedies"]]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip()


def plain(audits: Sequence[Record]) -> str:
    """The same without markup."""
    from rich.text import Text

    return Text.from_markup(terminal(audits)).plain


def small_table(record: Record) -> str:
    """The verdict and its numbers as a small table of HTML, for a notebook."""
    from markupsafe import escape

    rows = {
        "verdict": WORDS[record["verdict"]["kind"]],
        "clean accuracy": f"{percent(record['door']['accuracy'])} ({_interval(record['door']['accuracy'])})",
        "robust accuracy": f"{percent(record['left'])} ({_interval(record['left'])})",
        "norm, eps": f"{NORMS[record['norm']]}, {record['eps']:.4g}: {record['compared']}",
        "images": f"{record['left']['total']}: {record['chosen']}",
        "causes": ", ".join(record["verdict"]["causes"]) or "–",
    }
    return f"<table>{''.join(f'<tr><th>{escape(one)}</th><td>{escape(rows[one])}</td></tr>' for one in rows)}</table>"


# Files --------------------------------------------------------------------------------------------------------------


def as_json(audits: Sequence[Record], about: Record) -> str:
    """All that was found, but for the pixels of the images; the verdict of each norm with what it rests on first."""
    top = {"verdict": worst(audits)["verdict"]["kind"], "verdicts": [_told(record) for record in audits]}
    kept = [without_images(record) for record in audits]
    return json.dumps({**top, "about": public(about), "audits": kept}, indent=1, allow_nan=False) + "\n"


def _told(record: Record) -> dict[str, Any]:
    return {
        "verdict": record["verdict"]["kind"],
        "causes": record["verdict"]["causes"],
        "clean_accuracy": record["door"]["accuracy"],
        "robust_accuracy": record["left"],
        **{name: record[name] for name in ("norm", "eps", "compared", "chosen", "budget")},
        "images": record["left"]["total"],
    }


def public(about: Record) -> dict[str, Any]:
    """The same without the folders of this machine, so that a page may be passed on."""
    words = {name: shortened(value) for name, value in about.items() if isinstance(value, str)}
    return {**about, **words, "facts": [[name, shortened(str(value))] for name, value in about["facts"]]}


def shortened(text: str) -> str:
    """A text whose absolute paths are relative to the working folder where they lie in it, and else their names."""
    here = f"{Path.cwd()}{os.sep}"

    def short(found: re.Match[str]) -> str:
        path = found[0]
        return path.removeprefix(here) if path.startswith(here) else re.split(r"[/\\]", path)[-1]

    return _ABSOLUTE.sub(short, text)


# /home/me/net.pt, ~/net.pt and C:\\Users\\me\\net.pt where a word begins: no part of a URL or of a relative path
_ABSOLUTE = re.compile(r"""(?<![^\s'"=(,])(?:~\w*|[A-Za-z]:)?(?:[/\\][^\s/\\'",;:()]+)+""")


def about_python(record: Record, classes: Sequence[str], name: str) -> dict[str, Any]:
    """What `write_audit` wants to know of an audit that was asked for in Python."""
    import platform

    import torch

    import brittle

    asked = "".join(f", {one}={record[one]!r}" for one in ("norm", "eps", "budget", "seed"))
    versions = f"{brittle.__version__}, {torch.__version__}, {platform.python_version()}"
    facts = [["budget", f"{record['budget']}, seed {record['seed']}"], ["brittle, torch, python", versions]]
    return {
        "model": name,
        "data": f"{record['left']['total']} images",
        "source": "given in Python",
        "classes": list(classes),
        "rows": record["left"]["total"],
        "facts": facts,
        "again": f"brittle.audit(model, data, rows={record['left']['total']}{asked})",
    }


def write_audit(audits: Sequence[Record], about: Record, folder: Path | str) -> Path:
    """Writes audit.html and audit.json, each whole or not at all; what was there is replaced.

    Args:
        audits: one record for each norm, as `brittle.study.kinds.audit.cell.record_of` has them.
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
    about = public(about)
    ordered = sorted(audits, key=lambda one: -_RANK.index(one["verdict"]["kind"]))
    sections, door = [section(record, about) for record in ordered], ordered[0]["door"]
    page = templates().get_template("audit/page.html")
    return page.render(about=about, words=WORDS, top=sections[0], sections=sections, door=door, limits=LIMITS)


def section(
    record: Record, about: Record, *, figure: str = "", lacking: str = LACKING, name: str = ""
) -> dict[str, Any]:
    """What a page shows of one norm.

    Args:
        record: of the audit.
        about: "classes", the names.
        figure: sets its figure's names apart from those of others on the page.
        lacking: what is said where there is no reference.
        name: tells its tables and figures apart from those of others on the page; the norm when not given.
    """
    from markupsafe import Markup

    curves = {curve["name"] for curve in record["curves"]}
    before = [record["door"]["accuracy"]["value"], *(step["left"] for step in record["steps"])]
    return {
        "kind": record["verdict"]["kind"],
        "norm": record["norm"],
        "title": NORMS[record["norm"]],
        "name": name or NORMS[record["norm"]],
        "headline": headline(record),
        "bound": bound(record),
        "basis": basis(record),
        "reasons": reasons(record),
        "next": record["verdict"]["next"],
        "numbers": numbers(record),
        "lacking": lacking,
        "figure": Markup(curve_figure(record, figure)),
        "legend": [(name, style) for name, style in STYLES.items() if name in curves],
        "steps": [_step(*pair) for pair in zip(record["steps"], before, strict=False) if pair[0]["tried"]],
        "spared": [step["name"] for step in record["steps"] if not step["tried"]],
        "checks": sorted(record["checks"], key=lambda one: one["passed"]),
        "passed": len(record["checks"]) - len(failed(record)),
        "sanity": sanity(record),
        "pictures": [_picture(one, about, record["norm"]) for one in record["pictures"][:6]],
        "others": not all(one["minimal"] for one in record["pictures"][:6]),
    }


def _step(step: Record, before: float) -> dict[str, Any]:
    """What an attack of the suite added, in points; `before`: the share of images that were right before it."""
    gained = before - step["left"]
    return {**step, "added": "0" if gained < 5e-4 else f"−{100 * gained:.1f}", "share": _percent(step["left"])}


# Pictures -----------------------------------------------------------------------------------------------------------


def _picture(one: Record, about: Record, norm: str) -> dict[str, Any]:
    """An original, what became of it, and their difference, as large as it can be shown."""
    from brittle.drawing.image_grid import data_uri, diverging, picture

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
        "attack": one["attack"] + (", the smallest perturbation it found" if one["minimal"] else ""),
        "row": one["row"],
        "factor": f"{1 / most:.0f}" if most else "1",
    }


def _class(label: int, about: Record) -> str:
    return about["classes"][label] if 0 <= label < len(about["classes"]) else f"class {label}"


# Curves -------------------------------------------------------------------------------------------------------------

# name in a record -> place among the page's colours, line style and words of the legend
STYLES: dict[str, tuple[int, str, str]] = {
    "baseline attack": (1, "--", "under the baseline attack"),
    "all attacks": (2, "-", "under all attacks"),
    "undefended reference": (3, ":", "an undefended network"),
}


def curve_figure(record: Record, name: str = "") -> str:
    """Accuracy under attack against eps, as <svg>; empty if nothing was drawn."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    from brittle.drawing.charts import COLOURS, INK, PAPER, STYLE, svg_of

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
        axes.set(xscale="log", ylim=(-3, 108), ylabel="images not fooled, %", xlabel=_axis(record["norm"]))
        axes.xaxis.set_major_locator(FixedLocator(grid))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{eps:.3g}" for eps in grid])
        axes.set_yticks([0, 25, 50, 75, 100])
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.5)
        return svg_of(figure, f"{name}curves-{record['norm']}", "Accuracy under attack against eps")


def _axis(norm: str) -> str:
    return {
        "linf": "eps: largest change of a pixel (L∞)",
        "l2": "eps: length of the perturbation (L2)",
        "l0": "eps: pixels changed (L0)",
    }[norm] + ", up to no bound at all"
