"""The inputs of `stress.bad_inputs`, fewer of them."""

from __future__ import annotations

import pytest
from stress import bad_inputs
from stress.judged import home

SOME = {"stores": 9, "audits": 20, "studies": 30, "names": 20, "options": 40, "attacks": 60}


@pytest.mark.parametrize("kind", bad_inputs.KINDS)
def test_bad_inputs_end_in_one_line_and_the_right_code(kind: str):
    with home():
        found = list(bad_inputs.tried(kind, 1, SOME.get(kind, 100)))
    assert len(found) >= min(SOME.get(kind, 100), 9)
    assert [f"{one.case.name}: {one.fault}" for one in found if one.fault] == []
    if kind != "stores":  # a report lists what is forged as missing, and is no error
        assert sum(one.refused for one in found) > 0
