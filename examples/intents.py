"""Recognises intents that a chat bot was never trained on: it learns from one service and is tested on another.

    python examples/intents.py --data FOLDER       about 6 minutes on one core

FOLDER holds clinc150/clinc150.csv.gz and banking77/banking77.csv.gz. Training uses intents of CLINC150 (Larson 2019),
and the test those of BANKING77 (Casanueva 2020). Intents of both are left out of training. A test task has five
intents. The TF-IDF baselines know the same training texts and answer the same queries.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import torch
import tyro
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

import quickstudy as qs
from quickstudy.base import seeds
from quickstudy.evaluation.amount import Amount
from quickstudy.evaluation.metric import PERCENT
from quickstudy.evaluation.score import half_width

VALIDATION = 6  # every sixth intent of the training service is for validation, to choose a checkpoint


def read(data: Path, reverse: bool) -> dict[str, pandas.DataFrame]:
    """The texts with their intents, for training, validation and test."""
    clinc = pandas.read_csv(data / "clinc150" / "clinc150.csv.gz")
    banking = pandas.read_csv(data / "banking77" / "banking77.csv.gz")
    clinc = clinc[clinc.intent != "oos"]
    known, asked = (banking, clinc) if reverse else (clinc, banking)
    known = known[~known.intent.isin(asked.intent)]
    held_out = known.intent.isin(sorted(known.intent.unique())[::VALIDATION])
    return {"train": known[~held_out], "val": known[held_out], "test": asked}


def tf_idf(tasks: qs.tasks.ClassTasks, train: pandas.DataFrame, episodes: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Accuracy on each test task of two classifiers on TF-IDF of 3 to 5 characters, which works better than words."""
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True).fit(train.text)
    x = vectorizer.transform(tasks.raw).toarray().astype(np.float32)
    found: dict[str, list[float]] = {"nearest centroid": [], "logistic regression": []}
    for i in range(episodes):
        support, query = (rows[0] for rows in tasks.rows(1, seeds.generator(seed, "test", i)))
        shown, asked = support.flatten().numpy(), query.flatten().numpy()
        y, truth = (np.repeat(range(tasks.ways), rows.shape[1]) for rows in (support, query))
        centroids = normalize(np.stack([x[shown][y == k].mean(0) for k in range(tasks.ways)]))
        linear = LogisticRegression(C=10, max_iter=500).fit(x[shown], y)
        found["nearest centroid"].append(float(((x[asked] @ centroids.T).argmax(1) == truth).mean()))
        found["logistic regression"].append(float((linear.predict(x[asked]) == truth).mean()))
    return {f"TF-IDF, {name}": np.array(values) for name, values in found.items()}


def main(data: Path, reverse: bool = False, iterations: int = 300, episodes: int = 1500, seed: int = 0) -> None:
    """Train on one service and print the results on the other.

    Args:
        data: folder of the data sets.
        reverse: train on BANKING77 and test on the intents of CLINC150.
        iterations: iterations of meta-training, each with one task of 50 intents and 5 texts of each.
        episodes: test tasks.
        seed: seed of the training.
    """
    parts = read(data, reverse)
    torch.manual_seed(seeds.derive(seed, "weights"))
    train = qs.tasks.from_text(parts, "train", 50, 5, 3, label="intent")
    encoder = qs.nn.text()
    encoder.encoder.set_idf(train.examples)
    trained = qs.train(
        qs.MatchingNet(encoder, ways=50),
        train,
        iterations=iterations,
        meta_batch=1,
        seed=seed,
        val=qs.tasks.from_text(parts, "val", 5, 5, 10, label="intent"),
        engine="loop",
    )
    known, asked = ("BANKING77", "CLINC150") if reverse else ("CLINC150", "BANKING77")
    print(f"intents of {asked}, 5-way, {episodes} test tasks, 95 % intervals; learned on {known}\n")
    print("| shots | method | accuracy | MatchingNet minus it, paired |\n|---|---|---|---|")
    for shots in (1, 5):
        tasks = qs.tasks.from_text(parts, "test", 5, shots, 10, label="intent")
        ours = qs.evaluate(trained, tasks, episodes=episodes, engine="loop").values
        untrained = qs.Trained(trained.learner, trained.learner.init())
        others = {"MatchingNet, untrained": qs.evaluate(untrained, tasks, episodes=episodes, engine="loop").values}
        others |= {name: torch.from_numpy(values) for name, values in tf_idf(tasks, parts["train"], episodes).items()}
        print(f"| {shots} | **MatchingNet** | {in_percent(ours)} | |")
        for name, values in others.items():
            away = ours - values
            decided = "" if abs(away.mean()) > half_width(away) else " (not decided)"
            difference = f"{100 * away.mean():+.1f} ± {100 * half_width(away):.1f}{decided}"
            print(f"| {shots} | {name} | {in_percent(values)} | {difference} |")


def in_percent(values: torch.Tensor) -> str:
    """The mean with its 95 % interval: '75.6 % ± 0.8'."""
    return Amount.of(values, PERCENT).in_words(PERCENT)


if __name__ == "__main__":
    tyro.cli(main)
