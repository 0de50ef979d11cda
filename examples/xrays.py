"""Detects pneumonia on chest X-rays from a few labelled ones: does meta-training on photographs help?

    python examples/xrays.py --data FOLDER       about 6 minutes on one core

FOLDER holds cifar100 (CIFAR-FS, whose 64 training classes are converted to grey, 28 x 28) and pneumoniamnist (Kermany
2018, Yang 2023). Training sees no X-rays. A test task has five or ten support examples of each class, from the test
part of the data, and others as queries. There is only one pair of classes, so intervals are over draws of patients, not
over diseases.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import tyro
from sklearn.linear_model import LogisticRegression

import quickstudy as qs
from quickstudy.base import seeds

SIDE = 28
BARS = ("logistic regression on pixels", "ProtoNet, untrained")


def photographs(data: Path, split: str, ways: int, shots: int, queries: int) -> qs.tasks.ClassTasks:
    """CIFAR-FS in the format of the X-rays: grey, 28 x 28."""
    colour = qs.tasks.cifar_fs(split, ways, shots, queries, root=data)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    cut = (colour.examples.shape[-1] - SIDE) // 2
    middle = colour.examples[:, :, cut : cut + SIDE, cut : cut + SIDE]
    grey = [(part.float() * weights).sum(1, keepdim=True).byte() for part in middle.split(4096)]
    return qs.tasks.ClassTasks(
        torch.cat(grey), colour.starts, colour.classes, ways, shots, queries, "grey cifar_fs", split
    )


def x_rays(data: Path, shots: int, queries: int) -> qs.tasks.ClassTasks:
    """The X-rays of the test part, with the classes healthy and pneumonia."""
    found = np.load(data / "pneumoniamnist" / "pneumoniamnist.npz")
    images, labels = torch.from_numpy(found["test_images"]), torch.from_numpy(found["test_labels"]).flatten()
    order, counts = labels.argsort(stable=True), labels.bincount()
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return qs.tasks.ClassTasks(
        images[order][:, None], starts, ["healthy", "pneumonia"], 2, shots, queries, "x-rays", "test"
    )


def meta_trained(data: Path, iterations: int, seed: int) -> dict[str, qs.Trained]:
    """Learners before and after training on photographs; the checkpoint is chosen on photographs of other classes."""
    train, val = photographs(data, "train", 10, 5, 5), photographs(data, "val", 2, 5, 10)
    found = {}
    for name, cls in (("ProtoNet", qs.ProtoNet), ("R2D2", qs.R2D2)):
        torch.manual_seed(seeds.derive(seed, "weights"))
        learner = cls(qs.nn.conv4(channels=1, size=SIDE, downsample="pool"), ways=10)
        found[f"{name}, untrained"] = qs.Trained(learner, learner.init())
        settings = {"iterations": iterations, "meta_batch": 1, "seed": seed, "engine": "loop", "val": val}
        found[name] = qs.train(learner, train, **settings)
    return found


def main(data: Path, iterations: int = 600, episodes: int = 400, seed: int = 0) -> None:
    """Train on photographs, and test on X-rays.

    Args:
        data: folder of the data sets.
        iterations: iterations of meta-training, each with one task of ten classes.
        episodes: test episodes.
        seed: seed of the training.
    """
    learned = meta_trained(data, iterations, seed)
    print(f"pneumonia, {episodes} test episodes with 10 queries of each kind, 95 % intervals over episodes\n")
    print("| labelled of each kind | method | accuracy |", *(f"minus {bar}, paired |" for bar in BARS))
    print("|---|---|---|---|---|")
    for shots in (5, 10):
        tasks = x_rays(data, shots, 10)
        linear = qs.per_task(LogisticRegression(max_iter=500), tasks)
        methods = {"nearest class mean of pixels": qs.Trained(qs.NearestCentroid(2), {}), BARS[0]: linear} | learned
        scores = {
            name: qs.evaluate(one, tasks, episodes=episodes, engine="loop", transductive=False if one.theta else None)
            for name, one in methods.items()
        }
        for name, score in scores.items():
            against = [in_points(qs.compare(score, scores[bar])) if name != bar else "" for bar in BARS]
            cells = [str(shots), name, score.in_words(), *against]
            print(f"| {' | '.join(cells)} |")


def in_points(difference: qs.Difference) -> str:
    """The difference in points, as '+1.3 ± 0.4', with a note where it is not decided."""
    undecided = "" if difference.decided else " (not decided)"
    return difference.signed(points=False) + undecided


if __name__ == "__main__":
    tyro.cli(main)
