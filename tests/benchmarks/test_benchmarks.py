"""The rows of the reproduction tables: told apart by name, written as plain values, and buildable."""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import quickstudy as qs
from quickstudy.experiments import recipes
from quickstudy.experiments.request import Request, open_tasks


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def tables(load):
    return load("reproduce.tables").TABLES


@pytest.mark.parametrize("long", [False, True])
def test_every_row_can_be_built(tables, long):
    built = set()
    for (what, _), rows in tables.items():
        found = [row for part in rows(long) for row in part]
        assert len({row.name for row in found}) == len(found) > 0
        for row in found:
            assert json.loads(json.dumps(row.settings()))["learner"] == row.learner
            assert not row.features or row.features in {r.name for r in found[: found.index(row)]}
            asked = (row.learner, row.sizes[0] is None, str(row.fields), str(row.network))
            if asked in built or what == "cifar_fs":  # test_cifar.py builds those
                continue
            built.add(asked)
            tasks = open_tasks(Request("sinusoid" if row.sizes[0] is None else "glyphs", 5), "train")
            cls = recipes.find_learner(row.learner)[1]
            theta = recipes.build_learner(cls, tasks, dict(row.fields), dict(row.network)).init()
            assert all(torch.isfinite(value).all() for value in theta.values())
    assert len(built) > 20


def test_results_that_stand_are_those_of_the_rows(tables):
    """A change of the settings that leaves the table behind would have every row trained again."""
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    seen = 0
    for (what, family), rows in tables.items():
        path = results / (f"{what}.json" if family == "foundation" else f"{what}-{family}.json")
        if not path.exists() or family == "foundation":  # the oldest tables keep no settings
            continue
        known = {row["name"]: row["settings"] for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
        for row in (row for part in rows(False) for row in part):
            if row.name in known:
                assert json.loads(json.dumps(row.settings())) == known[row.name], row.name
                seen += 1
    assert seen > 40


def test_the_course_of_a_training_is_its_end_of_each_quarter(load, tmp_path):
    lines = [{"iteration": 20 * i, "loss": 100.0 - i, "accuracy": i / 100} for i in range(1, 101)]
    lines.insert(3, {"iteration": 61, "loss": 1.0})  # without a training accuracy
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    course = load("reproduce.measuring").course
    found = course(tmp_path / "metrics.jsonl")
    assert [q["iteration"] for q in found] == [500, 1000, 1500, 2000]
    assert [q["loss"] for q in found] == pytest.approx([100 - i + 2.5 for i in (25, 50, 75, 100)])
    assert [q["accuracy"] for q in found] == pytest.approx([(i - 2.5) / 100 for i in (25, 50, 75, 100)])
    assert course(tmp_path / "nothing.jsonl") == []


def row_of(name: str, *queries: int, shift: float = 0.0) -> dict:
    """A stored row: one training, tested with each of these numbers of queries."""
    drawn = torch.Generator().manual_seed(0)
    values = [0.8 + shift + 0.05 * torch.randn(50, generator=drawn).double() for _ in queries]
    protocol = qs.Protocol("MAML", "omniglot", "test", 5, 1, 15, "accuracy", 50, 1, False, "none")
    scores = [qs.Score(v, dataclasses.replace(protocol, queries=n)) for v, n in zip(values, queries, strict=True)]
    return {"name": name, "scores": [[score.to_dict()] for score in scores]}


def test_tests_of_one_training_are_not_trainings_from_several_seeds(load):
    over_seeds = load("reproduce.pages").over_seeds
    assert over_seeds([row_of("nearest-centroid", 15, 1), row_of("finetune", 1, 15)]) == []
    rows = [row_of("maml-seed0", 15, 1), row_of("maml-seed1", 15, 1, shift=0.1), row_of("maml-seed2", 1, shift=0.05)]
    *_, fifteen, one = over_seeds(rows)
    assert fifteen.endswith("| 7.1 points | 2 |") and one.endswith("| 5.0 points | 3 |")
    assert "5-way 1-shot" in one and "| 85.5 % (" in one  # the mean of the three


def test_stored_results_are_written_again_from_their_values(load):
    """Whatever their files say of means and intervals."""
    again = load("reproduce.again").again
    row = row_of("nearest-centroid", 15)
    wrong = {**row, "scores": [[{**plain, "text": "none", "interval": 0.5, "low": 0}] for (plain,) in row["scores"]]}
    right, mended = (again({"rows": [one]}, "omniglot", "foundation", False) for one in (row, wrong))
    assert mended == right and right["rows"][0]["scores"][0][0]["text"].startswith("80.2 % ± 1.6")


def test_the_pages_of_results_that_stand_are_made_again_to_the_letter(load):
    """A change of format would show in every one of them; older tables lack what pages say today."""
    results, pages = load("provenance").RESULTS, {"neural_processes": ("neural-processes",), "speed": ("speed",)}
    pages["reproduce"] = ("omniglot-gradient", "omniglot-metric", "omniglot-memory", "cifar_fs-metric")
    for package, names in pages.items():
        page = {"neural_processes": "page", "speed": "markdown", "reproduce": "table"}[package]
        for name in names:
            result = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
            made = getattr(load(f"{package}.pages"), page)(result)
            assert made == (results / f"{name}.md").read_text(encoding="utf-8"), name


def test_a_page_says_under_what_else_a_published_number_was_measured(load):
    results = load("provenance").RESULTS
    told = {p.stem for p in results.glob("*.md") if "turn test characters too" in p.read_text(encoding="utf-8")}
    assert told == {"omniglot", "omniglot-metric", "omniglot-memory"}  # where ProtoNet's numbers stand


@pytest.mark.parametrize(
    "name",
    ["speed", "speed.memory", "reproduce", "neural_processes", "cost", "planning", "scaling", "to_accuracy"],
)
def test_every_command_says_what_it_does(name):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr
