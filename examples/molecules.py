"""Predicts which molecules are active in a new assay, from eight active and eight inactive ones.

    python examples/molecules.py --data FOLDER       about 3 minutes on one core

FOLDER holds molecules/tox21.csv.gz and toxcast.csv.gz, as in DeepChem (MIT). A task is an assay. Of Tox21's twelve
assays the last three are test tasks, as in work since Altae-Tran 2017 (https://arxiv.org/abs/1611.03199); two of the
other nine choose among checkpoints and settings. ToxCast's assays are split 60/20/20, with all readouts of one
experiment in the same split.

A molecule is represented by hashed counts of the substrings of its SMILES of 1 to 5 characters. This needs no chemistry
package, but a chemical fingerprint contains more information. A split by assay alone leaves most test molecules in
training, in other assays whose labels correlate with those of the new one. Training therefore sees 60 % of the
molecules, and there are two tests: on these molecules in a new assay, and on the other 40 %. The pooled network
predicts how active a molecule is in general, without adapting.

Episodes are balanced, unlike real screens. The table therefore shows accuracy (50 % is chance) instead of AUROC, which
is usual in the field.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import comparison
import numpy as np
import pandas
import torch
import tyro
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier

import quickstudy as qs
from quickstudy.tasks.splits import by_name
from quickstudy.tasks.tabular.groups import GroupTasks

OWN, OTHERS = "random forest per assay", "pooled network"
SHOTS, QUERIES = 8, 12  # of each class
FEWEST = 80  # fewest active molecules of an assay, so that 20 of them are new ones
MOST = {"tox21": 800, "toxcast": 100}  # at most so many molecules of each class and assay, to limit memory
PIECES = 1024


def read(data: Path, name: str) -> tuple[np.ndarray, pandas.DataFrame]:
    """The inputs [n, PIECES] of all molecules, and their labels, with a column for each assay: 1 for active, 0 for
    inactive, empty where not measured.
    """
    frame = pandas.read_csv(data / "molecules" / f"{name}.csv.gz").drop_duplicates("smiles")
    hashed = HashingVectorizer(
        analyzer="char", lowercase=False, ngram_range=(1, 5), n_features=PIECES, norm=None, alternate_sign=False
    )
    x = np.log1p(hashed.transform(frame.smiles).toarray()).astype(np.float32)
    x = (x - x.mean(0)) / x.std()  # statistics of all molecules; labels are not used
    labels = frame.drop(columns=["smiles", "mol_id"], errors="ignore")
    return x, labels.loc[:, (labels == 1).sum() >= FEWEST]


def split(name: str, assays: list[str]) -> dict[str, list[str]]:
    """The assays of each split."""
    if name == "tox21":
        return {"train": assays[:7], "val": assays[7:9], "test": assays[9:]}
    experiment = {assay: "_".join(assay.split("_")[:3]) for assay in assays}
    parts = by_name(dict.fromkeys(experiment.values()))
    return {part: [assay for assay in assays if experiment[assay] in parts[part]] for part in parts}


def assays(x: np.ndarray, labels: pandas.DataFrame, name: str, part: str, new: bool = False) -> GroupTasks:
    """The tasks of a split: its assays, with at most MOST molecules of each class.

    The molecules are those of training, or with `new` the others.
    """
    names = split(name, list(labels.columns))[part]
    order, cut = np.random.default_rng(0).permutation(len(x)), len(x) * 3 // 5
    order = order[cut:] if new else order[:cut]
    rows = [order[labels[assay].to_numpy()[order] == k][: MOST[name]] for assay in names for k in (0, 1)]
    y = np.concatenate([np.full(len(found), i % 2) for i, found in enumerate(rows)])
    starts = np.cumsum([0] + [len(rows[i]) + len(rows[i + 1]) for i in range(0, len(rows), 2)])
    declared = {"classes": ("inactive", "active"), "name": name, "split": part}
    taken = torch.from_numpy(x[np.concatenate(rows)])
    return GroupTasks(taken, torch.from_numpy(y), torch.from_numpy(starts), names, SHOTS, QUERIES, **declared)


def candidates(train: GroupTasks, val: GroupTasks, iterations: int, seed: int) -> dict[str, list[qs.Trained]]:
    """Baselines and learners. Where several have the same name, validation assays choose one of them."""
    logistic = [LogisticRegression(C=c, max_iter=500) for c in (0.01, 0.1, 1.0)]
    on_all = [SGDClassifier(loss="log_loss", alpha=a, max_iter=10, tol=None, random_state=0) for a in (1e-3, 1e-2)]
    trained = comparison.meta_trained(train, val, iterations, seed)
    (tuned,) = trained["pooled network, fine-tuned"]
    as_it_is = dataclasses.replace(tuned, learner=dataclasses.replace(tuned.learner, steps=0))
    return {
        "logistic regression per assay": [qs.per_task(model, train) for model in logistic],
        OWN: [qs.per_task(RandomForestClassifier(50, random_state=0), train)],
        "pooled logistic regression": [qs.pooled(model, train) for model in on_all],
        OTHERS: [as_it_is],
    } | trained


def main(
    data: Path,
    only: Literal["tox21", "toxcast"] | None = None,
    iterations: int = 400,
    episodes: int = 400,
    seed: int = 0,
) -> None:
    """Train on some assays and test on others, in two collections.

    Args:
        data: folder of the data sets.
        only: one of the collections; both by default.
        iterations: iterations of meta-training, with four assays in each.
        episodes: test episodes.
        seed: seed of the training.
    """
    for name in [only] if only else MOST:
        x, labels = read(data, name)
        train, val = (assays(x, labels, name, part) for part in ("train", "val"))
        several = candidates(train, val, iterations, seed)
        for molecules in ("known", "new"):
            test = assays(x, labels, name, "test", molecules == "new")
            scores = comparison.measured(several, val, test, episodes)
            print(f"\n{name}, {molecules} molecules: {len(train.names)} assays to train on, {len(test.names)} others\n")
            print(comparison.table(scores, [OWN, OTHERS], each=name == "tox21"))


if __name__ == "__main__":
    tyro.cli(main)
