"""The difference of two scores, with its interval, its p-value, and what it holds for."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from quickstudy.evaluation.metric import Metric, metric_named


@dataclass(frozen=True)
class Difference:
    """The difference of two scores on the same episodes: a minus b.

    With one training on each side it holds for these trainings alone; others of the same learners may differ by more.
    """

    mean: float
    low: float  # lower end of the 95 % confidence interval
    high: float  # its upper end
    p: float  # two-sided p-value of "no difference"; below 0.05 exactly where the interval excludes zero
    metric: str  # its name
    trainings: tuple[int, int] = (1, 1)  # how many trainings a and b have
    own_metric: Metric | None = None  # the metric, where it is the user's own

    @property
    def interval(self) -> float:
        """Half the width of the interval; infinite for one task, which has none."""
        return (self.high - self.low) / 2 if math.isfinite(self.low) else math.inf

    @property
    def decided(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0

    @property
    def over(self) -> str:
        """What it holds for: 'these trainings alone', or 'over 5 trainings'."""
        a, b = self.trainings
        if a == b:
            return "these trainings alone" if a == 1 else f"over {a} trainings"
        return f"over {a} against {b} trainings"

    @property
    def _size(self) -> tuple[float, float, float]:
        """Mean and interval without the sign."""
        return (self.mean, self.low, self.high) if self.mean >= 0 else (-self.mean, -self.high, -self.low)

    @property
    def _metric(self) -> Metric:
        return self.own_metric or metric_named(self.metric)

    def in_words(self) -> str:
        """Its size without the sign: '1.2 points ± 0.4', or '0.02 ± 0.01 mean squared error'."""
        return self._metric.between(*self._size, points=True)

    def signed(self, minus: str = "-", points: bool = True) -> str:
        """The difference without the metric's name: '+1.2 points ± 0.4', or '-0.02 ± 0.01'; `points`: with its unit."""
        sign, written = "+" if self.mean >= 0 else minus, self._metric.format
        unit = written if points else dataclasses.replace(written, points="")
        return f"{sign}{unit.between(*self._size, points=True)}"

    def __str__(self) -> str:
        if math.isinf(self.low):
            return f"{'+' if self.mean >= 0 else '-'}{self.in_words()}"
        verdict = "decided" if self.decided else "not decided: the interval holds zero"
        return f"{'+' if self.mean >= 0 else '-'}{self.in_words()} (paired, 95 % CI, {self.over}; {verdict})"
