"""Scores: the mean over test episodes, of one training or of several, with its interval."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from quickstudy.errors import ConfigError
from quickstudy.evaluation.confidence import Interval, half_width, mean_difference, mean_interval
from quickstudy.evaluation.difference import Difference
from quickstudy.evaluation.metric import METRICS, Metric, metric_named
from quickstudy.evaluation.protocol import Protocol, require_equal, require_same

__all__ = ["Difference", "Score", "by_task", "compare", "half_width", "in_words", "over_what"]


@dataclass(frozen=True, eq=False, repr=False)
class Score:
    """One value per test episode (accuracy in [0, 1], mean squared error, ...), and the protocol of the measurement.

    `controls` holds the scores of control learners on the same episodes, by name; a control has some information taken
    away. `left_out` gives the reason why one of them has no score here, by name. If tasks are fixed things such as
    customers or hospitals, `tasks` names the task of each episode. Then each task counts once, however many episodes it
    has, and the interval is over tasks, because the episodes of one task say nothing about other tasks.
    """

    values: Tensor  # float64 [episodes]
    protocol: Protocol
    controls: Mapping[str, Score] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()  # [episodes]; empty if every episode is its own task
    own_metric: Metric | None = None  # the metric, where it is the user's own; else the protocol's name tells it
    trainings: Tensor | None = None  # float64 [trainings, episodes], whose mean is `values`; None for one training
    left_out: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_trainings(cls, scores: Sequence[Score]) -> Score:
        """One score of several trainings of a learner, each measured under the same protocol, controls included.

        Raises ConfigError for no score, ProtocolError where the protocols differ.
        """
        if not scores:
            raise ConfigError("a score of several trainings needs the score of each; got none.")
        first, *others = scores
        for one in others:
            require_equal(first.protocol, one.protocol)
        shared = [name for name in first.controls if all(name in one.controls for one in others)]
        controls = {name: cls.of_trainings([one.controls[name] for one in scores]) for name in shared}
        each = torch.cat([one.each for one in scores])
        several = None if len(each) == 1 else each
        return dataclasses.replace(first, values=each.mean(0), controls=controls, trainings=several)

    @property
    def each(self) -> Tensor:
        """The values of every training: [trainings, episodes]."""
        return self.values[None] if self.trainings is None else self.trainings

    @property
    def of_tasks(self) -> Tensor:
        """The mean of each task in every training: [trainings, tasks]."""
        return torch.stack([by_task(values, self.tasks) for values in self.each])

    @property
    def metric(self) -> Metric:
        """What is counted: its direction, and how values are written."""
        return self.own_metric or metric_named(self.protocol.metric)

    @property
    def mean(self) -> float:
        """The mean over tasks."""
        return float(by_task(self.values, self.tasks).mean())

    @functools.cached_property
    def ends(self) -> Interval:
        """The 95 % confidence interval of the mean over tasks and trainings; one task has none."""
        return mean_interval(self.of_tasks, self.metric.format)

    @property
    def low(self) -> float:
        """The lower end of the 95 % confidence interval; minus infinity for one task."""
        return self.ends.low

    @property
    def high(self) -> float:
        """The upper end of the 95 % confidence interval; infinity for one task."""
        return self.ends.high

    @property
    def interval(self) -> float:
        """Half the width of the 95 % confidence interval; infinite for one task."""
        return self.ends.half

    def in_words(self) -> str:
        """The mean with its interval, '97.4 % ± 0.3', '99.9 % (99.6 to 100.0)', '0.152 ± 0.011 mean squared error'."""
        return self.metric.between(self.mean, self.low, self.high)

    def first(self, n: int) -> Score:
        """The score on the first n episodes, without controls."""
        protocol = dataclasses.replace(self.protocol, episodes=min(n, len(self.values)))
        several = None if self.trainings is None else self.trainings[:, :n]
        few = {"values": self.values[:n], "tasks": self.tasks[:n], "trainings": several}
        return dataclasses.replace(self, protocol=protocol, controls={}, left_out={}, **few)

    def against(self, control: Score) -> Difference:
        """The paired difference from one of its controls, over the episodes that the control answered.

        Raises ProtocolError where the two were not measured under the same protocol otherwise.
        """
        return compare(self.first(len(control.values)), control, allow=("transductive",))

    def __str__(self) -> str:
        over = f"{'95 % CI ' * math.isfinite(self.low)}over {over_what(len(self.values), self.tasks)}"
        over += f" and {len(self.each)} trainings" * (len(self.each) > 1)
        return f"{self.in_words()} ({over}; {self.protocol.describe()})"

    __repr__ = __str__  # the default would print hundreds of values

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for scores.json."""
        return {
            "text": str(self),
            "mean": self.mean,
            **{name: _finite(getattr(self, name)) for name in ("interval", "low", "high")},
            "protocol": self.protocol.to_dict(),
            "values": _short(self.values),
            **({} if self.trainings is None else {"trainings": list(map(_short, self.trainings))}),
            **({"tasks": list(self.tasks)} if self.tasks else {}),
            **({} if self.metric in METRICS.values() else {"metric": self.metric.to_dict()}),
            "controls": {name: score.to_dict() for name, score in self.controls.items()},
            **({"left_out": dict(self.left_out)} if self.left_out else {}),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Score:
        """The score that `to_dict` wrote. Raises KeyError, ValueError or TypeError for anything else."""
        controls = {name: cls.from_dict(value) for name, value in plain["controls"].items()}
        values, tasks = torch.tensor(plain["values"], dtype=torch.float64), tuple(plain.get("tasks", ()))
        own_metric = Metric.from_dict(plain["metric"]) if "metric" in plain else None
        trainings = torch.tensor(plain["trainings"], dtype=torch.float64) if "trainings" in plain else None
        if trainings is not None and trainings.shape[1:] != values.shape:
            raise ValueError("trainings and values are of other numbers of episodes")
        left_out = plain.get("left_out", {})
        return cls(values, Protocol(**plain["protocol"]), controls, tasks, own_metric, trainings, left_out)

    def save(self, path: str) -> None:
        """Write the score to a JSON file."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, indent=1)


def _finite(value: float) -> float | None:
    """None for an infinite value, because JSON has no infinity."""
    return value if math.isfinite(value) else None


def _short(values: Tensor) -> list[float]:
    """Numbers with nine digits, which keeps files small."""
    return [float(f"{v:.9g}") for v in values.tolist()]


def in_words(mean: float, interval: float, metric: str | Metric, points: bool = False) -> str:
    """A mean with its interval: '97.4 % ± 0.3' for accuracies, '0.152 ± 0.011 mean squared error' for errors."""
    return (metric_named(metric) if isinstance(metric, str) else metric).in_words(mean, interval, points)


def by_task(values: Tensor, tasks: Sequence[str]) -> Tensor:
    """The mean of each task's values, sorted by task name: [tasks].

    values   [episodes]; `tasks` names the task of each; empty: every episode is its own task
    """
    if not tasks:
        return values
    places = {name: i for i, name in enumerate(sorted(set(tasks)))}
    of = torch.tensor([places[name] for name in tasks])
    sums = torch.zeros(len(places), dtype=values.dtype).index_add(0, of, values)
    return sums / of.bincount()


def over_what(episodes: int, tasks: Sequence[str]) -> str:
    """What a mean is taken over, as text: '600 episodes', or '12 tasks, 600 episodes'."""
    different = len(set(tasks))
    return f"{episodes} episodes" if not tasks else f"{different} task{'s' * (different > 1)}, {episodes} episodes"


def compare(a: Score, b: Score, allow: tuple[str, ...] = ()) -> Difference:
    """The difference a - b over the same episodes: paired over episodes, independent over trainings.

    `allow` names protocol fields that may differ, such as ("transductive",).

    Raises ProtocolError where the scores were not measured under the same protocol.
    """
    require_same(a.protocol, b.protocol, allow)
    mean, ends, p = mean_difference(a.of_tasks, b.of_tasks, a.metric.format.width)
    return Difference(mean, *ends, p, a.protocol.metric, (len(a.each), len(b.each)), a.own_metric)
