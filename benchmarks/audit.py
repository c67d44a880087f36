"""The audit's confusion matrix over digit networks whose verdict is known, with what each took.

    python benchmarks/audit.py [--rows 200] [--budget quick] [--autoattack] [name ...]

Rows are what was done to the network, columns what the audit said. `--autoattack` sets beside it what AutoAttack leaves
(pip install pyautoattack), and its time. Names choose cases by how they begin.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from auditing.cases import CASES, Case, data, reference  # pyright: ignore[reportMissingImports]

from brittle.attacks.result import predictions
from brittle.auditing import audit
from brittle.auditing.suite import autoattack

KINDS = ("robust", "masked", "broken", "inconclusive")


def told(case: Case, rows: int, budget: str, beside: bool) -> tuple[str, bool]:
    """Audits a case and prints a line; the verdict, and whether it is right."""
    model = case.make()
    started = time.process_time()
    found = audit(model, data().test, eps=case.eps, rows=rows, budget=budget, reference=reference())
    took = time.process_time() - started
    kind, causes = found.verdict.kind, found.verdict.causes
    right = kind in case.verdicts and (kind != "masked" or causes[0] in case.causes)
    line = (
        f"{case.name:24} {case.eps:4} {kind:12} {', '.join(causes):20} {'right' if right else 'WRONG'}  "
        f"clean {found.door.accuracy.value:6.1%}  common {found.common.value:6.1%}  left {found.left.value:6.1%}  "
        f"{took:5.1f} s"
    )
    if beside:
        line += beside_autoattack(model, case.eps, rows)
    print(line, flush=True)
    return kind, right


def beside_autoattack(model: torch.nn.Module, eps: float, rows: int) -> str:
    attack = autoattack(model, "linf", eps, seed=0)
    if attack is None:
        return "  (pyautoattack is not installed)"
    images, labels = data().test.images[:rows], data().test.labels[:rows]
    started = time.process_time()
    found = attack(images, labels)
    left = (predictions(model, found.adversarial) == labels).double().mean().item()
    return f"  AutoAttack {left:6.1%} {time.process_time() - started:6.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--budget", default="quick")
    parser.add_argument("--autoattack", action="store_true")
    asked = parser.parse_args()
    matrix: Counter[tuple[str, str]] = Counter()
    wrong = 0
    for case in CASES:
        if asked.names and not any(case.name.startswith(name) for name in asked.names):
            continue
        kind, right = told(case, asked.rows, asked.budget, asked.autoattack)
        matrix["/".join(case.verdicts), kind] += 1
        wrong += not right
    print(f"\n{'known to be':20}" + "".join(f"{kind:>14}" for kind in KINDS))
    for known in dict.fromkeys(known for known, _ in matrix):
        print(f"{known:20}" + "".join(f"{matrix[known, kind]:14}" for kind in KINDS))
    print(f"\n{wrong} wrong, causes included; {torch.get_num_threads()} threads, times are of the processor")


if __name__ == "__main__":
    main()
