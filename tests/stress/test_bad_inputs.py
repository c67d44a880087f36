"""The inputs of `stress.bad_inputs`, fewer of them."""

from __future__ import annotations

import pytest
from stress import bad_inputs
from stress.judged import home

SOME = {"stores": 12, "audits": 30, "studies": 40, "names": 25, "options": 60, "attacks": 80}


@pytest.mark.parametrize("kind", bad_inputs.KINDS)
def test_bad_inputs_end_in_one_line_and_the_right_code(kind: str):
    with home():
        found = list(bad_inputs.tried(kind, 1, SOME.get(kind, 100)))
    assert len(found) >= min(SOME.get(kind, 100), 20)
    assert [f"{one.case.name}: {one.fault}" for one in found if one.fault] == []
    assert sum(one.refused for one in found) > 0
