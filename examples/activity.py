"""Recognises what a new person is doing, from a few labelled windows of the phone in their pocket.

    python examples/activity.py --data FOLDER       about 7 minutes on one core

FOLDER holds wisdm_har/wisdm_transformed.csv.gz: 36 people, six activities, 43 numbers for each 10 seconds of
acceleration (WISDM; Kwapisz, Weiss, Moore 2010). A person is a task. There are five folds, so each person is a test
task once, for learners and baselines that were trained on some 22 other people and chosen on 7 more. The intervals are
over 35 people, because the 36th only walks and cannot be a task.

People who lack an activity are tested on the others. Models that are fitted to one person, ProtoNet, R2D2 and CNP can
only answer with activities in the support set; the pooled models, MAML and the pooled network may answer with all six.
A second table therefore shows the people who have all six. Support and query windows come from the same recordings, so
the example does not test another day.
"""

from __future__ import annotations

from pathlib import Path

import comparison
import pandas
import tyro
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression

import quickstudy as qs

SHOTS = (1, 5)  # labelled windows of each activity; training uses 5
OWN, OTHERS = "random forest per person", "pooled gradient boosting"


def candidates(train: qs.tasks.GroupTasks, val: qs.tasks.GroupTasks, iterations: int, seed: int) -> dict:
    """Baselines and learners. Where several have the same name, validation people choose one of them."""
    logistic = [LogisticRegression(C=c, max_iter=500) for c in (0.1, 1.0, 10.0)]
    return {
        "logistic regression per person": [qs.per_task(model, train) for model in logistic],
        OWN: [qs.per_task(RandomForestClassifier(50, random_state=0), train)],
        "pooled logistic regression": [qs.pooled(model, train) for model in logistic],
        OTHERS: [qs.pooled(HistGradientBoostingClassifier(max_iter=50, random_state=0), train)],
    } | comparison.meta_trained(train, val, iterations, seed)


def main(data: Path, folds: int = 5, iterations: int = 300, episodes: int = 140, seed: int = 0) -> None:
    """Leave people out, one fold at a time, and print the tables.

    Args:
        data: folder of the data sets.
        folds: number of folds of the people.
        iterations: iterations of meta-training, with four people in each.
        episodes: test episodes in each fold.
        seed: seed of the training.
    """
    frame = pandas.read_csv(data / "wisdm_har" / "wisdm_transformed.csv.gz")
    complete = [str(user) for user, number in frame.groupby("user")["class"].nunique().items() if number == 6]
    named = {"task": "user", "target": "class", "ignore": ["UNIQUE_ID"], "shots": SHOTS[-1], "queries": 10}
    found = {shots: [] for shots in SHOTS}
    for parts in comparison.folds(frame, "user", folds):
        train, val, test = (qs.tasks.from_table(parts, split, **named) for split in ("train", "val", "test"))
        several = candidates(train, val, iterations, seed)
        for shots in SHOTS:
            sized = (source.replace(shots=shots) for source in (val, test))
            found[shots].append(comparison.measured(several, *sized, episodes))
    for shots, scores in ((shots, comparison.joined(parts)) for shots, parts in found.items()):
        people = f"{len(set(scores[OWN].tasks))} people, {folds * episodes} episodes"
        print(f"\n{shots} windows of each activity, {people}, 95 % intervals over people\n")
        print(comparison.table(scores, [OWN, OTHERS]))
        print(f"\nThe {len(complete)} who have all six activities:\n")
        print(comparison.table(comparison.restricted(scores, complete), [OWN, OTHERS]))


if __name__ == "__main__":
    tyro.cli(main)
