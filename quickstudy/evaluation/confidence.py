"""The confidence interval of a mean over test tasks; which one it is follows from the range of the metric.

- *any value* (a reward, a difference): Student's t.
- *a share between two ends* (accuracy): Student's t on the scale of the logit, which never leaves the range, with the
  degrees of freedom that a variance of such values has, 2 n / (kurtosis - 1): near an end a few tasks make up all of
  the variance. Values that are all alike show no spread; then each task counts as one trial (Clopper-Pearson).
- *an error from an end up*: the lower end is Student's on the scale of the logarithm. The upper end depends on the
  tail, of which few tasks show little. Where the values may be lognormal (Shapiro-Wilk on their logarithms), it is the
  generalised one for a lognormal mean (Krishnamoorthy, Mathew: Journal of Statistical Planning and Inference 115,
  2003); else that of the bootstrap-t (Efron, Tibshirani: An Introduction to the Bootstrap, 1993, chapter 12).

Several trainings widen each, see `crossed`. The formulas and their simulated coverage are in docs/evaluation.md.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv, chdtri, logit, ndtr, stdtr
from torch import Tensor

from quickstudy.evaluation.crossed import Spread, quantile, spread, widened
from quickstudy.evaluation.metric import PLAIN, Format

ALPHA = 0.05  # 95 % intervals
LOGNORMAL = 0.1  # p-value of Shapiro-Wilk above which values count as lognormal: simulated, see docs/evaluation.md
LARGEST = 5000  # tasks: with more, the mean is normal enough on the scale of the logarithm, and Shapiro-Wilk ends
RESAMPLES = 999
OPEN = 7.0  # an upper end that is e^7, about a thousand, times the mean away is none
FEWEST = 6  # tasks that a bootstrap can resample; of one sign, they are also the fewest that a sign test decides on


class Interval(NamedTuple):
    """The ends of an interval; both are infinite where there is none."""

    low: float
    high: float

    @property
    def half(self) -> float:
        """Half its width."""
        return (self.high - self.low) / 2 if math.isfinite(self.low) else math.inf


NONE = Interval(-math.inf, math.inf)


def mean_interval(values: Tensor, of: Format = PLAIN, alpha: float = ALPHA) -> Interval:
    """The 1 - alpha confidence interval of the mean of values [tasks], or [trainings, tasks], in the range of `of`.

    One task has none: both ends are infinite.
    """
    rows = values.double().reshape(-1, values.shape[-1])
    x, spreads = rows.mean(0).numpy(), spread(rows)
    if len(x) < 2:
        return NONE
    if of.smallest is None:
        return _any(x, spreads, alpha)
    if of.largest is None:
        found = _error(x - of.smallest, spreads, alpha)
        return Interval(found.low + of.smallest, found.high + of.smallest)
    width = of.largest - of.smallest
    found = _share((x - of.smallest) / width, [one.scaled(1 / width) for one in spreads], alpha)
    return Interval(of.smallest + width * found.low, of.smallest + width * found.high)


def half_width(values: Tensor, confidence: float = 0.95) -> float:
    """The half width of Student's t interval for the mean of values [n]; infinite for fewer than two."""
    return mean_interval(values, PLAIN, 1 - confidence).half


def _any(x: np.ndarray, spreads: list[Spread], alpha: float) -> Interval:
    mean, half = float(x.mean()), _half(_variance(x), len(x), spreads, alpha)
    return Interval(mean - half, mean + half)


def _half(variance: float, n: int, spreads: list[Spread], alpha: float) -> float:
    return widened(quantile(n - 1, alpha) * math.sqrt(variance), variance, spreads, alpha)


def _variance(x: np.ndarray) -> float:
    """The variance of the mean; 0 where values differ by rounding alone."""
    return float(x.var(ddof=1)) / len(x) if np.ptp(x) > 1e-12 * np.abs(x).max() else 0.0


# --- shares ----------------------------------------------------------------------------------------------------------


def _share(x: np.ndarray, spreads: list[Spread], alpha: float) -> Interval:
    mean, n, variance = float(x.mean()), len(x), _variance(x)
    if variance == 0 or not 0 < mean < 1:
        return _trials(mean * n, n, alpha)
    slope = 1 / (mean * (1 - mean))
    half = quantile(_freedom(x), alpha) * math.sqrt(variance) * slope
    half = widened(half, variance * slope**2, [one.scaled(slope) for one in spreads], alpha)
    return Interval(*(1 / (1 + math.exp(-min(max(logit(mean) + sign * half, -700), 700))) for sign in (-1, 1)))


def _freedom(x: np.ndarray) -> float:
    """The degrees of freedom of the variance of values with this kurtosis; n - 1 where they are normal."""
    away = (x - x.mean()) ** 2
    return min(len(x) - 1, max(2 * len(x) / max(float((away**2).mean() / away.mean() ** 2) - 1, 1e-9), 1))


def _trials(right: float, n: int, alpha: float) -> Interval:
    """Clopper and Pearson's interval for so many successes in n trials."""
    tail = alpha / 2
    low = float(betaincinv(right, n - right + 1, tail)) if right > 0 else 0.0
    return Interval(low, float(betaincinv(right + 1, n - right, 1 - tail)) if right < n else 1.0)


# --- errors ----------------------------------------------------------------------------------------------------------


def _error(x: np.ndarray, spreads: list[Spread], alpha: float) -> Interval:
    mean, variance = float(x.mean()), _variance(x)
    if mean <= 0 or variance == 0:
        return _any(x, spreads, alpha)
    half = quantile(len(x) - 1, alpha) * math.sqrt(variance) / mean
    most = _upper(x / mean, alpha) or half
    arms = (widened(h, variance / mean**2, [s.scaled(1 / mean) for s in spreads], alpha) for h in (half, most))
    down, up = arms
    return Interval(mean * math.exp(-down), mean * math.exp(up) if up < OPEN else math.inf)


def _upper(x: np.ndarray, alpha: float) -> float | None:
    """The logarithm of the upper end for errors with the mean 1; None where Student's on that scale will do."""
    if len(x) > LARGEST:
        return None
    if x.min() > 0 and _lognormal(np.log(x)):
        return max(_lognormal_end(np.log(x), 1 - alpha / 2), 0.0)
    return math.log(_bootstrap_end(x, alpha)) if len(x) >= FEWEST else None


def _lognormal(y: np.ndarray) -> bool:
    from scipy.stats import shapiro  # not at the top: it takes half a second to import

    return len(y) < 3 or np.ptp(y) == 0 or float(shapiro(y).pvalue) >= LOGNORMAL


def _lognormal_end(y: np.ndarray, level: float) -> float:
    """The quantile of T = mean(y) - Z s / sqrt(n w) + s^2 / (2 w), with Z normal and w = chi^2 / (n - 1), by bisection.

    T is distributed as what the logarithms y tell of the logarithm of the lognormal mean.
    """
    n, s = len(y), float(y.std(ddof=1))
    w = _chi_square(n - 1)
    low, high = float(y.mean()), float(y.mean() + s**2 / w.min() + 9 * s / math.sqrt(n * w.min()))
    for _ in range(40):
        middle = (low + high) / 2
        below = ndtr((middle - y.mean() - s**2 / (2 * w)) * np.sqrt(n * w) / s).mean()
        low, high = (middle, high) if below < level else (low, middle)
    return high


@functools.lru_cache(maxsize=16)
def _chi_square(freedom: int, nodes: int = 1000) -> np.ndarray:
    """Equally probable values of chi^2 / freedom."""
    return chdtri(freedom, (np.arange(nodes) + 0.5) / nodes) / freedom


def _bootstrap_end(x: np.ndarray, alpha: float) -> float:
    """The upper end of the bootstrap-t interval of the mean, always of the same resamples."""
    n, drawn = len(x), np.random.default_rng(0)
    resampled = x[drawn.integers(0, n, (RESAMPLES, n))]
    errors = resampled.std(1, ddof=1) / math.sqrt(n)
    t = (resampled.mean(1) - x.mean())[errors > 0] / errors[errors > 0]
    return float(x.mean() - np.quantile(t, alpha / 2) * math.sqrt(_variance(x)))


# --- differences -----------------------------------------------------------------------------------------------------


def mean_difference(a: Tensor, b: Tensor, most: float | None = None) -> tuple[float, Interval, float]:
    """The mean of a [trainings, tasks] minus that of b, its interval, and the two-sided p-value of no difference.

    Tasks are the same on both sides, trainings are not: the first of a has nothing to do with the first of b. `most`
    is the largest possible difference. One task has no interval, and nothing is decided on it.
    """
    a, b = a.double(), b.double()
    x, spreads = (a.mean(0) - b.mean(0)).numpy(), spread(a) + spread(b)
    mean, n = float(x.mean()), len(x)
    if n < 2:
        return mean, NONE, 1.0
    if _variance(x) == 0 and not any(one.variance for one in spreads):
        return mean, *_alike(mean, n)
    found = _any(x, spreads, ALPHA)
    if most is not None:
        found = Interval(max(found.low, -most), min(found.high, most))
    return mean, found, _p(x, spreads)


def _alike(mean: float, n: int) -> tuple[Interval, float]:
    """Differences that are all alike show no spread: the sign test is what is left of a test."""
    p = 1.0 if mean == 0 else min(2.0 ** (1 - n), 1.0)
    return (Interval(mean, mean) if n >= FEWEST else Interval(min(mean, 0.0), max(mean, 0.0))), p


def _p(x: np.ndarray, spreads: list[Spread]) -> float:
    """The p-value at which an end of the interval is zero; with several trainings by bisection of its logarithm."""
    mean, variance, n = abs(float(x.mean())), _variance(x), len(x)
    if not spreads:
        return 2 * float(stdtr(n - 1, -mean / math.sqrt(variance)))
    low, high = -60.0, 0.0
    for _ in range(80):
        middle = (low + high) / 2
        inside = _half(variance, n, spreads, 10**middle) >= mean
        low, high = (middle, high) if inside else (low, middle)
    return 10**high
