"""Every layer and function of the hunt, in second order: an engine gives the loop's meta-gradient, or is refused."""

from __future__ import annotations

import json

import pytest

from benchmarks.layers.cases import CASES, Case
from benchmarks.layers.measure import RIGHT, SECOND, TRANSFORM, WRONG, Order, verdicts
from benchmarks.provenance import RESULTS
from quickstudy.engine.engines import BY_NAME

KNOWN = json.loads((RESULTS / "layers.json").read_text(encoding="utf-8"))["found"]


ENGINES_OF = {SECOND: ("vmap", "replay"), TRANSFORM: ("vmap",)}


@pytest.mark.parametrize("order", ENGINES_OF, ids=lambda order: order.name)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_engine_is_wrong_without_being_refused(case: Case, order: Order) -> None:
    names = ENGINES_OF[order]
    found = verdicts(case, order, [BY_NAME[name] for name in names])
    assert WRONG not in found.values()
    known = KNOWN[case.name][order.name]
    lost = [name for name in names if known.get(name) == RIGHT and found.get(name) != RIGHT]
    assert not lost, "what the published table calls right is right no longer"
