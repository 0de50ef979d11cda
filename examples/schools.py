"""Marks of pupils in a new school, weights of a new chick: levels and slopes of groups, where statistics is strong.

    python examples/schools.py --data FOLDER       about 2 minutes on one core

FOLDER holds grouped_tabular/Exam.csv.gz, examination results of 65 schools in London (Goldstein 1993), and
ChickWeight.csv.gz, 50 chicks weighed at most 12 times (Crowder and Hand 1990), both as in R. A school or a chick is a
task, five folds: each is a test task once. Of a school ten pupils with marks are known; of a chick the last four
weighings before a moment that is drawn, and its next ones are asked for.

"and level" is a pooled model with a random intercept: what a statistician would try first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comparison
import pandas
import tyro
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge

import quickstudy as qs

OWN, OTHERS = "ridge regression per task", "pooled ridge and level"
SETS: dict[str, dict[str, Any]] = {
    "Exam": {"task": "school", "target": "normexam", "ignore": ["rownames", "student"], "shots": 10, "queries": 10},
    "ChickWeight": {
        **{"task": "Chick", "target": "weight", "time": "Time", "ignore": ["rownames"], "categories": ["Diet"]},
        **{"shots": 4, "queries": 4},
    },
}


def candidates(train: qs.tasks.GroupTasks, val: qs.tasks.GroupTasks, iterations: int, seed: int) -> dict:
    """Baselines and learners; validation tasks choose among those of one name."""
    ridges = [Ridge(alpha) for alpha in (0.1, 1.0, 10.0)]
    boosted = [HistGradientBoostingRegressor(max_iter=n, random_state=0) for n in (20, 60)]
    return {
        OWN: [qs.per_task(model, train) for model in ridges],
        "pooled ridge": [qs.pooled(model, train) for model in ridges],
        OTHERS: [qs.pooled(model, train, offset=True) for model in ridges],
        "pooled boosting": [qs.pooled(model, train) for model in boosted],
        "pooled boosting and level": [qs.pooled(model, train, offset=True) for model in boosted],
    } | comparison.meta_trained(train, val, iterations, seed, rates=(0.05,))


def main(data: Path, folds: int = 5, iterations: int = 300, episodes: int = 130, seed: int = 0) -> None:
    """Leave schools out, then chicks.

    Args:
        data: folder of the data sets.
        folds: of the tasks.
        iterations: of meta-training, four tasks each.
        episodes: test episodes of each fold.
        seed: of the training.
    """
    for name, columns in SETS.items():
        frame, found = pandas.read_csv(data / "grouped_tabular" / f"{name}.csv.gz"), []
        for parts in comparison.folds(frame, columns["task"], folds):
            train, val, test = (qs.tasks.from_table(parts, split, **columns) for split in ("train", "val", "test"))
            found.append(comparison.measured(candidates(train, val, iterations, seed), val, test, episodes))
        scores = comparison.joined(found)
        groups = f"{len(set(scores[OWN].tasks))} tasks ({columns['task']})"
        print(f"\n{name}: {columns['target']}, {groups}, {folds * episodes} episodes, 95 % intervals over tasks\n")
        print(comparison.table(scores, [OWN, OTHERS]))


if __name__ == "__main__":
    tyro.cli(main)
