"""Makes docs/results/units-of-distillation/ from a store that holds the studies.

pip install -c constraints.txt '.[dev]'
brittle study run units-of-distillation --size digits --store STORE      # and --size mnist
python docs/results/units_of_distillation.py STORE                       # needs Chromium
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from making import hours, made_with, markdown, percent, pictures, report

from brittle.report import gather
from brittle.study.kinds.carriers import view as carrying
from brittle.study.kinds.units import view
from brittle.study.store.results import Report
from brittle.study.store.store import Store

FOLDER = Path(__file__).parent / "units-of-distillation"
STUDIES = {"digits": "units-of-distillation-digits", "mnist": "units-of-distillation-mnist"}
FIGURES = {
    "profiles": "Gradient of each unit, by class",
    "knockout": "Error against the number of silenced units",
    "carriers": "Accuracy as units are silenced",
}


def spread_table(found: Report) -> str:
    """How widely the work is spread, and how alike the networks are."""
    heads = ["network", "units", "effectively", "ranked as in standard, τ", "strongest until half is lost", "weakest"]
    keys = ("model", "units", "effective", "alike", "strongest", "weakest")
    return markdown(heads, [[str(line[key]) for key in keys] for line in view.spread(found)])


def defence_table(found: Report) -> str:
    """What knocking units out makes right again."""
    heads = [
        "network",
        "fooled, %",
        "carriers ranked as important, τ",
        *(f"{kind} first, %" for kind in carrying.COLOUR),
    ]
    keys = ("model", "fooled", "alike", *carrying.COLOUR)
    return markdown(heads, [[line[key] for key in keys] for line in carrying.defence(found)])


def accuracies(results: Mapping[str, Any]) -> str:
    """Accuracy and one-hot softmax of each network."""
    rows = [
        [model["label"], str(model["seed"]), percent(model["accuracy"], 1), percent(model["saturated"], 1)]
        for model in results["models"]
    ]
    return markdown(["network", "seed", "accuracy, %", "one-hot softmax, %"], rows)


def section(data: str, found: Report, results: Mapping[str, Any]) -> str:
    """What one study shows."""
    return f"""
## {found.data}

`brittle study run units-of-distillation --size {data}`. {made_with(results)} {hours(results)}.

{spread_table(found)}

Effectively: over how many units a class's gradient is spread, (Σ g)² / Σ g². τ: Kendall's, of the class gradients of
two networks that began with the same weights. Means over classes and seeds, with 95 % intervals over seeds.

![Gradient of each map by class, standard network](profiles-{data}.png)

![Error as units go, by their order](knockout-{data}.png)

### What carries an adversarial change

{defence_table(found)}

Fooled: of the images that the network had right. Then how many of these are right again at the best
number of units gone that loses at most {100 * carrying.COST:.0f} % of the clean images. The same images choose that
number and are counted: the true share is no larger.

![Images that are right as carriers go](carriers-{data}.png)

{accuracies(results)}
"""


def main() -> None:
    """Writes the page and its pictures."""
    options = argparse.ArgumentParser(description="Makes docs/results/units-of-distillation/ from a store.")
    options.add_argument("store", type=Path)
    store = options.parse_args().store
    FOLDER.mkdir(exist_ok=True)
    sections = []
    with tempfile.TemporaryDirectory() as scratch:
        for data, study in STUDIES.items():
            if study in Store(store).studies():
                results, page = report(store, study, Path(scratch) / data)
                pictures(page, {FOLDER / f"{name}-{data}.png": title for name, title in FIGURES.items()})
                sections.append(section(data, gather(Store(store), study), results))
    text = f"""# Do tempered and distilled networks work with other units?

The study `units-of-distillation`: three networks from the same first weights, one trained plainly, one at T = 20, one
distilled from it, ranked unit by unit as Lo and Ding do, by the gradients of the logits; and whether an attack's change
(projected gradient descent on the margin, L-infinity 0.3) goes through units that can be knocked out. Made by
`python docs/results/units_of_distillation.py STORE`.

- Other units are important: the tempered network's ranking is half like the plain one's that began with the same
  weights (τ 0.52 on digits, 0.31 on MNIST), the distilled one's hardly (0.16, -0.02).
- The work is not spread over more units but over fewer, by the gradients half as many; the units that a class cannot
  do without are as few as before on digits, and somewhat fewer on MNIST.
- An adversarial change goes through the units that the right answer needs: both rankings are nearly the same (τ 0.87
  to 0.98). So knocking carriers out is no defence. At the price of 5 % of the clean images it makes nothing right again
  on digits, and at most a tenth on MNIST.

{"".join(sections)}"""
    (FOLDER / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
