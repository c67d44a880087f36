"""Makes docs/results/mandal-guo/ from a store that holds the studies: hours to compute, seconds to show.

pip install -c constraints.txt '.[dev]'
brittle study run mandal-guo --size small --workers 2 --store STORE      # and --size cifar10
python docs/results/mandal_guo.py STORE                                  # needs Chromium
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from making import claims_table, hours, made_with, markdown, pictures, report

from brittle.study.store.store import Store

FOLDER = Path(__file__).parent / "mandal-guo"
STUDY = "mandal-guo-small"
CIFAR10 = "mandal-guo-cifar10"
FIGURES = {
    "networks": "What temperature and distillation do to the networks",
    "robustness": "Smallest perturbation, against the temperature",
    "generations": "Generation after generation",
    "survival": "Accuracy against the size of the perturbation",
}
MATRICES = {"l2": "carlini_l2_every", "linf": "carlini_linf_every", "l0": "carlini_l0_every"}


def networks_table(results: Mapping[str, Any]) -> str:
    """Accuracy, sensitivity, confidence and robustness of each network, the mean of its seeds with both extremes."""
    rows = []
    for models in _by_label(results).values():
        cells = [
            models[0]["label"],
            _spread([100 * model["accuracy"]["value"] for model in models], 2),
            " → ".join(
                _spread([100 * model["sensitivity"][name]["value"] for model in models], 0)
                for name in ("float32", "exact")
            ),
            _spread([100 * model["confidence"]["value"] for model in models], 2),
        ]
        for label, norm in _untargeted(results).items():
            found = _sizes(models, label)
            cells.append(_spread(found, {0: 1, 2: 2, "inf": 3}[norm]) if found else "–")
        rows.append(cells)
    heads = [f"`{label}`, {norm}" for label, norm in _untargeted(results).items()]
    return markdown(["network", "accuracy, %", "looks insensitive, %: float32 → exact", "confidence, %", *heads], rows)


def _by_label(results: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for model in results["models"]:
        found.setdefault(model["label"], []).append(model)
    return found


def _untargeted(results: Mapping[str, Any]) -> dict[str, str]:
    """Labels of the attacks that may lead to any class, each with its norm."""
    attacks = [one for model in results["models"] for one in model["attacks"] if not one["targeted"]]
    return {one["label"]: one["minimises"] for one in attacks}


def _sizes(models: Sequence[Mapping[str, Any]], label: str) -> list[float]:
    """The mean smallest change on each of the networks that an attack has been made on."""
    attacks = [one for model in models for one in model["attacks"] if one["label"] == label]
    return [one["arithmetic"]["result"]["robustness"]["mean"]["value"] for one in attacks]


def _spread(values: Sequence[float], digits: int) -> str:
    """'1.17 (1.10–1.24)': the mean, the least and the most."""
    middle = f"{sum(values) / len(values):.{digits}f}"
    ends = [f"{end:.{digits}f}" for end in (min(values), max(values))]
    return middle if len(values) == 1 or ends[0] == ends[1] == middle else f"{middle} ({ends[0]}–{ends[1]})"


def not_fooled(results: Mapping[str, Any]) -> str:
    """How many rows no change was found for, in all."""
    counts = [
        attack["arithmetic"]["result"]["robustness"]["withstood"]
        for model in results["models"]
        for attack in model["attacks"]
    ]
    tried = [attack["arithmetic"]["result"]["success"]["total"] for m in results["models"] for attack in m["attacks"]]
    return f"{sum(counts)} of {sum(tried):,}".replace(",", " ")


def section(results: Mapping[str, Any], prefix: str, *, only_tested: bool = False) -> str:
    """What one study shows."""
    training = results["models"][0]["training"]["params"]
    verdicts = "\n".join(f"- {sentence}" for sentence in results["verdicts"])
    longer = " (the control longer)" if any(model["model"] == "control" for model in results["models"]) else ""
    return f"""{training["epochs"]} epochs{longer}, batch {training["batch_size"]}, learning rate
{training["learning_rate"]}, momentum {training["momentum"]}, the first {results["data"]["rows"]} test images.
{made_with(results)} {hours(results)}.

{verdicts}

### What the paper says

{claims_table(results, only_tested=only_tested)}

### The networks

Means over the seeds, with the least and the most. Robustness is the mean size of the smallest changes found, over the
images that a network had right; no change was found for {not_fooled(results)} images and targets.

{networks_table(results)}

![Accuracy, small gradients and confidence against the temperature]({prefix}networks.png)

![Robustness against the temperature]({prefix}robustness.png)

![Generation after generation]({prefix}generations.png)

![Survival curves]({prefix}survival.png)
"""


def main() -> None:
    """Writes the page and its pictures."""
    options = argparse.ArgumentParser(description="Makes docs/results/mandal-guo/ from a store.")
    options.add_argument("store", type=Path)
    store = options.parse_args().store
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        results, page = report(store, STUDY, Path(scratch) / "small")
        matrices = {FOLDER / f"matrix-{name}.png": f"each other class by {label}" for name, label in MATRICES.items()}
        pictures(page, {FOLDER / f"{name}.png": title for name, title in FIGURES.items()} | matrices)
        rest = ""
        if CIFAR10 in Store(store).studies():
            other, page = report(store, CIFAR10, Path(scratch) / "cifar10")
            matrices = {FOLDER / "cifar10-matrix-l2.png": f"each other class by {MATRICES['l2']}"}
            wanted = {FOLDER / f"cifar10-{name}.png": title for name, title in FIGURES.items()}
            pictures(page, wanted | matrices)
            rest = f"""
## CIFAR-10

`brittle study run mandal-guo --size cifar10`: one pair of temperatures, one distillation, one seed.
Claims that these networks say nothing of are left out.

Six epochs are few: the networks read half of the images right, the paper's 78 %. At the same learning rate the one
at T = 20 is ahead, as its steps are smaller; so accuracy, confidence and robustness compare networks at different
stages of their training as much as temperatures. With one seed an interval is that of the images alone. What needs no
such caution: the attacks fool every image, on logits and on logits / T by the same change. Of what the paper says rises
with the temperature, only the share of small gradients does here.

{section(other, "cifar10-", only_tested=True)}
![Each class made into each other, L2](cifar10-matrix-l2.png)
"""
    text = f"""# Mandal and Guo, tested again

The study `mandal-guo`, size `small`: MNIST, teacher, assistant and student at four temperatures, and a control with the
epochs of a whole chain and no distillation. `brittle study run mandal-guo --size small --workers 2`, then
`python docs/results/mandal_guo.py STORE`. The paper has 50 epochs at learning rate 0.01, seven temperatures, six
generations and 10,000 images: `--size full`, which has not been run.

## What it says

- Robustness does rise with the temperature in L2 and L0, by some percent, and falls in L-infinity. Every claim that an
  assistant, or another generation, adds to it has 1 inside its interval over three seeds.
- The attack is not what rises: on logits / T it finds the same sizes.
- The control, with hard labels and as many epochs as a chain has together, needs the smallest changes of all and is
  the most accurate; the teacher at T = 1, with a third of its epochs, lies between it and the students. Size and
  accuracy go opposite ways here, so part of what a temperature or an assistant seems to add is what less training
  adds. Three epochs cannot tell more; the paper's fifty can.
- The share of small gradients is the same in exact arithmetic: they are small, not rounded. What makes them so is the
  softmax read at 1, not the factor 1/T.

## MNIST

{section(results, "")}
### Each class made into each other

One image of each class against every other class, on the assistant; the original on the diagonal.

![L2](matrix-l2.png)

![L-infinity](matrix-linf.png)

![L0](matrix-l0.png)
{rest}
## What the paper leaves out or prints wrong

- Equation (13) has arg min where it means min, equation (14) arg max where it means max.
- The upper limit of c in L0 is printed as 2e-6; the reference implementation has 2e6. The number of binary-search
  steps is not given.
- Equation (11) is right, but what follows from it is not: "for fixed values of logits" the factor 1/T makes gradients
  smaller, and a network trained at T does not have fixed logits. Read at its own T its gradients are as large as
  another's; read at 1, as the paper does, there is no factor 1/T, and what is small is what the saturated softmax
  leaves.
- The paper does not say in which norm L2's changes are smaller than L0's, nor what becomes of images that are wrong
  before the attack, or that are not fooled.
- It attacks logits. There a softmax at any temperature plays no part, float32 or not: the arithmetic bears on the
  sensitivity alone.
"""
    (FOLDER / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
