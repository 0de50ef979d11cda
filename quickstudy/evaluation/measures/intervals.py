"""Are a learner's predictive intervals calibrated? Measures how many values of unseen tasks lie inside them.

    coverage(level)   share of the query values y with |y - m| <= z s,   z the quantile of (1 + level) / 2
    -log p            mean of -log N(y; m, s^2), in nats: lower is better, and it rewards narrow intervals too

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

import torch
from scipy.special import ndtri
from torch import Tensor

from quickstudy.base import trees
from quickstudy.base.words import plural
from quickstudy.engine.fitting import for_test
from quickstudy.episodes import examples, unstack
from quickstudy.errors import ConfigError, DataError
from quickstudy.evaluation.amount import Amount, aligned
from quickstudy.evaluation.choosing import chosen_engine
from quickstudy.evaluation.metric import ERROR, PERCENT, PLAIN
from quickstudy.evaluation.passes import Pass, begin, protocol_of, results
from quickstudy.evaluation.predictions import finite
from quickstudy.evaluation.protocol import Protocol
from quickstudy.learner import Episode, Learner, Theta, demand, setting
from quickstudy.learners.parts.gaussian import Gaussian, negative_log_likelihood

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
POINTS = (0, 1, 2, 3, 5, 10, 20, 50, 100)  # default numbers of support points
KINDS = ("negative_log_likelihood", "std", "error")
BARE_PERCENT = dataclasses.replace(PERCENT, unit="")
HEADINGS = ("-log p", "std", "mean squared error")


@dataclass(frozen=True)
class AtSize:
    """The measurement with `points` support points: means over test episodes."""

    points: int
    coverage: tuple[Amount, ...]  # share of the values inside the interval, for each level
    negative_log_likelihood: Amount  # per value, in nats
    std: Amount  # predicted standard deviation
    error: Amount  # squared error of the predicted means

    @property
    def surprise(self) -> Amount:
        """Deprecated: `negative_log_likelihood`."""
        return self.negative_log_likelihood


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
            {"points": one.points, "coverage": [a.to_dict() for a in one.coverage]}
            | {kind: getattr(one, kind).to_dict() for kind in KINDS}
            for one in self.sizes
        ]
        return {"levels": list(self.levels), "sizes": sizes, "protocol": self.protocol.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Calibration:
        """The calibration that `to_dict` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        levels = tuple(float(level) for level in plain["levels"])
        sizes = list(map(_size_of, plain["sizes"]))
        if not sizes or any(len(one.coverage) != len(levels) for one in sizes):
            raise ValueError("it holds no coverage of each level")
        return cls(levels, tuple(sizes), Protocol(**plain["protocol"]))

    def plot(self, path: str | os.PathLike) -> None:
        """Write the reliability curve: coverage against level. `path` ends with .png, .svg or .pdf."""
        from quickstudy.base.figures import save  # matplotlib takes a second to import

        save(path, lambda colours: figure(self, colours))


def _size_of(plain: Mapping[str, Any]) -> AtSize:
    likelihood = plain["surprise" if "surprise" in plain else KINDS[0]]  # files of earlier versions have the former
    amounts = (amount_of(one) for one in (likelihood, *(plain[kind] for kind in KINDS[1:])))
    return AtSize(int(plain["points"]), tuple(map(amount_of, plain["coverage"])), *amounts)


def _row(one: AtSize) -> tuple[str, ...]:
    inside = (a.in_words(BARE_PERCENT) for a in one.coverage)
    return (str(one.points), *inside, *(getattr(one, kind).in_words(PLAIN) for kind in KINDS))


def amount_of(plain: Mapping[str, Any] | Sequence[float]) -> Amount:
    """The amount of a file; those of earlier versions hold the mean and the half width alone."""
    if isinstance(plain, Amount):
        return plain
    if not isinstance(plain, Mapping):
        mean, interval = plain
        plain = {"mean": mean, "interval": interval}
    return Amount.from_dict(plain)


# --- measuring -------------------------------------------------------------------------------------------------------


def interval_coverage(
    trained: Any,
    tasks: Any,
    *,
    episodes: int = 400,
    seed: int = 1,
    levels: Sequence[float] = LEVELS,
    points: Sequence[int] | None = None,
    engine: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> Calibration:
    """Measure how many query values of unseen tasks lie inside the central intervals of a learner's distribution.

    `trained` has `.learner` and `.theta`; the learner has a `distribution` (cnp, anp). The episodes are those of
    `evaluate` with the same seed. `levels`: probabilities of the intervals. `points`: numbers of support points; with
    k points the first k of each task are used. None: those of POINTS from the fewest that the learner trains with up to
    the tasks' shots, and the shots. `engine` is as in `evaluate`. `progress(n)` is called with the number of episodes
    done since the last call.

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
    check(episodes, levels)
    learner, theta = for_test(trained.learner, tasks), trained.theta
    one = begin(learner, theta, tasks, episodes, seed)
    sizes, reach = points_of(points, learner, fewest_shown(one)), [quantile(level) for level in levels]

    def measure(learner: Learner, episode: Episode) -> Tensor:
        return torch.stack([_measured(learner, theta, episode, k, reach) for k in sizes])

    table = torch.stack(list(results(one, measure, chosen_engine(one, measure, engine), progress)))
    protocol = protocol_of(learner, tasks, "coverage of intervals", episodes, seed, seen=one.first)
    columns = zip(sizes, table.unbind(1), strict=True)
    return Calibration(tuple(levels), tuple(_at_size(k, values) for k, values in columns), protocol)


def quantile(level: float) -> float:
    """z, the standard normal quantile of (1 + level) / 2: half the width of the central interval of that level."""
    return float(ndtri(0.5 + level / 2))


def check(episodes: int, levels: Sequence[float]) -> None:
    """Raise ConfigError for fewer than two episodes and for levels that are no probabilities."""
    if episodes < 2:
        raise ConfigError(f"intervals over episodes need at least 2 of them, got {episodes}.")
    if not levels or not all(0 < level < 1 for level in levels):
        raise ConfigError(f"levels are probabilities between 0 and 1, got {', '.join(map(str, levels)) or 'none'}.")


def fewest_shown(one: Pass) -> int:
    """The smallest number of support examples of any task. Tasks of one size are alike in all blocks."""
    blocks = range(one.blocks) if isinstance(one.first, list) else range(1)
    return min(trees.size(task.support.y) for number in blocks for task in unstack(one.block(number)))


def points_of(asked: Sequence[int] | None, learner: Learner, shots: int) -> list[int]:
    """The numbers of support points to measure at, rising, of tasks with `shots` of them; see `interval_coverage`.

    Raises ConfigError where the learner cannot have one of those asked for, or the tasks cannot.
    """
    least = 0 if learner.from_nothing else 1
    if asked is None:
        fewest = max(least, min(setting(learner, "fewest", least), shots))
        return sorted({k for k in (*POINTS, shots) if fewest <= k <= shots})
    if not asked or not all(least <= k <= shots for k in asked):
        raise ConfigError(
            f"points are numbers of support points from {least} to the {shots} that the tasks have, got "
            f"{', '.join(map(str, asked)) or 'none'}."
        )
    return sorted(set(asked))  # the last is the largest, and numbers between two are interpolated


def distribution_after(learner: Learner, theta: Theta, episode: Episode, points: int) -> Gaussian:
    """The distribution of the query values after learning from the first `points` support points.

    Raises DataError where a task has fewer: it would be measured after fewer points than the row says.
    """
    if (shown := trees.size(episode.support.y)) < points:
        raise DataError(
            f"a test task has {shown} support points, but {points} were asked for. Ask for fewer points, or give tasks "
            "with more."
        )
    phi = learner.adapt(theta, examples(episode.support, slice(points)))
    return Gaussian(*learner.distribution(theta, phi, episode.query.x))


def _measured(learner: Learner, theta: Theta, episode: Episode, points: int, reach: Sequence[float]) -> Tensor:
    """[levels + 3]: coverage of each level and what KINDS says, as means over the task's values.

    `reach`: half the width of the interval of each level, in standard deviations.
    """
    p, yq = distribution_after(learner, theta, episode, points), episode.query.y
    away = (yq - p.mean).abs()
    # NaN counts as outside here, but it also makes the likelihood NaN, which is refused.
    inside = [(away <= z * p.std).double().mean() for z in reach]
    parts = negative_log_likelihood(p, yq), p.std, away**2
    return torch.stack([*inside, *(part.double().mean() for part in parts)])


def _at_size(points: int, values: Tensor) -> AtSize:
    columns = finite(values, f"a distribution that is not finite with {points} points.").T
    kinds = [PERCENT] * (len(columns) - len(KINDS)) + [PLAIN, ERROR, ERROR]
    amounts = [Amount.of(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    return AtSize(points, tuple(amounts[: -len(KINDS)]), *amounts[-len(KINDS) :])


SHOWN = (0.5, 0.8, 0.9, 0.95)  # levels in the table, as far as they were measured


def figure(calibration: Calibration, colours: Mapping[str, str]) -> Figure:
    from matplotlib.figure import Figure

    from quickstudy.base.figures import DASHES, SERIES

    figure = Figure(figsize=(4.6, 4.1), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color=colours["muted"], linestyle=":", linewidth=1.2)
    promised = [100 * level for level in calibration.levels]
    for i, one in enumerate(calibration.sizes):
        colour, dash = colours[SERIES[i % len(SERIES)]], DASHES[i // len(SERIES) % len(DASHES)]
        inside, low, high = ([100 * a[k] for a in one.coverage] for k in (0, 1, 2))
        label = plural(one.points, "point")
        axes.plot(promised, inside, color=colour, linestyle=dash, linewidth=1.6, marker="o", markersize=3, label=label)
        if one is calibration.sizes[-1]:  # the bands of all lines would overlap
            axes.fill_between(promised, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlim=(0, 100), ylim=(0, 102), xlabel="level of the interval (%)", ylabel="values inside (%)")
    axes.legend(title="support", frameon=False, loc="upper left", fontsize=9)
    axes.tick_params(length=0)
    return figure
