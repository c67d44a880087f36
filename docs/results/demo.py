"""Makes docs/results/demo.md and its pictures: runs the demo into an empty store and takes what its page shows.

pip install -c constraints.txt '.[dev]' && python docs/results/demo.py     # needs Chromium
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from making import brittle, made_with, pictures, success_table

HERE = Path(__file__).parent


def audits(results: dict[str, Any]) -> str:
    """The verdicts as a table, in percent."""
    lines = [
        "| model | verdict | clean | baseline attack | all attacks | undefended |",
        "| --- | --- " + "| ---: " * 4 + "|",
    ]
    for model in results["models"]:
        (found,) = model["audits"]
        verdict = ": ".join(filter(None, (found["verdict"]["kind"], ", ".join(found["verdict"]["causes"]))))
        shares = (found["door"]["accuracy"], found["common"], found["left"], found["reference"])
        told = [f"{100 * share['value']:.0f}" if share else "–" for share in shares]
        lines.append(f"| {model['label']} | {verdict} | {' | '.join(told)} |")
    return "\n".join(lines)


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        started = time.monotonic()
        results = json.loads(brittle("demo", "--store", home, "--json"))
        first = time.monotonic() - started
        started = time.monotonic()
        brittle("demo", "--store", home, "-q")
        again = time.monotonic() - started
        wanted = {"demo-gradients.png": "Why: gradients too small", "demo-images.png": "Test images before and after"}
        page = Path(home) / "reports" / "quickstart" / "report.html"
        pictures(page, {HERE / name: title for name, title in wanted.items()})
    text = f"""# The demo

Made by `python docs/results/demo.py`, which runs `brittle demo` into an empty store: {first:.0f} s, and {again:.1f} s
when run again. {made_with(results)}

Percent, with 95 % Wilson intervals. Attacks: share fooled, of the images that the model had right before.

{success_table(results)}

The audits, budget quick: share of 100 test images that stay right when every pixel may change by up to 0.3.

{audits(results)}

![How small the gradients are, and what float32 rounds to zero](demo-gradients.png)

![Originals beside what the third attack made of them](demo-images.png)
"""
    (HERE / "demo.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
