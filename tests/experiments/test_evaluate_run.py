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
from quickstudy.experiments.evaluate_run import evaluate_run

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

    def surprise(**changes: Any) -> float:
        return qs.classification_calibration(trained, tasks, episodes=8, **ASKED | changes).surprise.mean

    assert found == pytest.approx(surprise(), rel=1e-6)
    for other in ({"ensemble": 1}, {"steps": None}, {"seed": 1}):
        assert found != pytest.approx(surprise(**other), rel=1e-3)


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
