"""The files of an evaluated run hold what the measurements give that they are named after, under the settings asked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import clusters

import quickstudy as qs
from quickstudy.errors import DataError, NonFiniteError
from quickstudy.experiments.evaluate_run import evaluate_run
from quickstudy.report.writing import write_report

QUIET: dict[str, Any] = {"engine": "loop", "progress": False}
ASKED: dict[str, Any] = {"steps": 3, "ensemble": 2, "seed": 4}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> tuple[Path, qs.Trained, Any]:
    """A run that keeps two thetas, evaluated with other steps, an ensemble and another seed than by default."""
    torch.manual_seed(0)
    tasks = clusters(spread=1.0, queries=5)
    learner = qs.MAML(qs.nn.mlp(4, 3, hidden=(6,)), lr=0.1, steps=1)

    trained = qs.train(
        learner,
        tasks,
        iterations=4,
        meta_batch=4,
        val=tasks,
        val_every=2,
        val_episodes=4,
        keep=2,
        optimizer=lambda values: torch.optim.SGD(values, lr=1.0),
        **QUIET,
    )
    folder = tmp_path_factory.mktemp("run")
    evaluate_run(folder, trained, tasks, episodes=8, names=[], **ASKED, **QUIET)
    return folder, trained, tasks


def test_the_answers_are_those_of_the_ensemble_with_the_steps_asked(kept):
    folder, trained, tasks = kept
    found = read(folder / "answers.json")["negative_log_likelihood"]["mean"]

    def likelihood(**changes: Any) -> float:
        return qs.classification_calibration(trained, tasks, episodes=8, **ASKED | changes).negative_log_likelihood.mean

    assert found == pytest.approx(likelihood(), rel=1e-6)
    for other in ({"ensemble": 1}, {"steps": None}, {"seed": 1}):
        assert found != pytest.approx(likelihood(**other), rel=1e-3)


def test_the_curve_over_steps_has_the_score_of_each_number_of_steps(kept):
    folder, trained, tasks = kept
    curve = {point["steps"]: point["mean"] for point in read(folder / "scores.json")["steps"]}
    assert set(curve) == {0, 1, 2, 3, 5, 10}
    for steps, mean in curve.items():
        assert mean == pytest.approx(qs.evaluate(trained, tasks, episodes=8, seed=4, steps=steps).mean)
    assert len(set(curve.values())) > 2


def test_the_movement_is_that_of_the_steps_asked(kept):
    folder, trained, tasks = kept
    found = [layer["weights"]["mean"] for layer in read(folder / "movement.json")["layers"]]

    def moved(steps: int) -> list[float]:
        one = dataclasses.replace(trained, learner=dataclasses.replace(trained.learner, steps=steps))
        plain = qs.layer_movement(one, tasks, episodes=8, seed=4).to_dict()
        return [layer["weights"]["mean"] for layer in plain["layers"]]

    assert found == pytest.approx(moved(3), rel=1e-5)
    assert found != pytest.approx(moved(1), rel=1e-2)


# --- what may not cost a score ---------------------------------------------------------------------------------------


class Nested:
    """Inputs as a dict, and answers as they are or as two targets; `ways` as declared."""

    def __init__(self, two: bool, ways: int | None) -> None:
        self.two, self.ways = two, ways

    def sample(self, n: int, generator: torch.Generator | None = None) -> qs.Episode:
        drawn = clusters(queries=3).sample(n, generator)

        def nested(batch: qs.Batch) -> qs.Batch:
            y = {"class": batch.y, "value": batch.x.sum(-1, keepdim=True)} if self.two else batch.y
            return qs.Batch({"x": batch.x}, y)

        return qs.Episode(*map(nested, drawn))


class Net(torch.nn.Module):
    def __init__(self, two: bool) -> None:
        super().__init__()
        self.classes, self.value = torch.nn.Linear(4, 3), torch.nn.Linear(4, 1) if two else None

    def forward(self, x: torch.Tensor) -> Any:
        return self.classes(x) if self.value is None else {"class": self.classes(x), "value": self.value(x)}


RIGHT = qs.Metric(
    "share right", True, qs.Metric.PERCENT, lambda output, y: (output["class"].argmax(1) == y["class"]).double().mean()
)


@pytest.mark.parametrize(("two", "ways"), [(False, 3), (True, None), (True, 3)])
def test_a_run_on_nested_inputs_and_answers_is_evaluated_and_reported(tmp_path, two, ways):
    loss = (lambda output, y: qs.cross_entropy(output["class"], y["class"])) if two else qs.cross_entropy
    metric = RIGHT if two else None
    tasks, learner = Nested(two, ways), qs.MAML(Net(two), loss=loss, lr=0.1)
    trained = qs.train(learner, tasks, iterations=2, meta_batch=2, metric=metric, out=tmp_path / "run", **QUIET)
    (tmp_path / "run" / "examples.safetensors").write_bytes(b"of an earlier evaluation")
    scores = evaluate_run(tmp_path / "run", trained, tasks, episodes=4, metric=metric, **QUIET)
    again = qs.evaluate(trained, tasks, episodes=4, metric=metric, engine="loop")
    assert torch.equal(scores[0].values, again.values)
    assert not (tmp_path / "run" / "examples.safetensors").exists()
    assert (tmp_path / "run" / "answers.json").exists() == (not two)
    assert f"{100 * again.mean:.1f} %" in write_report([tmp_path / "run"]).read_text()


def test_a_point_of_the_curve_that_diverges_is_left_out(tmp_path):
    """At this rate one step is finite in float32, ten are not."""
    learner = qs.MAML(qs.nn.mlp(1, 1, hidden=(8,)), loss=qs.mse_loss, lr=50.0, steps=1)
    trained = qs.Trained(learner, learner.init())
    with pytest.raises(NonFiniteError):
        qs.evaluate(trained, qs.tasks.sinusoid("test", 5, 5), episodes=4, steps=10, engine="loop")
    scores = evaluate_run(tmp_path, trained, qs.tasks.sinusoid("test", 5, 5), episodes=4, names=[], **QUIET)
    plain = read(tmp_path / "scores.json")
    assert plain["scores"][0]["mean"] == pytest.approx(scores[0].mean)
    assert {0, 1} <= {point["steps"] for point in plain["steps"]} and 10 not in {p["steps"] for p in plain["steps"]}


def test_scores_are_written_before_what_may_fail(tmp_path, monkeypatch):
    learner = qs.ProtoNet(torch.nn.Linear(4, 5), ways=3)

    def fails(*args: Any, **named: Any) -> None:
        raise NonFiniteError("embeddings")

    monkeypatch.setattr("quickstudy.experiments.evaluate_run.task_embeddings", fails)
    with pytest.raises(NonFiniteError, match="embeddings"):
        evaluate_run(tmp_path, qs.Trained(learner, learner.init()), clusters(), episodes=12, names=[], **QUIET)
    assert len(read(tmp_path / "scores.json")["scores"][0]["values"]) == 12


def test_tasks_of_the_wrong_shape_are_refused_in_words(tmp_path):
    learner = qs.MAML(qs.nn.conv4(channels=3, classes=5, filters=4), lr=0.1)
    with pytest.raises(DataError, match="MAML cannot read this task"):
        evaluate_run(tmp_path, qs.Trained(learner, learner.init()), qs.tasks.glyphs("test"), episodes=2, **QUIET)


def test_the_fact_of_embeddings_is_the_metric_that_was_asked(tmp_path):
    learner = qs.ProtoNet(torch.nn.Linear(4, 5), ways=3)
    hits = qs.Metric("hit rate", True, qs.Metric.PERCENT, lambda output, y: (output.argmax(1) == y).double().mean())
    trained = qs.Trained(learner, learner.init())
    evaluate_run(tmp_path, trained, clusters(spread=2.0), episodes=12, names=[], metric=hits, **QUIET)
    assert list(read(tmp_path / "embeddings.json")["facts"]) == ["hit rate"]
