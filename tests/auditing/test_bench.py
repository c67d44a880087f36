"""The audit of networks whose verdict is known: none that is broken or masked may pass as robust."""

from __future__ import annotations

import pytest
import torch
from auditing.cases import CASES, EPS, SMALL, Case, certified, chain, data, hardened, reference, undefended

from brittle.auditing import audit
from brittle.auditing.best_found import Norm

ROWS = 100

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_gets_its_verdict_and_its_cause(case: Case):
    found = audit(case.make(), data().test, eps=case.eps, rows=ROWS, budget="quick", reference=reference())
    assert found.verdict.kind in case.verdicts
    if found.verdict.kind == "masked":
        assert found.verdict.causes[0] in case.causes
    if case.verdicts == ("robust",):
        assert all(one.passed for one in found.checks if one.needed)
        assert found.reference is not None
        assert found.left.interval[0] > found.reference.interval[1]


def test_no_more_is_left_than_a_certificate_allows_and_no_less_than_it_promises():
    split = data().test
    images, labels = split.images[:ROWS], split.labels[:ROWS]
    leads = certified().least_leads(images, labels, SMALL).scatter(1, labels[:, None], torch.inf)
    proven = (leads.amin(1) > 0).double().mean().item()
    found = audit(certified(), split, eps=SMALL, rows=ROWS, budget="quick")
    assert proven <= found.left.value < proven + 0.15


@pytest.mark.parametrize(
    ("name", "eps"), [("undefended", SMALL), ("tempered", EPS), ("hardened", SMALL)], ids=lambda value: str(value)
)
def test_no_more_is_left_than_autoattack_leaves(name: str, eps: float):
    pytest.importorskip("pyautoattack")
    from brittle.attacks.result import predictions
    from brittle.auditing.suite import autoattack

    model = {"undefended": undefended, "tempered": lambda: chain()[0], "hardened": hardened}[name]()
    rows = 40
    split = data().test
    found = audit(model, split, eps=eps, rows=rows, budget="quick")
    theirs = autoattack(model, "linf", eps, seed=0)
    assert theirs is not None
    reached = theirs(split.images[:rows], split.labels[:rows])
    assert found.left.count <= int((predictions(model, reached.adversarial) == split.labels[:rows]).sum())


@pytest.mark.parametrize(("eps", "rows"), [(8 / 255, 100), (0.02, 20)])
def test_an_undefended_network_at_a_small_eps_is_not_called_robust(eps: float, rows: int):
    found = audit(undefended(), data().test, eps=eps, rows=rows, budget="quick")
    assert found.left.value > 0.5
    assert found.verdict.kind == "inconclusive"
    assert "give --reference MODEL: at this eps an undefended network may pass as well" in found.verdict.next


def test_an_undefended_network_beside_another_at_a_small_eps_is_not_called_robust():
    found = audit(undefended(), data().test, eps=8 / 255, rows=100, budget="quick", reference=reference())
    assert found.verdict.kind == "inconclusive"
    assert any(one.startswith("An undefended network has ") for one in found.verdict.sentences)


@pytest.mark.parametrize("pixels", [10, 20])
def test_an_undefended_network_is_never_masked_in_l0(pixels: int):
    found = audit(undefended(), data().test, norm="l0", eps=pixels, rows=30, budget="quick")
    assert found.verdict.kind in ("broken", "inconclusive")
    assert found.verdict.causes == ()


@pytest.mark.parametrize("norm", ["l2", "l0"])
def test_other_norms_tell_a_tempered_network_from_an_undefended_one(norm: Norm):
    hot = "broken" if norm == "l0" else "masked"  # in L0 no attack differs from another in one thing alone
    for make, kind in ((undefended, "broken"), (lambda: chain()[0], hot)):
        found = audit(make(), data().test, norm=norm, eps=3 if norm == "l2" else 80, rows=50, budget="quick")
        assert found.verdict.kind == kind
        assert found.verdict.kind != "masked" or found.verdict.causes[0] == "scale"
