"""Pages of runs that were scored with a metric of the user's own: its direction, its unit and its name."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

import quickstudy as qs
from quickstudy.evaluation.metric import ACCURACY, PERCENT, Format, Metric
from quickstudy.evaluation.score import Score
from quickstudy.experiments.run import read_run
from quickstudy.report.scale import Scale
from quickstudy.report.writing import write_report

HOURS = Format(spec=".1f", spread=".1f", unit=" h", points=" h")
DELAY = Metric("delay", False, HOURS, lambda output, y: output.mean())
RECALL = Metric("recall", True, PERCENT, lambda output, y: output.mean())
PROTOCOL = qs.Protocol("MAML", "trains", "test", None, 5, 5, "delay", 6, 1, False, "none", steps=1)
VALUES = torch.tensor([2.0, 2.2, 2.1, 2.3, 1.9, 2.0], dtype=torch.float64)


def run(folder: Path, metric: Metric, values: torch.Tensor, control: torch.Tensor, trained_by: object = None) -> Path:
    """A run folder with scores under this metric, as `train` and `evaluate` write it."""
    protocol = dataclasses.replace(PROTOCOL, metric=metric.name, learner=folder.name)
    controls = {"zero_steps": Score(control, dataclasses.replace(protocol, control="zero_steps"), own_metric=metric)}
    score = Score(values, protocol, controls, own_metric=metric)
    folder.mkdir()
    plain = {"learner": {"name": folder.name, "fields": {"steps": 1}}, "tasks": {"name": "trains", "split": "train"}}
    plain |= {"meta_batch": 4, "seed": 0, "iterations": 20, "metric": trained_by}
    (folder / "config.json").write_text(json.dumps(plain))
    lines = [{"iteration": i, "loss": 1 / i, "val": val, "val_interval": 0.1} for i, val in ((10, 3.0), (20, 2.0))]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    steps = [{"steps": k, "mean": mean, "interval": 0.1} for k, mean in ((0, 4.0), (1, 2.1), (2, 2.5))]
    timing = {"adapt_seconds": 0.1, "predict_seconds": 0.1}
    scores = {"scores": [score.to_dict()], "steps": steps, "timing": timing, "machine": {}}
    (folder / "scores.json").write_text(json.dumps(scores))
    return folder


def text(page: Path) -> str:
    without_style = re.sub(r"<style>.*?</style>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", without_style))


def test_a_page_reads_in_the_metrics_unit_and_direction(tmp_path: Path) -> None:
    page = text(write_report([run(tmp_path / "MAML", DELAY, VALUES, VALUES + 2)]))
    assert (
        "2.1 h ± 0.2 delay on the queries of unseen tasks, after 5 support examples of each. Smaller is better." in page
    )
    assert "Adaptation matters: without inner steps 4.1 h." in page and "difference −2.0 h ± 0.0" in page
    assert "Shorter bars are better." in page
    assert "best after 1: 2.1 h" in page and "Best validation 2.0 h at iteration 20 (ringed" in page
    assert "Delay against inner steps" in page and "delay (h)" in page
    assert "accuracy" not in page and "chance" not in page.split("Learning curves")[1]


def test_where_higher_is_better_it_is_said_and_read_so(tmp_path: Path) -> None:
    page = text(write_report([run(tmp_path / "MAML", RECALL, VALUES / 3, VALUES / 4)]))
    assert "69.4 % ± 5.1 recall on the queries" in page and "Larger is better." in page
    assert "Adaptation matters: without inner steps 52.1 %." in page and "Shorter bars" not in page
    assert "chance" not in page  # guessing gives no known recall


@pytest.mark.parametrize(("metric", "best"), [(DELAY, "small"), (RECALL, "large")])
def test_runs_are_ranked_in_the_metrics_direction(tmp_path: Path, metric: Metric, best: str) -> None:
    folders = [run(tmp_path / name, metric, VALUES / k, VALUES) for name, k in (("large", 3), ("small", 6))]
    page = text(write_report(folders))
    assert f"trains, 5-shot: {best} is best" in page


def test_curves_of_unlike_metrics_are_not_laid_over_each_other(tmp_path: Path) -> None:
    folders = [run(tmp_path / metric.name, metric, VALUES / 3, VALUES) for metric in (DELAY, RECALL)]
    page = text(write_report(folders))
    assert "delay (validation) ends at 2 h." in page and "recall (validation) ends at 200 %." in page


def test_curves_are_those_of_the_metric_of_training(tmp_path: Path) -> None:
    named = run(tmp_path / "named", DELAY, VALUES, VALUES, trained_by="accuracy")
    described = run(tmp_path / "described", DELAY, VALUES, VALUES, trained_by=RECALL.to_dict())
    logged = run(tmp_path / "logged", RECALL, VALUES / 3, VALUES)
    (logged / "metrics.jsonl").write_text('{"iteration": 1, "loss": 1.0, "error": 0.5, "val": 0.4}\n')
    (described / "metrics.jsonl").write_text('{"iteration": 1, "loss": 1.0, "score": 0.25}\n')
    known = run(tmp_path / "known", DELAY, VALUES, VALUES, trained_by="delay")
    assert read_run(known).metric.format == HOURS
    assert read_run(named).metric is ACCURACY and read_run(described).metric.format == PERCENT
    assert read_run(logged).metric.name == "mean squared error"
    assert "Best validation 0.4 at iteration 1" in text(write_report([logged]))
    page = text(write_report([described]))
    assert "The training recall is of 4 tasks a point" in page and "recall (%)" in page


def test_bars_of_large_and_of_negative_values_stay_on_the_axis() -> None:
    reward = Metric("reward", True, Format(), lambda output, y: output.mean())
    protocol = dataclasses.replace(PROTOCOL, metric="reward", episodes=2)
    low, high = (Score(torch.full((2,), v).double(), protocol, own_metric=reward) for v in (-1.0, 99.0))
    scale = Scale([low, high])
    assert scale.bar(high) == {"left": 1.0, "width": 99.0, "low": 100.0, "wide": 0.0, "mean": 100.0}
    assert scale.bar(low)["left"] == 0.0 and scale.bar(low)["width"] == 1.0
