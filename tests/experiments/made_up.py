"""Comparisons made of made-up scores, without a training."""

from __future__ import annotations

import dataclasses

import torch

import quickstudy as qs
from quickstudy.evaluation.metric import PLAIN, Metric
from quickstudy.evaluation.score import Score
from quickstudy.experiments.advice import Advice, advise
from quickstudy.experiments.comparison import Entry, LearnerComparison, Trial

PROTOCOL = qs.Protocol("ProtoNet", "glyphs", "test", 5, 1, 15, "accuracy", 400, 1, False, "support")
NOISE = torch.randn(400, generator=torch.Generator().manual_seed(0)).double()


def entry(
    name: str, *means: float, meta: bool = True, metric: str = "accuracy", trained: bool = True, **changes: object
) -> Entry:
    """Values of these means over 400 episodes, with noise of its own of 0.01."""
    drawn = torch.Generator().manual_seed(len(name))
    noise = NOISE + 0.5 * torch.randn(400, generator=drawn).double()
    protocol = dataclasses.replace(PROTOCOL, metric=metric, ways=5 if metric == "accuracy" else None)
    values = [mean + 0.01 * (noise - noise.mean()) for mean in means]
    spent = (100, 60.0) if trained else (0, 0.0)
    trials = tuple(Trial(i, Score(v, protocol), *spent) for i, v in enumerate(values))
    given = {"adapt_seconds": 0.01, "predict_seconds": 0.01, "bytes": 10_000} | changes
    return Entry(name, "ProtoNet", meta, trials, **given)  # type: ignore[arg-type]


def metric_called(name: str, higher_is_better: bool) -> Metric:
    return Metric(name, higher_is_better, PLAIN, lambda output, y: output.mean())


def own(one: Entry, metric: Metric) -> Entry:
    """The entry with its score under another metric."""
    score = one.trials[0].score
    protocol = dataclasses.replace(score.protocol, metric=metric.name)
    trial = dataclasses.replace(one.trials[0], score=dataclasses.replace(score, protocol=protocol, own_metric=metric))
    return dataclasses.replace(one, trials=(trial,))


def comparison(*entries: Entry) -> LearnerComparison:
    return LearnerComparison(entries, {"minutes": 1, "seeds": [0]})


def asked(found: LearnerComparison, word: str) -> Advice:
    return next(one for one in advise(found) if word in one.question)
