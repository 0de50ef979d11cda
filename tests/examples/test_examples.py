"""Every example runs, for a few steps, and says what it promises to say."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch

import quickstudy as qs
from quickstudy.learners.gradient import maml

ROOT = Path(__file__).parents[2]
SHARED_BY_EXAMPLES = "comparison.py"
SHARED = Path(os.environ.get("QUICKSTUDY_SHARED_DATA") or ROOT.parent / "shared/data")


def needs(folder: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (SHARED / folder).is_dir(), reason=f"the folder shared/data/{folder} is absent")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example with these arguments, as `python examples/NAME` does; what it printed."""

    def example(name: str, *arguments: object) -> str:
        path = str(ROOT / "examples" / name)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        monkeypatch.syspath_prepend(ROOT / "examples")  # where the interpreter looks first for a script's imports
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return example


def test_every_example_is_run_here_and_named_in_the_readme_or_the_page_of_examples():
    names = {path.name for path in (ROOT / "examples").glob("*.py")} - {SHARED_BY_EXAMPLES}
    assert names == set(re.findall(r'run\(\s*"(\w+\.py)"', Path(__file__).read_text("utf-8")))
    pages = "".join((ROOT / page).read_text("utf-8") for page in ("README.md", "docs/examples.md"))
    assert all(f"examples/{name}" in pages for name in names)


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


@pytest.mark.parametrize("tasks", ["glyphs", pytest.param("omniglot", marks=needs("omniglot"))])
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


@needs("clinc150")
def test_intents_are_compared_with_tf_idf(run):
    printed = run("intents.py", "--data", SHARED, "--iterations", 2, "--episodes", 10)
    rows = [line.split(" | ") for line in printed.splitlines() if re.match(r"\| [15] \|", line)]
    assert [row[0].strip("| ") for row in rows] == ["1"] * 4 + ["5"] * 4
    assert rows[0][1] == "**MatchingNet**" and rows[3][1] == "TF-IDF, logistic regression"
    assert all(20 < float(row[2].split(" %")[0]) <= 100 for row in rows)


@needs("clinc150")
def test_requests_of_no_intent_are_told(run):
    printed = run("out_of_scope.py", "--data", SHARED, "--iterations", 2, "--episodes", 4)
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if re.match(r"\| \d+-way", line)]
    assert [row[0] for row in rows] == ["5-way 5-shot"] * 4 + ["10-way 5-shot"] * 4
    assert [row[1] for row in rows[:2]] == ["of no intent", "other intents"]
    assert all(len(row) == 10 and 70 < float(row[3].split(" %")[0]) <= 100 for row in rows)


@needs("movietweetings_100k")
def test_cold_start_is_compared_with_simple_baselines(run):
    printed = run("cold_start.py", "--data", SHARED, "--iterations", 2, "--episodes", 5, "--lams", 20)
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if re.match(r"\| (5|20) \|", line)]
    assert [row[0] for row in rows] == ["5"] * 7 + ["20"] * 7
    assert rows[0][1] == "MAML" and rows[3][1] == "item mean + user offset"
    assert all(0 < float(row[2].split(" ")[0]) < 25 for row in rows)


@needs("pneumoniamnist")
@needs("cifar100")
def test_x_rays_are_asked_of_what_learned_on_photographs(run):
    printed = run("xrays.py", "--data", SHARED, "--iterations", 1, "--episodes", 4)
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if re.match(r"\| (5|10) \|", line)]
    assert [row[0] for row in rows] == ["5"] * 6 + ["10"] * 6
    assert rows[1][1] == "logistic regression on pixels" and rows[4][1] == "R2D2, untrained"
    assert all(30 < float(row[2].split(" %")[0]) <= 100 for row in rows)


# --- tables of examples on real data ---------------------------------------------------------------------------------


@pytest.fixture
def comparison(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("comparison")


def methods(printed: str) -> list[dict[str, float]]:
    """Of each table printed: method -> its score, the column before the two differences."""
    found = []
    for part in (part for part in printed.split("\n\n") if part.startswith("| method")):
        head, _, *lines = [line.strip("| ").split(" | ") for line in part.splitlines()]
        column = next(i for i, name in enumerate(head) if name.startswith(("accuracy", "mean squared error")))
        found.append({line[0]: float(line[column].split()[0]) for line in lines})
    return found


def test_folds_test_each_task_once_and_never_train_on_it(comparison):
    frame = pandas.DataFrame({"task": [name for name in "abcdefg" for _ in range(3)], "x": range(21)})
    parts = list(comparison.folds(frame, "task", 3))
    assert sorted(name for part in parts for name in part["test"].task.unique()) == list("abcdefg")
    for part in parts:
        names = [set(part[split].task) for split in ("train", "val", "test")]
        assert set.union(*names) == set("abcdefg") and sum(map(len, names)) == 7
        assert sum(map(len, part.values())) == 21


def test_a_table_of_paired_differences_by_hand(comparison):
    """Two tasks: 0.5 and 1.0 against 0.4 and 0.6, so +25 points ± t_1(0.975) * 10.6 = 190, which is all that there is.

    Of 0.4 and 0.6 the logit of the mean is 0 ± t_1(0.975) * 0.1 * 4 = 5.08, so the ends are 0.6 and 99.4 %.
    """
    protocol = qs.Protocol("MAML", "table", "test", 2, 1, 1, "accuracy", 3, 1, False, "none")

    def scores(task: str, **values: list[float]) -> dict[str, qs.Score]:
        return {n: qs.Score(torch.tensor(v).double(), protocol, tasks=(task,) * len(v)) for n, v in values.items()}

    parts = [scores("a", ours=[0.4, 0.6], other=[0.3, 0.5]), scores("b", ours=[1.0], other=[0.6])]
    head, _, ours, other = comparison.table(comparison.joined(parts), ["other"], each=True).splitlines()
    assert head == "| method | a | b | accuracy, % | minus other, paired |"
    assert ours.startswith("| ours | 50.0 ± 49.4 | 100.0 (one task: no interval) | 75.0 (0.0 to 100.0) |")
    assert ours.endswith("| +25.0 (-100.0 to +100.0) (not decided) |") and other.endswith("| 50.0 ± 49.4 |  |")


@needs("heart_disease_4sites")
def test_hospitals_are_left_out_one_by_one(run):
    printed = run("hospitals.py", "--data", SHARED, "--iterations", 1, "--episodes", 4)
    five, twenty = methods(printed)
    assert "| method | cleveland | hungarian | switzerland | va | accuracy, % |" in printed
    assert "20 patients of each class, 3 hospitals" in printed
    assert five.keys() == twenty.keys() and {"MAML", "pooled gradient boosting"} < five.keys()
    assert five["pooled logistic regression"] > 55  # chance is 50


@needs("wisdm_har")
def test_people_are_left_out(run):
    printed = run("activity.py", "--data", SHARED, "--folds", 3, "--iterations", 1, "--episodes", 8)
    one, _, five, _ = methods(printed)
    assert printed.count("The 18 who have all six activities:") == 2
    assert one.keys() == five.keys() and {"ProtoNet", "random forest per person"} < one.keys()
    assert five["random forest per person"] > 50  # of six activities


@needs("molecules")
def test_assays_are_split_by_experiment(run):
    printed = run("molecules.py", "--data", SHARED, "--only", "tox21", "--iterations", 1, "--episodes", 8)
    known, new = methods(printed)
    assert "tox21, new molecules: 7 assays to train on, 3 others" in printed
    assert known.keys() == new.keys() and {"ProtoNet", "random forest per assay", "pooled network"} < new.keys()


@needs("molecules")
def test_new_molecules_are_in_no_training_assay(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    molecules = importlib.import_module("molecules")
    labels = molecules.read(SHARED, "tox21")[1]
    numbered = np.arange(len(labels), dtype=np.float32)[:, None]
    parts = [molecules.assays(numbered, labels, "tox21", *which) for which in (("train",), ("test", True))]
    train, new = (set(part.x[:, 0].tolist()) for part in parts)
    assert len(train) > 1000 and len(new) > 1000 and not train & new


@needs("grouped_tabular")
def test_schools_and_chicks(run):
    printed = run("schools.py", "--data", SHARED, "--folds", 3, "--iterations", 1, "--episodes", 8)
    exam, chicks = methods(printed)
    assert exam["pooled ridge"] < 1.1  # marks have variance 1
    assert chicks["ridge regression per task"] < 71.1**2 and "MAML" in chicks  # the variance of weights


@needs("cmapss_turbofan")
def test_engines_of_two_fleets(run):
    printed = run("turbofan.py", "--data", SHARED, "--iterations", 1, "--episodes", 20)
    same, other = methods(printed)
    assert "FD001: 96 engines, trained on 80 of FD001" in printed and "FD003: 99 engines" in printed
    assert same.keys() == other.keys() and "CNP" in same
    assert same["pooled ridge"] < same["as now"] < 0.2  # the index has variance 1, and engines wear slowly


@needs("sp500_5yr")
def test_tickers_of_a_later_year(run):
    printed = run("prices.py", "--data", SHARED, "--iterations", 1, "--episodes", 20)
    volatility, returns = methods(printed)
    assert "volatility: 280 tickers to train on, 94 others" in printed
    assert volatility["pooled ridge"] < volatility["as last week"]
    assert returns["pooled ridge"] == pytest.approx(returns["zero"], rel=0.3) and "MAML" in returns


def test_the_lag_of_a_week_is_the_answer_of_the_week_before(monkeypatch):
    """Nothing of the future is in a row: absolute moves of 1 % for ten days, then of 2 %."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    moves = np.repeat([[1.0, -2.0]], 10, axis=1)
    found = importlib.import_module("prices").volatility(moves, 5)
    assert np.isnan(found[0, :4]).all()
    assert found[0, [4, 9, 10, 14]] == pytest.approx(np.log([1.1, 1.1, 1.3, 2.1]))
