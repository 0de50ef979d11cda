"""Several processes share the test episodes of every measure, and each gets what one process gets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import measures_on_ranks
import pytest
import torch

from quickstudy.engine import ranks
from quickstudy.evaluation.gathering import gathered

RANKS = 2
HERE = Path(__file__).parent
MEASURES = [
    "probabilities",
    "of unequal sizes",
    "movement",
    "intervals",
    "recalibrated",
    "embeddings",
    "instances",
    "scope",
    "one block",
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What each rank found."""
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)),
            *(str(HERE / "measures_on_ranks.py"), str(folder)),
        ],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return json.loads(json.dumps(measures_on_ranks.measures(tmp_path_factory.mktemp("alone"))))
    finally:
        torch.set_default_dtype(before)


def numbers(value):
    """All numbers of a nested plain value, and its words, in order."""
    if isinstance(value, dict):
        return [one for key in sorted(value) for one in numbers(value[key])]
    if isinstance(value, list):
        return [one for part in value for one in numbers(part)]
    return [value]


@pytest.mark.parametrize("name", MEASURES)
def test_ranks_find_together_what_one_process_finds(shared, alone, name):
    assert all(rank[name] == shared[0][name] for rank in shared), "the ranks went apart"
    ours, theirs = numbers(shared[0][name]), numbers(alone[name])
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a == (pytest.approx(b, rel=1e-9, abs=1e-9) if isinstance(b, float) else b)


def test_every_measure_is_looked_at(alone):
    assert set(alone) == set(MEASURES)


def test_results_of_other_ranks_arrive_bit_for_bit(monkeypatch):
    """Two ranks by hand: the second has two results, the first has none and learns shapes and types from them."""
    nan = torch.tensor([float("nan"), 1e-300], dtype=torch.float64)
    results = [(torch.tensor([True, False]), {"x": nan}), (torch.zeros(0, dtype=torch.bool), {"x": nan[:1]})]
    sums: list[torch.Tensor] = []
    monkeypatch.setattr(ranks, "size", lambda: 2)
    monkeypatch.setattr(ranks, "total", lambda values: sums.append(values) or values)
    whole = gathered(results, range(0, 2), range(0, 2), lambda: None)
    queue = iter(sums[:])
    monkeypatch.setattr(ranks, "total", lambda values: values + next(queue))
    found = gathered([], range(2, 2), range(0, 2), lambda: results[1])
    for one, other, wanted in zip(found, whole, results, strict=True):
        for a in (one, other):
            assert torch.equal(a[0], wanted[0]) and a[0].dtype == torch.bool
            assert torch.equal(a[1]["x"].view(torch.int64), wanted[1]["x"].view(torch.int64))
