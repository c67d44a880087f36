"""Makes docs/results/song-2017/ from a store that holds the studies: hours to compute, seconds to show.

pip install -c constraints.txt '.[dev]'
brittle study run song-2017 --store STORE
python docs/results/song_2017.py STORE     # needs Chromium; song-2017-code and song-2017-sweep too where they are there
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from making import claims_table, headings, hours, made_with, markdown, percent, pictures, report, success_table

from brittle.drawing.text import scientific
from brittle.study.store.store import Store

FOLDER = Path(__file__).parent / "song-2017"
FIGURES = {
    "success.png": "The same attacks, computed twice",
    "pixels.png": "How many pixels it takes",
    "gradients.png": "Why: gradients too small",
    "images.png": "Test images before and after",
    "saliency.png": "Gradient of the loss by pixel",
    "steps.png": "Step by step",
}


def gradients_table(results: Mapping[str, Any]) -> str:
    rows = [
        [
            one["model"],
            f"{one['margin']:.1f}",
            f"{one['log10_plain']['value']:.2f}",
            f"{one['factor']:.2f}",
            f"{one['slopes']['value']:+.2f}",
            f"{one['log10_trained']['value']:.2f}",
            f"{one['saturation']['value']:.1f}",
            f"{one['log10_used']['value']:.1f}",
        ]
        for one in results["gradients"]
    ]
    head = ["network", "median logit margin", "plain network", "factor 1/T", "grown logits", "= as trained, read at T"]
    return markdown([*head, "read at 1 instead", "= as used"], rows)


def samples_table(results: Mapping[str, Any]) -> str:
    rows = []
    for one in results["samples"]:
        numbers = [
            scientific(one[key]["sign"], float("-inf") if one[key]["log10"] is None else one[key]["log10"])
            for key in ("mean_float32", "largest_float32", "mean_exact", "largest_exact")
        ]
        pixels = [
            " → ".join("–" if p["pixels"] is None else str(p["pixels"]) for p in one["pixels"] if p["attack"] == attack)
            for attack in dict.fromkeys(p["attack"] for p in one["pixels"])
        ]
        rows.append([str(one["label"]), one["model"], *numbers, *pixels])
    attacks = list(dict.fromkeys(p["attack"] for p in results["samples"][0]["pixels"]))
    head = ["digit", "network", "float32: mean", "max", "exact: mean", "max"]
    return markdown([*head, *(f"`{attack}`" for attack in attacks)], rows)


def code_section(results: Mapping[str, Any]) -> str:
    epochs, rows = results["models"][0]["training"]["params"]["epochs"], results["data"]["rows"]
    cut = "" if epochs == 50 else f", cut to {epochs} epochs and {rows} images"
    unlearned = [model["label"] for model in results["models"] if model["accuracy"]["value"] < 0.5]
    note = f"\nIn so few epochs the {' and the '.join(unlearned)} network did not learn; its row says nothing.\n"
    return f"""
## The recipe of his code

`brittle study run song-2017-code`{cut}: Nesterov's momentum, pixels in 256ths, an L2 penalty on the
output layer, algorithms 2 and 4 with signed differences that only set pixels to 1. {made_with(results)}
{hours(results)}.
{note if unlearned else ""}
{success_table(results, 1)}
"""


def sweep_section(results: Mapping[str, Any], page: Path) -> str:
    pictures(page, {FOLDER / "temperature.png": "Against the temperature"})
    kinds: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for model in results["models"]:
        kinds.setdefault((model["model"], model["temperature"]), []).append(model)
    rows = []
    for (name, temperature), models in kinds.items():
        accuracy = [100 * model["accuracy"]["value"] for model in models]
        cells = [name, f"{temperature:g}", f"{min(accuracy):.1f} to {max(accuracy):.1f}"]
        for place in range(len(models[0]["attacks"])):
            both = []
            for arithmetic in ("float32", "exact"):
                shares = [100 * m["attacks"][place]["arithmetic"][arithmetic]["success"]["value"] for m in models]
                both.append(f"{min(shares):.0f} to {max(shares):.0f}")
            cells.append(" → ".join(both))
        rows.append(cells)
    epochs = results["models"][0]["training"]["params"]["epochs"]
    return f"""
## Over the temperatures

`brittle study run song-2017-sweep`: what the paper lacks. {epochs} epochs where the paper has 50, the first
{results["data"]["rows"]} test images. {made_with(results)} {hours(results)}.

![Success of each attack, and gradients, against the training temperature](temperature.png)

Percent; the lowest and the highest of the seeds.

{markdown(["labels", "T", "accuracy", *headings(results)], rows)}
"""


def main() -> None:
    options = argparse.ArgumentParser(description="Makes docs/results/song-2017/ from a store.")
    options.add_argument("store", type=Path)
    store = options.parse_args().store
    known = Store(store).studies()
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        results, page = report(store, "song-2017", Path(scratch) / "text")
        pictures(page, {FOLDER / name: title for name, title in FIGURES.items()})
        rest = ""
        if "song-2017-code" in known:
            rest += code_section(report(store, "song-2017-code", Path(scratch) / "code")[0])
        if "song-2017-sweep" in known:
            rest += sweep_section(*report(store, "song-2017-sweep", Path(scratch) / "sweep"))
    accuracy = ", ".join(f"{m['label']} {percent(m['accuracy'], 2)} %" for m in results["models"])
    verdicts = "\n".join(f"- {sentence}" for sentence in results["verdicts"])
    text = f"""# Song 2017, tested again

The study `song-2017`: MNIST, 50,000 training images, 50 epochs, batch 128, learning rate 0.1 (0.05 for the distilled
network), momentum 0.5, dropout 0.5, T = 20; algorithms 1 to 3 on all 10,000 test images, algorithm 4 on the first
1,000, at most 100 pixels, in float32 and in exact arithmetic.

`brittle study run song-2017`, then `python docs/results/song_2017.py STORE`. {made_with(results)} {hours(results)}.

{verdicts}

## What the paper says

{claims_table(results)}

## Success of the attacks

Percent, with 95 % Wilson intervals; share fooled of the images that the network had right before. Test accuracy:
{accuracy}.

{success_table(results, 1)}

![Success of each attack in float32 and exactly](success.png)

![Success against the number of pixels](pixels.png)

## Where the gradients go

Mean over the attacked images of log10 mean |dF/dx|, computed exactly. A network trained at T = 20 has logits about
twenty times larger: read at T = 20 they make up for the factor 1/T. Read at T = 1, as it is attacked, there is no such
factor, and the large logits saturate the softmax.

{gradients_table(results)}

![Histograms of the gradients](gradients.png)

## Images

![Originals, and what the attack made of them](images.png)

![Saliency maps](saliency.png)

![An image, pixel by pixel](steps.png)

## Sample images, as in appendices A and B

One test image of each digit: mean and largest gradient of the loss, and the pixels that each algorithm set (float32 →
exact; – where the image was not fooled).

{samples_table(results)}
{rest}"""
    (FOLDER / "README.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
