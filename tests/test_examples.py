"""Every example runs, for a few steps, and says what it promises to say."""

from __future__ import annotations

import os
import re
import runpy
import sys
from pathlib import Path

import pytest

from quickstudy.learners.gradient import maml

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("QUICKSTUDY_SHARED_DATA") or ROOT.parent / "shared/data")
needs_omniglot = pytest.mark.skipif(
    not (SHARED / "omniglot").is_dir(), reason="the folder shared/data/omniglot is absent"
)
needs_clinc = pytest.mark.skipif(not (SHARED / "clinc150").is_dir(), reason="the folder shared/data/clinc150 is absent")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example with these arguments, as `python examples/NAME` does; what it printed."""

    def example(name: str, *arguments: object) -> str:
        path = str(ROOT / "examples" / name)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return example


def test_every_example_is_run_here_and_named_in_the_readme():
    names = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert names == set(re.findall(r'run\(\s*"(\w+\.py)"', Path(__file__).read_text("utf-8")))
    readme = (ROOT / "README.md").read_text("utf-8")
    assert all(f"examples/{name}" in readme for name in names)


def test_draw_new_glyphs(run, tmp_path):
    assert "5 new characters" in run("draw_new_glyphs.py", tmp_path)
    assert len(list(tmp_path.glob("support/*/*.png"))) == 5 and len(list(tmp_path.glob("query/*.png"))) == 10


def test_linear_regression_agrees_with_its_closed_form(run):
    printed = run("linear_regression_closed_form.py", "--steps", 4, "--lr", 0.2, "--inputs", 4)
    largest = float(printed.split()[-1])
    assert largest <= 1e-14
    assert "first-order MAML" in printed


def test_linear_regression_exits_where_the_second_order_term_is_missing(run, monkeypatch):
    whole = maml.descend
    monkeypatch.setattr(maml, "descend", lambda *a, **named: whole(*a, **named | {"adjoint": "first_order"}))
    with pytest.raises(SystemExit, match="disagree"):
        run("linear_regression_closed_form.py")


def test_reptile_learns_from_arrays(run):
    printed = run("reptile_own_arrays.py", "--iterations", 60, "--training-tasks", 50, "--episodes", 40)
    scratch, longer, meta_trained = (score_after(label, printed) for label in ("scratch:", "100 steps:", "training:"))
    assert meta_trained > max(scratch, longer) + 3
    assert re.search(r"learned from 10 examples: \d+% of 100 answers", printed)


@pytest.mark.parametrize("tasks", ["glyphs", pytest.param("omniglot", marks=needs_omniglot)])
def test_a_conv_module_of_ones_own(run, tmp_path, tasks):
    few = ("--iterations", 2, "--episodes", 8, "--data", SHARED, "--out", tmp_path / "folder/own.qs")
    printed = run("own_conv_module.py", "--tasks", tasks, *few)
    assert re.search(r"^ok: the meta-gradient of MAML", printed, re.MULTILINE)
    assert re.search(r"^score: [\d.]+ % .*8 episodes; 5-way 1-shot, no norm, 5 inner steps", printed, re.MULTILINE)
    assert "loaded, it answers 75 queries of a new task as before" in printed
    counts = {"glyphs": "600 classes to train on, 200 others", "omniglot": "4112 classes to train on, 423 others"}
    assert counts[tasks] in printed  # 1028 characters in four rotations


def score_after(label: str, printed: str) -> float:
    return float(re.search(rf"{re.escape(label)}\s+([\d.]+) %", printed)[1])  # type: ignore[index]


@needs_clinc
def test_intents_are_compared_with_tf_idf(run):
    printed = run("intents.py", "--data", SHARED, "--iterations", 2, "--episodes", 10)
    rows = [line.split(" | ") for line in printed.splitlines() if re.match(r"\| [15] \|", line)]
    assert [row[0].strip("| ") for row in rows] == ["1"] * 4 + ["5"] * 4
    assert rows[0][1] == "**MatchingNet**" and rows[3][1] == "TF-IDF, logistic regression"
    assert all(20 < float(row[2].split(" %")[0]) <= 100 for row in rows)


@needs_clinc
def test_requests_of_no_intent_are_told(run):
    printed = run("out_of_scope.py", "--data", SHARED, "--iterations", 2, "--episodes", 4)
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if re.match(r"\| \d+-way", line)]
    assert [row[0] for row in rows] == ["5-way 5-shot"] * 4 + ["10-way 5-shot"] * 4
    assert [row[1] for row in rows[:2]] == ["of no intent", "other intents"]
    assert all(len(row) == 10 and 70 < float(row[3].split(" %")[0]) <= 100 for row in rows)


@pytest.mark.skipif(not (SHARED / "movietweetings_100k").is_dir(), reason="shared/data/movietweetings_100k is absent")
def test_cold_start_is_compared_with_simple_baselines(run):
    printed = run("cold_start.py", "--data", SHARED, "--iterations", 2, "--episodes", 5, "--lams", 20)
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if re.match(r"\| (5|20) \|", line)]
    assert [row[0] for row in rows] == ["5"] * 7 + ["20"] * 7
    assert rows[0][1] == "MAML" and rows[3][1] == "item mean + user offset"
    assert all(0 < float(row[2].split(" ± ")[0]) < 25 for row in rows)
