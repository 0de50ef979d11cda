"""Standard deviations fitted on validation tasks, so that a learner's intervals hold as many values as they promise."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quickstudy.errors import ConfigError, NonFiniteError
from quickstudy.evaluation.choosing import chosen_engine
from quickstudy.evaluation.measures.intervals import check, distribution_after, fewest_shown, points_of, quantile
from quickstudy.evaluation.passes import begin, results
from quickstudy.learner import Episode, Learner, Theta, demand, takes
from quickstudy.trained.trained import Trained


def recalibrated(
    trained: Trained,
    tasks: Any,
    *,
    level: float = 0.9,
    episodes: int = 400,
    seed: int = 1,
    points: Sequence[int] | None = None,
) -> Trained:
    """The same learner with scaled standard deviations, so that its `level` intervals are calibrated on these tasks.

        factor(k) = quantile_level(|y - m| / s) / z,   over the query values after k support points, z as above

    Factors are measured at the numbers of support points in `points` (as in `interval_coverage`) and interpolated
    linearly between them; outside, the nearest factor is used. They are stored in the learner's `std_factors`, so
    predictors and files have them too. Means, parameters and training do not change. Use validation tasks: with test
    tasks the factors would be fitted to the data that they are judged on. For other levels the intervals are calibrated
    only as far as errors are Gaussian.

    After Kuleshov, Fenner, Ermon 2018 (https://arxiv.org/abs/1807.00263), with one number in place of a curve.

    >>> import torch, quickstudy as qs
    >>> learner = qs.CNP(torch.nn.Flatten(), width=1, representation=16)
    >>> trained = qs.train(learner, qs.tasks.sinusoid("train"), iterations=2, meta_batch=2, progress=False)
    >>> calibrated = qs.recalibrated(trained, qs.tasks.sinusoid("val"), episodes=20)
    >>> len(calibrated.learner.std_factors)  # after 0, 1, ..., 10 support points
    11

    Raises ConfigError where the learner has no distribution or no `std_factors`, or `points` are more than the tasks
    have, and NonFiniteError where a distribution is not finite.
    """
    demand(trained.learner, "distribution")
    check(episodes, [level])
    if not takes(trained.learner, "std_factors"):
        raise ConfigError(f"{type(trained.learner).__name__} has no std_factors that could be set.")
    plain = dataclasses.replace(trained.learner, std_factors=())  # type: ignore[type-var]
    one = begin(plain, trained.theta, tasks, episodes, seed)
    sizes = points_of(points, plain, fewest_shown(one))

    def measure(learner: Learner, episode: Episode) -> tuple[Tensor, ...]:
        return tuple(_ratios(learner, trained.theta, episode, k) for k in sizes)

    each = zip(*results(one, measure, chosen_engine(one, measure)), strict=True)
    measured = [_factor(ratios, k, level) for k, ratios in zip(sizes, each, strict=True)]
    factors = tuple(float(f) for f in np.interp(range(max(sizes) + 1), sizes, measured))
    return dataclasses.replace(trained, learner=dataclasses.replace(plain, std_factors=factors))


def _ratios(learner: Learner, theta: Theta, episode: Episode, points: int) -> Tensor:
    """|y - m| / s of a task's query values, flat."""
    p = distribution_after(learner, theta, episode, points)
    return ((episode.query.y - p.mean).abs() / p.std).flatten()


def _factor(ratios: Sequence[Tensor], points: int, level: float) -> float:
    for i, one in enumerate(ratios):
        if not torch.isfinite(one).all():
            raise NonFiniteError(f"test episode {i} gives a distribution that is not finite with {points} points.")
    return float(np.quantile(torch.cat(list(ratios)).double().numpy(), level) / quantile(level))
