"""Confusion of classes: how often queries of class A are answered with class B, when both are classes of the task.

    rate(A, B) = (queries of A answered B) / (queries of A in episodes with both classes)

Each task has only a few classes of its pool, so most pairs occur together in few episodes, and a rate counts only those
episodes. The rates of one class add up to 1 only if every task has all classes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from quickstudy.evaluation.amount import aligned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

READABLE = 25  # most classes of a readable matrix; with more, pairs that were never confused are not kept
PRINTED = 10  # most pairs that are printed


@dataclass(frozen=True)
class Pair:
    """How often queries of one class (`truth`) were answered with another class, or with the same (`answer`)."""

    truth: str
    answer: str
    answered: int  # queries of `truth` that got this answer
    asked: int  # queries of `truth` in episodes with both classes
    episodes: int  # number of those episodes

    @property
    def rate(self) -> float:
        """The share of the queries asked that got this answer."""
        return self.answered / self.asked

    @property
    def at_least(self) -> float:
        """The lower end of Wilson's 95 % interval for the rate.

        Each episode counts as one trial, because errors of its queries are correlated.
        """
        n, p, z = self.episodes, self.rate, 1.96
        return (p + z**2 / (2 * n) - z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))) / (1 + z**2 / n)


@dataclass(frozen=True)
class Confusion:
    """The pairs of named classes that occurred together in test episodes."""

    pairs: tuple[Pair, ...]

    def __getitem__(self, names: tuple[str, str]) -> Pair:
        """The pair (truth, answer): confusion["seal", "otter"]. Raises KeyError where it is not among the pairs."""
        return {(one.truth, one.answer): one for one in self.pairs}[names]

    @property
    def names(self) -> tuple[str, ...]:
        """The classes that had queries, sorted by name."""
        return tuple(sorted({one.truth for one in self.pairs}))

    @property
    def confused(self) -> list[Pair]:
        """The pairs of different classes that were confused, the clearest (largest `at_least`) first."""
        wrong = [one for one in self.pairs if one.truth != one.answer and one.answered]
        return sorted(wrong, key=lambda one: (-one.at_least, one.truth, one.answer))

    def __str__(self) -> str:
        head = ("truth", "answer", "rate", "queries", "episodes")
        rows = [
            (one.truth, one.answer, f"{100 * one.rate:.1f} %", f"{one.answered} of {one.asked}", str(one.episodes))
            for one in self.confused[:PRINTED]
        ]
        return "\n".join(aligned([head, *rows])) if rows else "no class was taken for another"

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for answers.json: one list for each field, with classes as indices into `names`."""
        names = sorted({name for one in self.pairs for name in (one.truth, one.answer)})
        place = {name: i for i, name in enumerate(names)}
        columns = {key: [place[getattr(one, key)] for one in self.pairs] for key in ("truth", "answer")}
        columns |= {key: [getattr(one, key) for one in self.pairs] for key in ("answered", "asked", "episodes")}
        return {"names": names} | columns

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Confusion:
        """The confusion that `to_dict` wrote.

        Raises ValueError, KeyError, IndexError or TypeError for anything else.
        """
        names = [str(name) for name in plain["names"]]
        columns = [plain[key] for key in ("truth", "answer", "answered", "asked", "episodes")]
        pairs = tuple(Pair(names[t], names[a], *map(int, numbers)) for t, a, *numbers in zip(*columns, strict=True))
        if any(not (0 <= one.answered <= one.asked and 0 < one.episodes <= one.asked) for one in pairs):
            raise ValueError("a pair of classes has more answers than queries")
        return cls(pairs)

    def plot(self, path: str | os.PathLike) -> None:
        """Write the matrix of rates as a picture. `path` ends with .png, .svg or .pdf."""
        from quickstudy.base.figures import save  # matplotlib takes a second to import

        save(path, lambda colours: _figure(self, colours))


# --- measuring -------------------------------------------------------------------------------------------------------


def confusion_of(episodes: Iterable[tuple[Sequence[str], Tensor]]) -> Confusion:
    """The confusion over episodes, from the class names and a table of query counts for each.

    A table is [n, n] by truth and answer, with n at least the number of ways. A learner with more outputs than ways may
    give answers that are not a class of the task; they belong to no pair.
    """
    totals: dict[tuple[str, str], list[int]] = {}
    for names, table in episodes:
        for truth, row in zip(names, table.long().tolist(), strict=False):
            asked = sum(row)
            for answer, answered in zip(names, row if asked else (), strict=False):
                total = totals.setdefault((truth, answer), [0, 0, 0])
                for i, n in enumerate((answered, asked, 1)):
                    total[i] += n
    few = len({truth for truth, _ in totals}) <= READABLE
    kept = ((pair, total) for pair, total in sorted(totals.items()) if few or total[0] or pair[0] == pair[1])
    return Confusion(tuple(Pair(*pair, *total) for pair, total in kept))


def _figure(confusion: Confusion, colours: Mapping[str, str]) -> Figure:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    names, rates = confusion.names, {(one.truth, one.answer): one.rate for one in confusion.pairs}
    side = 2.0 + 0.34 * len(names)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    table = [[rates.get((truth, answer), float("nan")) for answer in names] for truth in names]
    axes.imshow(table, cmap=LinearSegmentedColormap.from_list("", [colours["page"], colours["s1"]]), vmin=0, vmax=1)
    for row, rank in enumerate(table):
        for column, rate in enumerate(rank):
            ink = colours["page" if rate > 0.5 else "ink"]
            if rate == rate:  # not NaN: the two classes have met in a task
                axes.text(column, row, f"{100 * rate:.0f}", ha="center", va="center", color=ink, fontsize=8)
    places = range(len(names))
    axes.set_xticks(places, names, rotation=90, parse_math=False)
    axes.set_yticks(places, names, parse_math=False)
    axes.set(xlabel="answered (%)", ylabel="is")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    return figure
