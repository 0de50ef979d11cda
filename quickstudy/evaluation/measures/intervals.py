"""Are a learner's predictive intervals calibrated? Measures how many values of unseen tasks lie inside them.

    coverage(level)   share of the query values y with |y - m| <= z s,   z the quantile of (1 + level) / 2
    surprise          mean of -log N(y; m, s^2), in nats: lower is better, and it rewards narrow intervals too

A learner is calibrated where coverage equals level. Coverage alone is easy to reach: the spread of all tasks together,
as an interval, has it. So the mean standard deviation is reported too. Numbers are averaged within each episode first,
because errors of queries in one task are correlated; their confidence intervals are over episodes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from quickstudy.base import seeds
from quickstudy.base.words import plural
from quickstudy.engine import mapping
from quickstudy.engine.fitting import check_episodes, check_values, device_of, for_test
from quickstudy.episodes import Episodes, count, unstack
from quickstudy.errors import ConfigError, NonFiniteError
from quickstudy.evaluation.amount import Amount, aligned
from quickstudy.evaluation.protocol import Protocol
from quickstudy.evaluation.scoring import protocol_of, sample_blocks
from quickstudy.learner import Batch, Episode, Learner, Theta, demand
from quickstudy.learners.parts.gaussian import Gaussian, negative_log_likelihood
from quickstudy.trained.trained import Trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
POINTS = (0, 1, 2, 3, 5, 10, 20, 50, 100)  # default numbers of support points
KINDS = ("surprise", "std", "error")
HEADINGS = ("-log p", "std", "mean squared error")


@dataclass(frozen=True)
class AtSize:
    """The measurement with `points` support points: means over test episodes."""

    points: int
    coverage: tuple[Amount, ...]  # share of the values inside the interval, for each level
    surprise: Amount  # negative log-likelihood per value, in nats
    std: Amount  # predicted standard deviation
    error: Amount  # squared error of the predicted means


@dataclass(frozen=True)
class Calibration:
    """Coverage of central intervals by level and number of support points, and the protocol."""

    levels: tuple[float, ...]
    sizes: tuple[AtSize, ...]
    protocol: Protocol

    def __getitem__(self, points: int) -> AtSize:
        """The measurement with this many support points. Raises KeyError where it was not made."""
        return {one.points: one for one in self.sizes}[points]

    def coverage(self, level: float = 0.9) -> dict[int, Amount]:
        """Number of support points -> share of the values inside intervals of this level.

        Raises ConfigError where the level was not measured.
        """
        if level not in self.levels:
            raise ConfigError(f"the level {level} was not measured; there are {', '.join(map(str, self.levels))}.")
        return {one.points: one.coverage[self.levels.index(level)] for one in self.sizes}

    def __str__(self) -> str:
        head = ("support points", *(f"{100 * level:g} %" for level in self.levels), *HEADINGS)
        rows = [head, *(_row(one) for one in self.sizes)]
        under = f"95 % CI over {self.protocol.episodes} episodes; {self.protocol.describe()}"
        return "\n".join([*aligned(rows), f"percent of the values inside central intervals ({under})"])

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for calibration.json."""
        sizes = [
            {"points": one.points, "coverage": [list(a) for a in one.coverage]}
            | {kind: list(getattr(one, kind)) for kind in KINDS}
            for one in self.sizes
        ]
        return {"levels": list(self.levels), "sizes": sizes, "protocol": self.protocol.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Calibration:
        """The calibration that `to_dict` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        levels = tuple(float(level) for level in plain["levels"])
        sizes = [
            AtSize(int(one["points"]), tuple(map(_amount_of, one["coverage"])), *(_amount_of(one[k]) for k in KINDS))
            for one in plain["sizes"]
        ]
        if not sizes or any(len(one.coverage) != len(levels) for one in sizes):
            raise ValueError("it holds no coverage of each level")
        return cls(levels, tuple(sizes), Protocol(**plain["protocol"]))

    def plot(self, path: str | os.PathLike) -> None:
        """Write the reliability curve: coverage against level. `path` ends with .png, .svg or .pdf."""
        from quickstudy.base.figures import save  # matplotlib takes a second to import

        save(path, lambda colours: figure(self, colours))


def _row(one: AtSize) -> tuple[str, ...]:
    inside = (f"{100 * a.mean:.1f} ± {100 * a.interval:.1f}" for a in one.coverage)
    return (str(one.points), *inside, *(f"{a.mean:.3g} ± {a.interval:.2g}" for a in (getattr(one, k) for k in KINDS)))


def _amount_of(plain: Sequence[float]) -> Amount:
    mean, interval = plain
    return Amount(float(mean), float(interval))


# --- measuring -------------------------------------------------------------------------------------------------------


def interval_coverage(
    trained: Any,
    tasks: Any,
    *,
    episodes: int = 400,
    seed: int = 1,
    levels: Sequence[float] = LEVELS,
    points: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Calibration:
    """Measure how many query values of unseen tasks lie inside the central intervals of a learner's distribution.

    `trained` has `.learner` and `.theta`; the learner has a `distribution` (cnp, anp). The episodes are those of
    `evaluate` with the same seed. `levels`: probabilities of the intervals. `points`: numbers of support points; with
    k points the first k of each task are used. None: those of POINTS from the fewest that the learner trains with up to
    the tasks' shots, and the shots. `progress(n)` is called with the number of episodes done since the last call.

    >>> import torch, quickstudy as qs
    >>> learner = qs.CNP(torch.nn.Flatten(), width=1, representation=16)
    >>> trained = qs.train(learner, qs.tasks.sinusoid("train"), iterations=2, meta_batch=2, progress=False)
    >>> found = qs.interval_coverage(trained, qs.tasks.sinusoid("test"), episodes=4)
    >>> found.coverage(0.9)[10].mean  # doctest: +SKIP
    0.91
    >>> found.plot("reliability.svg")  # doctest: +SKIP

    Raises ConfigError where the learner has no distribution or `points` are more than the tasks have, DataError where
    the learner cannot use the tasks, and NonFiniteError where a distribution is not finite.
    """
    demand(trained.learner, "distribution")
    _check(episodes, levels)
    learner, theta, found = for_test(trained.learner, tasks), trained.theta, []
    first: Episodes | None = None
    for number, block in enumerate(sample_blocks(tasks, episodes, seed, device_of(theta))):
        if first is None:
            first, outputs = block, check_episodes(learner, theta, block)
            points = _points(points, learner, _fewest(block))
        check_values(block, outputs)
        with seeds.seeded(seed, "evaluate", number):
            found.append([_measured(learner, theta, block, k, levels) for k in points or ()])
        if progress:
            progress(count(block))
    sizes = [_at_size(k, torch.cat(blocks)) for k, blocks in zip(points or (), zip(*found, strict=True), strict=True)]
    protocol = protocol_of(learner, tasks, "coverage of intervals", episodes, seed, seen=first)
    return Calibration(tuple(levels), tuple(sizes), protocol)


def _check(episodes: int, levels: Sequence[float]) -> None:
    if episodes < 2:
        raise ConfigError(f"intervals over episodes need at least 2 of them, got {episodes}.")
    if not levels or not all(0 < level < 1 for level in levels):
        raise ConfigError(f"levels are probabilities between 0 and 1, got {', '.join(map(str, levels)) or 'none'}.")


def _fewest(block: Episodes) -> int:
    """The smallest number of support examples of any task."""
    return min(len(one.support.y) for one in unstack(block))


def _points(given: Sequence[int] | None, learner: Learner, shots: int) -> list[int]:
    least = 0 if learner.from_nothing else 1
    if given is None:
        fewest = max(least, min(getattr(learner, "fewest", least), shots))
        return sorted({k for k in (*POINTS, shots) if fewest <= k <= shots})
    if not given or not all(least <= k <= shots for k in given):
        raise ConfigError(
            f"points are numbers of support points from {least} to the {shots} that the tasks have, got "
            f"{', '.join(map(str, given)) or 'none'}."
        )
    return list(given)


def _answers(learner: Learner, theta: Theta, episode: Episode, points: int) -> Gaussian:
    """The distribution of the query values after learning from the first `points` support points."""
    x, y = episode.support
    phi = learner.adapt(theta, Batch(x[:points], y[:points]))
    return Gaussian(*learner.distribution(theta, phi, episode.query.x))


def _measured(learner: Learner, theta: Theta, episodes: Episodes, points: int, levels: Sequence[float]) -> Tensor:
    """[episodes, levels + 3]: coverage of each level, surprise, std, squared error; means over each task's values."""
    reach = [float(ndtri(0.5 + level / 2)) for level in levels]

    def measure(one: Learner, episode: Episode) -> Tensor:
        p, yq = _answers(one, theta, episode, points), episode.query.y
        away = (yq - p.mean).abs()
        # NaN counts as outside here, but it also makes the surprise NaN, which is refused.
        inside = [(away <= z * p.std).double().mean() for z in reach]
        likely = negative_log_likelihood(p, yq).double().mean()
        return torch.stack([*inside, likely, p.std.double().mean(), (away**2).double().mean()])

    return mapping.map_learner(measure, learner, episodes).cpu()


def _at_size(points: int, values: Tensor) -> AtSize:
    if not torch.isfinite(values).all():
        episode = int((~torch.isfinite(values)).any(1).nonzero()[0])
        raise NonFiniteError(f"test episode {episode} gives a distribution that is not finite with {points} points.")
    amounts = list(map(Amount.of, values.T))
    return AtSize(points, tuple(amounts[: -len(KINDS)]), *amounts[-len(KINDS) :])


# --- recalibrating ---------------------------------------------------------------------------------------------------


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
    >>> honest = qs.recalibrated(trained, qs.tasks.sinusoid("val"), episodes=20)
    >>> len(honest.learner.std_factors)  # after 0, 1, ..., 10 support points
    11

    Raises ConfigError where the learner has no distribution or no `std_factors`, or `points` are more than the tasks
    have, and NonFiniteError where a distribution is not finite.
    """
    demand(trained.learner, "distribution")
    _check(episodes, [level])
    if not hasattr(trained.learner, "std_factors"):
        raise ConfigError(f"{type(trained.learner).__name__} has no std_factors that could be set.")
    plain = dataclasses.replace(trained.learner, std_factors=())  # type: ignore[type-var]
    blocks = list(sample_blocks(tasks, episodes, seed, device_of(trained.theta)))
    points = _points(points, plain, min(map(_fewest, blocks)))
    found = [_factor(plain, trained.theta, blocks, k, level) for k in points]
    factors = tuple(float(f) for f in np.interp(range(max(points) + 1), points, found))
    return dataclasses.replace(trained, learner=dataclasses.replace(plain, std_factors=factors))


def _factor(learner: Learner, theta: Theta, blocks: Sequence[Episodes], points: int, level: float) -> float:
    @torch.no_grad()
    def away(episode: Episode) -> Tensor:
        p = _answers(learner, theta, episode, points)
        return (episode.query.y - p.mean).abs() / p.std

    ratios = torch.cat([away(episode).flatten() for block in blocks for episode in unstack(block)]).cpu().double()
    if not torch.isfinite(ratios).all():
        raise NonFiniteError(f"some test episode gives a distribution that is not finite with {points} points.")
    return float(np.quantile(ratios.numpy(), level) / ndtri(0.5 + level / 2))


SHOWN = (0.5, 0.8, 0.9, 0.95)  # levels in the table, as far as they were measured


def figure(found: Calibration, colours: Mapping[str, str]) -> Figure:
    from matplotlib.figure import Figure

    from quickstudy.base.figures import DASHES, SERIES

    figure = Figure(figsize=(4.6, 4.1), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color=colours["muted"], linestyle=":", linewidth=1.2)
    promised = [100 * level for level in found.levels]
    for i, one in enumerate(found.sizes):
        colour, dash = colours[SERIES[i % len(SERIES)]], DASHES[i // len(SERIES) % len(DASHES)]
        inside, half = ([100 * a[k] for a in one.coverage] for k in (0, 1))
        label = plural(one.points, "point")
        axes.plot(promised, inside, color=colour, linestyle=dash, linewidth=1.6, marker="o", markersize=3, label=label)
        if one is found.sizes[-1]:  # the bands of all lines would overlap
            low, high = ([y + sign * h for y, h in zip(inside, half, strict=True)] for sign in (-1, 1))
            axes.fill_between(promised, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlim=(0, 100), ylim=(0, 102), xlabel="level of the interval (%)", ylabel="values inside (%)")
    axes.legend(title="support", frameon=False, loc="upper left", fontsize=9)
    axes.tick_params(length=0)
    return figure
