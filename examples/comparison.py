"""Code that the examples on tables share: folds of tasks, learners, choice on validation tasks, a table of results."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas
import torch

import quickstudy as qs
from quickstudy.base import seeds
from quickstudy.evaluation.metric import Format


def folds(frame: pandas.DataFrame, column: str, k: int) -> Iterator[dict[str, pandas.DataFrame]]:
    """k folds of tables train, val and test: each task is a test task once, and a validation task in one other fold."""
    names = sorted(frame[column].unique())
    random.Random(0).shuffle(names)
    parts = [names[i::k] for i in range(k)]
    for i in range(k):
        of = dict.fromkeys(parts[i], "test") | dict.fromkeys(parts[(i + 1) % k], "val")
        split = frame[column].map(of).fillna("train")
        yield {name: frame[split == name] for name in ("train", "val", "test")}


def learners(tasks: Any, rates: Sequence[float] = (0.05, 0.2)) -> dict[str, list[qs.Learner]]:
    """Learners for rows of numbers, with a perceptron 40-40. `rates` are inner rates of MAML to choose from.

    The pooled network is trained on all rows of the training tasks; then all its layers are fine-tuned on a new task.
    """
    inputs, ways, mlp = tasks.x.shape[1], tasks.ways, qs.nn.mlp
    outputs, loss = ways or 1, qs.cross_entropy if ways else qs.mse_loss
    ridge = {} if ways else {"lam": 0.1, "scale": 1.0}
    return {
        "pooled network, fine-tuned": [qs.FineTune(mlp(inputs, outputs), loss, None, lr=0.01, steps=10, fit="all")],
        **({"ProtoNet": [qs.ProtoNet(mlp(inputs), ways)]} if ways else {}),
        "R2D2": [qs.R2D2(mlp(inputs), loss, ways, **ridge)],
        "CNP": [qs.CNP(mlp(inputs), 40, ways)],
        "MAML": [qs.MAML(mlp(inputs, outputs), loss, lr=lr, steps=5) for lr in rates],
    }


def meta_trained(tasks: Any, val: Any, iterations: int, seed: int, **settings: Any) -> dict[str, list[qs.Trained]]:
    """The trained learners, each at its best checkpoint on validation tasks, or its last one where `val` is None."""
    torch.manual_seed(seeds.derive(seed, "weights"))
    named = {"iterations": iterations, "meta_batch": 4, "seed": seed, "engine": "vmap", "progress": False}
    named |= {"val": val, "val_episodes": min(iterations, 50)}
    return {
        name: [qs.train(one, tasks, **named) for one in candidates]
        for name, candidates in learners(tasks, **settings).items()
    }


def measured(several: Mapping[str, Sequence[qs.Trained]], val: Any, test: Any, episodes: int) -> dict[str, qs.Score]:
    """Each method's score on the same test episodes, for its candidate that is best on validation tasks."""
    chosen = {name: _best(candidates, val, episodes) for name, candidates in several.items()}
    return {name: _evaluated(trained, test, episodes, seed=1) for name, trained in chosen.items()}


def _best(candidates: Sequence[qs.Trained], val: Any, episodes: int) -> qs.Trained:
    if len(candidates) == 1:
        return candidates[0]
    scores = [_evaluated(one, val, min(episodes, 50), seed=2) for one in candidates]
    means = [score.mean for score in scores]
    return candidates[means.index(scores[0].metric.best(means))]


def _evaluated(trained: qs.Trained, tasks: Any, episodes: int, seed: int) -> qs.Score:
    engine = "vmap" if trained.theta else "loop"  # scikit-learn's models have no theta and do not run under vmap
    return qs.evaluate(trained, tasks, episodes=episodes, seed=seed, engine=engine)


def joined(parts: Iterable[Mapping[str, qs.Score]]) -> dict[str, qs.Score]:
    """The scores of several folds, joined into one for each method, with an interval over the tasks of all folds."""
    parts, whole = list(parts), {}
    for name, first in parts[0].items():
        tasks = tuple(task for part in parts for task in part[name].tasks)
        whole[name] = qs.Score(torch.cat([part[name].values for part in parts]), first.protocol, tasks=tasks)
    return whole


def restricted(scores: Mapping[str, qs.Score], names: Collection[str]) -> dict[str, qs.Score]:
    """The scores on the episodes of these tasks alone."""
    rows = [i for i, task in enumerate(next(iter(scores.values())).tasks) if task in names]
    return {
        name: qs.Score(score.values[rows], score.protocol, tasks=tuple(score.tasks[i] for i in rows))
        for name, score in scores.items()
    }


def table(scores: Mapping[str, qs.Score], against: Sequence[str], each: bool = False) -> str:
    """A Markdown table: each method's score, and its paired difference to each method in `against`.

    The 95 % intervals are over tasks. `each` adds a column for each task, with intervals over its episodes.
    """
    first = next(iter(scores.values()))
    metric, tasks = first.metric, sorted(set(first.tasks)) if each else []
    unit, better = metric.format.unit.strip(), "higher" if metric.higher_is_better else "lower"
    column = f"{metric.name}, {unit}" if unit else f"{metric.name} ({better} is better)"
    head = ["method", *tasks, column, *(f"minus {name}, paired" for name in against)]
    lines = [head, ["---"] * len(head)]
    for name, score in scores.items():
        shown = [dataclasses.replace(restricted(scores, {task})[name], tasks=()) for task in tasks] + [score]
        means = [_cell(one.mean, one.low, one.high, metric.format) for one in shown]
        differences = ["" if other == name else _difference(score, scores[other]) for other in against]
        lines.append([name, *means, *differences])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _difference(score: qs.Score, other: qs.Score) -> str:
    """The paired difference as text, with a note where the interval contains zero."""
    difference = qs.compare(score, other)
    undecided = "" if difference.decided else " (not decided)"
    return _cell(difference.mean, difference.low, difference.high, score.metric.format, "+") + undecided


def _cell(mean: float, low: float, high: float, form: Format, sign: str = "") -> str:
    """A mean with its interval, without its unit: of shares one digit, of others two digits of the interval."""
    interval = form.times * (high - low) / 2
    digits = max(0, 1 - math.floor(math.log10(interval))) if 0 < interval < math.inf else 3
    digits = digits if form.largest is None else 1
    written = dataclasses.replace(form, spec=f"{sign}.{digits}f", spread=f".{digits}f", unit="")
    return written.between(mean, low, high)
