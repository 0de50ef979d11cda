"""The one rule behind all verdicts of a comparison: which entries may be the best, and which are as good.

    p_ij       two-sided p-value of the paired difference between entries i and j
    beaten     j beats i if it is ahead and p_ij, Holm-adjusted among all the comparisons of i, is at most 5 %
    may be     i may be the best if none beats it
    as good    i loses at most a margin to the best; or it may be the best and loses at most three margins

So the entry that really is the best is beaten in at most 5 % of comparisons, however many it meets. A statement about
the best ("no baseline may be the best") is wrong no more often, although the best is picked after the test, and needs
no correction for all pairs (subset selection, Gupta 1965, https://doi.org/10.1080/00401706.1965.10490251; comparisons
with the best, Hsu 1984, https://doi.org/10.1214/aos/1176346732).

A margin is a point of accuracy, or a twentieth of the best error. There is a limit of three, because one whose scores
vary wildly may be the best for all that the test can say.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from quickstudy.evaluation.score import Difference, Score, compare
from quickstudy.experiments.comparison import Entry, LearnerComparison

LEVEL = 0.05
POINT = 0.01  # the margin, as a share of the largest possible score
TWENTIETH = 0.05  # the margin as a share of the best score, where scores have no largest one
MARGINS = 3.0  # what one that may be the best may lose


class Standing(NamedTuple):
    """Where an entry stands in its comparison."""

    entry: Entry
    loss: Difference  # how far it is behind the best one, positive where it is worse
    beaten_by: tuple[str, ...]  # the entries that beat it, best first
    as_good: bool

    @property
    def may_be_best(self) -> bool:
        return not self.beaten_by


def standings(comparison: LearnerComparison) -> list[Standing]:
    """Where each entry stands, the best one first."""
    entries = comparison.entries
    names, scores = [entry.name for entry in entries], [entry.score for entry in entries]
    allowed, found = _margin(scores[0]), []
    for entry, score, better in zip(entries, scores, beaten(scores), strict=True):
        loss = compare(scores[0], score) if score.metric.higher_is_better else compare(score, scores[0])
        as_good = loss.mean <= (allowed if better else MARGINS * allowed)
        found.append(Standing(entry, loss, tuple(names[i] for i in better), as_good))
    return found


def beaten(scores: Sequence[Score]) -> list[list[int]]:
    """For each score the places of those that beat it (see the top of this file).

    Raises ProtocolError where two of them were not measured under the same protocol.
    """
    met: dict[tuple[int, int], tuple[float, float]] = {}  # how far one is ahead of another, and the p-value
    for i, j in itertools.combinations(range(len(scores)), 2):
        difference = compare(scores[i], scores[j])
        ahead = scores[i].metric.sign * difference.mean
        met[i, j], met[j, i] = (ahead, difference.p), (-ahead, difference.p)
    return [_beating({j: met[i, j] for j in range(len(scores)) if j != i}) for i in range(len(scores))]


def _beating(met: Mapping[int, tuple[float, float]]) -> list[int]:
    """Who beats a score, of those that it met: place -> how far it is ahead, and the p-value."""
    adjusted = holm([p for _, p in met.values()])
    return [j for (j, (ahead, _)), p in zip(met.items(), adjusted, strict=True) if ahead < 0 and p <= LEVEL]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p-values (Holm 1979, https://www.jstor.org/stable/4615733), in their order.

    The smallest of n is multiplied by n, the next by n - 1, and so on, and none may be below one that comes before it.

    >>> holm([0.03, 0.01, 0.5])
    [0.06, 0.03, 0.5]
    """
    adjusted, most = [0.0] * len(p), 0.0
    for done, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        most = max(most, min(1.0, (len(p) - done) * p[i]))
        adjusted[i] = most
    return adjusted


def _margin(best: Score) -> float:
    largest = best.metric.format.largest
    return TWENTIETH * abs(best.mean) if largest is None else POINT * largest
