"""Comparisons of learners: equal time, the same episodes, honest differences, and advice that follows from them."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import time
from pathlib import Path

import pandas
import pytest
import torch
from made_up import comparison, entry, metric_called, own
from test_baselines import kinds, levels

import quickstudy as qs
from quickstudy.cli import main
from quickstudy.cli.options import CompareOptions
from quickstudy.errors import ConfigError, NonFiniteError, RunError
from quickstudy.experiments.advice import advise
from quickstudy.experiments.compare_learners import compare_learners
from quickstudy.experiments.comparison import Entry, LearnerComparison
from quickstudy.experiments.recipes import baselines
from quickstudy.report.writing import write_comparison

# --- whole comparisons -----------------------------------------------------------------------------------------------


def small(**changes: object) -> dict[str, object]:
    return {"minutes": 0.002, "meta_batch": 2, "episodes": 4, "progress": False} | changes


def test_comparing_values(tmp_path: Path) -> None:
    """A table of values: what answers without a label is measured so, and the file says all."""
    tasks = levels()
    learners = {
        "maml": lambda: qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=0.05, steps=1),
        "cnp": lambda: qs.CNP(torch.nn.Flatten(), width=1, representation=8),
    }
    from sklearn.linear_model import Ridge

    baselines = {"ridge": qs.per_task(Ridge(), tasks), "pooled": qs.pooled(Ridge(), tasks)}
    found = compare_learners(
        learners, tasks, tasks, val=tasks, out=tmp_path, baselines=baselines, seeds=(0, 1), **small()
    )  # type: ignore[arg-type]
    assert {e.name: e.meta for e in found.entries} == {"maml": True, "cnp": True, "ridge": False, "pooled": False}
    assert [e.score.mean for e in found.entries] == sorted(e.score.mean for e in found.entries)
    assert len(found["maml"].trials) == 2 and found["maml"].spread is not None
    assert found["maml"].trials[0].score.values.tolist() != found["maml"].trials[1].score.values.tolist()
    assert found["maml"].bytes == (tmp_path / "maml-seed0" / "learner.qs").stat().st_size
    assert {e.name for e in found.entries if e.unlabelled is not None} == {"maml", "cnp", "pooled"}
    assert {e.name for e in found.entries if e.calibration_error is not None} == {"cnp"}
    zero = qs.evaluate(qs.load(tmp_path / "maml-seed0" / "learner.qs"), tasks, episodes=4, steps=0)  # type: ignore
    assert found["maml"].unlabelled.values.tolist() == pytest.approx(zero.values.tolist())  # type: ignore[union-attr]
    again = LearnerComparison.from_dict(json.loads((tmp_path / "comparison.json").read_text()))
    assert advise(again) == advise(found)
    page = write_comparison(again, tmp_path).read_text()
    assert "Does meta-learning pay?" in page and "seed to seed" in page


class Slow(torch.nn.Linear):
    """A line that takes 20 ms."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return super().forward(input)


def test_the_time_is_equal_and_the_iterations_follow_from_it(tmp_path: Path) -> None:
    """An iteration calls the network for support and query: about 600 / 40 iterations fit into 0.01 minutes."""
    tasks, fields = levels(), {"loss": qs.mse_loss, "lr": 0.05, "steps": 1}
    learners = {
        "quick": lambda: qs.MAML(torch.nn.Linear(1, 1), **fields),  # type: ignore[arg-type]
        "slow": lambda: qs.MAML(Slow(1, 1), **fields),  # type: ignore[arg-type]
    }
    found = compare_learners(learners, tasks, tasks, out=tmp_path, **small(minutes=0.01))  # type: ignore[arg-type]
    quick, slow = (found[name].trials[0].iterations for name in ("quick", "slow"))
    assert 1 <= slow <= 20 and quick > 1.5 * slow
    times = [found[name].trials[0].seconds for name in ("quick", "slow")]
    assert min(times) >= 0.6 and max(times) < 0.8


def timed(name: str, *seconds: float, wall: float = 1.0) -> Entry:
    """An entry whose trainings had these seconds, and so many times as long by the clock on the wall."""
    one = entry(name, *[0.9] * len(seconds))
    trials = [
        dataclasses.replace(trial, seconds=own, wall_seconds=wall * own, iterations=round(10 * own))
        for trial, own in zip(one.trials, seconds, strict=True)
    ]
    return dataclasses.replace(one, trials=tuple(trials))


def test_what_each_training_really_had_is_told(tmp_path: Path) -> None:
    found = comparison(timed("maml", 132.0, 18.0), timed("cnp", 18.0, 7.5), entry("plain", 0.5, trained=False))
    warning = "Training times differ: a training of maml took 2 min 12 s, one of cnp 7.5 s."
    page = write_comparison(found, tmp_path).read_text("utf-8")
    assert found.warnings == [warning] and warning in str(found) and warning in page
    assert (
        "180 to 1,320" in str(found) and "75 to 180 iterations" in page and "each time for 7.5 s to 2 min 12 s" in page
    )
    assert found.to_dict()["warnings"] == [warning] and "what other programs took" not in page
    trials = found.to_dict()["entries"][0]["trials"]
    assert {(one["seconds"], one["wall_seconds"]) for one in trials} <= {(132.0, 132.0), (18.0, 18.0), (7.5, 7.5)}


def test_times_within_a_fifth_need_no_warning_and_the_wall_is_told_where_others_worked(tmp_path: Path) -> None:
    found = comparison(timed("maml", 18.0, 21.0, wall=3), timed("cnp", 18.5, 18.0, wall=3))
    assert found.warnings == []
    assert "by the clock on the wall 54 s to 1 min 3 s: what other programs took does not count" in write_comparison(
        found, tmp_path
    ).read_text("utf-8")


def test_a_file_of_an_earlier_version_is_read() -> None:
    plain = json.loads(json.dumps(comparison(timed("maml", 18.0)).to_dict()))
    del plain["warnings"], plain["entries"][0]["trials"][0]["wall_seconds"]
    again = LearnerComparison.from_dict(plain)
    assert again.entries[0].trials[0].wall_seconds is None and again.alone and again.warnings == []


def test_a_comparison_goes_on_with_more_seeds(tmp_path: Path) -> None:
    tasks, learners = kinds(), {"r2d2": lambda: qs.R2D2(torch.nn.Linear(2, 4), ways=3)}
    once = compare_learners(learners, tasks, tasks, out=tmp_path, **small(seeds=(0,)))  # type: ignore[arg-type]
    more = compare_learners(learners, tasks, tasks, out=tmp_path, **small(seeds=(0, 1), resume=True))  # type: ignore
    assert once.alone and not more.alone
    assert [trial.seed for trial in more["r2d2"].trials] == [0, 1]
    same = pytest.approx(once["r2d2"].trials[0].score.values.tolist())
    assert more["r2d2"].trials[0].score.values.tolist() == same
    with pytest.raises(RunError, match="seeds"):
        compare_learners(learners, tasks, tasks, out=tmp_path, **small(seeds=(1,), resume=True))  # type: ignore


def test_three_trainings_of_a_minute_unless_one_says_otherwise() -> None:
    asked, defaults = CompareOptions("glyphs"), inspect.signature(compare_learners).parameters
    assert asked.seeds == defaults["seeds"].default == (0, 1, 2)
    assert asked.minutes == defaults["minutes"].default == 1.0


def test_a_comparison_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    tasks = kinds()
    first = {"r2d2": lambda: qs.R2D2(torch.nn.Linear(2, 4), ways=3)}
    found = compare_learners(first, tasks, tasks, out=tmp_path, **small())  # type: ignore[arg-type]
    before = (tmp_path / "r2d2-seed0" / "learner.qs").stat().st_mtime_ns
    with pytest.raises(RunError, match="--resume"):
        compare_learners(first, tasks, tasks, out=tmp_path, **small())  # type: ignore[arg-type]
    with pytest.raises(RunError, match="episodes = 4, now it is 5"):
        compare_learners(first, tasks, tasks, out=tmp_path, **small(episodes=5, resume=True))  # type: ignore[arg-type]
    both = first | {"protonet": lambda: qs.ProtoNet(torch.nn.Linear(2, 4), ways=3)}
    more = compare_learners(both, tasks, tasks, out=tmp_path, **small(resume=True))  # type: ignore[arg-type]
    assert more["r2d2"].score.values.tolist() == pytest.approx(found["r2d2"].score.values.tolist())
    assert (tmp_path / "r2d2-seed0" / "learner.qs").stat().st_mtime_ns == before
    assert "protonet" in {e.name for e in more.entries}


def test_what_diverges_is_left_out_with_its_reason(tmp_path: Path) -> None:
    tasks = levels()
    learners = {
        "wild": lambda: qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=1e9, steps=9),
        "maml": lambda: qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss),
    }
    found = compare_learners(learners, tasks, tasks, out=tmp_path, **small())  # type: ignore[arg-type]
    assert [e.name for e in found.entries] == ["maml"]
    assert "not finite" in found.failed["wild"]


def test_a_baseline_that_diverges_is_left_out_and_nothing_at_all_is_refused(tmp_path: Path) -> None:
    tasks = levels()
    wild = qs.Trained(qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss, lr=1e9, steps=9), qs.nn.mlp(1, 1).state_dict())
    steady = {"r2d2": lambda: qs.R2D2(qs.nn.mlp(1), qs.mse_loss, None)}
    found = compare_learners(steady, tasks, tasks, out=tmp_path / "a", baselines={"wild": wild}, **small())  # type: ignore
    assert [e.name for e in found.entries] == ["r2d2"] and "not finite" in found.failed["wild"]
    with pytest.raises(NonFiniteError, match="nothing to compare: wild: "):
        compare_learners({"wild": lambda: wild.learner}, tasks, tasks, out=tmp_path / "b", **small())  # type: ignore


def test_only_what_ignores_the_answers_is_said_to_answer_without_them(tmp_path: Path) -> None:
    """A linear probe has steps, but for values none of them: at no step it is fitted all the same."""
    values, classes = levels(), kinds()
    learners = {"maml": lambda: qs.MAML(qs.nn.mlp(1, 1), loss=qs.mse_loss)}
    found = compare_learners(
        learners, values, values, out=tmp_path / "a", baselines=baselines(values, values), **small()
    )  # type: ignore[arg-type]
    able = {e.name for e in found.entries if e.unlabelled is not None}
    assert able == {"maml", "pooled-ridge-and-level", "pooled-boosting-and-level"}
    plain = qs.evaluate(baselines(values, values)["pooled-ridge-and-level"], values, episodes=4).mean
    assert found["pooled-ridge-and-level"].unlabelled.mean > plain  # type: ignore[union-attr]
    learners = {
        "maml": lambda: qs.MAML(qs.nn.mlp(2, 3)),
        "leo": lambda: qs.LEO(qs.nn.mlp(2), width=40, ways=3),
        "protonet": lambda: qs.ProtoNet(qs.nn.mlp(2), ways=3),
    }
    found = compare_learners(learners, classes, classes, out=tmp_path / "b", **small())  # type: ignore[arg-type]
    assert {e.name for e in found.entries if e.unlabelled is not None} == {"maml"}


@pytest.mark.parametrize("changes", [{"minutes": 0.0}, {"episodes": 1}, {"seeds": ()}])
def test_settings_that_make_no_comparison(tmp_path: Path, changes: dict[str, object]) -> None:
    tasks = kinds()
    learners = {"r2d2": lambda: qs.R2D2(torch.nn.Linear(2, 4), ways=3)}
    with pytest.raises(ConfigError):
        compare_learners(learners, tasks, tasks, out=tmp_path, **small(**changes))  # type: ignore[arg-type]


# --- on the command line ---------------------------------------------------------------------------------------------


def test_compare_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compare", "glyphs", "protonet", "--ways", "3", "--queries", "2", "--filters", "4"]
    sizes = ["--minutes", "0.001", "--episodes", "4", "--meta-batch", "2", "--seeds", "3", "5"]
    assert main.run([*words, *sizes, "--out", str(tmp_path / "which"), "--csv", "--png"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in ("protonet", "finetune", "linear-probe", "Does meta-learning pay?"))
    page = (tmp_path / "which" / "comparison.html").read_text()
    assert "Which learner for glyphs, 3-way 1-shot?" in page
    assert "quickstudy compare glyphs protonet --ways" in page
    beside = tmp_path / "which" / "comparison-files"
    rows = pandas.read_csv(beside / "learners.csv")
    assert len(rows) == 6  # two trainings of two learners, and two baselines
    plain = json.loads((tmp_path / "which" / "comparison.json").read_text())
    for one in plain["entries"]:
        if (name := one["name"]) in ("protonet", "finetune"):
            assert [trial["seed"] for trial in one["trials"]] == [3, 5] and one["meta"] == (name == "protonet")
            assert list(rows[rows["name"] == name].meta) == 2 * [one["meta"]]
            assert (tmp_path / "which" / f"{name}-seed5" / "learner.qs").exists()
    assert set(rows.episodes) == {4}
    assert [plain["settings"][word] for word in ("minutes", "meta_batch", "seeds")] == [0.001, 2, [3, 5]]
    assert {path.suffix for path in beside.iterdir()} == {".csv", ".png"}


def test_the_table_of_learners_tells_the_seed_of_each_training(tmp_path: Path) -> None:
    found = comparison(entry("a", 0.9, 0.8), entry("b", 0.7, 0.6))
    write_comparison(found, tmp_path, csv=True)
    rows = pandas.read_csv(tmp_path / "comparison-files" / "learners.csv")
    assert list(rows.seed) == [0, 1, 0, 1]


def test_costs_are_drawn_where_the_best_value_is_negative(tmp_path: Path) -> None:
    """Of a negative log-likelihood less is better, and it may be below zero."""
    metric = metric_called("negative log-likelihood", False)
    found = comparison(*(own(entry(name, mean), metric) for name, mean in (("a", -2.0), ("bb", -1.0))))
    assert "Scatter plot: 1 a, 2 bb" in write_comparison(found, tmp_path).read_text("utf-8")


def test_a_comparison_goes_by_the_metric_that_was_named(tmp_path: Path) -> None:
    sines = [qs.tasks.sinusoid(split, 5, 5) for split in ("train", "test", "val")]
    learners = {"maml": lambda: qs.MAML(qs.nn.mlp(1, 1, hidden=(4,)), loss=qs.mse_loss, lr=0.01)}
    quick = {"minutes": 0.001, "meta_batch": 2, "episodes": 4, "progress": False, "out": tmp_path / "which"}
    found = qs.compare_learners(learners, *sines[:2], val=sines[2], metric="mean absolute error", **quick)
    assert found.entries[0].score.protocol.metric == "mean absolute error"
    assert json.loads((tmp_path / "which" / "comparison.json").read_text())["settings"]["metric"]
    with pytest.raises(RunError, match="metric"):
        qs.compare_learners(learners, *sines[:2], val=sines[2], resume=True, metric="mean squared error", **quick)


def test_compare_refuses_before_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "which")]
    assert main.run(["compare", "sinusoid", "maml", "protonet", *out]) == 2
    assert "ProtoNet is for classification" in capsys.readouterr().err
    assert main.run(["compare", "glyphs"]) == 2
    assert "say first which tasks" in capsys.readouterr().err
    assert main.run(["compare", "glyphs", "protonett", *out]) == 2
    assert "protonet" in capsys.readouterr().err
    assert not (tmp_path / "which").exists()


# --- what stands beside ----------------------------------------------------------------------------------------------


def test_baselines_suit_the_tasks() -> None:
    classes, values, pictures = kinds(), levels(), qs.tasks.glyphs("val", ways=3)
    both = {"linear-probe", "gradient-boosting"}
    of_classes = {"nearest-centroid", "logistic-regression", "pooled-logistic-regression", "pooled-boosting"}
    named = {
        "classes": (classes, both | of_classes),
        "values": (values, both | {"ridge", "pooled-ridge-and-level", "pooled-boosting-and-level"}),
        "pictures": (pictures, {"linear-probe", "nearest-centroid"}),
    }
    for tasks, names in named.values():
        found = baselines(tasks, tasks)
        assert set(found) == names
        for name, trained in found.items():
            assert math.isfinite(qs.evaluate(trained, tasks, episodes=2).mean), name


def test_baselines_of_texts_are_tf_idf() -> None:
    rows = [(f"{word} number {i}", word) for word in ("pay", "card", "rate", "lost", "home", "visa") for i in range(8)]
    frame = pandas.DataFrame(rows, columns=["text", "label"])
    splits = {split: frame.assign(label=frame.label + split) for split in ("train", "val", "test")}
    train, test = (qs.tasks.from_text(splits, split, 5, 2, 3) for split in ("train", "test"))
    found = baselines(train, test)
    assert set(found) == {"tf-idf-centroid", "tf-idf-logistic-regression"}
    for trained in found.values():
        assert qs.evaluate(trained, test, episodes=4).mean > 0.9  # one word tells the class
