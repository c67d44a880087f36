"""Makes docs/results/demo.md and its pictures: runs the demo into an empty store and takes what its page shows.

pip install -c constraints.txt '.[dev]' && python docs/results/demo.py     # needs Chromium
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from making import brittle, made_with, pictures, success_table

HERE = Path(__file__).parent


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        started = time.monotonic()
        results = json.loads(brittle("demo", "--store", home, "--json"))
        first = time.monotonic() - started
        started = time.monotonic()
        brittle("demo", "--store", home, "-q")
        again = time.monotonic() - started
        wanted = {"demo-gradients.png": "Why: gradients too small", "demo-images.png": "Originals, and what"}
        page = Path(home) / "reports" / "quickstart" / "report.html"
        pictures(page, {HERE / name: title for name, title in wanted.items()})
    text = f"""# The demo

Made by `python docs/results/demo.py`, which runs `brittle demo` into an empty store: {first:.0f} s, and {again:.1f} s
when run again. {made_with(results)}

Percent, with 95 % Wilson intervals. Attacks: share fooled, of the images that the model had right before.

{success_table(results)}

![How small the gradients are, and what float32 rounds to zero](demo-gradients.png)

![Originals beside what the third attack made of them](demo-images.png)
"""
    (HERE / "demo.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
