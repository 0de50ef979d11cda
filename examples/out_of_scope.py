"""Does a chat bot notice requests that belong to none of its intents? It recognises them by their distance.

    python examples/out_of_scope.py --data FOLDER       about 5 minutes on one core

FOLDER holds clinc150/clinc150.csv.gz (Larson 2019). Training uses 60 % of its intents. Another 20 % choose among the
checkpoints and determine the distance beyond which a request belongs to no intent. The test uses the rest; a task has
five or ten intents. Its queries are compared with as many requests that belong to no intent at all (part of the data
set), and with as many requests of the other test intents, which are harder. The untrained network compares texts by
TF-IDF.
"""

from __future__ import annotations

from pathlib import Path

import pandas
import torch
import tyro

import quickstudy as qs
from quickstudy.base import seeds
from quickstudy.evaluation.metric import PERCENT

HEADINGS = ("task", "foreign", "method", "AUROC: distance", "probability", "distance minus it")
HEADINGS += ("FPR95: distance", "probability", "own answered", "foreign answered")


def learned(learner: type, intents: pandas.DataFrame, iterations: int, seed: int) -> qs.Trained:
    """The learner after the same training as in intents.py."""
    torch.manual_seed(seeds.derive(seed, "weights"))
    train = qs.tasks.from_text(intents, "train", 50, 5, 3, label="intent")
    encoder = qs.nn.text()
    encoder.encoder.set_idf(train.examples)
    return qs.train(
        learner(encoder, ways=50),
        train,
        iterations=iterations,
        meta_batch=1,
        seed=seed,
        val=qs.tasks.from_text(intents, "val", 5, 5, 10, label="intent"),
        engine="loop",
    )


def row(name: str, trained: qs.Trained, tasks: qs.tasks.ClassTasks, foreign: list[str] | None, episodes: int) -> str:
    """A row of the table: detection by the distance and by the largest probability, and the shares answered."""
    found = qs.out_of_scope(trained, tasks, foreign, episodes=episodes)
    distance, softmax, gain = found.distance, found.softmax, found.gain
    decided = "" if gain.decided else " (not decided)"
    cells = [f"{tasks.ways}-way {tasks.shots}-shot", "of no intent" if foreign else "other intents", name]
    cells += [distance.auroc.in_words(PERCENT), softmax.auroc.in_words(PERCENT)]
    cells += [gain.signed(points=False) + decided]
    cells += [one.in_words(PERCENT) for one in (distance.fpr95, softmax.fpr95, found.answered, found.passed) if one]
    return "| " + " | ".join(cells) + " |"


def main(data: Path, protonet: bool = False, iterations: int = 300, episodes: int = 1000, seed: int = 0) -> None:
    """Train on intents, and print how well requests that belong to none of a task's intents are detected.

    Args:
        data: folder of the data sets.
        protonet: train a prototypical network; else a matching network.
        iterations: iterations of meta-training, each with one task of 50 intents and 5 texts of each.
        episodes: test tasks.
        seed: seed of the training.
    """
    table = pandas.read_csv(data / "clinc150" / "clinc150.csv.gz")
    intents = table[table.intent != "oos"]
    foreign = table[table.split == "oos_test"].text.tolist()
    learner = qs.ProtoNet if protonet else qs.MatchingNet
    trained = learned(learner, intents, iterations, seed)
    untrained = qs.Trained(trained.learner, trained.learner.init(), preprocess=trained.preprocess)
    print(f"{episodes} test tasks, 95 % intervals; the distance of 'answered' is that of 95 % of validation queries\n")
    print("| " + " | ".join(HEADINGS) + " |\n" + "|---" * len(HEADINGS) + "|")
    for ways in (5, 10):
        val, test = (qs.tasks.from_text(intents, split, ways, 5, 10, label="intent") for split in ("val", "test"))
        for name, one in ((learner.__name__, trained), ("untrained", untrained)):
            scoped = qs.scoped(one, val, episodes=min(200, episodes))
            for others in (foreign, None):
                print(row(name, scoped, test, others, episodes), flush=True)


if __name__ == "__main__":
    tyro.cli(main)
