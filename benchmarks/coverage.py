"""How often do 95 % intervals hold the true mean, and how often is "no difference" rejected where there is none?

    python -m benchmarks.coverage         about 2 minutes on one core

Every case draws the scores of a test from a known distribution, a thousand times, and counts how often the interval
of `quickstudy.evaluation` holds the mean. The table is written to benchmarks/results/coverage.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import tyro

from benchmarks.provenance import COMMIT, RESULTS
from quickstudy.evaluation.confidence import mean_difference, mean_interval
from quickstudy.evaluation.metric import ERROR, PERCENT, PLAIN, Format

Draw = Callable[[np.random.Generator], np.ndarray]
BAND = (0.93, 0.97)  # what the tests ask of a coverage
# The bounds of cases that no method tried brought there; docs/evaluation.md says why.
FEW, TWO, TAIL = (0.93, 1.0), (0.92, 0.985), (0.90, 0.97)
SPREADS = {"a third of": 1 / 3, "as large as": 1.0, "three times": 3.0}  # of the standard error over tasks


@dataclass(frozen=True)
class Case:
    """Scores of a known mean: how they are drawn, [tasks] or [trainings, tasks], and what their metric allows."""

    name: str
    draw: Draw
    mean: float
    of: Format
    bounds: tuple[float, float] = BAND

    def coverage(self, repeats: int) -> tuple[float, float, float]:
        """How often the interval holds the mean, lies above it, and lies below it."""
        drawn = (self.draw(np.random.default_rng(i)) for i in range(repeats))
        found = [mean_interval(torch.from_numpy(values), self.of) for values in drawn]
        above, below = (sum(map(miss, found)) / repeats for miss in (self._above, self._below))
        return 1 - above - below, above, below

    def _above(self, ends: tuple[float, float]) -> bool:
        return ends[0] > self.mean

    def _below(self, ends: tuple[float, float]) -> bool:
        return ends[1] < self.mean


@dataclass(frozen=True)
class Null:
    """Two learners that are equally good: how their scores are drawn, a [trainings, tasks] and b."""

    name: str
    draw: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]
    bounds: tuple[float, float] = BAND

    def coverage(self, repeats: int) -> float:
        """How often the difference is not decided."""
        pairs = (self.draw(np.random.default_rng(i)) for i in range(repeats))
        return sum(mean_difference(*map(torch.from_numpy, pair))[2] >= 0.05 for pair in pairs) / repeats


# --- what is drawn ---------------------------------------------------------------------------------------------------


def shares(mean: float, episodes: int, queries: int, clustered: float, rng: np.random.Generator) -> np.ndarray:
    """Shares of right answers; `clustered` is the correlation of two answers of one episode, 0: independent ones."""
    if clustered:
        total = 1 / clustered - 1
        mean = rng.beta(mean * total, (1 - mean) * total, episodes)  # type: ignore[assignment]
    return rng.binomial(queries, mean, episodes) / queries


def lognormal(sigma: float, tasks: int, rng: np.random.Generator) -> np.ndarray:
    return np.exp(sigma * rng.standard_normal(tasks) - sigma**2 / 2)


def crossed(trainings: int, tasks: int, spread: float, rng: np.random.Generator, own: float = 0.5) -> np.ndarray:
    """Scores of several trainings on the same tasks: y = a_r + b_i + e_ri.

    spread   standard deviation of the mean that comes from the trainings, in that which comes from the tasks
    own      the part of a task's variance that is each training's own
    """
    residual = own / trainings
    a = rng.standard_normal((trainings, 1)) * spread * np.sqrt(trainings * (1 - own + residual) / tasks)
    b = rng.standard_normal(tasks) * np.sqrt(1 - own)
    return a + b + rng.standard_normal((trainings, tasks)) * np.sqrt(own)


def two(a: int, b: int, spread: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two learners on the same tasks, whose difficulty they share in part; 1 training is a baseline without any."""
    tasks, own, apart = 300, 0.4, 0.3  # variances: of a training on a task, and of a learner on a task
    difficulty = rng.standard_normal(tasks)
    error = np.sqrt((own * (1 / a + 1 / b) + 2 * apart) / tasks)
    each = spread * error / np.sqrt((a > 1) + (b > 1))

    def side(trainings: int) -> np.ndarray:
        means = rng.standard_normal((trainings, 1)) * each * np.sqrt(trainings) * (trainings > 1)
        learner = difficulty + np.sqrt(apart) * rng.standard_normal(tasks)
        return learner + means + np.sqrt(own) * rng.standard_normal((trainings, tasks))

    return side(a), side(b)


def _ordinary() -> Iterator[Case]:
    for tasks in (2, 3, 5, 10, 25):
        yield Case(f"normal values, {tasks} tasks", lambda rng, n=tasks: 0.3 + 2 * rng.standard_normal(n), 0.3, PLAIN)
    for tasks in (2, 5, 10, 25, 200):
        name = f"normal errors of 3 ± 0.6, {tasks} tasks"
        yield Case(name, lambda rng, n=tasks: np.abs(3 + 0.6 * rng.standard_normal(n)), 3.0, ERROR)
    for tasks in (25, 200):
        yield Case(f"exponential errors, {tasks} tasks", lambda rng, n=tasks: rng.exponential(1, n), 1.0, ERROR)
    for tasks in (10, 25):
        name = f"squares of normal errors, {tasks} tasks"
        yield Case(name, lambda rng, n=tasks: rng.standard_normal(n) ** 2, 1.0, ERROR)


def _heavy() -> Iterator[Case]:
    for sigma, tasks in ((1.0, 25), (1.5, 5), (1.5, 10), (1.5, 25), (1.5, 100), (1.5, 600)):
        yield Case(f"lognormal errors, sigma {sigma:g}, {tasks} tasks", partial(lognormal, sigma, tasks), 1.0, ERROR)
    yield Case("Pareto errors of exponent 3, 25 tasks", lambda rng: 1 + rng.pareto(3, 25), 1.5, ERROR, TAIL)


def _shares() -> Iterator[Case]:
    sizes = [(600, 25), (600, 75), (100, 25), (100, 75)]
    hard = [(0.999, n, m, clustered) for n, m in sizes for clustered in (0.0, 0.02, 0.1)]
    hard += [(0.001, n, m, 0.0) for n, m in sizes]
    ordinary = [(mean, n, 75, 0.02) for mean in (0.97, 0.8) for n in (25, 100, 600)]
    ordinary += [(0.8, n, 25, 0.1) for n in (5, 10)]
    for mean, n, m, clustered in hard + ordinary:
        few = n == 100 and mean in (0.999, 0.001) and (clustered or m == 75)  # a handful of episodes with any error
        name = f"{100 * mean:g} % right, {n} episodes of {m}, clustered {clustered:g}"
        yield Case(name, partial(shares, mean, n, m, clustered), mean, PERCENT, FEW if few else BAND)
    yield Case("all right, 600 episodes", lambda rng: np.ones(600), 1.0, PERCENT, (1.0, 1.0))


def _trainings() -> Iterator[Case]:
    for trainings in (2, 3, 5, 10):
        for words, spread in SPREADS.items():
            name = f"{trainings} trainings, spread {words} that of 300 tasks"
            bounds = TWO if trainings == 2 else BAND
            yield Case(name, partial(crossed, trainings, 300, spread), 0.0, PLAIN, bounds)


def _nulls() -> Iterator[Null]:
    for sides in ((2, 2), (3, 3), (5, 5), (10, 10), (3, 5), (3, 1), (5, 1)):
        for words, spread in SPREADS.items():
            name = f"{sides[0]} against {sides[1]} trainings, spread {words} that of 300 tasks"
            yield Null(name, partial(two, *sides, spread), BAND if min(sides) > 3 else FEW)
    yield Null("one training each, 25 tasks of normal values", lambda rng: tuple(rng.standard_normal((2, 1, 25))))
    heavy = "one training each, 25 tasks of lognormal errors, sigma 1.5"
    yield Null(heavy, lambda rng: (lognormal(1.5, 25, rng)[None], lognormal(1.5, 25, rng)[None]), FEW)


CASES = (*_ordinary(), *_heavy(), *_shares(), *_trainings())
NULLS = tuple(_nulls())


def main(repeats: int = 1000) -> None:
    """Simulate every case and write the table."""
    lines = [
        "# Coverage of 95 % intervals",
        "",
        f"Command: `python -m benchmarks.coverage`, commit {COMMIT}, {repeats:,} draws a case: seeds 0, 1, 2, ...",
        "",
    ]
    lines += ["| scores | holds the mean | too high | too low |", "|---|---|---|---|"]
    for case in CASES:
        lines.append(f"| {case.name} | {' | '.join(f'{100 * share:.1f} %' for share in case.coverage(repeats))} |")
        print(lines[-1], flush=True)
    lines += ["", "Differences of equally good learners:", "", "| scores | not decided |", "|---|---|"]
    for null in NULLS:
        lines.append(f"| {null.name} | {100 * null.coverage(repeats):.1f} % |")
        print(lines[-1], flush=True)
    (RESULTS / "coverage.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
