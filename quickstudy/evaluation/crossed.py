"""The mean over trainings and test tasks, which are crossed: every training answers every task."""

from __future__ import annotations

import math

from scipy.special import stdtr, stdtrit
from torch import Tensor


def mean_of(values: Tensor, confidence: float = 0.95) -> tuple[float, float, float]:
    """The mean of values [trainings, tasks] with the ends of its interval."""
    return _interval(float(values.mean()), *_variance(values.mean(0), [values]), confidence)


def difference_of(a: Tensor, b: Tensor, confidence: float = 0.95) -> tuple[float, float, float, float]:
    """The mean of a [trainings, tasks] minus that of b, with the ends of its interval and its p-value.

    Tasks are the same on both sides, trainings are not: the first of a has nothing to do with the first of b.
    """
    paired = a.mean(0) - b.mean(0)
    mean, variance, freedom = float(paired.mean()), *_variance(paired, [a, b])
    return *_interval(mean, variance, freedom, confidence), _p(mean, variance, freedom)


def half_width(values: Tensor, confidence: float = 0.95) -> float:
    """The half width of Student's t interval for the mean of values [n]; infinite for fewer than two."""
    n = len(values)
    if n < 2:
        return math.inf
    return float(stdtrit(n - 1, 0.5 + confidence / 2)) * float(values.double().std()) / math.sqrt(n)


def _variance(paired: Tensor, sides: list[Tensor]) -> tuple[float, float]:
    """The variance of a mean, and its degrees of freedom after Satterthwaite."""
    n = len(paired)
    if n < 2:
        return math.inf, 1.0
    parts = [(float(paired.double().var()) / n, n - 1)]
    parts += [(float(one.double().mean(1).var()) / len(one), len(one) - 1) for one in sides if len(one) > 1]
    total = sum(v for v, _ in parts)
    return total, total**2 / sum(v**2 / k for v, k in parts) if total else n - 1.0


def _interval(mean: float, variance: float, freedom: float, confidence: float) -> tuple[float, float, float]:
    half = float(stdtrit(freedom, 0.5 + confidence / 2)) * math.sqrt(variance)
    return mean, mean - half, mean + half


def _p(mean: float, variance: float, freedom: float) -> float:
    if variance == 0:
        return float(mean == 0)
    return 2 * float(stdtr(freedom, -abs(mean) / math.sqrt(variance)))
