"""Every layer and function of the hunt, in second order: an engine gives the loop's meta-gradient, or is refused."""

from __future__ import annotations

import json

import pytest

from benchmarks.layers.cases import CASES, Case
from benchmarks.layers.measure import RIGHT, SECOND, WRONG, verdicts
from benchmarks.provenance import RESULTS

KNOWN = json.loads((RESULTS / "layers.json").read_text(encoding="utf-8"))["found"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_engine_is_wrong_without_being_refused(case: Case) -> None:
    found = verdicts(case, SECOND)
    assert WRONG not in found.values()
    lost = {name for name, was in KNOWN[case.name][SECOND.name].items() if was == RIGHT and found.get(name) != RIGHT}
    assert not lost, "what the published table calls right is right no longer"
