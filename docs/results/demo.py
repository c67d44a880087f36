"""Makes docs/results/demo.md and its pictures: runs the demo into an empty store and takes what its page shows.

pip install -c constraints.txt '.[dev]' && python docs/results/demo.py     # needs Chromium
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
PICTURES = {"demo-gradients.png": "Figure 3", "demo-images.png": "Figure 4"}


def brittle(*arguments: str) -> str:
    command = [sys.executable, "-c", "from brittle.cli import main; main()", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def percent(share: dict) -> str:
    return f"{100 * share['value']:.0f} ({100 * share['low']:.0f}–{100 * share['high']:.0f})"


def table(results: dict) -> str:
    lines = []
    for model in results["models"]:
        cells = [model["label"], percent(model["accuracy"]), percent(model["saturated"])]
        for attack in model["attacks"]:
            found = attack["arithmetic"]
            cells.append(f"{percent(found['float32']['success'])} → {percent(found['exact']['success'])}")
        lines.append("| " + " | ".join(cells) + " |")
    attacks = [f"`{attack['label']}`: float32 → exact" for attack in results["models"][0]["attacks"]]
    head = ["model", "accuracy", "one-hot softmax", *attacks]
    return "\n".join(["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |", *lines])


def take_pictures(page: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        tab = opened.new_page(viewport={"width": 1100, "height": 900})
        tab.goto(page.as_uri())
        for file, title in PICTURES.items():
            tab.locator("figure", has_text=title).first.screenshot(path=HERE / file)
        opened.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        started = time.monotonic()
        results = json.loads(brittle("demo", "--store", home, "--json"))
        first = time.monotonic() - started
        started = time.monotonic()
        brittle("demo", "--store", home, "-q")
        again = time.monotonic() - started
        take_pictures(Path(home) / "reports" / "quickstart" / "report.html")
    made = {key: ", ".join(value) for key, value in results["provenance"].items() if isinstance(value, list)}
    text = f"""# The demo

Made by `python docs/results/demo.py`, which runs `brittle demo` into an empty store: {first:.0f} s, and {again:.1f} s
when run again. Seed 0; brittle {made["brittle"]}, torch {made["torch"]}, Python {made["python"]}; {made["platform"]},
{made["processor"]}, {made["threads"]} threads; networks trained in {made["training_precision"]}.

Percent, with 95 % Wilson intervals. Attacks: share fooled, of the images that the model had right before.

{table(results)}

![How small the gradients are, and what float32 rounds to zero](demo-gradients.png)

![Originals beside what the third attack made of them](demo-images.png)
"""
    (HERE / "demo.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
