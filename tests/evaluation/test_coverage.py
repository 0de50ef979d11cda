"""Simulated coverage: the intervals hold the mean, and equally good learners are not told apart.

The cases and the table of all of them are those of `python -m benchmarks.coverage`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.coverage import CASES, NULLS, Case, Null

REPEATS = 800  # the standard error of a coverage is 0.8 %; every draw has its seed, so a result stays what it is


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_interval_holds_the_mean(case: Case) -> None:
    found, *_ = case.coverage(REPEATS)
    assert case.bounds[0] <= found <= case.bounds[1]


@pytest.mark.parametrize("null", NULLS, ids=lambda null: null.name)
def test_equally_good_learners_are_not_told_apart(null: Null) -> None:
    assert null.bounds[0] <= null.coverage(REPEATS) <= null.bounds[1]
