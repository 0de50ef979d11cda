"""What trainings add to the interval of a mean: a random effect that is crossed with the test tasks.

Every one of R trainings answers every one of n tasks, y_ri = mu + a_r + b_i + e_ri. The variance of the mean is

    var(a) / R + var(b) / n + var(e) / (R n),   estimated by   V = u + b - e,   at least b,

    u = var_r(mean_i y) / R       between trainings, R - 1 degrees of freedom
    b = var_i(mean_r y) / n       between tasks, n - 1 degrees of freedom
    e = var(residual) / (R n)     which u and b both contain

Searle, Casella, McCulloch: Variance Components, 1992, chapter 4. The half width is t sqrt(V), where t^2 mixes Student's
quantiles of the parts, t^2 = (u^2 t_u^2 + b^2 t_b^2) / (u^2 + b^2). Cochran mixed the quantiles with the variances as
weights (Biometrics 20, 1964), which is too wide; the degrees of freedom of Satterthwaite (Biometrics Bulletin 2, 1946)
are too many for two or three trainings. In a difference of two learners u and e are sums over both, and t_u has Welch's
degrees of freedom (Biometrika 34, 1947), because their trainings are independent. docs/evaluation.md has the coverage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import stdtrit
from torch import Tensor


class Spread(NamedTuple):
    """The variance between the trainings of one learner, as a part of the variance of its mean."""

    variance: float  # u
    shared: float  # e
    freedom: int

    def scaled(self, slope: float) -> Spread:
        """The same on a scale with this slope at the mean."""
        return Spread(self.variance * slope**2, self.shared * slope**2, self.freedom)


def spread(values: Tensor) -> list[Spread]:
    """The spread between trainings of values [trainings, tasks]; empty for one training, which shows none."""
    trainings, tasks = values.shape
    if trainings < 2 or tasks < 2:
        return []
    means, apart = values.mean(1), values - values.mean(1, keepdim=True)
    residual = (apart - apart.mean(0)).square().sum() / ((trainings - 1) * (tasks - 1))
    return [Spread(float(means.var()) / trainings, float(residual) / values.numel(), trainings - 1)]


def widened(half: float, variance: float, spreads: Sequence[Spread], alpha: float) -> float:
    """The half width of an interval over tasks, widened by the spread between trainings.

    half, variance   of the interval over tasks alone, t_b sqrt(b) and b
    """
    between = sum(one.variance for one in spreads)
    if between == 0:
        return half
    freedom = between**2 / sum(one.variance**2 / one.freedom for one in spreads)  # of both sides of a difference, Welch
    total = max(between + variance - sum(one.shared for one in spreads), variance)
    mixed = (between * quantile(freedom, alpha)) ** 2 + variance * half**2
    return math.sqrt(total * mixed / (between**2 + variance**2))


def quantile(freedom: float, alpha: float) -> float:
    """Student's t that is exceeded, up or down, with probability alpha."""
    return float(-stdtrit(freedom, alpha / 2))
