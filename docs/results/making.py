"""What the pages of this folder are made with: tables from results.json, pictures from report.html."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from brittle.report.claims import Number


def brittle(*arguments: str) -> str:
    """What the command prints; its errors and progress go where ours go."""
    command = [sys.executable, "-c", "from brittle.cli.main import main; main()", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def report(store: Path, study: str, folder: Path) -> tuple[dict[str, Any], Path]:
    """A stored study's results, and its page."""
    results = json.loads(brittle("report", study, "--store", str(store), "--output", str(folder), "--json"))
    return results, folder / "report.html"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a bar in a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def percent(share: Mapping[str, Any], digits: int = 0) -> str:
    """'83 (75–89)'."""
    value, low, high = (f"{100 * share[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low}–{high})"


def success_table(results: Mapping[str, Any], digits: int = 0) -> str:
    """Accuracy, saturation, and what each attack does to each model."""
    rows = []
    for model in results["models"]:
        cells = [model["label"], percent(model["accuracy"], digits), percent(model["saturated"], digits)]
        attacks = [[percent(found["success"], digits) for _, found in arithmetics(one)] for one in model["attacks"]]
        rows.append([*cells, *map(" → ".join, attacks)])
    return markdown(["model", "accuracy", "one-hot softmax", *headings(results)], rows)


def arithmetics(attack: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What an attack found, by arithmetic, float32 first."""
    return [(name, attack["arithmetic"][name]) for name in ("float32", "exact") if name in attack["arithmetic"]]


def headings(results: Mapping[str, Any]) -> list[str]:
    """'`song_2`: float32 → exact', for each attack."""
    attacks = results["models"][0]["attacks"]
    return [f"`{attack['label']}`: {' → '.join(name for name, _ in arithmetics(attack))}" for attack in attacks]


def made_with(results: Mapping[str, Any]) -> str:
    """Seeds, versions, machine and threads, as a sentence."""
    made = {key: ", ".join(value) for key, value in results["provenance"].items() if isinstance(value, list)}
    seeds = ", ".join(map(str, results["seeds"]))
    threads = "one thread" if made["threads"] == "1" else f"{made['threads']} threads"
    return (
        f"Seed{'s' if len(results['seeds']) > 1 else ''} {seeds}; brittle {made['brittle']}, torch {made['torch']}, "
        f"Python {made['python']}; {made['platform']}, {made['processor']}, {threads}; networks "
        f"trained in {made['training_precision']}."
    )


def claims_table(results: Mapping[str, Any], *, only_tested: bool = False) -> str:
    """Each claim of the paper, our numbers and the verdict."""

    def shown(number: Mapping[str, Any] | None) -> str:
        return "" if number is None else str(Number(**{k: float("nan") if v is None else v for k, v in number.items()}))

    rows = [
        [
            f"{claim['says']} <br><sub>{claim['where']}</sub>",
            claim["published"],
            shown(claim["float32"]),
            shown(claim["exact"]),
            f"**{claim['verdict']}**" + (f"; in float32 {told}" if (told := claim["in_float32"]) else ""),
            f"<sub>{claim['why']}</sub>",
        ]
        for claim in results["claims"]
        if not only_tested or claim["verdict"] != "not judged"
    ]
    return markdown(
        ["the paper says", "published", "ours, float32", "ours, exact", "verdict", "how it was judged"], rows
    )


def hours(results: Mapping[str, Any]) -> str:
    """How many cells, and what they took."""
    seconds = results["provenance"]["seconds"]
    return f"{results['provenance']['cells']} cells, {seconds / 3600:.1f} hours of one process's computing"


def pictures(page: Path, wanted: Mapping[Path, str], width: int = 1100) -> None:
    """A PNG of each figure of a page, or of its stepper, by a piece of the title."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        tab = opened.new_page(viewport={"width": width, "height": 900})
        tab.goto(page.as_uri())
        for file, title in wanted.items():
            tab.locator("figure, section.stepper", has_text=title).first.screenshot(path=file)
        opened.close()
