"""Makes docs/results/lo-ding/ from a store that holds the studies.

pip install -c constraints.txt '.[dev]'
brittle study run lo-ding --size faces --dtype float32 --store STORE --data-root DATA      # and --size cifar10
python docs/results/lo_ding.py STORE                                                       # needs Chromium

The Yale faces may not be passed on: the pictures here have the diagrams without the images.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from making import claims_table, hours, made_with, markdown, pictures, report

from brittle.report import gather
from brittle.study.kinds.masks.cell import Masks
from brittle.study.kinds.units import knockouts
from brittle.study.kinds.units.profiles import ranked
from brittle.study.store.results import Report
from brittle.study.store.store import Store

FOLDER = Path(__file__).parent / "lo-ding"
FACES, CIFAR10 = "lo-ding-faces", "lo-ding-cifar10"
FIGURES = {
    "profiles": "Gradient of each unit, by class",
    "networks": "Units that each image uses",
    "knockout": "Error against the number of silenced units",
    "by-class": "silenced units, for each class",
    "moves": "Predictions for each class as units are silenced",
}
MASKS = {"masks": "How strong a mask must be", "examples": "Images and their masks", "gradients": "Gradients with"}


def without_images(page: Path) -> Path:
    """A copy of a page whose diagrams stand alone."""
    text = re.sub(r"<image [^>]*/>", "", page.read_text(encoding="utf-8"))
    copy = page.with_name("without-images.html")
    copy.write_text(text, encoding="utf-8")
    return copy


def errors_table(found: Report) -> str:
    """Mean error over classes and seeds as units go, by their order."""
    seeds = [units for _, units in next(iter(knockouts.tables(found).values()))]
    gone = [0, 1, 2, 3, 5, 8, 10, 15, 20]
    rows = [
        [kind, *(f"{100 * float(knockouts.over_classes(seeds, kind, 'overall')[:, at].mean()):.0f}" for at in gone)]
        for kind in seeds[0].kinds
    ]
    return markdown(["gone first", *(f"{at} gone" for at in gone)], rows)


def units_table(found: Report) -> str:
    """The strongest and weakest units of each class."""
    rows = [
        [line["class"], *(f"{unit['layer']} {unit['unit']}: {unit['gradient']}" for unit in line["pair"])]
        for line in ranked(found)
    ]
    return markdown(["identity", "strongest", "weakest"], rows)


def accuracies(results: Mapping[str, Any]) -> str:
    """'2, 3 and 2 of 41 test images wrong', by seed."""
    counts = [model["accuracy"] for model in results["models"]]
    wrong = ", ".join(str(one["total"] - one["count"]) for one in counts)
    return f"{wrong} of {counts[0]['total']} test images wrong, by seed"


def cifar_section(found: Report, results: Mapping[str, Any]) -> str:
    """The masks, where they have been computed."""
    masks = [one for model in found.models for one in model.results_of(Masks)]
    shared = torch.cat([one.learned for one in masks]).flatten(1)
    length, largest = float(shared.norm(dim=1).mean()), float(shared.abs().amax(1).mean())
    own, most = torch.stack([one.sizes for one in masks]).mean((0, 2)).tolist()
    return f"""
## CIFAR-10

`brittle study run lo-ding --size cifar10 --dtype float32 --workers 2`. {made_with(results)} {hours(results)}.

{claims_table(results, only_tested=True)}

One mask for all images is where the paper and this study part: there it fails, here it takes nearly every held-out
image to its target. Here it is learned for ten epochs by Adam, and is not small: {length:.1f} in L2 and {largest:.2f}
in L-infinity on average, where the images' own masks at the best η are {own:.1f} and {most:.2f}. The paper says neither
for how long and with what step its mask was learned, nor how large it became.

![Success against the strength of the masks](masks.png)

![Images and their masks](examples.png)

![Histograms of gradients](gradients.png)
"""


def main() -> None:
    """Writes the page and its pictures."""
    options = argparse.ArgumentParser(description="Makes docs/results/lo-ding/ from a store.")
    options.add_argument("store", type=Path)
    store = options.parse_args().store
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        results, page = report(store, FACES, Path(scratch) / "faces")
        pictures(without_images(page), {FOLDER / f"{name}.png": title for name, title in FIGURES.items()})
        rest = "\nThe masks on CIFAR-10, size `cifar10`, have not been run.\n"
        if CIFAR10 in Store(store).studies():
            other, page = report(store, CIFAR10, Path(scratch) / "cifar10")
            pictures(page, {FOLDER / f"{name}.png": title for name, title in MASKS.items()})
            rest = cifar_section(gather(Store(store), CIFAR10), other)
    found = gather(Store(store), FACES)
    text = f"""# Lo and Ding, tested again

The study `lo-ding`, size `faces`: `lo_ding_faces` on the Yale faces, 250 epochs at a learning rate of 0.1 as published;
batches of 16 and no momentum are ours. `brittle study run lo-ding --size faces --dtype float32`, then
`python docs/results/lo_ding.py STORE`.

{accuracies(results)}. {made_with(results)} {hours(results)}.

## What the paper says

{claims_table(results, only_tested=True)}

## Which units matter

![Gradient of each feature map by class, and agreement of the rankings](profiles.png)

![The network as circles, brighter for stronger](networks.png)

The first network's strongest and weakest units, counted from 1, with their convolutional gradients:

{units_table(found)}

## Accuracy while units are knocked out

Error over all images in percent, the mean over identities 7, 10, 12, 14 and 15 and over the seeds:

{errors_table(found)}

![Error as units go, by their order](knockout.png)

![Error as units go, by class](by-class.png)

![What each class is taken for](moves.png)
{rest}
## What the paper leaves out

- 4.88 % is 2 of 41 faces, whose interval reaches from 1.3 to 16.1 %.
- It counts errors on the whole data set, three quarters of which the network was trained on: a network knows these
  better, and loses them later.
- It compares the strongest units with the weakest alone. Units drawn at random, and the least active ones, say how
  much of that is in the ranking.
- It does not give the batch, the momentum, the scale of η, or how a mask is learned.
"""
    (FOLDER / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
