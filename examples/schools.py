"""Predicts pupils' marks in a new school and a new chick's weight: groups with levels and slopes, for which classical
statistics is strong.

    python examples/schools.py --data FOLDER       about 2 minutes on one core

FOLDER holds grouped_tabular/Exam.csv.gz, examination results of 65 schools in London (Goldstein 1993), and
ChickWeight.csv.gz, 50 chicks weighed at most 12 times (Crowder and Hand 1990), both as in R. A school or a chick is a
task, and with five folds each is a test task once. The support set of a school is ten pupils with their marks. That of
a chick is the last four weighings before a random moment, and its next weighings are the queries.

"and level" is a pooled model with a random intercept, which a statistician would try first.
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
    """Baselines and learners. Where several have the same name, validation tasks choose one of them."""
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
    """Leave schools out, then chicks, and print the tables.

    Args:
        data: folder of the data sets.
        folds: number of folds of the tasks.
        iterations: iterations of meta-training, with four tasks in each.
        episodes: test episodes in each fold.
        seed: seed of the training.
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
