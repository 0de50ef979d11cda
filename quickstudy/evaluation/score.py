"""Scores: the mean over test episodes with its interval, and the paired difference of two."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.special import stdtrit
from torch import Tensor

from quickstudy.evaluation.metric import METRICS, Metric, metric_named
from quickstudy.evaluation.protocol import Protocol, require_same


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
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        """What is counted: its direction, and how values are written."""
        return self.own_metric or metric_named(self.protocol.metric)

    @property
    def mean(self) -> float:
        """The mean over tasks."""
        return float(by_task(self.values, self.tasks).mean())

    @property
    def interval(self) -> float:
        """The half width of the 95 % confidence interval of the mean over tasks."""
        return half_width(by_task(self.values, self.tasks))

    def in_words(self) -> str:
        """The mean with its interval, '97.4 % ± 0.3' or '0.152 ± 0.011 mean squared error'."""
        return self.metric.in_words(self.mean, self.interval)

    def first(self, n: int) -> Score:
        """The score on the first n episodes, without controls."""
        protocol = dataclasses.replace(self.protocol, episodes=min(n, len(self.values)))
        cut = {"values": self.values[:n], "tasks": self.tasks[:n]}
        return dataclasses.replace(self, protocol=protocol, controls={}, left_out={}, **cut)

    def against(self, control: Score) -> Difference:
        """The paired difference from one of its controls, over the episodes that the control answered.

        Raises ProtocolError where the two were not measured under the same protocol otherwise.
        """
        return compare(self.first(len(control.values)), control, allow=("transductive",))

    def __str__(self) -> str:
        over = f"{'95 % CI ' * math.isfinite(self.interval)}over {over_what(len(self.values), self.tasks)}"
        return f"{self.in_words()} ({over}; {self.protocol.describe()})"

    __repr__ = __str__  # the default would print hundreds of values

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for scores.json."""
        return {
            "text": str(self),
            "mean": self.mean,
            "interval": None if math.isinf(self.interval) else self.interval,
            "protocol": self.protocol.to_dict(),
            "values": [float(f"{v:.9g}") for v in self.values.tolist()],
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
        return cls(values, Protocol(**plain["protocol"]), controls, tasks, own_metric, plain.get("left_out", {}))

    def save(self, path: str) -> None:
        """Write the score to a JSON file."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, indent=1)


@dataclass(frozen=True)
class Difference:
    """The paired difference of two scores on the same episodes: a minus b."""

    mean: float
    interval: float  # half width of the 95 % confidence interval
    metric: str  # its name
    own_metric: Metric | None = None  # the metric, where it is the user's own

    @property
    def decided(self) -> bool:
        """Whether the interval excludes zero."""
        return abs(self.mean) > self.interval

    @property
    def _metric(self) -> Metric:
        return self.own_metric or metric_named(self.metric)

    def in_words(self) -> str:
        """Its size without the sign: '1.2 points ± 0.4', or '0.02 ± 0.01 mean squared error'."""
        return self._metric.in_words(abs(self.mean), self.interval, points=True)

    def signed(self, minus: str = "-", points: bool = True) -> str:
        """The difference without the metric's name: '+1.2 points ± 0.4', or '-0.02 ± 0.01'; `points`: with its unit."""
        sign, written = "+" if self.mean >= 0 else minus, self._metric.format
        unit = written if points else dataclasses.replace(written, points="")
        return f"{sign}{unit(abs(self.mean), self.interval, points=True)}"

    def __str__(self) -> str:
        verdict = "decided" if self.decided else "not decided: the interval holds zero"
        return f"{'+' if self.mean >= 0 else '-'}{self.in_words()} (paired, 95 % CI; {verdict})"


def in_words(mean: float, interval: float, metric: str | Metric, points: bool = False) -> str:
    """A mean with its interval: '97.4 % ± 0.3' for accuracies, '0.152 ± 0.011 mean squared error' for errors."""
    return (metric_named(metric) if isinstance(metric, str) else metric).in_words(mean, interval, points)


def by_task(values: Tensor, tasks: Sequence[str]) -> Tensor:
    """The mean of each task's values, sorted by task name; with fewer than two tasks the values themselves.

    values   [episodes]; `tasks` names the task of each
    """
    if len(set(tasks)) < 2:
        return values
    places = {name: i for i, name in enumerate(sorted(set(tasks)))}
    of = torch.tensor([places[name] for name in tasks])
    sums = torch.zeros(len(places), dtype=values.dtype).index_add(0, of, values)
    return sums / of.bincount()


def over_what(episodes: int, tasks: Sequence[str]) -> str:
    """What a mean is taken over, as text: '600 episodes', or '12 tasks, 600 episodes'."""
    different = len(set(tasks))
    return f"{episodes} episodes" if not tasks else f"{different} task{'s' * (different > 1)}, {episodes} episodes"


def half_width(values: Tensor, confidence: float = 0.95) -> float:
    """The half width of Student's t interval for the mean of values [n]; infinite for fewer than two."""
    n = len(values)
    if n < 2:
        return math.inf
    return float(stdtrit(n - 1, 0.5 + confidence / 2)) * float(values.double().std()) / math.sqrt(n)


def compare(a: Score, b: Score, allow: tuple[str, ...] = ()) -> Difference:
    """The paired difference a - b over the same episodes.

    `allow` names protocol fields that may differ, such as ("transductive",).

    Raises ProtocolError where the scores were not measured under the same protocol.
    """
    require_same(a.protocol, b.protocol, allow)
    difference = by_task(a.values - b.values, a.tasks)
    return Difference(float(difference.mean()), half_width(difference), a.protocol.metric, a.own_metric)
