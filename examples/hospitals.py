"""Predicts heart disease in a hospital that training never saw, from a few of its patients.

    python examples/hospitals.py --data FOLDER       about 3 minutes on one core

FOLDER holds heart_disease_4sites/heart_disease.csv: Cleveland, Hungary, Switzerland, Long Beach (Janosi 1988). Each
hospital is left out once. Three hospitals are too few tasks to learn from, so a training task is a sub-group of one
hospital: its women or its men of an age band. Sub-groups differ in how common the disease is and in its symptoms. They
differ less than hospitals do, because sub-groups of one hospital share its practice. No setting is chosen here: all are
the library's defaults for tables.

The columns `num`, `ca` and `thal` are left out: the target is made from `num`, while `ca` and `thal` come from the same
examination as the diagnosis and are mostly missing in three of the four hospitals. Queries are balanced, so 50 % is
chance.
"""

from __future__ import annotations

from pathlib import Path

import comparison
import pandas
import tyro
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

import quickstudy as qs

OWN, OTHERS = "logistic regression per hospital", "pooled logistic regression"
AGES = [0, 55, 200]  # bounds of the age bands in years; the median age is 54
QUERIES = 3  # of each class: Switzerland has 8 healthy patients, and 5 of them are support examples
CATEGORIES = ("cp", "restecg", "slope")


def read(data: Path) -> pandas.DataFrame:
    """One row per patient, with `site`, `disease` and the sub-group `group`."""
    frame = pandas.read_csv(data / "heart_disease_4sites" / "heart_disease.csv")
    frame["disease"] = frame.num > 0
    band = pandas.cut(frame.age, AGES, right=False, labels=["under 55", "from 55"])
    frame["group"] = frame.site + frame.sex.map({0: " women ", 1: " men "}) + band.astype(str)
    return frame.drop(columns=["num", "ca", "thal"])


def without(frame: pandas.DataFrame, site: str) -> dict[str, pandas.DataFrame]:
    """Sub-groups of the other hospitals for training, and the whole hospital `site` as one task for the test."""
    left_out = frame.site == site
    return {"train": frame[~left_out], "test": frame[left_out].assign(group=site)}


def tasks(parts: dict[str, pandas.DataFrame], split: str, shots: int, queries: int) -> qs.tasks.GroupTasks:
    named = {"task": "group", "target": "disease", "ignore": ["site"], "categories": CATEGORIES}
    return qs.tasks.from_table(parts, split, shots=shots, queries=queries, **named)


def candidates(train: qs.tasks.GroupTasks, iterations: int, seed: int) -> dict[str, list[qs.Trained]]:
    """Baselines, and learners that are trained with 10 patients of each class."""
    boosted = GradientBoostingClassifier(n_estimators=50, max_depth=2, random_state=0)
    return {
        OWN: [qs.per_task(LogisticRegression(), train)],
        "gradient boosting per hospital": [qs.per_task(boosted, train)],
        OTHERS: [qs.pooled(LogisticRegression(max_iter=500), train)],
        "pooled gradient boosting": [qs.pooled(HistGradientBoostingClassifier(random_state=0), train)],
    } | comparison.meta_trained(train, None, iterations, seed, rates=(0.05,))


def main(data: Path, iterations: int = 300, episodes: int = 500, seed: int = 0) -> None:
    """Train on three hospitals and test on the fourth, four times.

    Args:
        data: folder of the data sets.
        iterations: iterations of meta-training, with four sub-groups in each.
        episodes: test episodes for each hospital.
        seed: seed of the training.
    """
    frame, by_shots = read(data), {5: [], 20: []}
    for site in sorted(frame.site.unique()):
        parts = without(frame, site)
        several = candidates(tasks(parts, "train", 10, 10), iterations, seed)
        healthy = int((~parts["test"].disease).sum())
        for shots in (n for n in by_shots if n + QUERIES <= healthy):
            test = tasks(parts, "test", shots, QUERIES)
            by_shots[shots].append(comparison.measured(several, None, test, episodes))
    for shots, found in by_shots.items():
        print(f"\n{shots} patients of each class, {len(found)} hospitals, {episodes} episodes of each\n")
        print(comparison.table(comparison.joined(found), [OWN, OTHERS], each=True))


if __name__ == "__main__":
    tyro.cli(main)
