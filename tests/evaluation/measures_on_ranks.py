"""What test_sharded.py runs under torchrun, and in one process too, to hold against: every measure of test episodes.

python measures_on_ranks.py FOLDER    every measure on every rank; what rank r found goes to FOLDER/r.json
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from problems import clusters, random_episodes

import quickstudy as qs
from quickstudy.base import files
from quickstudy.engine import ranks
from quickstudy.episodes import unstack

EPISODES = 60  # three blocks, the last one smaller
ALIKE: dict[str, Any] = {"episodes": EPISODES, "engine": "vmap"}


def ready(learner: Any) -> qs.Trained:
    return qs.Trained(learner, learner.init())


def protonet() -> qs.Trained:
    torch.manual_seed(0)
    return ready(qs.ProtoNet(qs.nn.mlp(4, 5, hidden=(6,)), ways=3))


def maml() -> qs.Trained:
    torch.manual_seed(0)
    return ready(qs.MAML(qs.nn.mlp(1, 1, hidden=(6,)), loss=qs.mse_loss, lr=0.01, steps=2))


def process() -> qs.Trained:
    torch.manual_seed(0)
    return ready(qs.CNP(torch.nn.Flatten(), width=1, representation=8))


def reader() -> qs.Trained:
    torch.manual_seed(0)
    return ready(qs.MetaRNN(qs.nn.mlp(4, 6), width=6, units=5, ways=3))


@dataclass(frozen=True, eq=False)
class Uneven:
    """Tasks of unequal sizes, some of which lack a class; classes have names."""

    ways: int = 3

    def sample(self, n: int, generator: torch.Generator | None = None) -> list[qs.Episode]:
        shots, queries, seed = (int(torch.randint(1, most, (), generator=generator)) for most in (4, 5, 1000))
        (support, query), other = (
            unstack(random_episodes(1, ways=2, shots=shots, queries=queries, seed=seed))[0],
            seed % 3,
        )
        numbers = torch.tensor([k for k in range(3) if k != other])
        return [qs.Episode(support._replace(y=numbers[support.y]), query._replace(y=numbers[query.y]))]

    def told(self, generator: torch.Generator | None = None) -> dict[str, Any]:
        return {"classes": ["ant", "bee", "cat"]}


def sines() -> Any:
    return qs.tasks.sinusoid("test", 5, 4)


def measures(folder: Path) -> dict[str, Any]:
    """Plain values of every measure, by its name."""
    evaluated = qs.evaluate(protonet(), clusters(), episodes=20, engine="vmap", controls=["shuffled_labels"])
    honest = qs.recalibrated(process(), sines(), episodes=EPISODES)
    return {
        "probabilities": qs.classification_calibration(protonet(), clusters(spread=1.5), **ALIKE).to_dict(),
        "of unequal sizes": qs.classification_calibration(protonet(), Uneven(), **ALIKE).to_dict(),
        "movement": qs.layer_movement(maml(), sines(), **ALIKE).to_dict(),
        "intervals": qs.interval_coverage(process(), sines(), **ALIKE).to_dict(),
        "recalibrated": list(honest.learner.std_factors),  # type: ignore[attr-defined]
        "embeddings": qs.task_embeddings(process(), sines(), **ALIKE).to_dict(),
        "instances": qs.instance_accuracy(reader(), clusters(each=30), instances=(1, 2), **ALIKE).to_dict(),
        "scope": str(qs.out_of_scope(protonet(), clusters(spread=1.5), episodes=EPISODES)),
        "one block": evaluated.to_dict(),  # only the first rank has episodes
    }


def work(folder: Path) -> None:
    torch.set_default_dtype(torch.float64)
    with ranks.joined():
        files.write_json(folder / f"{ranks.rank()}.json", measures(folder))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)
