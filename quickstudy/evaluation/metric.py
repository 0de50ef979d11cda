"""What a score counts: a metric is a value, found by its name in METRICS or given by the user.

Which one a learner and its tasks give by default is said here and nowhere else, see `metric_for`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from quickstudy.episodes import Episode
from quickstudy.errors import ConfigError, suggest
from quickstudy.learner import Learner, setting


@dataclass(frozen=True)
class Format:
    """How a value is written: times so many, with so many digits, and a unit behind it."""

    times: float = 1.0
    spec: str = ".3g"  # of the value
    spread: str = ".2g"  # of the half width of its interval
    unit: str = ""  # behind a value, such as " %"
    points: str = ""  # behind a difference of two values, such as " points"

    def __call__(self, mean: float, interval: float, points: bool = False) -> str:
        """'97.4 % ± 0.3', of a mean and the half width of its interval; `points` for a difference of two means."""
        unit = self.points if points else self.unit
        return f"{self.times * mean:{self.spec}}{unit} ± {self.times * interval:{self.spread}}"


PERCENT = Format(100.0, ".1f", ".1f", " %", " points")
PLAIN = Format()


@dataclass(frozen=True)
class Metric:
    """What is counted in a test episode.

    >>> import quickstudy as qs
    >>> absolute = qs.Metric("mean absolute error", False, qs.Metric.PLAIN, lambda output, y: (output - y).abs().mean())
    """

    name: str
    higher_is_better: bool
    format: Callable[[float, float], str]  # mean and half width of its interval, in words
    of: Callable[[Any, Any], Tensor]  # output of one task's queries and their y -> a scalar
    power: int = 0  # of the target's unit that a value carries: 0 for a share, 1 for an error, 2 for its square

    PERCENT = PERCENT
    PLAIN = PLAIN


def accuracy(output: Tensor, y: Tensor) -> Tensor:
    """The share of queries [m] whose largest logit [m, ways] is that of their class; NaN where a logit is NaN."""
    # NaN logits would count as a wrong answer in silence: carry them into the score, where they are refused.
    return (output.argmax(1) == y).double().mean() + 0 * output.sum()


def mean_squared_error(output: Tensor, y: Tensor) -> Tensor:
    """Of values [m, d]: the mean of (output - y)^2 over queries and dimensions."""
    return ((output - y) ** 2).mean()


def mean_absolute_error(output: Tensor, y: Tensor) -> Tensor:
    """Of values [m, d]: the mean of |output - y| over queries and dimensions."""
    return (output - y).abs().mean()


ACCURACY = Metric("accuracy", True, PERCENT, accuracy)
MEAN_SQUARED_ERROR = Metric("mean squared error", False, Format(unit="", points=""), mean_squared_error, power=2)
MEAN_ABSOLUTE_ERROR = Metric("mean absolute error", False, PLAIN, mean_absolute_error, power=1)
METRICS = {one.name: one for one in (ACCURACY, MEAN_SQUARED_ERROR, MEAN_ABSOLUTE_ERROR)}


def find_metric(metric: str | Metric) -> Metric:
    """A metric by its name; a Metric as it is. Raises ConfigError for a name that is none."""
    if isinstance(metric, Metric):
        return metric
    if metric not in METRICS:
        raise ConfigError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}.{suggest(metric, METRICS)}")
    return METRICS[metric]


def metric_for(learner: Learner, ways: int | None, episode: Episode) -> Metric:
    """The metric that a learner and its tasks give where none is named.

    Classes give accuracy: tasks that declare `ways`, or class numbers [n] for a learner whose loss is cross entropy.
    Values [n, d] of one tensor give the mean squared error. Nothing else is guessed: raises ConfigError for answers
    that can be read in several ways (several targets, whole numbers under a loss for values), which asks for `metric=`.
    """
    y, loss = episode.query.y, setting(learner, "loss", F.cross_entropy)
    if isinstance(y, Tensor) and not y.is_floating_point() and (ways is not None or loss is F.cross_entropy):
        return ACCURACY
    if isinstance(y, Tensor) and y.is_floating_point() and ways is None:
        return MEAN_SQUARED_ERROR
    shapes = [f"{list(leaf.shape)} {leaf.dtype}" for leaf in pytree.tree_leaves(y)]
    raise ConfigError(
        f"these answers can be scored in several ways (y: {', '.join(shapes)}). Say which: metric='accuracy', "
        "metric='mean squared error', or a qs.Metric of your own."
    )
