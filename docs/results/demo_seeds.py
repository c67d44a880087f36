"""Makes docs/results/demo-seeds.md: trains the demo's network for 20 seeds, 1, 2 and 4 threads, two dtypes, two T.

    nice python docs/results/demo_seeds.py docs/results/demo-seeds.jsonl

The file has a line for each network; what stands there is not trained again. 240 networks take
about an hour of one core.

On a processor without bfloat16 instructions a network takes minutes in that dtype. So bfloat16 is computed as hardware
computes it, in float32: the operands and the results of each convolution and dense layer are rounded to bfloat16, sums
are not, forwards and backwards. `--native` uses autocast instead.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
import tomllib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import brittle
from brittle.measures import accuracy
from brittle.models.networks import build, papernot_mnist
from brittle.study.schema import built_in

HERE = Path(__file__).parent
SEEDS, THREADS, DTYPES, TEMPERATURES = range(20), (1, 2, 4), ("float32", "bfloat16"), (1.0, 20.0)


class _Rounded(torch.autograd.Function):
    """Rounds to bfloat16 on the way forward, and the gradient on the way back."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        return values.bfloat16().float()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.bfloat16().float()


def in_bfloat16(network: nn.Module) -> None:
    """Makes each convolution and dense layer compute as in bfloat16."""
    rounded = _Rounded.apply
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            layer = F.conv2d if isinstance(module, nn.Conv2d) else F.linear

            def forward(input: Tensor, module: Any = module, layer: Any = layer) -> Tensor:
                return rounded(layer(rounded(input), rounded(module.weight), rounded(module.bias)))

            module.forward = forward


def trained(seed: int, threads: int, dtype: str, temperature: float, native: bool) -> dict[str, Any]:
    """One network of the demo, and how much of the test images it has right."""
    training = tomllib.loads(built_in()["quickstart"])["training"]
    options = training.pop("network_options")
    del training["network"]
    torch.set_num_threads(threads)
    data = brittle.data.load("digits")
    network = build(papernot_mnist, seed=seed, **options)
    if dtype == "bfloat16" and not native:
        in_bfloat16(network)
    settings = {"device": "cpu", "dtype": dtype if native else "float32", "progress": brittle.progress.silent}
    started = time.monotonic()
    fitted = brittle.fit(network, data, temperature=temperature, seed=seed, **settings, **training)
    with torch.no_grad():
        right = accuracy(fitted.model(data.test.images), data.test.labels)
    seconds = round(time.monotonic() - started, 1)
    return {"seed": seed, "threads": threads, "dtype": dtype, "T": temperature, "accuracy": right.value} | {
        "native": native,
        "seconds": seconds,
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Lowest, median and highest accuracy by threads, dtype and T."""
    rows = []
    for threads, dtype, temperature in itertools.product(THREADS, DTYPES, TEMPERATURES):
        wanted = (threads, dtype, temperature)
        found = sorted(one["accuracy"] for one in lines if (one["threads"], one["dtype"], one["T"]) == wanted)
        if found:
            shown = " | ".join(f"{100 * one:.1f}" for one in (found[0], found[len(found) // 2], found[-1]))
            rows.append(f"| {threads} | {dtype} | {temperature:g} | {len(found)} | {shown} |")
    head = "| threads | dtype | T | networks | lowest | median | highest |\n| ---: | --- " + "| ---: " * 5 + "|"
    return "\n".join([head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--native", action="store_true", help="bfloat16 by the processor's own instructions")
    asked = parser.parse_args()
    asked.file.touch()
    lines = [json.loads(line) for line in asked.file.read_text(encoding="utf-8").splitlines()]
    done = {(one["seed"], one["threads"], one["dtype"], one["T"]) for one in lines}
    grid = itertools.product(SEEDS, THREADS, DTYPES, TEMPERATURES)
    for wanted in sorted(grid, key=lambda one: one[3] != TEMPERATURES[one[0] % 2]):  # each seed at one T first
        if wanted not in done:
            lines.append(trained(*wanted, native=asked.native))
            print(lines[-1], flush=True)
            with asked.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    low, hours = min(one["accuracy"] for one in lines), sum(one["seconds"] for one in lines) / 3600
    text = f"""# The demo's training, over seeds

Made by `python docs/results/demo_seeds.py docs/results/demo-seeds.jsonl`: {len(lines)} networks of the demo's study
file. The seed gives the first weights and the order of the images. Accuracy is in percent of the 359 test images; the
lowest is {100 * low:.1f} %. torch {torch.__version__}, {platform.system()} {platform.machine()}; {hours:.1f} hours of
computing beside other work. bfloat16 is rounded as hardware rounds it; the program says how.

{table(lines)}
"""
    (HERE / "demo-seeds.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
